//! The load and audit tool: measures a running service, or starts everything itself (`make bench`).
//!
//! A client: it uses no code of the service and speaks HTTP with it. One thread and few instructions
//! per request, because it shares the cores with what it measures. `docs/benchmarks.md` explains
//! each number.

mod audit;
mod cluster;
mod costs;
mod faults;
mod figures;
mod flush;
mod history;
mod http;
mod latency;
mod load;
mod noop;
mod outages;
mod overload;
mod pace;
mod requests;
mod scale;
mod stage;
mod suite;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::audit::{Ledger, Verdict};
use crate::figures::Figures;
use crate::http::Target;
use crate::load::{Load, Report, Until};
use crate::requests::{Format, ORGANIZATIONS_MAX, Op, Shape, Spread};
use crate::stage::{Scratch, Stage};

/// Measures and audits a Tallyman.
#[derive(Debug, Parser)]
#[command(name = "bench")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure all figures that have a target, in one run, with private servers
    Suite(suite::Options),
    /// Count the instructions of a consume with valgrind, with private servers
    Instructions(suite::Options),
    /// Measure how they scale with organizations and connections
    Scale(suite::Options),
    /// Measure reads and exports of history, with private servers; needs some 5 GiB of disk
    History(history::HistoryOptions),
    /// Measure how long callers wait while Redis or Postgres hangs, with private servers
    Outages(suite::Options),
    /// Measure latencies at half and at twice the capacity, with private servers, of which Redis is slowed down
    Overload(suite::Options),
    /// Measure one server and clusters of three masters in turn, with private servers
    Cluster(suite::Options),
    /// Inject faults under load, with private servers; exits with 1 if a count, an answer or a latency is wrong
    Faults(faults::Options),
    /// Put load on a running service; with --audit, exits with 1 if its counts differ
    Load(LoadOptions),
    /// Serve a no-op POST: the ceiling that the service is compared with
    Noop {
        /// Address to listen on
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7401")]
        listen: SocketAddr,
        /// Worker threads
        #[arg(long, value_name = "N", default_value_t = 1)]
        workers: usize,
    },
}

#[derive(Debug, Args)]
struct LoadOptions {
    /// URL of the service
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7400")]
    url: String,
    /// An API key with the scopes `ingest`, and `read` to audit
    #[arg(long, env = "TALLYMAN_KEY", hide_env_values = true, default_value = "")]
    key: String,
    /// Operation of each call or item
    #[arg(long, value_enum, default_value_t = Op::Consume)]
    op: Op,
    /// Units of each call or item
    #[arg(long, value_name = "UNITS", default_value_t = 1)]
    amount: u64,
    /// Give each request its own idempotency key
    #[arg(long)]
    keyed: bool,
    /// Send batches of this many items
    #[arg(long, value_name = "ITEMS", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Format of batches
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Concurrent requests, each on its own connection
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Number of organizations
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(ORGANIZATIONS_MAX)))]
    organizations: u32,
    /// How the next organization is chosen
    #[arg(long, value_enum, default_value_t = Spread::Uniform)]
    spread: Spread,
    /// Exponent of the Zipf distribution
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    exponent: f64,
    /// Requests per second, sent whether or not the service keeps up; without it, each connection waits for its response
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Seconds before the measurement starts
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    warm_up: u64,
    /// Seconds of the measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    duration: u64,
    /// Stop after this many requests instead
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    requests: Option<u64>,
    /// Compare the responses with the counts of the service; requires that nobody else uses these organizations
    #[arg(long)]
    audit: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the tool and writes its results to `out`. False if an audit found differences.
pub fn run(arguments: Arguments, out: &mut impl Write) -> Result<bool> {
    // One thread, for all connections.
    let client = || Builder::new_current_thread().enable_all().build();
    match arguments.command {
        Command::Suite(options) => client()?.block_on(measure(
            &options,
            async |stage| suite::run(stage, &options).await,
            out,
        ))?,
        Command::Instructions(options) => client()?.block_on(measure(
            &options,
            async |stage| suite::instructions(stage, &options).await,
            out,
        ))?,
        Command::Scale(options) => client()?.block_on(measure(
            &options,
            async |stage| scale::run(stage, &options).await,
            out,
        ))?,
        Command::Outages(options) => client()?.block_on(measure(
            &options,
            async |stage| outages::run(stage, &options).await,
            out,
        ))?,
        Command::Cluster(options) => client()?.block_on(measure(
            &options,
            async |stage| cluster::run(stage, &options).await,
            out,
        ))?,
        Command::Overload(options) => client()?.block_on(measure(
            &options,
            async |stage| overload::run(stage, &options).await,
            out,
        ))?,
        Command::History(options) => client()?.block_on(measure(
            &options.suite,
            async |stage| history::run(stage, &options).await,
            out,
        ))?,
        Command::Faults(options) => {
            return client()?.block_on(until_interrupted(faults::run(&options, out)));
        }
        Command::Load(options) => return client()?.block_on(put_load(options, out)),
        Command::Noop { listen, workers } => noop::serve(listen, workers)?,
    }
    Ok(true)
}

