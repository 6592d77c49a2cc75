//! What background jobs do, and how far they are behind.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::families::{ByLabel, register};
use super::labels::{DeliveryOutcome, Worker};

/// Buckets for background jobs, seconds.
const JOB_DURATIONS: [f64; 11] = [
    0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 25.0, 100.0,
];

/// What was admitted while Redis was down, and is not counted yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    /// Increments in Postgres.
    pub increments: u64,
    /// How long the oldest has waited.
    pub age: Duration,
}

/// Background jobs.
#[derive(Debug)]
pub(super) struct Jobs {
    pub(super) flush_lag: Gauge<f64, AtomicU64>,
    pub(super) flush_rows: Counter,
    pub(super) pending: Gauge,
    pub(super) pending_age: Gauge<f64, AtomicU64>,
    pub(super) deliveries: ByLabel<DeliveryOutcome, Counter>,
    pub(super) delivery_lag: Gauge<f64, AtomicU64>,
    pub(super) periods_ended: Counter,
    pub(super) organizations_walked: Counter,
    pub(super) months_dropped: Counter,
    pub(super) months_expired: Gauge,
    pub(super) events_deleted: Counter,
    pub(super) durations: ByLabel<Worker, Histogram>,
    pub(super) failures: ByLabel<Worker, Counter>,
}

impl Jobs {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            flush_lag: register(
                registry,
                "flush_lag_seconds",
                "Age of the oldest unflushed change when a flush of this instance last looked",
            ),
            delivery_lag: register(
                registry,
                "webhook_lag_seconds",
                "Age of the most overdue delivery when this instance last looked",
            ),
            deliveries: ByLabel::register(
                registry,
                "webhook_deliveries",
                "Attempts of webhook deliveries",
                Counter::default,
            ),
            pending: register(
                registry,
                "pending_increments",
                "Increments admitted while Redis was down, and not counted yet",
            ),
            pending_age: register(
                registry,
                "pending_age_seconds",
                "Age of the oldest pending increment when this instance last looked",
            ),
            flush_rows: register(registry, "flush_rows", "Snapshots of counters stored"),
            periods_ended: register(
                registry,
                "scheduled_resets",
                "Organizations whose ended periods were closed on time",
            ),
            organizations_walked: register(
                registry,
                "organizations_walked",
                "Organizations whose usage summary the walk over all of them has repaired",
            ),
            months_dropped: register(
                registry,
                "hourly_months_dropped",
                "Months of hourly usage dropped because of their age",
            ),
            months_expired: register(
                registry,
                "hourly_months_expired",
                "Months of hourly usage to be dropped when this instance last tried",
            ),
            events_deleted: register(
                registry,
                "events_deleted",
                "Events deleted because of their age",
            ),
            durations: ByLabel::register(
                registry,
                "worker_duration_seconds",
                "Rounds of background jobs, failed ones included",
                || Histogram::new(JOB_DURATIONS),
            ),
            failures: ByLabel::register(
                registry,
                "worker_failures",
                "Failed rounds of background jobs; a later round catches up",
                Counter::default,
            ),
        }
    }
}
