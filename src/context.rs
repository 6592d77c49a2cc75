//! What every use case shares: both servers, the clock, the metrics, and a few settings.

use std::sync::Arc;

use chrono::TimeDelta;

use crate::clock::Clock;
use crate::domain::limit::OnOutage;
use crate::domain::organization::Defaults;
use crate::metrics::Metrics;
use crate::postgres::Postgres;
use crate::redis::Redis;

/// Handles and settings of a use case; clones share them.
#[derive(Debug, Clone)]
pub struct Context {
    /// Connections to Redis, shared by requests and jobs.
    pub redis: Redis,
    /// A pool of connections to Postgres: requests and jobs have one each.
    pub postgres: Postgres,
    /// The only source of wall time.
    pub clock: Clock,
    /// Where use cases record what they did.
    pub metrics: Metrics,
    /// How long after its end a period accepts late events.
    pub late: TimeDelta,
    /// How long idempotency records are kept.
    pub idempotency: TimeDelta,
    /// What consumes do while Redis is away, where neither the organization nor its plan says so.
    pub on_outage: OnOutage,
    /// The most increments that may be pending.
    pub pending_max: u64,
    /// The default plan and settings that this instance was started with.
    pub defaults: Arc<Defaults>,
}
