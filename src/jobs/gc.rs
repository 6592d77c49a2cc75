//! Rids Redis of what is of no use any more: counters of periods that no event reaches, and organizations of which
//! nothing was counted.
//!
//! [`GarbageCollector::run`] loops; [`GarbageCollector::collect_once`] does the work. Any number of instances may do it at once, and do
//! it in turns.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::domain::retention;
use crate::metrics::Worker;
use crate::redis::{self, Collected};

/// Between two looks whether it is time.
const LOOK: Duration = Duration::from_mins(10);

/// Between two walks of all instances.
const INTERVAL_MS: u64 = 3_600_000;

/// After each step a rest of so many times its length, so that calls that count lose little.
const RESTS: u32 = 19;

/// How long the policy of an organization of which nothing was counted is remembered at least.
const UNCOUNTED: TimeDelta = TimeDelta::hours(1);

/// The handle on forgetting.
#[derive(Debug, Clone)]
pub struct GarbageCollector {
    ctx: Context,
}

impl GarbageCollector {
    /// A handle on these.
    pub fn new(ctx: Context) -> Self {
        Self { ctx }
    }

    /// Walks through everything once.
    pub async fn collect_once(&self) -> Result<Collected, redis::Error> {
        let connection = self.ctx.redis.connection().await?;
        let now = self.ctx.clock.now();
        let (ended_before, written_before) =
            (retention::oldest_end(now, self.ctx.late), now - UNCOUNTED);
        let (mut cursor, mut forgotten) = (0, Collected::default());
        loop {
            let started = Instant::now();
            let (next, some) = connection
                .collect(cursor, ended_before, written_before)
                .await?;
            forgotten.counters += some.counters;
            forgotten.organizations += some.organizations;
            if next == 0 {
                return Ok(forgotten);
            }
            cursor = next;
            tokio::time::sleep(started.elapsed().saturating_mul(RESTS)).await;
        }
    }

    /// Walks once an hour, unless another instance does, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut failing = false;
        while stop
            .run_until_cancelled(tokio::time::sleep(LOOK))
            .await
            .is_some()
        {
            let forgetting = self
                .ctx
                .metrics
                .timed(Worker::GarbageCollect, self.forget_if_due());
            match stop.run_until_cancelled(forgetting).await {
                Some(Err(error)) if !failing => {
                    tracing::warn!(%error, "Redis cannot be rid of what is of no use any more");
                    failing = true;
                }
                Some(Ok(())) => failing = false,
                Some(Err(_)) | None => {}
            }
        }
    }

    async fn forget_if_due(&self) -> Result<(), redis::Error> {
        let connection = self.ctx.redis.connection().await?;
        if connection.lease_gc(INTERVAL_MS).await? {
            let Collected {
                counters,
                organizations,
            } = self.collect_once().await?;
            tracing::debug!(counters, organizations, "forgot what is of no use any more");
        }
        Ok(())
    }
}
