//! Stores counts in Postgres.
//!
//! A flush reads dirty counters, stores their absolute snapshots, and settles in Redis what Postgres
//! then holds. It may die between any two of these: the next flush repeats it without harm. Several
//! instances share the shards by short leases, for economy only. What a snapshot crosses is told with it. [`Flusher::run`] loops;
//! [`Flusher::flush_once`] does the work, made of [`Flusher::read`], [`Flusher::store`] and
//! [`Flusher::settle`].

mod threshold_events;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Months, TimeDelta, Utc};
use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::summaries::Summaries;
use crate::context::Context;
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::OrganizationId;
use crate::domain::retention;
use crate::failure::Failure;
use crate::metrics::Worker;
use crate::policies::Policies;
use crate::postgres::usage::{self, ThresholdEvents};
use crate::redis::{Backlog, Connection, READ_MAX, Settlement, Shard};
use crate::usage::recovery::Recovery;

/// How many counters one transaction stores at most.
const BATCH_MAX: usize = 5000;

/// How many one transaction stores at least where there are as many, while calls count beside it: each is short, and
/// keeps them waiting for short.
const BATCH_MIN: usize = 100;

/// Into so many transactions what is dirty is divided then, unless they would be too small or too large.
const BATCHES: usize = 100;

/// How many parts of the shards are flushed side by side when everything is stored at once, so that Redis is read
/// while Postgres writes.
const LANES: usize = 3;

/// In what steps Redis is read and settled.
#[derive(Debug)]
struct Steps {
    /// How many counters are read in one round trip.
    read: usize,
    /// How many one script settles at most.
    settled: usize,
    /// How many such calls are under way at once.
    settling: usize,
}

/// While calls count beside it, none of which shall wait for long.
const THROTTLED: Steps = Steps {
    read: READ_MAX,
    settled: 128,
    settling: 2,
};

/// When everything is stored at once.
const FULL_SPEED: Steps = Steps {
    read: 1000,
    settled: 400,
    settling: 4,
};

/// After some work it rests for so many times as long as that took, because work beside them takes from calls that count
/// what it needs. The more there is to store, the rarer and the cheaper for each call.
const REST: u32 = 9;

/// A flush never rests for longer altogether, because a loss of Redis loses what was not stored.
const REST_MAX: Duration = Duration::from_secs(30);

/// How long the lists are brought up to date when the service stops.
const LISTS_AT_THE_END: Duration = Duration::from_millis(100);

/// The handle on flushing.
#[derive(Debug, Clone)]
pub struct Flusher {
    ctx: Context,
    interval: Duration,
    /// Asked for the thresholds of what may have crossed one.
    policies: Policies,
    lists: Summaries,
}

/// Counters as they were read for one transaction.
#[derive(Debug)]
pub struct Batch {
    connection: Arc<Connection>,
    steps: &'static Steps,
    /// What was read.
    pub snapshots: Vec<Snapshot>,
    /// What is to be told of them.
    news: ThresholdEvents,
    /// What is to be stored and is not there; somebody has removed it by hand.
    missing: Vec<CounterId>,
    read_at: DateTime<Utc>,
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

impl Report {
    fn plus(self, other: Self) -> Self {
        Self {
            read: self.read + other.read,
            stored: self.stored + other.stored,
            clean: self.clean + other.clean,
        }
    }
}

/// Takes so many counters from what waits: of few shards, because each of them is asked, and settled, by a call of its
/// own.
fn take(waiting: &mut VecDeque<Backlog>, together: usize) -> Vec<(Shard, usize)> {
    let (mut taken, mut room) = (Vec::new(), together);
    while let Some(first) = waiting.front_mut()
        && room > 0
    {
        let some = room.min(first.dirty);
        taken.push((first.shard, some));
        room -= some;
        first.dirty -= some;
        if first.dirty == 0 {
            waiting.pop_front();
        }
    }
    taken
}

/// How long to rest after work that took so long.
pub(super) fn rest_after(took: Duration) -> Duration {
    (took * REST).min(REST_MAX)
}

impl Flusher {
    /// A handle that flushes every interval once it runs.
    pub fn new(ctx: Context, policies: Policies, recovery: Recovery, interval: Duration) -> Self {
        Self {
            lists: Summaries::new(ctx.clone(), policies.clone(), recovery),
            ctx,
            interval,
            policies,
        }
    }

    /// Flushes every interval until `stop`, and then a last time, everything.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::join!(self.keep_flushing(&stop), self.lists.run(&stop));
    }

