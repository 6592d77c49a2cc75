//! `make bench`: measures all figures in one run.
//!
//! Rounds are interleaved, so that other load on the machine affects all figures alike. The result is the median of the
//! rounds; for ratios, the median of the ratios of each round.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::costs::{self, has_valgrind};
use crate::figures::{Figure, Figures, Target};
use crate::flush::{self, BATCH_CONNECTIONS, BATCH_MAX, Reference};
use crate::load::{self, Load, Report, Until, float};
use crate::requests::{Format, Op, Shape, Spread};
use crate::stage::{Service, Stage, executable};

const CONNECTIONS: usize = 64;
const MANY_CONNECTIONS: usize = 256;
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
    /// Another build of `tallyman` to measure in turn with this one, as far as the suite measures the service
    #[arg(long, value_name = "EXECUTABLE")]
    pub(crate) before: Option<PathBuf>,
    /// Keep what valgrind counted, for `callgrind_annotate`
    #[arg(long, value_name = "FILE")]
    pub(crate) counts: Option<PathBuf>,
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

    pub(crate) fn rounds(&self) -> usize {
        if self.quick { 1 } else { 3 }
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
    Figure::new("instructions", "instructions of a consume", "").target(Target::AtMost(40_000.0)),
    Figure::new("noopCpu", "CPU of a no-op's server", "us/call"),
    Figure::new("serviceCpu", "CPU of a consume: service", "us/call").target(Target::AtMost(13.0)),
    Figure::new("redisCpu", "CPU of a consume: Redis", "us/call").target(Target::AtMost(8.0)),
    Figure::new("postgresCpu", "CPU of a consume: Postgres", "us/call").target(Target::AtMost(1.5)),
    Figure::new("serviceOfNoop", "CPU: service / no-op's server", "").target(Target::AtMost(1.4)),
    Figure::new("redisOfNoop", "CPU: Redis / no-op's server", "").target(Target::AtMost(0.8)),
    Figure::new("postgresOfNoop", "CPU: Postgres / no-op's server", "")
        .target(Target::AtMost(0.15)),
    Figure::new("noop", "no-op POST, 64 connections", "requests/s"),
    Figure::new("consume", "consume, 64 connections", "requests/s"),
    Figure::new("consumeOfNoop", "consume / no-op, 64 connections", "")
        .target(Target::AtLeast(0.55)),
    Figure::new("noop256", "no-op POST, 256 connections", "requests/s"),
    Figure::new("consume256", "consume, 256 connections", "requests/s"),
    Figure::new("consumeOfNoop256", "consume / no-op, 256 connections", "")
        .target(Target::AtLeast(0.65)),
    Figure::new("keyed", "track with an idempotency key", "requests/s"),
    Figure::new("keyedOfNoop", "track with a key / no-op", "").target(Target::AtLeast(0.45)),
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
    Figure::new("openP99", "consume at 15,000/s, p99", "ms").target(Target::AtMost(2.5)),
    Figure::new("openP999", "consume at 15,000/s, p999", "ms"),
    Figure::new("halfRate", "half of the maximum", "requests/s"),
    Figure::new("halfP50", "consume at half of the maximum, p50", "ms"),
    Figure::new("halfP99", "consume at half of the maximum, p99", "ms").target(Target::AtMost(3.0)),
    Figure::new("halfP999", "consume at half of the maximum, p999", "ms"),
    Figure::new("flush", "changed counters stored", "counters/s"),
    Figure::new("merge", "COPY and merge of the same rows", "counters/s"),
    Figure::new("flushOfMerge", "stored / COPY and merge", "").target(Target::AtLeast(1.2)),
];

/// An executable of the service, measured in turn with others.
struct Build<'a> {
    program: PathBuf,
    add: fn(&mut Figures, &str, f64),
    stage: &'a Stage,
    options: &'a Options,
}

/// The no-op in one round.
struct Ceiling {
    cpu: f64,
    rate: f64,
    rate_of_256: f64,
}

/// Measures [`FIGURES`].
pub(crate) async fn run(stage: &Stage, options: &Options) -> Result<Figures> {
    let mut figures = Figures::new(FIGURES);
    let builds = builds(stage, options)?;
    let (counters, organizations) = (options.some(100_000), options.some(ORGANIZATIONS));
    eprintln!("filling");
    let own = executable("tallyman")?;
    flush::store(stage, &own, counters.max(organizations)).await?;
    for round in 1..=options.rounds() {
        eprintln!("round {round} of {}", options.rounds());
        let ceiling = Ceiling::measure(stage, options, &mut figures).await?;
        for build in &builds {
            build.calls(&ceiling, &mut figures).await?;
        }
        for build in &builds {
            build.flush(counters, &mut figures).await?;
        }
    }
    if has_valgrind() {
        count_instructions(&builds, &mut figures).await?;
    }
    Ok(figures)
}

/// Measures the first of [`FIGURES`] alone.
pub(crate) async fn instructions(stage: &Stage, options: &Options) -> Result<Figures> {
    let mut figures = Figures::new(FIGURES);
    count_instructions(&builds(stage, options)?, &mut figures).await?;
    Ok(figures)
}

