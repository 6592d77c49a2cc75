//! What the service measures of itself, for Prometheus.
//!
//! A value, passed to whoever has something to tell, so that two instances in one process have
//! metrics each. Counting takes no lock but the short one inside a histogram, and allocates nothing:
//! handles are made at the start, or when a route or a meter is first met. Nothing is labelled by
//! organization, and what is labelled by input has a bound. `docs/metrics.md` comes from here.

mod decisions;
mod families;
mod labels;
mod requests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tracing_appender::non_blocking::ErrorCounter;

pub use labels::{Cache, CloseReason, DeliveryOutcome, Outcome, Recovered, Script, Worker};

use crate::domain::decision::Operation;
use crate::domain::ids::MeterId;
use decisions::Decisions;
use families::ByLabel;
use requests::Requests;

/// What [`Metrics::to_text`] is written in.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The label of what has no place of its own.
const OTHER: &str = "other";

/// Seconds, of requests and scripts.
const LATENCIES: [f64; 15] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0,
];

/// Seconds, of work that nobody waits for.
const WORKING_TIMES: [f64; 11] = [
    0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 25.0, 100.0,
];

/// How many of something.
const SIZES: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// The lines that the log of this process has dropped.
static LOG: OnceLock<ErrorCounter> = OnceLock::new();

/// Has the lines that the log drops told from now on; of the process, because it has one log.
pub fn watch_log(dropped: ErrorCounter) {
    let _ = LOG.set(dropped);
}

/// The handle on all metrics of an instance; clones share it.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    requests: Requests,
    connections: Connections,
    decisions: Decisions,
    redis: Redis,
    caches: Caches,
    work: Work,
    log_lines_dropped: Counter,
}

/// Of whoever calls.
#[derive(Debug)]
struct Connections {
    open: Gauge,
    closed: ByLabel<CloseReason, Counter>,
}

/// Of what Redis does and holds.
#[derive(Debug)]
struct Redis {
    scripts: ByLabel<Script, Histogram>,
    count_calls: Histogram,
    count_charges: Histogram,
    opened: ByLabel<Recovered, Counter>,
    generations: Counter,
}

/// Of what the process knows by itself.
#[derive(Debug)]
struct Caches {
    hits: ByLabel<Cache, Counter>,
    misses: ByLabel<Cache, Counter>,
    policy_refreshes: Counter,
}

/// Of what goes on without being asked for.
#[derive(Debug)]
struct Work {
    flush_lag: Gauge<f64, AtomicU64>,
    flush_rows: Counter,
    deliveries: ByLabel<DeliveryOutcome, Counter>,
    delivery_lag: Gauge<f64, AtomicU64>,
    periods_ended: Counter,
    durations: ByLabel<Worker, Histogram>,
    failures: ByLabel<Worker, Counter>,
}

impl Metrics {
    /// Metrics of an instance that has done nothing yet, of this version, started now.
    pub fn new(version: &'static str, now: DateTime<Utc>) -> Self {
        let mut root = Registry::default();
        let started: Gauge<f64, AtomicU64> = Gauge::default();
        #[expect(
            clippy::cast_precision_loss,
            reason = "the milliseconds of this age fit"
        )]
        started.set(now.timestamp_millis() as f64 / 1000.0);
        root.register(
            "process_start_time_seconds",
            "When this process started, since the epoch",
            started,
        );
        let registry = root.sub_registry_with_prefix("tallyman");
        let build = Info::new([("version", version)]);
        registry.register("build", "What runs; always 1", build);
        Self(Arc::new(Inner {
            requests: Requests::register(registry),
            connections: Connections::register(registry),
            decisions: Decisions::register(registry),
            redis: Redis::register(registry),
            caches: Caches::register(registry),
            work: Work::register(registry),
            log_lines_dropped: counter(
                registry,
                "log_lines_dropped",
                "Lines of the log that were dropped because nobody read standard error fast enough",
            ),
            registry: root,
        }))
    }

    /// All metrics as text, in the format that [`CONTENT_TYPE`] names.
    pub fn to_text(&self) -> Result<String, std::fmt::Error> {
        let dropped = LOG.get().map_or(0, ErrorCounter::dropped_lines);
        let told = self.0.log_lines_dropped.inner();
        told.store(dropped as u64, Ordering::Relaxed);
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }

    /// A request was answered; without a status, its caller went away before.
    pub fn request_completed(
        &self,
        method: &str,
        route: &str,
        status: Option<u16>,
        took: Duration,
    ) {
        self.0.requests.answered(method, route, status, took);
    }

    /// There is a connection more.
    pub fn connection_opened(&self) {
        self.0.connections.open.inc();
    }

    /// There is a connection less.
    pub fn connection_ended(&self) {
        self.0.connections.open.dec();
    }

    /// The service has closed a connection, or refused it.
    pub fn connection_closed(&self, reason: CloseReason) {
        self.0.connections.closed.get(reason).inc();
    }

    /// Calls that name a meter have come to their end.
    pub fn decided(&self, operation: Operation, outcome: Outcome, meter: &MeterId, calls: u64) {
        self.0.decisions.decided(operation, outcome, meter, calls);
    }

    /// A script has answered, or will not.
    pub fn script_completed(&self, script: Script, took: Duration) {
        self.0.redis.scripts.get(script).observe(took.as_secs_f64());
    }

    /// A batch for `count.lua` holds so many calls of the API, with so many charges in all.
    pub fn batch_sent(&self, calls: usize, charges: usize) {
        self.0.redis.count_calls.observe(size(calls));
        self.0.redis.count_charges.observe(size(charges));
    }

    /// Redis has a counter that it did not have.
    pub fn counter_recovered(&self, opened: Recovered) {
        self.0.redis.opened.get(opened).inc();
    }

    /// A number was drawn for new data sets.
    pub fn generation_drawn(&self) {
        self.0.redis.generations.inc();
    }

    /// A cache knew the answer.
    pub fn cache_hit(&self, cache: Cache) {
        self.0.caches.hits.get(cache).inc();
    }

    /// A cache did not know the answer.
    pub fn cache_missed(&self, cache: Cache) {
        self.0.caches.misses.get(cache).inc();
    }

    /// A newer policy is looked for.
    pub fn policy_refreshed(&self) {
        self.0.caches.policy_refreshes.inc();
    }

    /// The oldest counter that waits to be stored has waited so long.
    pub fn set_flush_lag(&self, age: Duration) {
        self.0.work.flush_lag.set(age.as_secs_f64());
    }

    /// Postgres holds so many more snapshots.
    pub fn rows_stored(&self, rows: usize) {
        self.0.work.flush_rows.inc_by(rows as u64);
    }

    /// A delivery to a webhook was tried.
    pub fn delivery_attempted(&self, outcome: DeliveryOutcome) {
        self.0.work.deliveries.get(outcome).inc();
    }

    /// The delivery that is due for longest has been so for so long.
    pub fn set_delivery_lag(&self, age: Duration) {
        self.0.work.delivery_lag.set(age.as_secs_f64());
    }

    /// The scheduler has ended the periods of so many organizations.
    pub fn periods_ended(&self, organizations: usize) {
        self.0.work.periods_ended.inc_by(organizations as u64);
    }

    /// Does a round of work, and notes how long it took and whether it failed.
    pub async fn timed<T, E>(
        &self,
        worker: Worker,
        round: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let begun = Instant::now();
        let done = round.await;
        let work = &self.0.work;
        let duration = work.durations.get(worker);
        duration.observe(begun.elapsed().as_secs_f64());
        if done.is_err() {
            work.failures.get(worker).inc();
        }
        done
    }
}

