//! Stores counts in Postgres.
//!
//! A flush reads dirty counters, stores their absolute snapshots together with the thresholds that they crossed, and
//! settles in Redis what Postgres then holds. It may crash between any two of these steps: the next flush repeats it
//! without harm. Instances share the shards by short leases, only to save work. [`Flusher::run`] loops;
//! [`Flusher::flush_once`] does the work, which consists of [`Flusher::read`], [`Flusher::store`] and
//! [`Flusher::settle`].

mod batch;
mod threshold_events;

use std::collections::VecDeque;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use chrono::{Months, TimeDelta};
use futures::future::try_join_all;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use batch::Batch;

use super::driver::{Job, PAUSE_MAX, throttle};
use super::summaries::Summaries;
use crate::context::Context;
use crate::failure::Failure;
use crate::metrics::Worker;
use crate::policies::Policies;
use crate::postgres::usage;
use crate::redis::{Backlog, Shard};
use crate::usage::recovery::Recovery;
use batch::{FULL_SPEED, Pace, THROTTLED};

/// The most counters that one transaction stores.
const BATCH_MAX: usize = 5000;

/// The least of a throttled flush, if so many are dirty: short transactions keep requests waiting only briefly.
const BATCH_MIN: usize = 100;

/// Into how many transactions a throttled flush divides the dirty counters, within these bounds.
const BATCHES: usize = 100;

/// How many groups of shards are flushed concurrently at full speed, so that Redis is read while Postgres writes.
const LANES: usize = 3;

/// The most time that counts as work for one counter. What a transaction takes beyond that it has waited, for a lock or a
/// connection: a pause after an outage would only make a loss of Redis lose more.
const WORK_MAX: Duration = Duration::from_millis(1);

/// How long one flush sleeps at most where replicas or the disk of Redis have what is not stored yet: a counter that changes
/// meanwhile is stored once, so that a hundred million of them need no more of Postgres than its share.
const HELD_PAUSE_MAX: Duration = Duration::from_mins(10);

/// How long summaries are refreshed when the service stops.
const FINAL_REFRESH: Duration = Duration::from_millis(100);

/// Stores counts; clones share the queue of summaries.
#[derive(Debug, Clone)]
pub struct Flusher {
    ctx: Context,
    policies: Policies,
    interval: Duration,
    /// How long one flush sleeps at most.
    pause_max: Duration,
    /// The usage summaries, which follow the flush.
    pub summaries: Summaries,
}

/// What one flush did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Counters that were read.
    pub read: usize,
    /// Counters of which Postgres held exactly what was read.
    pub stored: usize,
    /// Counters with nothing left to store.
    pub clean: usize,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.stored += other.stored;
        self.clean += other.clean;
    }
}

impl Flusher {
    /// A flusher that flushes every `interval` once it runs. `held` tells whether a failure of one Redis server loses nothing.
    pub fn new(
        ctx: Context,
        policies: Policies,
        recovery: Recovery,
        interval: Duration,
        held: bool,
    ) -> Self {
        Self {
            pause_max: if held { HELD_PAUSE_MAX } else { PAUSE_MAX },
            summaries: Summaries::new(ctx.clone(), policies.clone(), recovery),
            ctx,
            policies,
            interval,
        }
    }

    /// Flushes every interval until `stop`, then everything a last time; also keeps usage summaries.
    pub async fn run(self, stop: CancellationToken) {
        tokio::join!(self.keep_flushing(&stop), self.summaries.run(&stop));
    }

    async fn keep_flushing(&self, stop: &CancellationToken) {
        let mut job = Job::new(&self.ctx, Some(Worker::Flush), "store counts").cancellable();
        job.paced(self.interval, stop, || async {
            let (report, took) = self.flush_throttled().await?;
            if report.read > 0 {
                let Report { read, stored, .. } = report;
                tracing::debug!(flush.read = read, flush.stored = stored, "stored counts");
            }
            Ok::<_, Failure>(self.interval.max(throttle(took)))
        })
        .await;
        job.round(Box::pin(self.store_all())).await;
        // A stop does not wait for all summaries: the scan finds the others.
        let _ = tokio::time::timeout(FINAL_REFRESH, self.summaries.refresh()).await;
    }

    /// Flushes the shards that no other instance has leased.
    pub async fn flush_once(&self) -> Result<Report, Failure> {
        Ok(self.flush_throttled().await?.0)
    }

