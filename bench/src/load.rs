//! Sends requests over a number of connections, and measures the responses.
//!
//! In a closed loop each connection sends its next request after the response to the last one. In an
//! open loop requests are due at a constant rate whatever the service does, and latency is measured
//! from the moment when a request was due, so that a stall shows in every request that it delayed.
//!
//! Broken connections are replaced. The outcome of a request without a response is unknown, which the
//! [`Ledger`] takes into account.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::TryStreamExt as _;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::task::unconstrained;
use tokio::time::{sleep, timeout};

use crate::audit::Ledger;
use crate::http::{Connection, Response, Target};
use crate::latency::Latencies;
use crate::pace::Pace;
use crate::requests::{Organizations, Shape, Spread, Template};

/// How long a service may refuse connections, and how long due requests may wait for a connection.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// A load is aborted after this long without any response.
const STALL: Duration = Duration::from_mins(2);

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(10);

/// What to send, how fast, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) target: Target,
    pub(crate) shape: Shape,
    pub(crate) connections: usize,
    pub(crate) organizations: u32,
    pub(crate) spread: Spread,
    /// Exponent of Zipf's distribution.
    pub(crate) exponent: f64,
    /// Requests per second of an open loop; none for a closed loop.
    pub(crate) rate: Option<u32>,
    /// Before the measurement.
    pub(crate) warm_up: Duration,
    pub(crate) until: Until,
}

impl Load {
    /// Number of requests at this rate.
    fn total(&self, rate: u32) -> Result<u64> {
        Ok(match self.until {
            Until::Elapsed(duration) => {
                u64::try_from((self.warm_up + duration).as_nanos())? / Pace::interval(rate)
            }
            Until::Requests(number) => number,
        })
    }
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// After this time, in addition to the warm-up.
    Elapsed(Duration),
    /// After this many requests, including those of the warm-up.
    Requests(u64),
}

/// The result.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) seconds: f64,
    /// Requests with a response.
    pub(crate) requests: u64,
    pub(crate) requests_per_second: f64,
    /// Items of batches that were counted or denied; single calls with a status of 2xx or 429.
    pub(crate) items: u64,
    pub(crate) items_per_second: f64,
    /// All other items.
    pub(crate) failed: u64,
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Requests whose connection broke, or whose response was overdue.
    pub(crate) unanswered: u64,
    /// Requests that were due and not sent because the service did not keep up.
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

/// Sends all requests, and records their outcomes in the ledger.
pub(crate) async fn run(load: &Load, ledger: Option<&RefCell<Ledger>>) -> Result<Report> {
    let running = Running::new(load, ledger)?;
    let workers: FuturesUnordered<_> = (0..load.connections).map(|_| running.work()).collect();
    // Tokio's cooperative budget would make all workers of this task yield together.
    let mut all = Box::pin(unconstrained(workers.try_collect::<()>()));
    loop {
        let completed = running.completed.get();
        match timeout(STALL, &mut all).await {
            Ok(worked) => break worked?,
            Err(_) if running.completed.get() == completed => break,
            Err(_) => {}
        }
    }
    drop(all);
    Ok(running.report())
}

/// A load in progress.
struct Running<'a> {
    load: &'a Load,
    ledger: Option<&'a RefCell<Ledger>>,
    template: Template,
    organizations: RefCell<Organizations>,
    pace: Option<Pace>,
    start: Instant,
    /// Requests that were started.
    serial: Cell<u64>,
    /// Requests that were sent.
    sent: Cell<u64>,
    /// Requests with a response, or with a broken connection.
    completed: Cell<u64>,
    measured: RefCell<Measured>,
}

#[derive(Debug)]
struct Measured {
    latency: Latencies,
    statuses: BTreeMap<u16, u64>,
    items: u64,
    failed: u64,
    unanswered: u64,
    last: Instant,
}

/// The next request of a worker.
struct Turn {
    serial: u64,
    /// When it was due; none means now.
    due: Option<Instant>,
}

