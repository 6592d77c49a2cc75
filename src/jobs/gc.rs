//! Garbage-collects Redis: flushed counters that no late event can reach, and policies of organizations without counters.
//!
//! [`GarbageCollector::run`] loops; [`GarbageCollector::collect_once`] does the work. Instances take turns by a lease, but
//! any number of them may run at once.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::driver::Job;
use crate::context::Context;
use crate::domain::{retention, walk};
use crate::metrics::Worker;
use crate::redis::{self, Collected, Shard};

/// Between two attempts to get the lease.
const ATTEMPT_INTERVAL: Duration = Duration::from_mins(10);

/// Between two collections, of all instances.
const COLLECTION_INTERVAL_MS: u64 = 3_600_000;

/// How often an instance that collects takes the lease again, if it has expired.
const RENEWAL: Duration = Duration::from_secs(10);

/// Of how many parts of the time a collection uses one, unless it needs more to visit all keys within a day.
const SHARE: u32 = 20;

/// How many keys one step of a collection visits, about.
const STEP: u64 = 500;

/// How long the policy of an organization without counters stays in Redis at least.
const UNCOUNTED: TimeDelta = TimeDelta::hours(1);

/// The garbage collector.
#[derive(Debug, Clone)]
pub struct GarbageCollector {
    ctx: Context,
}

impl GarbageCollector {
    /// A garbage collector for this service.
    pub fn new(ctx: Context) -> Self {
        Self { ctx }
    }

    /// Scans all keys once.
    pub async fn collect_once(&self) -> Result<Collected, redis::Error> {
        let mut collected = Collected::default();
        for part in self.ctx.redis.pooled().await?.parts() {
            collected += self.collect_part(part).await?;
        }
        Ok(collected)
    }

    async fn collect_part(&self, part: Shard) -> Result<Collected, redis::Error> {
        let now = self.ctx.clock.now();
        let ended_before = retention::oldest_end(now, self.ctx.late);
        let (mut cursor, mut collected) = (0, Collected::default());
        // Of all parts, because one instance may collect them all, one after the other.
        let keys = self.ctx.redis.pooled().await?.size().await? as u64;
        loop {
            let started = Instant::now();
            let redis = self.ctx.redis.pooled().await?;
            let step = redis.collect(part, cursor, ended_before, now - UNCOUNTED);
            let (next, step) = step.await?;
            drop(redis);
            collected += step;
            if next == 0 {
                return Ok(collected);
            }
            cursor = next;
            let pause = walk::throttle(keys, STEP, started.elapsed(), SHARE);
            tokio::time::sleep(pause).await;
        }
    }

    /// Collects once an hour, unless another instance does, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        Job::new(
            &self.ctx,
            Some(Worker::GarbageCollect),
            "garbage-collect Redis",
        )
        .cancellable()
        .every(ATTEMPT_INTERVAL, &stop, || self.collect_if_due())
        .await;
    }

    async fn collect_if_due(&self) -> Result<(), redis::Error> {
        let parts = self.ctx.redis.pooled().await?.parts();
        for part in parts {
            let redis = self.ctx.redis.pooled().await?;
            let leased = redis.lease_gc(part, COLLECTION_INTERVAL_MS).await?;
            drop(redis);
            if leased {
                let Collected {
                    counters,
                    organizations,
                } = tokio::select! {
                    collected = self.collect_part(part) => collected?,
                    never = self.keep_leased(part) => match never {},
                };
                tracing::debug!(counters, organizations, "garbage-collected Redis");
            }
        }
        Ok(())
    }

    /// Takes the lease again whenever it has expired, so that no other instance begins while a collection of very many keys
    /// takes hours, and one does soon after this instance has died.
    async fn keep_leased(&self, part: Shard) -> Infallible {
        loop {
            tokio::time::sleep(RENEWAL).await;
            if let Ok(redis) = self.ctx.redis.pooled().await {
                // Nothing depends on it.
                let _ = redis.lease_gc(part, COLLECTION_INTERVAL_MS).await;
            }
        }
    }
}
