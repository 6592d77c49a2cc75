//! Sends requests over a number of connections, and measures how they are answered.
//!
//! In a closed loop each connection sends its next request once the last was answered. In an open
//! loop requests are due at a constant rate whatever the service does, and a latency is counted from
//! when its request was due, so that a stall shows in every request that it delayed.
//!
//! A broken connection is made again. What it had sent and had no answer to is lost from sight, which
//! the [`Ledger`] knows.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::TryStreamExt as _;
use futures::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::unconstrained;
use tokio::time::{sleep, timeout};

use crate::audit::Ledger;
use crate::http::{Answer, Connection, Target};
use crate::requests::{Organizations, Request, Shape, Spread};

/// How long a service may take no connections, or requests that are due may wait for one.
const PATIENCE: Duration = Duration::from_secs(20);

/// A service that answers nothing for so long is given up.
const STALL: Duration = Duration::from_mins(2);

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(10);

/// How often an open loop looks at the clock. Tokio's timers are ten times as coarse.
const TICK: Duration = Duration::from_micros(100);

/// What is sent to whom, how fast, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) target: Target,
    pub(crate) shape: Shape,
    pub(crate) connections: usize,
    pub(crate) organizations: u32,
    pub(crate) spread: Spread,
    /// Of Zipf's distribution.
    pub(crate) exponent: f64,
    /// Requests a second of an open loop; none is a closed loop.
    pub(crate) rate: Option<u32>,
    /// At the beginning, not measured.
    pub(crate) warm_up: Duration,
    pub(crate) until: Until,
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// After so long, the warm-up not counted.
    Elapsed(Duration),
    /// After so many requests, those of the warm-up included.
    Requests(u64),
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) seconds: f64,
    /// Requests that were answered.
    pub(crate) requests: u64,
    pub(crate) requests_per_second: f64,
    /// Items of batches that were counted or denied; of single calls, those answered 2xx or 429.
    pub(crate) items: u64,
    pub(crate) items_per_second: f64,
    /// Items that were neither.
    pub(crate) failed: u64,
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Requests whose connection broke, or that were not answered in time.
    pub(crate) unanswered: u64,
    /// Requests that were due and not sent, because the service did not keep up.
    pub(crate) unsent: u64,
    pub(crate) latency_ms: Latency,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

/// Sends it all, and notes in the ledger what became of it.
pub(crate) async fn run(load: &Load, ledger: Option<&RefCell<Ledger>>) -> Result<Report> {
    let running = Running::new(load, ledger)?;
    let workers: FuturesUnordered<_> = (0..load.connections).map(|_| running.work()).collect();
    // Tokio's budget for one task would end each of its rounds early.
    let mut all = Box::pin(unconstrained(workers.try_collect::<()>()));
    loop {
        let noted = running.noted.get();
        match timeout(STALL, &mut all).await {
            Ok(worked) => break worked?,
            Err(_) if running.noted.get() == noted => break,
            Err(_) => {}
        }
    }
    drop(all);
    Ok(running.report())
}

/// A load on its way.
struct Running<'a> {
    load: &'a Load,
    ledger: Option<&'a RefCell<Ledger>>,
    request: Request,
    organizations: RefCell<Organizations>,
    pace: Option<Pace>,
    begun: Instant,
    /// Requests that were begun.
    serial: Cell<u64>,
    /// Requests that were sent.
    sent: Cell<u64>,
    /// Requests that were answered, or whose connection broke.
    noted: Cell<u64>,
    measured: RefCell<Measured>,
}

#[derive(Debug)]
struct Measured {
    latency: Histogram<u64>,
    statuses: BTreeMap<u16, u64>,
    items: u64,
    failed: u64,
    unanswered: u64,
    last: Instant,
}

/// One request's turn.
struct Turn {
    serial: u64,
    /// When it was due; none is now.
    due: Option<Instant>,
}

/// The body of an answered batch, as far as it is looked at.
#[derive(Deserialize)]
struct Summary {
    counted: u64,
    denied: u64,
    failed: u64,
    /// The items that were not counted.
    results: Vec<ItemResult>,
}

