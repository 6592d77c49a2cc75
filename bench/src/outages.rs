//! How long callers wait while Redis or Postgres hangs.

use std::time::Duration;

use anyhow::{Result, bail};
use futures::future::join_all;
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use tokio::time::{Instant, sleep_until};

use crate::figures::{Figure, Figures, Target};
use crate::http::Connection;
use crate::latency::Latencies;
use crate::load::float;
use crate::requests::organization;
use crate::stage::{Service, Stage, postgres_processes, signal};
use crate::suite::Options;

const CONNECTIONS: u32 = 64;

/// When a server hangs after the calls have begun, and for how long.
const BEGINS: Duration = Duration::from_secs(1);
const HANGS: Duration = Duration::from_secs(5);
const LASTS: Duration = Duration::from_secs(8);

/// In which answers may take longer, after a server began to hang.
const FIRST: Duration = Duration::from_secs(1);

/// The figures in the order of the table.
const FIGURES: &[Figure] = &[
    Figure::new("redisFirst", "Redis hangs, the first second, max", "ms"),
    Figure::new("redisP99", "Redis hangs, after that, p99", "ms").target(Target::AtMost(50.0)),
    Figure::new("redisMax", "Redis hangs, after that, max", "ms"),
    Figure::new(
        "redisBack",
        "Redis resumes, time to the first counted call",
        "ms",
    ),
    Figure::new(
        "postgresP99",
        "Postgres hangs, known organizations, p99",
        "ms",
    )
    .target(Target::AtMost(50.0)),
    Figure::new(
        "postgresCounted",
        "Postgres hangs, known organizations, calls counted",
        "%",
    )
    .target(Target::AtLeast(100.0)),
    Figure::new("bothFirst", "both hang, the first second, max", "ms"),
    Figure::new("bothP99", "both hang, after that, p99", "ms").target(Target::AtMost(50.0)),
    Figure::new("bothMax", "both hang, after that, max", "ms"),
];

/// An answer: when its call was sent after the fault began, and how long it took.
#[derive(Debug, Clone, Copy)]
struct Answer {
    /// Negative before the fault, ms.
    sent: f64,
    took: f64,
    is_counted: bool,
}

/// Measures [`FIGURES`].
pub(crate) async fn run(stage: &Stage, options: &Options) -> Result<Figures> {
    let mut figures = Figures::new(FIGURES);
    let rounds = options.rounds();
    let service = stage.serve(&[]).await?;
    let redis = vec![stage.redis_pid()];
    for _ in 0..rounds {
        let answers = during(&service, &redis).await?;
        hung(&mut figures, "redis", &answers)?;
        let back = answers
            .iter()
            .filter(|it| it.sent + it.took > ended() && it.is_counted);
        let back = back
            .map(|it| it.sent + it.took - ended())
            .fold(f64::NAN, f64::min);
        figures.add("redisBack", back);

        let postgres = postgres_processes(&mut stage.postgres().await?).await?;
        let answers = during(&service, &postgres).await?;
        let meanwhile = latencies(&answers, 0.0)?;
        figures.add("postgresP99", meanwhile.milliseconds(0.99));
        let all = answers.iter().filter(|it| it.sent > 0.0);
        let counted = all.clone().filter(|it| it.is_counted).count();
        figures.add(
            "postgresCounted",
            100.0 * float(counted as u64) / float(all.count() as u64),
        );

        let mut both = postgres_processes(&mut stage.postgres().await?).await?;
        both.extend(&redis);
        let answers = during(&service, &both).await?;
        hung(&mut figures, "both", &answers)?;
    }
    service.stop().await?;
    Ok(figures)
}

fn hung(figures: &mut Figures, name: &str, answers: &[Answer]) -> Result<()> {
    let first = FIRST.as_secs_f64() * 1e3;
    let early = answers.iter().filter(|it| (0.0..first).contains(&it.sent));
    let early = early.map(|it| it.took).fold(0.0, f64::max);
    figures.add(&format!("{name}First"), early);
    let rest = latencies(answers, first)?;
    figures.add(&format!("{name}P99"), rest.milliseconds(0.99));
    figures.add(&format!("{name}Max"), rest.max());
    Ok(())
}

/// When the fault ended, ms after it began.
fn ended() -> f64 {
    HANGS.as_secs_f64() * 1e3
}

/// The latencies of calls that were sent this long after the fault began, and before it ended.
fn latencies(answers: &[Answer], from: f64) -> Result<Latencies> {
    let mut latencies = Latencies::new()?;
    for answer in answers
        .iter()
        .filter(|it| (from..ended()).contains(&it.sent))
    {
        latencies.add(Duration::from_secs_f64(answer.took / 1e3));
    }
    if latencies.is_empty() {
        bail!("no call was answered while the server hung");
    }
    Ok(latencies)
}

/// Calls all the time, and lets these processes hang for a while.
async fn during(service: &Service, processes: &[u32]) -> Result<Vec<Answer>> {
    let start = Instant::now();
    let callers = (1..=CONNECTIONS).map(|number| call(service, number, start));
    let fault = async {
        sleep_until(start + BEGINS).await;
        signal(processes, "STOP")?;
        sleep_until(start + BEGINS + HANGS).await;
        signal(processes, "CONT")
    };
    let (answers, fault) = tokio::join!(join_all(callers), fault);
    fault?;
    let answers: Result<Vec<Vec<Answer>>> = answers.into_iter().collect();
    Ok(answers?.concat())
}

/// Consumes units of one organization, one after the other.
async fn call(service: &Service, number: u32, start: Instant) -> Result<Vec<Answer>> {
    let mut connection = Connection::new(&service.target);
    let mut answers = Vec::new();
    let body = format!("{{\"organizationId\":\"{}\"}}", organization(number));
    while start.elapsed() < LASTS {
        let sent = Instant::now();
        let request: Request<()> = service.target.request("POST", "/v1/consume")?;
        let mut request = request.map(|()| Full::new(Bytes::from(body.clone())));
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        let response = connection.send(request).await?;
        let relative = sent.duration_since(start).as_secs_f64() - BEGINS.as_secs_f64();
        answers.push(Answer {
            sent: relative * 1e3,
            took: sent.elapsed().as_secs_f64() * 1e3,
            is_counted: response.status == 200,
        });
    }
    Ok(answers)
}
