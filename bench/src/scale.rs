//! How throughput, memory and storing change with the number of organizations and of connections.

use std::time::Duration;

use anyhow::Result;

use crate::figures::{Figure, Figures, Target};
use crate::flush;
use crate::load::{self, Until, float};
use crate::requests::{Op, Spread};
use crate::stage::{Stage, executable};
use crate::suite::{Options, single};

/// The figures in the order of the table.
const FIGURES: &[Figure] = &[
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

/// Measures [`FIGURES`].
pub(crate) async fn run(stage: &Stage, options: &Options) -> Result<Figures> {
    let mut figures = Figures::new(FIGURES);
    let program = executable("tallyman")?;
    let empty = stage.redis_memory().await?;
    let mut smallest = None;
    for (organizations, name) in [(10_000, "10k"), (100_000, "100k"), (1_000_000, "1m")] {
        let organizations = options.some(organizations);
        eprintln!("{organizations} organizations");
        let is_largest = name == "1m";
        let new = flush::store(stage, &program, organizations).await?;
        if is_largest {
            let changed = flush::store(stage, &program, organizations).await?;
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
