//! Metrics of the service, for Prometheus. `docs/metrics.md` is generated from them.
//!
//! A value, not a global, so that two instances in one process have their own metrics. Recording takes no lock except the
//! short one inside a histogram, and does not allocate: handles are created at the start, or when a route or meter first
//! appears. No label is an organization, and labels from clients are bounded.

mod decisions;
mod families;
mod jobs;
mod labels;
mod requests;
mod servers;
mod totals;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tracing_appender::non_blocking::ErrorCounter;

pub use jobs::Pending;
pub use labels::{Cache, CloseReason, DeliveryOutcome, Outcome, Recovered, Script, Server, Worker};

use crate::domain::decision::Operation;
use crate::domain::ids::MeterId;
use decisions::Decisions;
use families::{ByLabel, register};
use jobs::Jobs;
use requests::Requests;
use servers::Servers;

/// The media type of [`Metrics::to_text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The log lines that this process dropped.
static LOG: OnceLock<ErrorCounter> = OnceLock::new();

/// Exports the number of dropped log lines. Global, because a process has one log.
pub fn watch_log(dropped: ErrorCounter) {
    let _ = LOG.set(dropped);
}

/// All metrics of an instance; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    requests: Requests,
    connections: Connections,
    streams: Gauge,
    decisions: Decisions,
    servers: Servers,
    caches: Caches,
    authentications_throttled: Counter,
    jobs: Jobs,
    log_lines_dropped: Counter,
}

/// Client connections.
#[derive(Debug)]
struct Connections {
    open: Gauge,
    closed: ByLabel<CloseReason, Counter>,
}

/// Caches of the process.
#[derive(Debug)]
struct Caches {
    hits: ByLabel<Cache, Counter>,
    misses: ByLabel<Cache, Counter>,
    policy_refreshes: Counter,
}