impl Connections {
    fn register(registry: &mut Registry) -> Self {
        let open = Gauge::default();
        registry.register(
            "connections",
            "Connections of callers that are open",
            open.clone(),
        );
        Self {
            open,
            closed: ByLabel::register(
                registry,
                "connections_closed",
                "Connections of callers that the service has closed before their callers did, or refused",
                Counter::default,
            ),
        }
    }
}

impl Redis {
    fn register(registry: &mut Registry) -> Self {
        Self {
            scripts: ByLabel::register(
                registry,
                "script_duration_seconds",
                "Round trips of calls of scripts in Redis",
                latency,
            ),
            count_calls: sizes(
                registry,
                "count_script_calls",
                "Calls of the API that one batch for `count.lua` holds",
            ),
            count_charges: sizes(
                registry,
                "count_script_charges",
                "Charges that one batch for `count.lua` holds",
            ),
            opened: ByLabel::register(
                registry,
                "counters_opened",
                "Counters that Redis did not have and has now, by what they start from",
                Counter::default,
            ),
            generations: counter(
                registry,
                "generations",
                "Numbers drawn for new data sets: Redis was empty, restarted or another",
            ),
        }
    }
}

impl Caches {
    fn register(registry: &mut Registry) -> Self {
        Self {
            hits: ByLabel::register(
                registry,
                "cache_hits",
                "Look-ups that the process answered by itself",
                Counter::default,
            ),
            misses: ByLabel::register(
                registry,
                "cache_misses",
                "Look-ups that went to Redis, and perhaps to Postgres",
                Counter::default,
            ),
            policy_refreshes: counter(
                registry,
                "policy_refreshes",
                "Times that Redis knew a newer policy than a call, or none, and the call looked again",
            ),
        }
    }
}

impl Work {
    fn register(registry: &mut Registry) -> Self {
        let flush_lag = Gauge::default();
        registry.register(
            "flush_lag_seconds",
            "Age of the oldest change that Postgres lacked when a flush of this instance last looked",
            flush_lag.clone(),
        );
        let delivery_lag = Gauge::default();
        registry.register(
            "webhook_lag_seconds",
            "How long the delivery that is due for longest had been so when this instance last looked",
            delivery_lag.clone(),
        );
        Self {
            flush_lag,
            delivery_lag,
            deliveries: ByLabel::register(
                registry,
                "webhook_deliveries",
                "Tries of deliveries to webhooks",
                Counter::default,
            ),
            flush_rows: counter(
                registry,
                "flush_rows",
                "Snapshots of counters that were stored",
            ),
            periods_ended: counter(
                registry,
                "scheduled_resets",
                "Organizations whose periods the scheduler has ended",
            ),
            durations: ByLabel::register(
                registry,
                "worker_duration_seconds",
                "Rounds of work that goes on by itself, failed ones included",
                || Histogram::new(WORKING_TIMES),
            ),
            failures: ByLabel::register(
                registry,
                "worker_failures",
                "Rounds of that work that failed; a later one makes up for each",
                Counter::default,
            ),
        }
    }
}

fn latency() -> Histogram {
    Histogram::new(LATENCIES)
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn sizes(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let histogram = Histogram::new(SIZES);
    registry.register(name, help, histogram.clone());
    histogram
}

#[expect(
    clippy::cast_precision_loss,
    reason = "no call comes near 2^53 of anything"
)]
fn size(count: usize) -> f64 {
    count as f64
}