/// Starts private servers, measures, and removes everything again, also when interrupted.
async fn measure(
    options: &suite::Options,
    suite: impl AsyncFnOnce(&Stage) -> Result<Figures>,
    out: &mut impl Write,
) -> Result<()> {
    let scratch = Scratch::new(&format!("tallyman-bench-{}", std::process::id()))?;
    let measured = async {
        let stage = Stage::open(&scratch, options.workers()).await?;
        let figures = suite(&stage).await;
        stage.close().await;
        figures
    };
    let figures = until_interrupted(measured).await?;
    if options.json {
        writeln!(out, "{:#}", figures.to_json())?;
        return Ok(());
    }
    if options.quick {
        writeln!(
            out,
            "A quick run: a hundredth of the organizations and counters that are named.\n"
        )?;
    }
    write!(out, "{}", figures.to_table())?;
    Ok(())
}

async fn until_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("terminated"),
    }
}

async fn put_load(options: LoadOptions, out: &mut impl Write) -> Result<bool> {
    let target = Target::new(&options.url, &options.key)?;
    let ledger = if options.audit {
        let amount = match options.op {
            Op::Check => 0,
            Op::Consume | Op::Track => options.amount,
        };
        let ledger = Ledger::open(&target, options.organizations, amount).await?;
        Some(RefCell::new(ledger))
    } else {
        None
    };
    let load = options.load(target.clone());
    let report = load::run(&load, ledger.as_ref()).await?;
    let verdict = match ledger {
        Some(ledger) => Some(ledger.into_inner().compare(&target).await?),
        None => None,
    };
    if options.json {
        let all = serde_json::json!({"load": report, "audit": verdict});
        writeln!(out, "{all:#}")?;
    } else {
        let audited = verdict.as_ref().map(describe_audit).unwrap_or_default();
        write!(out, "{}{audited}", describe(&report))?;
    }
    Ok(verdict.is_none_or(|verdict| verdict.differing == 0))
}

impl LoadOptions {
    fn load(&self, target: Target) -> Load {
        Load {
            target,
            shape: Shape {
                op: self.op,
                amount: self.amount,
                keyed: self.keyed,
                batch: self.batch.map(|items| (items as usize, self.format)),
            },
            connections: self.connections as usize,
            organizations: self.organizations,
            spread: self.spread,
            exponent: self.exponent,
            rate: self.rate,
            warm_up: match self.requests {
                Some(_) => Duration::ZERO,
                None => Duration::from_secs(self.warm_up),
            },
            until: match self.requests {
                Some(number) => Until::Requests(number),
                None => Until::Elapsed(Duration::from_secs(self.duration)),
            },
        }
    }
}

fn describe(report: &Report) -> String {
    let latency = report.latency_ms;
    let mut text = format!(
        "{:.0} requests/s, {:.0} items/s ({} requests in {:.2} s)\n\
         latency ms  p50 {:.3}  p90 {:.3}  p99 {:.3}  p999 {:.3}  max {:.3}\n",
        report.requests_per_second,
        report.items_per_second,
        report.requests,
        report.seconds,
        latency.p50,
        latency.p90,
        latency.p99,
        latency.p999,
        latency.max,
    );
    for (status, number) in &report.statuses {
        let _ = writeln!(text, "status {status}: {number}");
    }
    for (what, number) in [
        ("items failed", report.failed),
        ("requests without a response", report.unanswered),
        ("requests due and not sent", report.unsent),
    ] {
        if number > 0 {
            let _ = writeln!(text, "{what}: {number}");
        }
    }
    text
}

fn describe_audit(verdict: &Verdict) -> String {
    let mut text = format!(
        "audit of {} organizations: {} units acknowledged, {} refused, {} unknown; {} differ\n",
        verdict.organizations,
        verdict.acknowledged,
        verdict.refused,
        verdict.unknown,
        verdict.differing,
    );
    for difference in &verdict.differences {
        let _ = writeln!(
            text,
            "  {} has {}, not {} to {}",
            difference.organization_id, difference.current, difference.least, difference.most
        );
    }
    text
}
