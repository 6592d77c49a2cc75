//! Latency of reads and throughput of exports of history, with years of it in Postgres.
//!
//! The rows are written directly into the service's tables, hour by hour as a flush job would have stored them, so that
//! the hours of one organization are spread over the whole table.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, HeaderValue};
use rand::RngExt as _;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::figures::{Figure, Figures, Target};
use crate::http::{Connection, Target as Server};
use crate::latency::Latencies;
use crate::load::float;
use crate::requests::organization;
use crate::stage::{Service, Stage};
use crate::suite::Options;

/// Organizations of which everything is exported.
const EXPORTED: u32 = 5_000;

/// Organizations among which one is read.
const ORGANIZATIONS: u32 = 100_000;

const DAYS: u32 = 90;

const MIB: f64 = 1_048_576.0;

/// Options of the measurement of history.
#[derive(Debug, Args)]
pub(crate) struct HistoryOptions {
    #[command(flatten)]
    pub(crate) suite: Options,
    /// Hours of each day in which each organization counts
    #[arg(long, value_name = "HOURS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=24))]
    hours_per_day: u32,
    /// Print the query plans of the reads to stderr
    #[arg(long)]
    plans: bool,
}

/// The figures in the order of the table.
const FIGURES: &[Figure] = &[
    Figure::new(
        "export",
        "90 days of 5,000 organizations as CSV, by day",
        "rows/s",
    )
    .target(Target::AtLeast(200_000.0)),
    Figure::new("exportLimits", "the same with limits and totals", "rows/s"),
    Figure::new(
        "exportMemory",
        "memory of the service after the exports",
        "MiB",
    )
    .target(Target::AtMost(100.0)),
    Figure::new(
        "dayP50",
        "90 days of one of 100,000 organizations by day, p50",
        "ms",
    ),
    Figure::new("dayP99", "by day, p99", "ms").target(Target::AtMost(20.0)),
    Figure::new("fullP99", "by day with limits and totals, p99", "ms"),
    Figure::new("weekP99", "by week, p99", "ms"),
    Figure::new("monthP99", "by month, p99", "ms"),
];

/// Measures [`FIGURES`].
pub(crate) async fn run(stage: &Stage, options: &HistoryOptions) -> Result<Figures> {
    let mut figures = Figures::new(FIGURES);
    let mut postgres = stage.postgres().await?;
    let exported = options.suite.some(EXPORTED);
    let organizations = options.suite.some(ORGANIZATIONS);
    let rounds = options.suite.rounds();
    let from = first_instant(&mut postgres).await?;

    seed(&mut postgres, 1..=exported, options.hours_per_day).await?;
    let service = stage.serve(&[]).await?;
    for _ in 0..rounds {
        for (name, extra) in [("export", ""), ("exportLimits", EVERYTHING)] {
            let path = format!("/v1/history?granularity=day&from={from}{extra}");
            figures.add(name, export(&service, &path, exported).await?);
        }
        figures.add("exportMemory", float(service.memory_max()?) / MIB);
    }
    service.stop().await?;

    seed(
        &mut postgres,
        exported + 1..=organizations,
        options.hours_per_day,
    )
    .await?;
    let service = stage.serve(&[]).await?;
    for _ in 0..rounds {
        for (name, granularity, extra) in [
            ("day", "day", ""),
            ("full", "day", EVERYTHING),
            ("week", "week", ""),
            ("month", "month", ""),
        ] {
            let query = format!("granularity={granularity}&from={from}&pageSize=1000{extra}");
            let duration = 2 * options.suite.duration();
            let latencies = reads(&service, duration, organizations, &query).await?;
            if name == "day" {
                figures.add("dayP50", latencies.milliseconds(0.5));
            }
            figures.add(&format!("{name}P99"), latencies.milliseconds(0.99));
        }
    }
    service.stop().await?;
    if options.plans {
        eprint!("{}", plans(stage, &from, organizations).await?);
    }
    Ok(figures)
}

/// What makes a row complete.
const EVERYTHING: &str = "&limits=true&totals=true";

async fn first_instant(postgres: &mut PgConnection) -> Result<String> {
    let text = "select to_char(date_trunc('day', now() at time zone 'UTC') - $1 * interval '1 day', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
    let days = i32::try_from(DAYS)?;
    Ok(sqlx::query_scalar(text)
        .bind(days)
        .fetch_one(postgres)
        .await?)
}