impl Metrics {
    /// The metrics of a new instance.
    pub fn new(version: &'static str, now: DateTime<Utc>) -> Self {
        let mut root = Registry::default();
        let started: Gauge<f64, AtomicU64> = register(
            &mut root,
            "process_start_time_seconds",
            "When this process started, in seconds since 1970",
        );
        #[expect(
            clippy::cast_precision_loss,
            reason = "the milliseconds of this age fit"
        )]
        started.set(now.timestamp_millis() as f64 / 1000.0);
        let registry = root.sub_registry_with_prefix("tallyman");
        let build = Info::new([("version", version)]);
        registry.register("build", "The version; always 1", build);
        Self(Arc::new(Inner {
            requests: Requests::register(registry),
            connections: Connections::register(registry),
            streams: register(registry, "live_streams", "Open live streams"),
            decisions: Decisions::register(registry),
            servers: Servers::register(registry),
            caches: Caches::register(registry),
            authentications_throttled: register(
                registry,
                "authentications_throttled",
                "Keys that were refused after too many failed authentications of their address",
            ),
            jobs: Jobs::register(registry),
            log_lines_dropped: register(
                registry,
                "log_lines_dropped",
                "Log lines dropped because standard error was read too slowly",
            ),
            registry: root,
        }))
    }

    /// All metrics as text, of type [`CONTENT_TYPE`].
    pub fn to_text(&self) -> Result<String, std::fmt::Error> {
        let dropped = LOG.get().map_or(0, ErrorCounter::dropped_lines);
        let exported = self.0.log_lines_dropped.inner();
        exported.store(dropped as u64, Ordering::Relaxed);
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }

    /// A request ended; without a status, its client disconnected before the response.
    pub fn request_completed(
        &self,
        method: &str,
        route: &str,
        status: Option<u16>,
        took: Duration,
    ) {
        self.0.requests.completed(method, route, status, took);
    }

    /// A client connected.
    pub fn connection_opened(&self) {
        self.0.connections.open.inc();
    }

    /// A client connection ended.
    pub fn connection_ended(&self) {
        self.0.connections.open.dec();
    }

    /// The service closed or refused a connection.
    pub fn connection_closed(&self, reason: CloseReason) {
        self.0.connections.closed.get(reason).inc();
    }

    /// Open live streams.
    pub fn live_streams(&self) -> &Gauge {
        &self.0.streams
    }

    /// So many shards have a connected Redis server.
    pub fn set_shards_reached(&self, shards: usize) {
        let shards = i64::try_from(shards).unwrap_or(i64::MAX);
        self.0.servers.shards.set(shards);
    }

    /// The data sets of so many shards lack what was acknowledged.
    pub fn data_sets_rolled_back(&self, shards: usize) {
        self.0.servers.rolled_back.inc_by(shards as u64);
    }

    /// A server replied, or did not.
    pub fn server_observed(&self, server: Server, up: bool) {
        self.0.servers.up.get(server).set(i64::from(up));
    }

    /// Calls about a meter ended.
    pub fn decided(&self, operation: Operation, outcome: Outcome, meter: &MeterId, calls: u64) {
        self.0.decisions.decided(operation, outcome, meter, calls);
    }

    /// A script call ended, with a reply or without.
    pub fn script_completed(&self, script: Script, took: Duration) {
        self.0
            .servers
            .scripts
            .get(script)
            .observe(took.as_secs_f64());
    }

    /// A batch was sent to `count.lua`.
    pub fn batch_sent(&self, calls: usize, charges: usize) {
        self.0.servers.batch_calls.observe(size(calls));
        self.0.servers.batch_charges.observe(size(charges));
    }

    /// A missing counter was recovered.
    pub fn counter_recovered(&self, source: Recovered) {
        self.0.servers.recovered.get(source).inc();
    }

    /// A generation was drawn.
    pub fn generation_drawn(&self) {
        self.0.servers.generations.inc();
    }

    /// A key was refused after too many failed authentications of its address.
    pub fn authentication_throttled(&self) {
        self.0.authentications_throttled.inc();
    }

    /// A look-up hit.
    pub fn cache_hit(&self, cache: Cache) {
        self.0.caches.hits.get(cache).inc();
    }

    /// A look-up missed.
    pub fn cache_missed(&self, cache: Cache) {
        self.0.caches.misses.get(cache).inc();
    }

    /// A stale policy is refreshed.
    pub fn policy_refreshed(&self) {
        self.0.caches.policy_refreshes.inc();
    }

    /// Sets the age of the oldest unflushed change.
    pub fn set_flush_lag(&self, age: Duration) {
        self.0.jobs.flush_lag.set(age.as_secs_f64());
    }

    /// Increments were committed to Postgres, to be counted once Redis is back.
    pub fn increments_pending(&self, increments: usize) {
        self.0
            .jobs
            .pending
            .inc_by(i64::try_from(increments).unwrap_or(i64::MAX));
    }

    /// Sets how many increments are pending, and the age of the oldest.
    pub fn set_pending(&self, pending: Pending) {
        let jobs = &self.0.jobs;
        jobs.pending
            .set(i64::try_from(pending.increments).unwrap_or(i64::MAX));
        jobs.pending_age.set(pending.age.as_secs_f64());
    }

    /// What was last set, with what this instance has added since.
    pub fn pending(&self) -> Pending {
        let jobs = &self.0.jobs;
        Pending {
            increments: u64::try_from(jobs.pending.get()).unwrap_or_default(),
            age: Duration::try_from_secs_f64(jobs.pending_age.get()).unwrap_or_default(),
        }
    }

    /// Snapshots were stored.
    pub fn rows_stored(&self, rows: usize) {
        self.0.jobs.flush_rows.inc_by(rows as u64);
    }

    /// A delivery was attempted.
    pub fn delivery_attempted(&self, outcome: DeliveryOutcome) {
        self.0.jobs.deliveries.get(outcome).inc();
    }

    /// Sets the age of the most overdue delivery.
    pub fn set_delivery_lag(&self, age: Duration) {
        self.0.jobs.delivery_lag.set(age.as_secs_f64());
    }

    /// The ended periods of organizations were closed.
    pub fn periods_ended(&self, organizations: usize) {
        self.0.jobs.periods_ended.inc_by(organizations as u64);
    }

    /// The walk has visited organizations.
    pub fn organizations_walked(&self, organizations: usize) {
        self.0
            .jobs
            .organizations_walked
            .inc_by(organizations as u64);
    }

    /// A month of hourly usage was dropped.
    pub fn month_dropped(&self) {
        self.0.jobs.months_dropped.inc();
    }

    /// Sets how many months of hourly usage are still to be dropped.
    pub fn set_months_expired(&self, months: usize) {
        let months = i64::try_from(months).unwrap_or(i64::MAX);
        self.0.jobs.months_expired.set(months);
    }

    /// Events were deleted.
    pub fn events_deleted(&self, events: u64) {
        self.0.jobs.events_deleted.inc_by(events);
    }

    /// Runs a round of a job, and records duration and failure.
    pub async fn timed<T, E>(
        &self,
        worker: Worker,
        round: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let start = Instant::now();
        let result = round.await;
        let jobs = &self.0.jobs;
        let duration = jobs.durations.get(worker);
        duration.observe(start.elapsed().as_secs_f64());
        if result.is_err() {
            jobs.failures.get(worker).inc();
        }
        result
    }
}

impl Connections {
    fn register(registry: &mut Registry) -> Self {
        Self {
            open: register(registry, "connections", "Open client connections"),
            closed: ByLabel::register(
                registry,
                "connections_closed",
                "Client connections that the service closed or refused",
                Counter::default,
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
                "Cache look-ups that hit",
                Counter::default,
            ),
            misses: ByLabel::register(
                registry,
                "cache_misses",
                "Cache look-ups that missed, and went to Redis or Postgres",
                Counter::default,
            ),
            policy_refreshes: register(
                registry,
                "policy_refreshes",
                "Refreshes of a stale cached policy, because Redis had a newer one or none",
            ),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn size(count: usize) -> f64 {
    count as f64
}