    /// The same; also returns how long the last transaction worked, after which there was no pause.
    async fn flush_throttled(&self) -> Result<(Report, Duration), Failure> {
        // Before Postgres is needed, so that the lag is measured while Postgres is down.
        let mut backlog = self.backlog().await?;
        self.ensure_partitions().await?;
        let lease_ms = u64::try_from(self.interval.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_mul(9)
            / 10;
        // In random order, so that instances that start together do not compete for every shard.
        let order = Uuid::new_v4().as_u128();
        backlog.sort_by_cached_key(|it| {
            order.rotate_left(u32::try_from(it.shard.index()).unwrap_or(0))
        });
        let dirty: usize = backlog.iter().map(|it| it.dirty).sum();
        let batch_size = (dirty / BATCHES).clamp(BATCH_MIN, BATCH_MAX);
        let shards: Vec<Shard> = backlog.iter().map(|it| it.shard).collect();
        let redis = self.ctx.redis.pooled().await?;
        let leased = redis.lease(&shards, lease_ms.max(1)).await?;
        drop(redis);
        backlog.retain(|it| leased.contains(&it.shard));
        let (mut paused, mut took) = (Duration::ZERO, Duration::ZERO);
        let mut report = Report::default();
        let mut waiting = VecDeque::from(backlog);
        while !waiting.is_empty() {
            let pause = throttle(took).min(self.pause_max.saturating_sub(paused));
            tokio::time::sleep(pause).await;
            paused += pause;
            let started = Instant::now();
            let flushed = self
                .flush_batch(&mut waiting, batch_size, &THROTTLED)
                .await?;
            report += flushed;
            took = work(started.elapsed(), flushed.read);
        }
        Ok((report, took))
    }

    /// Flushes every shard at full speed, leased or not, and refreshes usage summaries.
    pub async fn flush_all(&self) -> Result<Report, Failure> {
        let report = self.store_all().await?;
        self.summaries.refresh().await?;
        Ok(report)
    }

    async fn store_all(&self) -> Result<Report, Failure> {
        let backlog = self.backlog().await?;
        self.ensure_partitions().await?;
        let lanes = backlog.chunks(backlog.len().div_ceil(LANES).max(1));
        let lanes = lanes.map(|lane| self.flush_lane(lane.iter().copied().collect()));
        let mut report = Report::default();
        for lane in try_join_all(lanes).await? {
            report += lane;
        }
        Ok(report)
    }

    async fn flush_lane(&self, mut waiting: VecDeque<Backlog>) -> Result<Report, Failure> {
        let mut report = Report::default();
        while !waiting.is_empty() {
            report += self
                .flush_batch(&mut waiting, BATCH_MAX, &FULL_SPEED)
                .await?;
        }
        Ok(report)
    }

    /// Flushes one batch of the counters that were dirty when the flush began.
    async fn flush_batch(
        &self,
        waiting: &mut VecDeque<Backlog>,
        size: usize,
        pace: &'static Pace,
    ) -> Result<Report, Failure> {
        self.measure_lag(&*waiting);
        let shards = take(waiting, size);
        let batch = Batch::read(&self.ctx, &self.policies, &shards, pace).await?;
        let stored = self.store(&batch).await?;
        let accepted = stored.iter().filter(|stored| **stored).count();
        self.ctx.metrics.rows_stored(accepted);
        Ok(Report {
            read: batch.snapshots.len(),
            stored: accepted,
            clean: self.settle(&batch, &stored).await?,
        })
    }

    /// Reads the counters of these shards that have been dirty for longest.
    pub async fn read(&self, shards: &[Shard]) -> Result<Batch, Failure> {
        let share = BATCH_MAX.div_ceil(shards.len().max(1));
        let shards: Vec<_> = shards.iter().map(|shard| (*shard, share)).collect();
        Batch::read(&self.ctx, &self.policies, &shards, &THROTTLED).await
    }

    /// Stores a batch. For each snapshot: whether Postgres now holds exactly that.
    pub async fn store(&self, batch: &Batch) -> Result<Vec<bool>, Failure> {
        let stored = batch.store(&self.ctx).await?;
        let snapshots = batch.snapshots.iter();
        self.summaries
            .enqueue(snapshots.map(|snapshot| &snapshot.counter.organization));
        Ok(stored)
    }

    /// Records in Redis what Postgres holds of a batch; returns how many counters are clean now.
    pub async fn settle(&self, batch: &Batch, stored: &[bool]) -> Result<usize, Failure> {
        batch.settle(&self.ctx, stored).await
    }

    /// The shards with dirty counters.
    async fn backlog(&self) -> Result<Vec<Backlog>, Failure> {
        let backlog = self.ctx.redis.pooled().await?.backlog().await?;
        self.measure_lag(&backlog);
        Ok(backlog)
    }

    fn measure_lag<'a>(&self, backlog: impl IntoIterator<Item = &'a Backlog>) {
        let oldest = backlog.into_iter().map(|it| it.since).min();
        let lag = oldest.map_or(TimeDelta::zero(), |since| self.ctx.clock.now() - since);
        // Negative if the clock of another instance is ahead.
        let lag = lag.to_std().unwrap_or_default();
        self.ctx.metrics.set_flush_lag(lag);
    }

    /// Creates the partitions of this month and the next two.
    async fn ensure_partitions(&self) -> Result<(), Failure> {
        let now = self.ctx.clock.now();
        let ahead = (0..3).filter_map(|months| now.checked_add_months(Months::new(months)));
        Ok(usage::ensure_partitions(&self.ctx.postgres, ahead).await?)
    }
}

/// How much of a transaction's time was work on its counters.
fn work(took: Duration, counters: usize) -> Duration {
    let counters = u32::try_from(counters).unwrap_or(u32::MAX);
    took.min(WORK_MAX.saturating_mul(counters))
}

/// Takes so many counters from the backlog: of few shards, because each shard costs a call to read and a call to settle.
fn take(waiting: &mut VecDeque<Backlog>, count: usize) -> Vec<(Shard, usize)> {
    let (mut taken, mut room) = (Vec::new(), count);
    while let Some(first) = waiting.front_mut()
        && room > 0
    {
        let share = room.min(first.dirty);
        taken.push((first.shard, share));
        room -= share;
        first.dirty -= share;
        if first.dirty == 0 {
            waiting.pop_front();
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_lock_is_no_work_that_a_flush_pauses_for() {
        let waited = Duration::from_secs(4);
        assert_eq!(work(waited, 100), Duration::from_millis(100));
        assert_eq!(
            work(Duration::from_millis(40), 100),
            Duration::from_millis(40)
        );
        assert_eq!(work(waited, 5000), waited);
        assert_eq!(work(waited, 0), Duration::ZERO);
    }
}
