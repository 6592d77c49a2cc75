//! `make bench`: measures all figures in one run.
//!
//! Rounds are interleaved, so that other load on the machine affects all figures alike. The result is the median of the
//! rounds; for ratios, the median of the ratios of each round.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::figures::{Figure, Figures, Target};
use crate::flush::{self, BATCH_CONNECTIONS, BATCH_MAX, Reference};
use crate::load::{self, Load, Report, Until, float};
use crate::requests::{Format, Op, Shape, Spread};
use crate::stage::{Service, Stage};

const CONNECTIONS: usize = 64;
const ORGANIZATIONS: u32 = 10_000;
const FEW_ORGANIZATIONS: u32 = 100;
/// Requests per second of the open loop.
const RATE: u32 = 15_000;

/// Options of a suite.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A smoke test: one second per measurement, one round, a hundredth of the organizations
    #[arg(long)]
    pub(crate) quick: bool,
    /// Threads of the service and of the no-op server; default: half the cores
    #[arg(long, env = "TALLYMAN_WORKERS", value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Options {
    /// The default is that of the service.
    pub(crate) fn workers(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, |it| it.get().div_ceil(2));
        self.workers.unwrap_or(cores)
    }

    /// Duration of a measurement.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 5 })
    }

    /// This number, or a hundredth in a smoke test.
    pub(crate) fn some(&self, number: u32) -> u32 {
        if self.quick {
            number.div_ceil(100)
        } else {
            number
        }
    }

    fn warm_up(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 2 })
    }
}

/// The figures of the suite, in the order of the table.
const FIGURES: &[Figure] = &[
    Figure::new("noop", "no-op POST, 64 connections", "requests/s"),
    Figure::new("consume", "consume, 10,000 organizations", "requests/s"),
    Figure::new("consumeOfNoop", "consume / no-op", "").target(Target::AtLeast(0.65)),
    Figure::new("keyed", "track with an idempotency key", "requests/s"),
    Figure::new("keyedOfNoop", "track with a key / no-op", "").target(Target::AtLeast(0.5)),
    Figure::new(
        "batch10k",
        "batches of 10,000 items, 10,000 organizations",
        "items/s",
    )
    .target(Target::AtLeast(350_000.0)),
    Figure::new(
        "batch100",
        "batches of 10,000 items, 100 organizations",
        "items/s",
    )
    .target(Target::AtLeast(3_000_000.0)),
    Figure::new("noopOpenP99", "no-op at 15,000/s, p99", "ms"),
    Figure::new("openP50", "consume at 15,000/s, p50", "ms"),
    Figure::new("openP99", "consume at 15,000/s, p99", "ms").target(Target::AtMost(1.5)),
    Figure::new("openP999", "consume at 15,000/s, p999", "ms"),
    Figure::new("halfRate", "half of the maximum", "requests/s"),
    Figure::new("halfP50", "consume at half of the maximum, p50", "ms"),
    Figure::new("halfP99", "consume at half of the maximum, p99", "ms").target(Target::AtMost(3.0)),
    Figure::new("halfP999", "consume at half of the maximum, p999", "ms"),
    Figure::new("flush", "changed counters stored", "counters/s"),
    Figure::new("merge", "COPY and merge of the same rows", "counters/s"),
    Figure::new("flushOfMerge", "stored / COPY and merge", "").target(Target::AtLeast(0.8)),
];

/// Measures [`FIGURES`].
pub(crate) async fn run(stage: &Stage, options: &Options) -> Result<Figures> {
    let mut figures = Figures::new(FIGURES);
    let rounds = if options.quick { 1 } else { 3 };
    let (counters, organizations) = (options.some(100_000), options.some(ORGANIZATIONS));
    eprintln!("filling");
    flush::store(stage, counters.max(organizations)).await?;
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        let noop = stage.serve_noop().await?;
        let ceiling = closed(&noop, options, Op::Consume, false).await?;
        let noop_open = open(&noop, options, RATE).await?;
        noop.stop().await?;

        let service = stage.serve(&[]).await?;
        let consume = closed(&service, options, Op::Consume, false).await?;
        let keyed = closed(&service, options, Op::Track, true).await?;
        let many = batches(&service, options, organizations).await?;
        let few = batches(&service, options, FEW_ORGANIZATIONS).await?;
        let at_rate = open(&service, options, RATE).await?;
        let half = half_of(consume.requests_per_second);
        let at_half = open(&service, options, half).await?;
        service.stop().await?;

        let reference = Reference::prepare(stage, counters).await?;
        let stored = f64::from(counters) / flush::store(stage, counters).await?.as_secs_f64();
        let merged = f64::from(counters) / reference.merge().await?.as_secs_f64();

        let ceiling = ceiling.requests_per_second;
        figures.add("noop", ceiling);
        figures.add("consume", consume.requests_per_second);
        figures.add("consumeOfNoop", consume.requests_per_second / ceiling);
        figures.add("keyed", keyed.requests_per_second);
        figures.add("keyedOfNoop", keyed.requests_per_second / ceiling);
        figures.add("batch10k", many.items_per_second);
        figures.add("batch100", few.items_per_second);
        figures.add("noopOpenP99", noop_open.latency_ms.p99);
        figures.add("openP50", at_rate.latency_ms.p50);
        figures.add("openP99", at_rate.latency_ms.p99);
        figures.add("openP999", at_rate.latency_ms.p999);
        figures.add("halfRate", float(u64::from(half)));
        figures.add("halfP50", at_half.latency_ms.p50);
        figures.add("halfP99", at_half.latency_ms.p99);
        figures.add("halfP999", at_half.latency_ms.p999);
        figures.add("flush", stored);
        figures.add("merge", merged);
        figures.add("flushOfMerge", stored / merged);
    }
    Ok(figures)
}

