//! The load and audit tool: measures a running service, or starts everything itself (`make bench`).
//!
//! A client like any other: it uses nothing of the library, and speaks to the service by HTTP. One
//! thread and few instructions a request, because it shares the cores with what it measures.
//! `docs/benchmarks.md` says what each number is.

mod audit;
mod figures;
mod flush;
mod http;
mod load;
mod noop;
mod requests;
mod stage;
mod suite;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use mimalloc::MiMalloc;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::audit::{Ledger, Verdict};
use crate::figures::Figures;
use crate::http::Target;
use crate::load::{Load, Report, Until};
use crate::requests::{Format, ORGANIZATIONS_MAX, Op, Shape, Spread};
use crate::stage::{Scratch, Stage};

/// The service's own: the no-op server must not differ from it.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Measures and audits a Tallyman.
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure everything that is promised, in one run, with servers of its own
    Suite(suite::Options),
    /// Measure how that scales with organizations and connections
    Scale(suite::Options),
    /// Put load on a running service; with --audit, ends with 1 if its counts do not agree
    Load(LoadOptions),
    /// Serve a POST that does nothing: the ceiling that the service is compared with
    Noop {
        /// Address to listen on
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7401")]
        listen: SocketAddr,
        /// Threads that answer requests
        #[arg(long, value_name = "N", default_value_t = 1)]
        workers: usize,
    },
}

#[derive(Args)]
struct LoadOptions {
    /// Where the service is
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7400")]
    url: String,
    /// An API key with the scopes `ingest`, and `read` to audit
    #[arg(long, env = "TALLYMAN_KEY", hide_env_values = true, default_value = "")]
    key: String,
    /// What to do to organizations
    #[arg(long, value_enum, default_value_t = Op::Consume)]
    op: Op,
    /// Units of each call
    #[arg(long, value_name = "UNITS", default_value_t = 1)]
    amount: u64,
    /// Give each request an idempotency key of its own
    #[arg(long)]
    keyed: bool,
    /// Send batches of so many items
    #[arg(long, value_name = "ITEMS", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// How batches are written
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// How many requests are on their way at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How many organizations there are
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(ORGANIZATIONS_MAX)))]
    organizations: u32,
    /// Which of them is next
    #[arg(long, value_enum, default_value_t = Spread::Uniform)]
    spread: Spread,
    /// Exponent of the Zipf distribution
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    exponent: f64,
    /// Requests a second, sent whether or not the service keeps up; without it, each connection waits for its answer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Seconds that are not measured
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    warm_up: u64,
    /// Seconds that are measured
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    duration: u64,
    /// Stop after so many requests instead
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    requests: Option<u64>,
    /// Compare what was answered with what the service has counted; nobody else may use these organizations
    #[arg(long)]
    audit: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Suite(options) => client()?.block_on(measure(&options, suite::run)),
        Command::Scale(options) => client()?.block_on(measure(&options, suite::scale)),
        Command::Load(options) => client()?.block_on(put_load(options)),
        Command::Noop { listen, workers } => {
            noop::serve(listen, workers)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// One thread, for all connections.
fn client() -> Result<tokio::runtime::Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")
}

/// Measures on a stage of its own, which is cleared afterwards, also when we are told to end.
async fn measure(
    options: &suite::Options,
    suite: impl AsyncFnOnce(&Stage, &suite::Options) -> Result<Figures>,
) -> Result<ExitCode> {
    let scratch = Scratch::new()?;
    let measured = async {
        let stage = Stage::open(&scratch, options.workers()).await?;
        let figures = suite(&stage, options).await;
        stage.close().await?;
        figures
    };
    let mut terminated = signal(SignalKind::terminate())?;
    let figures = tokio::select! {
        figures = measured => figures?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("terminated"),
    };
    if options.json {
        print(&format!("{:#}\n", figures.to_json()))?;
    } else {
        if options.quick {
            print(
                "A quick run: a hundredth of the organizations and counters that are named.\n\n",
            )?;
        }
        print(&figures.to_table())?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn put_load(options: LoadOptions) -> Result<ExitCode> {
    let target = Target::new(&options.url, &options.key)?;
    let batch = options.batch.map(|items| (items as usize, options.format));
    let load = Load {
        target: target.clone(),
        shape: Shape {
            op: options.op,
            amount: options.amount,
            keyed: options.keyed,
            batch,
        },
        connections: options.connections as usize,
        organizations: options.organizations,
        spread: options.spread,
        exponent: options.exponent,
        rate: options.rate,
        warm_up: match options.requests {
            Some(_) => Duration::ZERO,
            None => Duration::from_secs(options.warm_up),
        },
        until: match options.requests {
            Some(number) => Until::Requests(number),
            None => Until::Elapsed(Duration::from_secs(options.duration)),
        },
    };
    let ledger = if options.audit {
        let amount = if options.op == Op::Check {
            0
        } else {
            options.amount
        };
        let ledger = Ledger::open(&target, options.organizations, amount).await?;
        Some(RefCell::new(ledger))
    } else {
        None
    };
    let report = load::run(&load, ledger.as_ref()).await?;
    let verdict = match ledger {
        Some(ledger) => Some(ledger.into_inner().compare(&target).await?),
        None => None,
    };
    if options.json {
        let all = serde_json::json!({"load": report, "audit": verdict});
        print(&format!("{all:#}\n"))?;
    } else {
        print(&describe(&report))?;
        if let Some(verdict) = &verdict {
            print(&judge(verdict))?;
        }
    }
    let agrees = verdict.is_none_or(|verdict| verdict.differing == 0);
    Ok(if agrees {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
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
        let _ = writeln!(text, "answered {status}: {number}");
    }
    for (what, number) in [
        ("items failed", report.failed),
        ("requests unanswered", report.unanswered),
        ("requests due and not sent", report.unsent),
    ] {
        if number > 0 {
            let _ = writeln!(text, "{what}: {number}");
        }
    }
    text
}

fn judge(verdict: &Verdict) -> String {
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

/// What was asked for goes to standard output.
fn print(text: &str) -> Result<()> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}
