//! How long calls take at half of the capacity, and at twice the capacity, where some are refused.
//!
//! Redis is slowed down, so that it is the bottleneck and neither the service nor the load tool is: it is stopped nearly all
//! of the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::future::join_all;
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use tokio::time::{Instant, sleep_until};

use crate::figures::{Figure, Figures};
use crate::http::Connection;
use crate::latency::Latencies;
use crate::load::float;
use crate::requests::organization;
use crate::stage::{NO_FLUSH, Service, Stage, signal};
use crate::suite::Options;

/// More than wait at twice the capacity, so that the queue can grow.
const CONNECTIONS: u32 = 800;

const LASTS: Duration = Duration::from_secs(5);

/// In which the queue may grow before calls are refused.
const FIRST: Duration = Duration::from_secs(1);

/// How long Redis runs, and is stopped, in turns.
const RUNS: Duration = Duration::from_millis(1);
const STOPS: Duration = Duration::from_millis(11);

/// Far beyond the capacity.
const FLOOD: f64 = 20_000.0;

/// The figures in the order of the table.
const FIGURES: &[Figure] = &[
    Figure::new("capacity", "capacity", "calls/s"),
    Figure::new("halfP99", "half of the capacity, p99", "ms"),
    Figure::new("twiceCounted", "twice the capacity, counted", "calls/s"),
    Figure::new("twiceP50", "twice the capacity, counted calls, p50", "ms"),
    Figure::new("twiceP99", "twice the capacity, counted calls, p99", "ms"),
    Figure::new("refusedP99", "twice the capacity, refused calls, p99", "ms"),
];

/// An answer: when its call was due after the start, and how long after that it came.
#[derive(Debug, Clone, Copy)]
struct Answer {
    due: Duration,
    took: Duration,
    status: u16,
}

/// Measures [`FIGURES`].
pub(crate) async fn run(stage: &Stage, options: &Options) -> Result<Figures> {
    let mut figures = Figures::new(FIGURES);
    let rounds = options.rounds();
    let service = stage.serve(&[NO_FLUSH]).await?;
    // Opens all counters.
    offer(&service, f64::from(CONNECTIONS)).await?;
    for _ in 0..rounds {
        let slowed = Slowed::start(stage.redis_pid())?;
        let capacity = counted(&offer(&service, FLOOD).await?);
        figures.add("capacity", capacity);
        let half = offer(&service, capacity / 2.0).await?;
        figures.add("halfP99", latencies(&half, 200)?.milliseconds(0.99));
        let twice = offer(&service, capacity * 2.0).await?;
        drop(slowed);
        figures.add("twiceCounted", counted(&twice));
        let granted = latencies(&twice, 200)?;
        figures.add("twiceP50", granted.milliseconds(0.5));
        figures.add("twiceP99", granted.milliseconds(0.99));
        figures.add("refusedP99", latencies(&twice, 503)?.milliseconds(0.99));
    }
    service.stop().await?;
    Ok(figures)
}

/// Stops a process most of the time, until it is dropped.
struct Slowed {
    ended: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Slowed {
    fn start(process: u32) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let thread = thread::Builder::new().spawn(move || {
            while !until.load(Ordering::Relaxed) {
                // Fails only if the process is gone, which its callers notice.
                let _ = signal(&[process], "STOP");
                thread::sleep(STOPS);
                let _ = signal(&[process], "CONT");
                thread::sleep(RUNS);
            }
        });
        Ok(Self {
            ended,
            thread: Some(thread.context("a thread cannot be started")?),
        })
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Offers this many calls a second, or as many as the connections can.
async fn offer(service: &Service, rate: f64) -> Result<Vec<Answer>> {
    let start = Instant::now();
    let interval = f64::from(CONNECTIONS) / rate;
    let callers = (0..CONNECTIONS).map(|number| {
        let first = interval * f64::from(number) / f64::from(CONNECTIONS);
        call(service, number + 1, start, first, interval)
    });
    let answers: Result<Vec<Vec<Answer>>> = join_all(callers).await.into_iter().collect();
    Ok(answers?.concat())
}

/// Consumes units of one organization, whenever the next is due and the previous one answered.
async fn call(
    service: &Service,
    number: u32,
    start: Instant,
    first: f64,
    interval: f64,
) -> Result<Vec<Answer>> {
    let mut connection = Connection::new(&service.target);
    let mut answers = Vec::new();
    let body = format!("{{\"organizationId\":\"{}\"}}", organization(number));
    let mut due = Duration::from_secs_f64(first);
    while due < LASTS {
        sleep_until(start + due).await;
        let sent = Instant::now();
        let request: Request<()> = service.target.request("POST", "/v1/track")?;
        let mut request = request.map(|()| Full::new(Bytes::from(body.clone())));
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        let response = connection.send(request).await?;
        answers.push(Answer {
            due,
            took: sent.elapsed(),
            status: response.status,
        });
        due = (due + Duration::from_secs_f64(interval)).max(start.elapsed());
    }
    Ok(answers)
}

/// Counted calls a second.
fn counted(answers: &[Answer]) -> f64 {
    let counted = answers
        .iter()
        .filter(|it| it.status == 200 && it.due >= FIRST);
    float(counted.count() as u64) / (LASTS.as_secs_f64() - FIRST.as_secs_f64())
}

/// The latencies of calls with this status.
fn latencies(answers: &[Answer], status: u16) -> Result<Latencies> {
    let mut latencies = Latencies::new()?;
    let those = answers
        .iter()
        .filter(|it| it.status == status && it.due >= FIRST);
    for answer in those {
        latencies.add(answer.took);
    }
    if latencies.is_empty() {
        bail!("no call was answered with {status}");
    }
    Ok(latencies)
}