#[derive(Deserialize)]
struct ItemResult {
    index: usize,
    status: u16,
}

impl<'a> Running<'a> {
    fn new(load: &'a Load, ledger: Option<&'a RefCell<Ledger>>) -> Result<Self> {
        let run = unique();
        let begun = Instant::now();
        let pace = load
            .rate
            .map(|rate| Pace::start(load, rate, begun))
            .transpose()?;
        Ok(Self {
            load,
            ledger,
            request: Request::new(&load.shape, &load.target, run),
            organizations: RefCell::new(Organizations::new(
                load.organizations,
                load.spread,
                load.exponent,
            )?),
            pace,
            begun,
            serial: Cell::new(0),
            sent: Cell::new(0),
            noted: Cell::new(0),
            measured: RefCell::new(Measured {
                // From a microsecond to two minutes, in nanoseconds.
                latency: Histogram::new_with_bounds(1_000, 120_000_000_000, 3)?,
                statuses: BTreeMap::new(),
                items: 0,
                failed: 0,
                unanswered: 0,
                last: begun + load.warm_up,
            }),
        })
    }

    async fn work(&self) -> Result<()> {
        let mut connection = Connection::new(&self.load.target);
        let mut request = self.request.clone();
        let mut chosen = Vec::with_capacity(request.items());
        while let Some(turn) = self.turn().await {
            if !self.connect(&mut connection).await? {
                return Ok(());
            }
            let bytes = request.prepare(
                &mut self.organizations.borrow_mut(),
                turn.serial,
                &mut chosen,
            );
            if let Some(ledger) = self.ledger {
                ledger.borrow_mut().sent(&chosen);
            }
            self.sent.update(|number| number + 1);
            let since = turn.due.unwrap_or_else(Instant::now);
            let answer = connection.ask(bytes).await;
            self.noted.update(|number| number + 1);
            match answer {
                Ok(answer) => self.note(&chosen, since, &answer)?,
                Err(_) => self.measured.borrow_mut().unanswered += 1,
            }
        }
        Ok(())
    }

    /// Waits for the next request to be due; none once the load has ended.
    async fn turn(&self) -> Option<Turn> {
        let Some(pace) = &self.pace else {
            let serial = self.serial.replace(self.serial.get() + 1);
            let ended = match self.load.until {
                Until::Elapsed(duration) => self.begun.elapsed() >= self.load.warm_up + duration,
                Until::Requests(number) => serial >= number,
            };
            return (!ended).then_some(Turn { serial, due: None });
        };
        pace.due.acquire().await.ok()?.forget();
        let serial = self.serial.get();
        let due = self.begun + pace.after(serial);
        // A backlog that has not gone by now never will.
        if serial >= pace.total || due.elapsed() > PATIENCE {
            return None;
        }
        self.serial.set(serial + 1);
        Some(Turn {
            serial,
            due: Some(due),
        })
    }

    /// Connects if need be. False where the load ends before the service is back.
    async fn connect(&self, connection: &mut Connection) -> Result<bool> {
        let begun = Instant::now();
        while let Err(cause) = connection.open().await {
            if begun.elapsed() > PATIENCE {
                return Err(cause).context("the service does not take connections");
            }
            if let Until::Elapsed(duration) = self.load.until
                && self.begun.elapsed() > self.load.warm_up + duration
            {
                return Ok(false);
            }
            sleep(PAUSE).await;
        }
        Ok(true)
    }