async fn count_instructions(builds: &[Build<'_>], figures: &mut Figures) -> Result<()> {
    eprintln!("counting instructions");
    for build in builds {
        let counted = costs::instructions(build.stage, &build.program, build.options).await?;
        (build.add)(figures, "instructions", counted);
    }
    Ok(())
}

/// The builds to measure in turn, this one last.
fn builds<'a>(stage: &'a Stage, options: &'a Options) -> Result<Vec<Build<'a>>> {
    let now = Build {
        program: executable("tallyman")?,
        add: Figures::add,
        stage,
        options,
    };
    let before = options.before.as_ref().map(|program| Build {
        program: program.clone(),
        add: Figures::add_before,
        ..now
    });
    Ok(before.into_iter().chain([now]).collect())
}

impl Ceiling {
    async fn measure(stage: &Stage, options: &Options, figures: &mut Figures) -> Result<Self> {
        let service = stage.serve_noop().await?;
        let mut load = single(&service, options, Op::Consume, false);
        let (report, cpu) = costs::measure(stage, &service, &load).await?;
        load.connections = MANY_CONNECTIONS;
        let many = load::run(&load, None).await?.flawless("no-op")?;
        let at_rate = open(&service, options, RATE).await?;
        service.stop().await?;
        let ceiling = Self {
            cpu: cpu.service,
            rate: report.requests_per_second,
            rate_of_256: many.requests_per_second,
        };
        figures.add("noopCpu", ceiling.cpu);
        figures.add("noop", ceiling.rate);
        figures.add("noop256", ceiling.rate_of_256);
        figures.add("noopOpenP99", at_rate.latency_ms.p99);
        Ok(ceiling)
    }
}

impl Build<'_> {
    async fn calls(&self, ceiling: &Ceiling, figures: &mut Figures) -> Result<()> {
        let options = self.options;
        let organizations = options.some(ORGANIZATIONS);
        let service = self.stage.serve_as(&self.program, &[], &[]).await?;
        open_all(&service, options).await?;
        let mut load = single(&service, options, Op::Consume, false);
        let (consume, cpu) = costs::measure(self.stage, &service, &load).await?;
        load.connections = MANY_CONNECTIONS;
        let consume_256 = load::run(&load, None).await?.flawless("consume")?;
        let keyed = single(&service, options, Op::Track, true);
        let keyed = load::run(&keyed, None).await?.flawless("track")?;
        let many = batches(&service, options, organizations).await?;
        let few = batches(&service, options, FEW_ORGANIZATIONS).await?;
        let at_rate = open(&service, options, RATE).await?;
        let half = half_of(consume.requests_per_second);
        let at_half = open(&service, options, half).await?;
        service.stop().await?;

        let mut add = |name: &str, value: f64| (self.add)(figures, name, value);
        for (name, ratio, cost) in [
            ("serviceCpu", "serviceOfNoop", cpu.service),
            ("redisCpu", "redisOfNoop", cpu.redis),
            ("postgresCpu", "postgresOfNoop", cpu.postgres),
        ] {
            add(name, cost);
            add(ratio, cost / ceiling.cpu);
        }
        for (name, ratio, rate, highest) in [
            ("consume", "consumeOfNoop", &consume, ceiling.rate),
            (
                "consume256",
                "consumeOfNoop256",
                &consume_256,
                ceiling.rate_of_256,
            ),
            ("keyed", "keyedOfNoop", &keyed, ceiling.rate),
        ] {
            add(name, rate.requests_per_second);
            add(ratio, rate.requests_per_second / highest);
        }
        add("batch10k", many.items_per_second);
        add("batch100", few.items_per_second);
        add("openP50", at_rate.latency_ms.p50);
        add("openP99", at_rate.latency_ms.p99);
        add("openP999", at_rate.latency_ms.p999);
        add("halfRate", float(u64::from(half)));
        add("halfP50", at_half.latency_ms.p50);
        add("halfP99", at_half.latency_ms.p99);
        add("halfP999", at_half.latency_ms.p999);
        Ok(())
    }

    async fn flush(&self, counters: u32, figures: &mut Figures) -> Result<()> {
        let reference = Reference::prepare(self.stage, counters).await?;
        let took = flush::store(self.stage, &self.program, counters).await?;
        let stored = f64::from(counters) / took.as_secs_f64();
        let merged = f64::from(counters) / reference.merge().await?.as_secs_f64();
        (self.add)(figures, "flush", stored);
        (self.add)(figures, "merge", merged);
        (self.add)(figures, "flushOfMerge", stored / merged);
        Ok(())
    }
}

/// Calls each organization once, which opens its counter and warms the caches.
pub(crate) async fn open_all(service: &Service, options: &Options) -> Result<()> {
    let mut all = single(service, options, Op::Consume, false);
    all.spread = Spread::Turns;
    all.warm_up = Duration::ZERO;
    all.until = Until::Requests(u64::from(all.organizations));
    load::run(&all, None).await?.flawless("warm-up")?;
    Ok(())
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
