//! The fault harness: random faults of two instances, Redis and Postgres under a mixed load, and an audit of every count,
//! every answer's latency, and what callers were told.
//!
//! A seed determines the faults and the calls, though not how they interleave.

mod audit;
mod client;
mod counting;
mod database;
mod inject;
mod journal;
mod ledger;
mod load;
mod organizations;
mod plan;
mod proxy;
mod setup;
mod timing;

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum as _};
use futures::future::try_join_all;
use http_body_util::Full;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::time::sleep;

use self::client::{Client, Run};
use self::inject::Injector;
use self::journal::{Journal, Rule};
use self::ledger::Ledger;
use self::load::Load;
use self::plan::{Kind, Pace, Plan, Step};
use self::setup::Setup;
use crate::http::Connection;
use crate::stage::{Scratch, executable};

/// How long everything may take to be ready again after a fault, or to drain.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long counts may wait to be stored, long after a fault.
const STORED_MAX: Duration = Duration::from_secs(30);

/// The pause before Redis loses data, in which most of what was counted before is stored.
const BEFORE_LOSS: Duration = Duration::from_millis(4500);

/// How often the tool measures whether it has CPU itself, and what is a stall.
const TICK: Duration = Duration::from_millis(5);
const STALL: Duration = Duration::from_millis(20);

/// Violations of a rule that are shown.
const SHOWN_MAX: usize = 10;

/// Options of a run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Determines the faults and the calls; random by default
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long faults happen
    #[arg(long, value_name = "MINUTES", default_value_t = 30.0)]
    minutes: f64,
    /// Only these kinds of faults
    #[arg(long, value_enum, value_name = "KINDS", value_delimiter = ',')]
    only: Vec<Kind>,
    /// Short faults, less load, and no targets for latencies but the deadline
    #[arg(long)]
    quick: bool,
    /// The executable of the service; by default that of the same build
    #[arg(long, value_name = "PATH")]
    service: Option<PathBuf>,
}

