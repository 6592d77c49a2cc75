//! What a Redis Cluster costs compared with one server: the same load on both in turn, on one machine, so that costs a call are
//! comparable and sums are not.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tallyman_servers::{ClusterOptions, RedisCluster};

use crate::costs::cpu;
use crate::figures::{Figure, Figures};
use crate::load::{self, float};
use crate::requests::Op;
use crate::stage::{Scratch, Service, Stage};
use crate::suite::{Options, open_all, single};

/// Of an outage of no interest here, and longer than a loaded machine takes to reply.
const NODE_TIMEOUT: Duration = Duration::from_secs(15);

/// The figures in the order of the table; each name begins with what was measured.
const FIGURES: &[Figure] = &[
    Figure::new("server64", "one server, 64 connections", "requests/s"),
    Figure::new("server64Redis", "its Redis", "us/call"),
    Figure::new("server64Service", "its service", "us/call"),
    Figure::new("server64Batch", "its calls a script call", "calls"),
    Figure::new("cluster64", "three masters, 64 connections", "requests/s"),
    Figure::new("cluster64Redis", "their Redis", "us/call"),
    Figure::new("cluster64Service", "their service", "us/call"),
    Figure::new("cluster64Batch", "their calls a script call", "calls"),
    Figure::new(
        "wait64",
        "with a replica each and WAIT, 64 connections",
        "requests/s",
    ),
    Figure::new("wait64Redis", "their Redis, replicas included", "us/call"),
    Figure::new("wait64Service", "their service", "us/call"),
    Figure::new("wait64Batch", "their calls a script call", "calls"),
    Figure::new("server256", "one server, 256 connections", "requests/s"),
    Figure::new("server256Redis", "its Redis", "us/call"),
    Figure::new("server256Service", "its service", "us/call"),
    Figure::new("server256Batch", "its calls a script call", "calls"),
    Figure::new("cluster256", "three masters, 256 connections", "requests/s"),
    Figure::new("cluster256Redis", "their Redis", "us/call"),
    Figure::new("cluster256Service", "their service", "us/call"),
    Figure::new("cluster256Batch", "their calls a script call", "calls"),
    Figure::new(
        "wait256",
        "with a replica each and WAIT, 256 connections",
        "requests/s",
    ),
    Figure::new("wait256Redis", "their Redis, replicas included", "us/call"),
    Figure::new("wait256Service", "their service", "us/call"),
    Figure::new("wait256Batch", "their calls a script call", "calls"),
    Figure::new(
        "redisOfServer64",
        "Redis of three masters / of one server, 64",
        "",
    ),
    Figure::new(
        "redisOfServer256",
        "Redis of three masters / of one server, 256",
        "",
    ),
];

/// Measures [`FIGURES`].
pub(crate) async fn run(stage: &Stage, options: &Options) -> Result<Figures> {
    let mut figures = Figures::new(FIGURES);
    let rounds = options.rounds();
    let (plain, _plain_dir) = cluster(0).await?;
    let (replicated, _replicated_dir) = cluster(1).await?;
    let (plain_url, replicated_url) = (plain.url(), replicated.url());
    let pids = |cluster: &RedisCluster| cluster.nodes().iter().filter_map(|it| it.pid).collect();
    let wait = ("TALLYMAN_REDIS_WAIT_REPLICAS", "1");
    let url = "TALLYMAN_REDIS_URL";
    let places = [
        Place {
            name: "server",
            settings: vec![],
            servers: vec![stage.redis_pid()],
        },
        Place {
            name: "cluster",
            settings: vec![(url, &plain_url)],
            servers: pids(&plain),
        },
        Place {
            name: "wait",
            settings: vec![(url, &replicated_url), wait],
            servers: pids(&replicated),
        },
    ];
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for connections in [64, 256] {
            let mut redis = Vec::new();
            for place in &places {
                let Place {
                    name,
                    settings,
                    servers,
                } = place;
                let service = stage.serve(settings).await?;
                let measured = measure(&service, options, connections, servers).await?;
                service.stop().await?;
                let name = format!("{name}{connections}");
                figures.add(&name, measured.requests_per_second);
                figures.add(&format!("{name}Redis"), measured.redis);
                figures.add(&format!("{name}Service"), measured.service);
                figures.add(&format!("{name}Batch"), measured.batch);
                redis.push(measured.redis);
            }
            if let [server, cluster, ..] = redis[..] {
                figures.add(&format!("redisOfServer{connections}"), cluster / server);
            }
        }
    }
    Ok(figures)
}

/// What is measured.
struct Place<'a> {
    /// With which the names of its figures begin.
    name: &'a str,
    settings: Vec<(&'a str, &'a str)>,
    /// The processes of its servers.
    servers: Vec<u32>,
}

async fn cluster(replicas: usize) -> Result<(RedisCluster, Scratch)> {
    let name = format!("tallyman-bench-{}-{replicas}", std::process::id());
    let dir = Scratch::new(&name)?;
    let extra = ["--appendonly", "yes", "--appendfsync", "everysec"];
    let options = ClusterOptions {
        replicas,
        node_timeout: NODE_TIMEOUT,
        extra: extra.map(str::to_owned).to_vec(),
        ..ClusterOptions::default()
    };
    Ok((RedisCluster::start(dir.path(), &options).await?, dir))
}

struct Measured {
    requests_per_second: f64,
    /// CPU of all servers, and of the service, microseconds a call.
    redis: f64,
    service: f64,
    /// Calls a call of the script.
    batch: f64,
}

async fn measure(
    service: &Service,
    options: &Options,
    connections: usize,
    servers: &[u32],
) -> Result<Measured> {
    open_all(service, options).await?;
    let mut load = single(service, options, Op::Consume, false);
    load.connections = connections;
    load.warm_up = Duration::ZERO;
    let before = (
        cpu(servers)?,
        cpu(&[service.pid()])?,
        batches(service).await?,
    );
    let report = load::run(&load, None).await?.flawless("consume")?;
    let after = (
        cpu(servers)?,
        cpu(&[service.pid()])?,
        batches(service).await?,
    );
    let calls = float(report.requests);
    let (sent, counted) = (after.2.0 - before.2.0, after.2.1 - before.2.1);
    Ok(Measured {
        requests_per_second: report.requests_per_second,
        redis: (after.0 - before.0) * 1e6 / calls,
        service: (after.1 - before.1) * 1e6 / calls,
        batch: counted / sent,
    })
}

/// How many batches the service has sent, and how many calls were in them.
async fn batches(service: &Service) -> Result<(f64, f64)> {
    let metrics = service.metrics().await?;
    let value = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse::<f64>().ok())
    };
    let batches = value("tallyman_count_script_calls_count");
    let calls = value("tallyman_count_script_calls_sum");
    batches.zip(calls).context("the service has other metrics")
}