    async fn keep_flushing(&self, stop: &CancellationToken) {
        let mut failing_since: Option<Instant> = None;
        let mut rest = self.interval;
        loop {
            let stopping = stop
                .run_until_cancelled(tokio::time::sleep(rest))
                .await
                .is_none();
            let flushed = if stopping {
                let stored = self
                    .ctx
                    .metrics
                    .timed(Worker::Flush, self.store_all())
                    .await;
                // A stop does not wait for long lists; what they lack, the next walk finds.
                let _ = tokio::time::timeout(LISTS_AT_THE_END, self.lists.refresh()).await;
                Some(stored.map(|report| (report, Duration::ZERO)))
            } else {
                // A flush may be left at any point, and a rest of its own must not delay a stop.
                let flush = self.ctx.metrics.timed(Worker::Flush, self.flush_beside());
                // In a box, because it is large, and whoever runs this would have to hold it.
                stop.run_until_cancelled(Box::pin(flush)).await
            };
            let Some(flushed) = flushed else { continue };
            // After a failure the next attempt waits for no more than that.
            rest = self.interval;
            match flushed {
                Ok((report, took)) => {
                    rest = rest.max(rest_after(took));
                    if let Some(since) = failing_since.take() {
                        tracing::info!(
                            outage.seconds = since.elapsed().as_secs(),
                            "counts are stored again"
                        );
                    }
                    if report.read > 0 {
                        tracing::debug!(
                            flush.read = report.read,
                            flush.stored = report.stored,
                            "stored counts"
                        );
                    }
                }
                Err(error) if failing_since.is_none() => {
                    tracing::error!(%error, "counts cannot be stored; they stay in Redis");
                    failing_since = Some(Instant::now());
                }
                Err(_) => {}
            }
            if stopping {
                return;
            }
        }
    }

    /// Takes organizations whose period is over off the lists that they were full in; returns how many.
    pub async fn age_once(&self) -> Result<u64, Failure> {
        self.lists.age_once().await
    }

    /// Looks through some organizations for lists, of them and of their meters, that do not show what is stored;
    /// returns the last of them, behind which the next step goes on.
    pub async fn repair_once(
        &self,
        after: Option<&OrganizationId>,
    ) -> Result<Option<OrganizationId>, Failure> {
        self.lists.repair_once(after).await
    }

    /// Flushes the shards that nobody else has at the moment.
    pub async fn flush_once(&self) -> Result<Report, Failure> {
        Ok(self.flush_beside().await?.0)
    }