/// The used part of the response to a batch.
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
        let start = Instant::now();
        let pace = load
            .rate
            .map(|rate| Pace::start(rate, load.total(rate)?, load.connections, start))
            .transpose()?;
        Ok(Self {
            load,
            ledger,
            template: Template::new(&load.shape, &load.target, run)?,
            organizations: RefCell::new(Organizations::new(
                load.organizations,
                load.spread,
                load.exponent,
            )?),
            pace,
            start,
            serial: Cell::new(0),
            sent: Cell::new(0),
            completed: Cell::new(0),
            measured: RefCell::new(Measured {
                // From a microsecond to two minutes, in nanoseconds.
                latency: Latencies::new()?,
                statuses: BTreeMap::new(),
                items: 0,
                failed: 0,
                unanswered: 0,
                last: start + load.warm_up,
            }),
        })
    }

    async fn work(&self) -> Result<()> {
        let mut connection = Connection::new(&self.load.target);
        let mut template = self.template.clone();
        let mut chosen = Vec::with_capacity(template.items());
        while let Some(turn) = self.turn().await {
            if !self.connect(&mut connection).await? {
                return Ok(());
            }
            let request = template.request(
                &mut self.organizations.borrow_mut(),
                turn.serial,
                &mut chosen,
            )?;
            if let Some(ledger) = self.ledger {
                ledger.borrow_mut().sent(&chosen);
            }
            self.sent.update(|number| number + 1);
            let since = turn.due.unwrap_or_else(Instant::now);
            let response = connection.send(request).await;
            self.completed.update(|number| number + 1);
            match response {
                Ok(response) => self.record(&chosen, since, &response)?,
                Err(_) => self.measured.borrow_mut().unanswered += 1,
            }
        }
        Ok(())
    }

    /// Waits until the next request is due; none when the load has ended.
    async fn turn(&self) -> Option<Turn> {
        let Some(pace) = &self.pace else {
            let serial = self.serial.replace(self.serial.get() + 1);
            let ended = match self.load.until {
                Until::Elapsed(duration) => self.start.elapsed() >= self.load.warm_up + duration,
                Until::Requests(number) => serial >= number,
            };
            return (!ended).then_some(Turn { serial, due: None });
        };
        pace.due.acquire().await.ok()?.forget();
        let serial = self.serial.get();
        let due = self.start + pace.after(serial);
        // The service does not keep up.
        if serial >= pace.total || due.elapsed() > WAIT_MAX {
            return None;
        }
        self.serial.set(serial + 1);
        Some(Turn {
            serial,
            due: Some(due),
        })
    }

    /// Connects if needed. False if the load ends before the service accepts a connection.
    async fn connect(&self, connection: &mut Connection) -> Result<bool> {
        let start = Instant::now();
        while let Err(cause) = connection.open().await {
            if start.elapsed() > WAIT_MAX {
                return Err(cause).context("the service does not accept connections");
            }
            if let Until::Elapsed(duration) = self.load.until
                && self.start.elapsed() > self.load.warm_up + duration
            {
                return Ok(false);
            }
            sleep(PAUSE).await;
        }
        Ok(true)
    }

    fn record(&self, chosen: &[u32], since: Instant, response: &Response) -> Result<()> {
        let now = Instant::now();
        if [401, 403].contains(&response.status) {
            bail!("the service does not accept the key ({})", response.status);
        }
        let summary: Option<Summary> = match self.load.shape.batch {
            Some(_) if response.status == 200 => Some(
                serde_json::from_slice(&response.body).context("not the response to a batch")?,
            ),
            _ => None,
        };
        if let Some(ledger) = self.ledger {
            let ledger = &mut *ledger.borrow_mut();
            let mut statuses = vec![response.status; chosen.len()];
            for result in summary.iter().flat_map(|summary| &summary.results) {
                if let Some(status) = statuses.get_mut(result.index) {
                    *status = result.status;
                }
            }
            for (organization, status) in chosen.iter().zip(statuses) {
                ledger.settled(*organization, status);
            }
        }
        if since < self.start + self.load.warm_up {
            return Ok(());
        }
        let measured = &mut *self.measured.borrow_mut();
        measured.latency.add(now - since);
        *measured.statuses.entry(response.status).or_default() += 1;
        measured.last = now;
        let number = u64::try_from(chosen.len())?;
        match (summary, response.status) {
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
        let seconds = (measured.last - self.start)
            .saturating_sub(self.load.warm_up)
            .as_secs_f64();
        let requests = measured.latency.len();
        let at = |quantile| measured.latency.milliseconds(quantile);
        let due = self.pace.as_ref().map_or(0, |pace| pace.total);
        Report {
            seconds,
            requests,
            requests_per_second: float(requests) / seconds.max(1e-9),
            items: measured.items,
            items_per_second: float(measured.items) / seconds.max(1e-9),
            failed: measured.failed,
            statuses: measured.statuses.clone(),
            unanswered: measured.unanswered + self.sent.get() - self.completed.get(),
            unsent: due.saturating_sub(self.serial.get()),
            latency_ms: Latency {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: measured.latency.max(),
            },
        }
    }
}

impl Report {
    /// Fails if any item failed, because then the measurement means nothing.
    pub(crate) fn flawless(self, what: &str) -> Result<Self> {
        let wrong = self.failed + self.unanswered;
        if wrong > 0 {
            bail!("{what}: {wrong} items failed or have no response: {self:?}");
        }
        Ok(self)
    }
}

/// A number that is unique to this run.
fn unique() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Converts a count for ratios.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(crate) fn float(number: u64) -> f64 {
    number as f64
}