/// Runs until the time is over, and writes what happened. False if a rule was broken.
pub(crate) async fn run(options: &Options, out: &mut impl Write) -> Result<bool> {
    let seed = options
        .seed
        .unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let name = format!("tallyman-faults-{seed}-{}", std::process::id());
    let logs = std::env::temp_dir().join(format!("{name}-logs"));
    fs::create_dir(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    writeln!(out, "seed {seed}; logs in {}", logs.display())?;
    let scratch = Scratch::new(&name)?;
    let service = match &options.service {
        Some(service) => service.clone(),
        None => executable("tallyman")?,
    };
    let setup = Setup::new(scratch.path(), &logs, service).await?;
    let journal = Journal::new();
    let passed = with_setup(options, seed, &setup, &journal, &logs, out).await;
    setup.close().await;
    if options.quick && matches!(passed, Ok(true)) {
        fs::remove_dir_all(&logs)?;
    }
    passed
}

async fn with_setup(
    options: &Options,
    seed: u64,
    setup: &Setup,
    journal: &Journal,
    logs: &Path,
    out: &mut impl Write,
) -> Result<bool> {
    let length = Duration::try_from_secs_f64(options.minutes * 60.0)?;
    let injector = Injector { setup, journal };
    database::prepare(setup).await?;
    try_join_all([0, 1].map(|which| setup.start_instance(which, 0))).await?;
    let run = Run {
        setup,
        journal,
        answers: RefCell::default(),
        margin: Duration::from_millis(if options.quick { 1000 } else { 500 }),
        end: Cell::new(None),
    };
    // Reached in the course of the run.
    let limit = 40 + i64::try_from(length.as_secs())?;
    let ledger = Ledger::new(limit);
    let load = Load::new(&run, &ledger, limit, seed);
    load.prepare(half_past(length)?).await?;
    let plan = Plan::new(seed, length, &options.kinds(), &options.pace());
    let (counting, changing) = if options.quick { (12, 2) } else { (20, 3) };
    let faults = async {
        let done = conduct(&plan, &injector, out).await;
        load.end();
        done
    };
    tokio::try_join!(load.run(counting, changing), faults, watch_stalls(&run))?;
    run.end.set(None);
    until_ready(setup, journal, "the end").await;
    journal.check_broken();
    let measured = run.answers.borrow().clone();
    let mut client = Client::new(&run, SmallRng::seed_from_u64(seed));
    audit::run(&load, &mut client, logs).await?;
    let rows = timing::rows(&measured, journal)?;
    if !options.quick {
        for missed in rows.iter().filter_map(|row| row.missed(&rows[0])) {
            journal.violation(Rule::Latency, missed);
        }
    }
    if let Some(row) = rows.iter().find(|row| row.is_without_effect()) {
        bail!("{} has no effect", row.name());
    }
    writeln!(out, "\n{}", timing::table(&rows, !options.quick))?;
    report(&ledger, journal, out)
}

/// All faults, one step after the other.
async fn conduct(plan: &Plan, injector: &Injector<'_>, out: &mut impl Write) -> Result<()> {
    let journal = injector.journal;
    let mut stored = Duration::ZERO;
    for step in &plan.0 {
        sleep(step.pause).await;
        let now = journal.now();
        writeln!(out, "{:>7.1} s  {step}", now.as_secs_f64())?;
        out.flush()?;
        let waiting = waiting(injector).await?;
        if waiting > STORED_MAX {
            let text = format!("counts wait to be stored for {waiting:?} before {step}");
            journal.violation(Rule::Recovery, text);
        }
        stored = stored.max(now.saturating_sub(waiting));
        inject(step, injector, stored).await?;
        until_ready(injector.setup, journal, &step.to_string()).await;
    }
    // What the last fault leaves behind shows under load.
    sleep(BEFORE_LOSS).await;
    Ok(())
}

/// How long the oldest count waits to be stored.
async fn waiting(injector: &Injector<'_>) -> Result<Duration> {
    let since = injector.setup.unstored_since().await?;
    let now = injector
        .journal
        .wall_time(injector.journal.now())
        .timestamp_millis();
    // A clock that was ahead may have noted a time in the future, which says nothing.
    let waiting = since.map_or(0, |since| if since > now { 10_000 } else { now - since });
    Ok(Duration::from_millis(u64::try_from(waiting)?))
}

async fn inject(step: &Step, injector: &Injector<'_>, stored: Duration) -> Result<()> {
    let faults = step
        .faults
        .iter()
        .map(|fault| injector.inject(fault, stored));
    let injected = try_join_all(faults).await;
    injected.map(drop).with_context(|| step.to_string())
}

/// Waits until both instances say that everything works, and that nothing waits to be counted.
async fn until_ready(setup: &Setup, journal: &Journal, after: &str) {
    let started = Instant::now();
    for instance in &setup.instances {
        loop {
            let request = instance.target.request("GET", "/readyz");
            let answer = match request {
                Ok(request) => {
                    let mut connection = Connection::new(&instance.target);
                    let sent = connection.send(request.map(|()| Full::default()));
                    tokio::time::timeout(client::DEADLINE, sent).await
                }
                Err(_) => return,
            };
            let body = match answer {
                Ok(Ok(answer)) => serde_json::from_slice(&answer.body).unwrap_or(Value::Null),
                _ => Value::Null,
            };
            if body["status"] == "ready" && pending(&body) == 0 {
                break;
            }
            if started.elapsed() > RECOVERY_MAX {
                let text = format!("not ready {RECOVERY_MAX:?} after {after}: {body}");
                journal.violation(Rule::Recovery, text);
                return;
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// The increments that wait for Redis.
fn pending(readiness: &Value) -> u64 {
    readiness["pending"]["increments"].as_u64().unwrap_or(0)
}

/// Notes when the tool itself has no CPU.
async fn watch_stalls(run: &Run<'_>) -> Result<()> {
    let journal = run.journal;
    while run.end.get().is_none() {
        let before = journal.now();
        sleep(TICK).await;
        let stall = journal.now().saturating_sub(before + TICK);
        if stall > STALL {
            journal.stalls.borrow_mut().push((before, stall));
        }
    }
    Ok(())
}

fn report(ledger: &Ledger, journal: &Journal, out: &mut impl Write) -> Result<bool> {
    let (counted, unknown) = ledger.totals();
    let stalls = journal.stalls.borrow();
    let longest = stalls
        .iter()
        .map(|(_, stall)| *stall)
        .max()
        .unwrap_or_default();
    writeln!(
        out,
        "{} calls and items: {counted} units acknowledged, {unknown} unknown; {} organizations deleted, {} resets\n\
         the tool had no CPU {} times for more than {STALL:?}, at most {:.0} ms\n",
        ledger.calls.get(),
        ledger.deletions.borrow().len(),
        ledger.closed.borrow().len(),
        stalls.len(),
        longest.as_secs_f64() * 1e3,
    )?;
    let violations = journal.violations.borrow();
    for rule in Rule::ALL {
        let broken: Vec<&String> = violations
            .iter()
            .filter(|(it, _)| *it == rule)
            .map(|(_, text)| text)
            .collect();
        let verdict = match broken.len() {
            0 => "ok".to_owned(),
            number => format!("VIOLATED {number} times"),
        };
        writeln!(out, "{:<52}{verdict}", rule.text())?;
        for text in broken.iter().take(SHOWN_MAX) {
            writeln!(out, "    {text}")?;
        }
    }
    Ok(violations.is_empty())
}

impl Options {
    fn kinds(&self) -> Vec<Kind> {
        match self.only[..] {
            [] => Kind::value_variants().to_vec(),
            _ => self.only.clone(),
        }
    }

    fn pace(&self) -> Pace {
        let (pause, lasts) = if self.quick {
            (500..=1000, 1000..=2000)
        } else {
            (4500..=8000, 2000..=10_000)
        };
        Pace {
            pause,
            lasts,
            before_loss: BEFORE_LOSS,
        }
    }
}

/// The middle of the run, which is when an hour ends; the load begins some seconds later.
fn half_past(length: Duration) -> Result<String> {
    let middle = std::time::UNIX_EPOCH.elapsed()? + length / 2 + Duration::from_secs(5);
    let (minute, second) = (middle.as_secs() / 60 % 60, middle.as_secs() % 60);
    Ok(format!("2020-01-01T00:{minute:02}:{second:02}Z"))
}