    /// The same; tells as well how long its last transaction took, after which there was no rest.
    async fn flush_beside(&self) -> Result<(Report, Duration), Failure> {
        let connection = self.ctx.redis.connection().await?;
        // Before Postgres is needed, so that the lag is told while it is away.
        let mut backlog = self.backlog(&connection).await?;
        self.ensure_partitions().await?;
        let lease_ms = u64::try_from(self.interval.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_mul(9)
            / 10;
        // In an order of its own, so that instances that start together do not fight over every shard.
        let order = Uuid::new_v4();
        backlog.sort_by_cached_key(|it| {
            order
                .as_u128()
                .rotate_left(u32::try_from(it.shard.index()).unwrap_or(0))
        });
        let dirty: usize = backlog.iter().map(|it| it.dirty).sum();
        let together = (dirty / BATCHES).clamp(BATCH_MIN, BATCH_MAX);
        let shards: Vec<Shard> = backlog.iter().map(|it| it.shard).collect();
        let mine = connection.lease(&shards, lease_ms.max(1)).await?;
        backlog.retain(|it| mine.contains(&it.shard));
        self.flush(backlog, together, true).await
    }

    /// Flushes every shard, whoever has it, and brings the lists up to date.
    pub async fn flush_all(&self) -> Result<Report, Failure> {
        let report = self.store_all().await?;
        self.lists.refresh().await?;
        Ok(report)
    }

    async fn store_all(&self) -> Result<Report, Failure> {
        let connection = self.ctx.redis.connection().await?;
        let backlog = self.backlog(&connection).await?;
        self.ensure_partitions().await?;
        let mut lanes = Vec::new();
        for lane in backlog.chunks(backlog.len().div_ceil(LANES).max(1)) {
            lanes.push(self.flush(lane.to_vec(), BATCH_MAX, false));
        }
        let reports = try_join_all(lanes).await?.into_iter();
        Ok(reports.fold(Report::default(), |sum, (report, _)| sum.plus(report)))
    }

    /// Reads what has waited longest to be stored in these shards.
    pub async fn read(&self, shards: &[Shard]) -> Result<Batch, Failure> {
        let share = BATCH_MAX.div_ceil(shards.len().max(1));
        let wanted: Vec<_> = shards.iter().map(|shard| (*shard, share)).collect();
        self.read_some(&wanted, &THROTTLED).await
    }

    /// The same, of each shard at most so many.
    async fn read_some(
        &self,
        wanted: &[(Shard, usize)],
        steps: &'static Steps,
    ) -> Result<Batch, Failure> {
        let connection = self.ctx.redis.connection().await?;
        // Before the reading, so that nothing that changes later is taken for older.
        let read_at = self.ctx.clock.now();
        let mut dirty = connection.dirty(wanted).await?;
        dirty.sort_unstable();
        let mut batch = Batch {
            snapshots: Vec::with_capacity(dirty.len()),
            news: ThresholdEvents::new(),
            missing: Vec::new(),
            read_at,
            connection,
            steps,
        };
        let read = batch.connection.read_counted(&dirty, steps.read).await?;
        for (counter, counted) in dirty.into_iter().zip(read) {
            match counted {
                Some(counted) => batch.snapshots.push(counted.snapshot),
                None => batch.missing.push(counter),
            }
        }
        batch.news = self.news(&batch.snapshots).await?;
        Ok(batch)
    }

    /// Stores a batch. For each snapshot: whether Postgres now holds exactly that.
    pub async fn store(&self, batch: &Batch) -> Result<Vec<bool>, Failure> {
        let hours = batch
            .snapshots
            .iter()
            .flat_map(Snapshot::unstored_hours)
            .map(|hour| hour.start);
        usage::ensure_partitions(&self.ctx.postgres, hours).await?;
        let stored = usage::store(
            &self.ctx.postgres,
            &batch.snapshots,
            &batch.news,
            self.ctx.clock.now(),
        )
        .await?;
        let snapshots = batch.snapshots.iter();
        self.lists
            .note(snapshots.map(|snapshot| &snapshot.counter.organization));
        Ok(stored)
    }

    /// Notes in Redis what Postgres holds of a batch; returns how many counters are clean now.
    pub async fn settle(&self, batch: &Batch, stored: &[bool]) -> Result<usize, Failure> {
        let drop_hours_before = retention::oldest_hour(self.ctx.clock.now(), self.ctx.late);
        let mut by_shard: HashMap<Shard, Vec<Settlement<'_>>> = HashMap::new();
        let read =
            batch
                .snapshots
                .iter()
                .zip(stored)
                .enumerate()
                .map(|(position, (snapshot, stored))| Settlement {
                    counter: &snapshot.counter,
                    snapshot: Some(snapshot),
                    stored: *stored,
                    notified: batch.news.get(&position).map(|events| events.notified),
                    drop_hours_before,
                });
        let missing = batch.missing.iter().map(|counter| Settlement {
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
        let mut calls = Vec::new();
        for (shard, settlements) in &by_shard {
            for some in settlements.chunks(batch.steps.settled) {
                calls.push(batch.connection.settle(*shard, some, batch.read_at));
            }
        }
        let clean: Vec<usize> = stream::iter(calls)
            .buffer_unordered(batch.steps.settling)
            .try_collect()
            .await?;
        Ok(clean.into_iter().sum())
    }

    /// Flushes what is dirty when it begins, so many counters `together`; with rests where calls count `beside` it.
    async fn flush(
        &self,
        backlog: Vec<Backlog>,
        together: usize,
        beside: bool,
    ) -> Result<(Report, Duration), Failure> {
        let steps = if beside { &THROTTLED } else { &FULL_SPEED };
        let (mut rested, mut took) = (Duration::ZERO, Duration::ZERO);
        let mut report = Report::default();
        let mut waiting = VecDeque::from(backlog);
        while !waiting.is_empty() {
            if beside {
                let rest = rest_after(took).min(REST_MAX.saturating_sub(rested));
                tokio::time::sleep(rest).await;
                rested += rest;
            }
            self.tell_lag(&waiting);
            let started = Instant::now();
            let some = take(&mut waiting, together);
            let batch = self.read_some(&some, steps).await?;
            let stored = self.store(&batch).await?;
            report.read += batch.snapshots.len();
            let accepted = stored.iter().filter(|stored| **stored).count();
            self.ctx.metrics.rows_stored(accepted);
            report.stored += accepted;
            report.clean += self.settle(&batch, &stored).await?;
            took = started.elapsed();
        }
        Ok((report, took))
    }

    /// The shards that have counters to be stored; tells how far storing lags behind.
    async fn backlog(&self, connection: &Connection) -> Result<Vec<Backlog>, Failure> {
        let backlog = connection.backlog().await?;
        self.tell_lag(&backlog);
        Ok(backlog)
    }

    fn tell_lag<'a>(&self, backlog: impl IntoIterator<Item = &'a Backlog>) {
        let oldest = backlog.into_iter().map(|it| it.since).min();
        let lag = oldest.map_or(TimeDelta::zero(), |since| self.ctx.clock.now() - since);
        // Where another clock runs ahead, a counter may seem to be of the future.
        self.ctx
            .metrics
            .set_flush_lag(lag.to_std().unwrap_or_default());
    }

    /// This month's partitions and the next two.
    async fn ensure_partitions(&self) -> Result<(), Failure> {
        let now = self.ctx.clock.now();
        let ahead = (0..3).filter_map(|months| now.checked_add_months(Months::new(months)));
        Ok(usage::ensure_partitions(&self.ctx.postgres, ahead).await?)
    }
}