/// The figures with more organizations and connections.
const SCALE: &[Figure] = &[
    Figure::new("consume10k", "consume, 10,000 organizations", "requests/s"),
    Figure::new(
        "consume100k",
        "consume, 100,000 organizations",
        "requests/s",
    ),
    Figure::new(
        "consume1m",
        "consume, 1,000,000 organizations",
        "requests/s",
    ),
    Figure::new("consume1mOf10k", "1,000,000 / 10,000 organizations", "")
        .target(Target::AtLeast(0.85)),
    Figure::new(
        "memory10k",
        "memory of the service, 10,000 organizations",
        "MiB",
    ),
    Figure::new(
        "memory100k",
        "memory of the service, 100,000 organizations",
        "MiB",
    ),
    Figure::new(
        "memory1m",
        "memory of the service, 1,000,000 organizations",
        "MiB",
    )
    .target(Target::AtMost(400.0)),
    Figure::new(
        "redis1m",
        "memory of Redis for each of 1,000,000 counters",
        "bytes",
    )
    .target(Target::AtMost(250.0)),
    Figure::new("new1m", "1,000,000 new counters stored", "s"),
    Figure::new("changed1m", "1,000,000 changed counters stored", "s").target(Target::AtMost(20.0)),
    Figure::new("noop16", "no-op, 16 connections", "requests/s"),
    Figure::new("consume16", "consume, 16 connections", "requests/s"),
    Figure::new("noop64", "no-op, 64 connections", "requests/s"),
    Figure::new("consume64", "consume, 64 connections", "requests/s"),
    Figure::new("noop256", "no-op, 256 connections", "requests/s"),
    Figure::new("consume256", "consume, 256 connections", "requests/s"),
    Figure::new("noop1024", "no-op, 1,024 connections", "requests/s"),
    Figure::new("consume1024", "consume, 1,024 connections", "requests/s"),
];

/// Measures [`SCALE`].
pub(crate) async fn scale(stage: &Stage, options: &Options) -> Result<Figures> {
    let mut figures = Figures::new(SCALE);
    let empty = stage.redis_memory().await?;
    let mut smallest = None;
    for (organizations, name) in [(10_000, "10k"), (100_000, "100k"), (1_000_000, "1m")] {
        let organizations = options.some(organizations);
        eprintln!("{organizations} organizations");
        let is_largest = name == "1m";
        let new = flush::store(stage, organizations).await?;
        if is_largest {
            let changed = flush::store(stage, organizations).await?;
            let bytes = stage.redis_memory().await?.saturating_sub(empty);
            figures.add("new1m", new.as_secs_f64());
            figures.add("changed1m", changed.as_secs_f64());
            figures.add("redis1m", float(bytes) / f64::from(organizations));
        }
        let service = stage.serve(&[]).await?;
        // Warms the caches of the service for all organizations.
        let mut all = single(&service, options, Op::Check, false);
        all.organizations = organizations;
        all.spread = Spread::Turns;
        all.warm_up = Duration::ZERO;
        all.until = Until::Requests(u64::from(organizations));
        load::run(&all, None).await?.flawless("warm-up")?;
        stage.redis_has_rewritten().await?;
        let mut load = single(&service, options, Op::Consume, false);
        load.organizations = organizations;
        let speed = load::run(&load, None)
            .await?
            .flawless("consume")?
            .requests_per_second;
        figures.add(&format!("consume{name}"), speed);
        figures.add(
            &format!("memory{name}"),
            float(service.memory()?) / float(1 << 20),
        );
        let smallest = *smallest.get_or_insert(speed);
        if is_largest {
            figures.add("consume1mOf10k", speed / smallest);
        }
        service.stop().await?;
    }
    for connections in [16, 64, 256, 1024] {
        eprintln!("{connections} connections");
        for (name, service) in [
            ("noop", stage.serve_noop().await?),
            ("consume", stage.serve(&[]).await?),
        ] {
            let mut load = single(&service, options, Op::Consume, false);
            load.connections = connections;
            let speed = load::run(&load, None)
                .await?
                .flawless(name)?
                .requests_per_second;
            figures.add(&format!("{name}{connections}"), speed);
            service.stop().await?;
        }
    }
    Ok(figures)
}

async fn closed(service: &Service, options: &Options, op: Op, keyed: bool) -> Result<Report> {
    let load = single(service, options, op, keyed);
    load::run(&load, None).await?.flawless(op.name())
}

async fn open(service: &Service, options: &Options, rate: u32) -> Result<Report> {
    let mut load = single(service, options, Op::Consume, false);
    load.rate = Some(rate);
    load.until = Until::Elapsed(2 * options.duration());
    load::run(&load, None).await?.flawless("an open loop")
}

async fn batches(service: &Service, options: &Options, organizations: u32) -> Result<Report> {
    let mut load = single(service, options, Op::Track, false);
    load.shape.batch = Some((BATCH_MAX as usize, Format::Json));
    load.connections = BATCH_CONNECTIONS;
    load.organizations = organizations;
    load.spread = Spread::Turns;
    load::run(&load, None).await?.flawless("batches")
}

/// A closed loop of single calls.
pub(crate) fn single(service: &Service, options: &Options, op: Op, keyed: bool) -> Load {
    Load {
        target: service.target.clone(),
        shape: Shape {
            op,
            amount: 1,
            keyed,
            batch: None,
        },
        connections: CONNECTIONS,
        organizations: options.some(ORGANIZATIONS),
        spread: Spread::Uniform,
        exponent: 1.0,
        rate: None,
        warm_up: options.warm_up(),
        until: Until::Elapsed(options.duration()),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "requests a second are positive and few"
)]
fn half_of(rate: f64) -> u32 {
    (rate / 2.0).max(1.0) as u32
}