    fn note(&self, chosen: &[u32], since: Instant, answer: &Answer<'_>) -> Result<()> {
        let now = Instant::now();
        if [401, 403].contains(&answer.status) {
            bail!("the service does not accept the key ({})", answer.status);
        }
        let summary: Option<Summary> = match self.load.shape.batch {
            Some(_) if answer.status == 200 => {
                Some(serde_json::from_slice(answer.body).context("not the answer to a batch")?)
            }
            _ => None,
        };
        if let Some(ledger) = self.ledger {
            let ledger = &mut *ledger.borrow_mut();
            let mut statuses = vec![answer.status; chosen.len()];
            for result in summary.iter().flat_map(|summary| &summary.results) {
                if let Some(status) = statuses.get_mut(result.index) {
                    *status = result.status;
                }
            }
            for (organization, status) in chosen.iter().zip(statuses) {
                ledger.answered(*organization, status);
            }
        }
        if since < self.begun + self.load.warm_up {
            return Ok(());
        }
        let measured = &mut *self.measured.borrow_mut();
        let took = u64::try_from((now - since).as_nanos()).unwrap_or(u64::MAX);
        measured.latency.saturating_record(took);
        *measured.statuses.entry(answer.status).or_default() += 1;
        measured.last = now;
        let number = u64::try_from(chosen.len())?;
        match (summary, answer.status) {
            (Some(summary), _) => {
                measured.items += summary.counted + summary.denied;
                measured.failed += summary.failed;
            }
            (None, 200 | 204 | 429) => measured.items += number,
            (None, _) => measured.failed += number,
        }
        Ok(())
    }

    fn report(&self) -> Report {
        let measured = self.measured.borrow();
        let seconds = (measured.last - self.begun)
            .saturating_sub(self.load.warm_up)
            .as_secs_f64();
        let requests = measured.latency.len();
        let at = |quantile| float(measured.latency.value_at_quantile(quantile)) / 1e6;
        let due = self.pace.as_ref().map_or(0, |pace| pace.total);
        Report {
            seconds,
            requests,
            requests_per_second: float(requests) / seconds.max(1e-9),
            items: measured.items,
            items_per_second: float(measured.items) / seconds.max(1e-9),
            failed: measured.failed,
            statuses: measured.statuses.clone(),
            unanswered: measured.unanswered + self.sent.get() - self.noted.get(),
            unsent: due.saturating_sub(self.serial.get()),
            latency_ms: Latency {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: float(measured.latency.max()) / 1e6,
            },
        }
    }
}

impl Report {
    /// Fails where anything was not answered as it should have been, since then nothing was measured.
    pub(crate) fn flawless(self, what: &str) -> Result<Self> {
        let wrong = self.failed + self.unanswered;
        if wrong > 0 {
            bail!("{what}: {wrong} items failed or were not answered: {self:?}");
        }
        Ok(self)
    }
}

/// Says when requests are due, from a thread of its own.
struct Pace {
    /// Nanoseconds between two requests.
    interval: u64,
    /// Requests that are due in the end.
    total: u64,
    /// A permit for each request that is due and has not begun.
    due: Arc<Semaphore>,
}

impl Pace {
    fn start(load: &Load, rate: u32, begun: Instant) -> Result<Self> {
        let interval = 1_000_000_000 / u64::from(rate.max(1));
        let total = match load.until {
            Until::Elapsed(duration) => {
                u64::try_from((load.warm_up + duration).as_nanos())? / interval
            }
            Until::Requests(number) => number,
        };
        let pace = Self {
            interval,
            total,
            due: Arc::new(Semaphore::new(0)),
        };
        let (due, workers) = (Arc::clone(&pace.due), load.connections);
        thread::Builder::new()
            .name("pace".to_owned())
            .spawn(move || {
                let mut released = 0;
                while released < total && !due.is_closed() {
                    let elapsed = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    let now = (elapsed / interval + 1).min(total);
                    due.add_permits(usize::try_from(now - released).unwrap_or(0));
                    released = now;
                    thread::sleep(TICK);
                }
                // So that each worker hears of the end.
                due.add_permits(workers);
            })
            .context("a thread cannot be started")?;
        Ok(pace)
    }

    fn after(&self, serial: u64) -> Duration {
        Duration::from_nanos(self.interval.saturating_mul(serial))
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.due.close();
    }
}

/// A number that no other run has.
fn unique() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// What was counted, as something to calculate ratios with.
#[expect(
    clippy::cast_precision_loss,
    reason = "what is counted here stays far below 2^53"
)]
pub(crate) fn float(number: u64) -> f64 {
    number as f64
}
