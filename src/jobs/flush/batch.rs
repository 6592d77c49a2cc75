//! One batch of a flush: counters read from Redis, stored in Postgres, and settled in Redis.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::threshold_events::threshold_events;
use crate::context::Context;
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::retention;
use crate::failure::Failure;
use crate::policies::Policies;
use crate::postgres::usage::{self, ThresholdEvents};
use crate::redis::{READ_MAX, Settlement, Shard};

/// How much work Redis gets at once.
#[derive(Debug)]
pub(super) struct Pace {
    /// Counters that one round trip reads.
    read: usize,
    /// The most counters that one call of the script settles.
    settled: usize,
    /// Concurrent calls of that script.
    settling: usize,
}

/// While the service handles requests, which must not wait long.
pub(super) const THROTTLED: Pace = Pace {
    read: READ_MAX,
    settled: 128,
    settling: 2,
};

/// When everything is stored at once.
pub(super) const FULL_SPEED: Pace = Pace {
    read: 1000,
    settled: 400,
    settling: 4,
};

/// Counters that one transaction stores.
#[derive(Debug)]
pub struct Batch {
    pace: &'static Pace,
    /// What was read.
    pub snapshots: Vec<Snapshot>,
    threshold_events: ThresholdEvents,
    /// Counters that are listed as dirty and do not exist: deleted by hand.
    missing: Vec<CounterId>,
    read_at: DateTime<Utc>,
}

impl Batch {
    /// Reads the counters that have been dirty for longest: of each shard at most so many.
    pub(super) async fn read(
        ctx: &Context,
        policies: &Policies,
        shards: &[(Shard, usize)],
        pace: &'static Pace,
    ) -> Result<Self, Failure> {
        let redis = ctx.redis.pooled().await?;
        // Before reading, so that a later change never counts as older.
        let read_at = ctx.clock.now();
        let mut dirty = redis.dirty(shards).await?;
        dirty.sort_unstable();
        let read = redis.read_counted(&dirty, pace.read).await?;
        drop(redis);
        let (mut snapshots, mut missing) = (Vec::with_capacity(dirty.len()), Vec::new());
        for (counter, counted) in dirty.into_iter().zip(read) {
            match counted {
                Some(counted) => snapshots.push(counted.snapshot),
                None => missing.push(counter),
            }
        }
        Ok(Self {
            threshold_events: threshold_events(policies, &snapshots).await?,
            pace,
            snapshots,
            missing,
            read_at,
        })
    }

    /// Stores the snapshots. For each one: whether Postgres now holds exactly that.
    pub(super) async fn store(&self, ctx: &Context) -> Result<Vec<bool>, Failure> {
        let hours = self.snapshots.iter().flat_map(Snapshot::unstored_hours);
        usage::ensure_partitions(&ctx.postgres, hours.map(|hour| hour.start)).await?;
        let (events, now) = (&self.threshold_events, ctx.clock.now());
        Ok(usage::store(&ctx.postgres, &self.snapshots, events, now).await?)
    }

    /// Records in Redis what Postgres holds; returns how many counters are clean now.
    pub(super) async fn settle(&self, ctx: &Context, stored: &[bool]) -> Result<usize, Failure> {
        let settlements = self.settlements(ctx, stored);
        if settlements.is_empty() {
            return Ok(0);
        }
        let redis = ctx.redis.pooled().await?;
        let mut calls = Vec::new();
        for (shard, settlements) in &settlements {
            for chunk in settlements.chunks(self.pace.settled) {
                calls.push(redis.settle(*shard, chunk, self.read_at));
            }
        }
        let clean: Vec<usize> = stream::iter(calls)
            .buffer_unordered(self.pace.settling)
            .try_collect()
            .await?;
        Ok(clean.into_iter().sum())
    }

    fn settlements<'a>(
        &'a self,
        ctx: &Context,
        stored: &[bool],
    ) -> HashMap<Shard, Vec<Settlement<'a>>> {
        let drop_hours_before = retention::oldest_hour(ctx.clock.now(), ctx.late);
        let mut by_shard: HashMap<Shard, Vec<Settlement<'_>>> = HashMap::new();
        let snapshots = self.snapshots.iter().zip(stored).enumerate();
        let read = snapshots.map(|(position, (snapshot, stored))| Settlement {
            counter: &snapshot.counter,
            snapshot: Some(snapshot),
            stored: *stored,
            notified: self.threshold_events.get(&position).map(|it| it.notified),
            drop_hours_before,
        });
        let missing = self.missing.iter().map(|counter| Settlement {
            counter,
            snapshot: None,
            stored: false,
            notified: None,
            drop_hours_before,
        });
        for settlement in read.chain(missing) {
            let shard = Shard::of(&settlement.counter.organization);
            by_shard.entry(shard).or_default().push(settlement);
        }
        by_shard
    }
}