/// Writes monthly periods and hours of these organizations: `hours_per_day` hours of each of the last 90 days.
async fn seed(
    postgres: &mut PgConnection,
    numbers: std::ops::RangeInclusive<u32>,
    hours_per_day: u32,
) -> Result<()> {
    eprintln!("writing history of organizations up to {}", numbers.end());
    let ids: Vec<String> = numbers.map(organization).collect();
    postgres
        .execute(
            "create temp table if not exists seeded (id text collate \"C\");
             truncate seeded",
        )
        .await?;
    sqlx::query("insert into seeded select unnest($1::text[])")
        .bind(&ids)
        .execute(&mut *postgres)
        .await?;
    let first = format!("date_trunc('day', now() at time zone 'UTC') - {DAYS} * interval '1 day'");
    let months = format!(
        "generate_series(date_trunc('month', {first}), now() at time zone 'UTC', '1 month') as month"
    );
    // Without organizations that have a first period, the hours would have none either.
    let statements = [
        format!(
            "do $$ declare month timestamp; begin
                 for month in select * from {months} loop
                     execute format('create table if not exists usage_hourly_%s partition of usage_hourly
                                     for values from (%L) to (%L) with (fillfactor = 70)', to_char(month, 'YYYY_MM'),
                                    month at time zone 'UTC', (month + interval '1 month') at time zone 'UTC');
                 end loop;
             end $$"
        ),
        "insert into organizations (id) select id from seeded".to_owned(),
        format!(
            "insert into usage_history (organization_id, meter, period_start, period_end, used, denied, refunded, limit_units,
                                        enforcement, policy_version, epoch, seq, stored_at)
             select id, 'api', month at time zone 'UTC', (month + interval '1 month') at time zone 'UTC', 1000, 0, 0, 1000000,
                    'hard', 0, 0, 1, now()
             from {months}, seeded"
        ),
        format!(
            "insert into usage_hourly (organization_id, meter, period_start, hour, used, denied, refunded)
             select id, 'api', date_trunc('month', hour) at time zone 'UTC', hour at time zone 'UTC',
                    1 + (random() * 1000)::int, 0, 0
             from generate_series({first}, now() at time zone 'UTC', '1 day') as day
             cross join lateral (select day + n * interval '1 hour' as hour from generate_series(0, {hours_per_day} - 1) as n) as hours
             cross join seeded"
        ),
        "vacuum (analyze) usage_hourly, usage_history, organizations".to_owned(),
    ];
    for statement in statements {
        postgres.execute(AssertSqlSafe(statement)).await?;
    }
    Ok(())
}

/// Reads a stream to its end, and returns its rows a second.
async fn export(service: &Service, path: &str, organizations: u32) -> Result<f64> {
    let mut request = get(&service.target, path)?;
    let csv = HeaderValue::from_static("text/csv");
    request.headers_mut().insert(ACCEPT, csv);
    let mut lines = 0_u64;
    let start = Instant::now();
    let status = Connection::new(&service.target)
        .read(request, |chunk| {
            lines += chunk
                .iter()
                .map(|byte| u64::from(*byte == b'\n'))
                .sum::<u64>();
        })
        .await?;
    let took = start.elapsed();
    // The day that runs has a row, the header a line.
    let expected = u64::from(organizations) * u64::from(DAYS + 1) + 1;
    if status != 200 || lines != expected {
        bail!("an export responds with {status} and {lines} lines, not {expected}");
    }
    Ok(float(lines) / took.as_secs_f64())
}

/// Reads one organization after the other, each chosen at random, over one connection.
async fn reads(
    service: &Service,
    duration: Duration,
    organizations: u32,
    query: &str,
) -> Result<Latencies> {
    let mut latencies = Latencies::new()?;
    let mut connection = Connection::new(&service.target);
    let start = Instant::now();
    let mut warm = false;
    while start.elapsed() < duration || latencies.is_empty() {
        let one = organization(rand::rng().random_range(1..=organizations));
        let request = get(
            &service.target,
            &format!("/v1/organizations/{one}/history?{query}"),
        )?;
        let sent = Instant::now();
        let response = connection.send(request).await?;
        if response.status != 200 {
            bail!(
                "history responds with {}: {}",
                response.status,
                String::from_utf8_lossy(&response.body)
            );
        }
        warm = warm || start.elapsed() > duration / 4;
        if warm {
            latencies.add(sent.elapsed());
        }
    }
    Ok(latencies)
}

fn get(target: &Server, path: &str) -> Result<hyper::Request<Full<Bytes>>> {
    Ok(target.request("GET", path)?.map(|()| Full::default()))
}

/// How Postgres executes the statements of a read and of an export that concern hours.
async fn plans(stage: &Stage, from: &str, organizations: u32) -> Result<String> {
    let mut postgres = stage.postgres().await?;
    // Effective for sessions that begin from now on.
    postgres
        .execute(
            "alter database tallyman set session_preload_libraries = 'auto_explain';
             alter database tallyman set auto_explain.log_min_duration = 0;
             alter database tallyman set auto_explain.log_analyze = on;
             alter database tallyman set auto_explain.log_buffers = on",
        )
        .await
        .context("Postgres lacks auto_explain")?;
    let service = stage.serve(&[]).await?;
    let before = fs::read_to_string(stage.postgres_log())?.len();
    let query = format!("granularity=day&from={from}&pageSize=1000{EVERYTHING}");
    reads(&service, Duration::ZERO, organizations, &query).await?;
    let path = format!("/v1/history?granularity=day&from={from}&pageSize=1000");
    Connection::new(&service.target)
        .send(get(&service.target, &path)?)
        .await?;
    service.stop().await?;
    let log = fs::read_to_string(stage.postgres_log())?;
    let mut text = String::new();
    let logged = log.get(before..).unwrap_or_default();
    for entry in logged.split("LOG:  duration: ").skip(1) {
        // Lines of an entry are indented.
        let lines = entry.lines().take(1);
        let indented = entry
            .lines()
            .skip(1)
            .take_while(|line| line.starts_with('\t'));
        let plan: Vec<&str> = lines.chain(indented).collect();
        let plan = plan.join("\n");
        if plan.contains("usage_hourly") && !plan.contains("insert into") {
            let _ = writeln!(text, "{plan}\n");
        }
    }
    Ok(text)
}
