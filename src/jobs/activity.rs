//! The overview of the service: how much is called, and what is away.
//!
//! Each instance counts its calls in memory and stores them by minute, as absolute numbers, every two seconds. So a minute
//! is exact over all instances but for the calls of the two seconds around its ends, and minutes that Postgres missed
//! are stored once it is back. In the same rounds an instance observes whether Redis and Postgres reply.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::driver::Job;
use crate::context::Context;
use crate::failure::Failure;
use crate::postgres::overview::{self, Organizations};
use crate::postgres::{self, webhooks};
use crate::redis;

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(2);

/// A server that does not reply within this time is away.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// How many minutes a summary has.
const MINUTES: i32 = 60;

/// How long a summary is cached: it reads every usage summary.
const CACHE_LIFETIME: TimeDelta = TimeDelta::seconds(5);

/// The summary of the service.
#[derive(Debug, Clone)]
pub struct Summary {
    /// When this was read.
    pub at: DateTime<Utc>,
    /// Its organizations.
    pub organizations: Organizations,
    /// The calls of all instances in each of the last 60 complete minutes, oldest first.
    pub calls: Vec<(DateTime<Utc>, u64)>,
    /// The calls of all instances in the last 60 seconds, if those of the last complete minute were spread evenly.
    pub recent_calls: u64,
    /// The age of the oldest change of a counter that is not stored; none while Redis is away.
    pub flush_lag: Option<TimeDelta>,
    /// How long the most overdue delivery to a webhook has been due.
    pub webhook_lag: TimeDelta,
    /// When a snapshot was last stored.
    pub last_snapshot_at: Option<DateTime<Utc>>,
}

/// Since when servers are away, as this instance has observed it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outages {
    /// Since when Redis does not reply.
    pub redis: Option<DateTime<Utc>>,
    /// Since when Postgres does not reply.
    pub postgres: Option<DateTime<Utc>>,
}

/// Observes the activity of this instance, and reads that of all; clones share everything.
#[derive(Debug, Clone)]
pub struct Activity {
    ctx: Context,
    /// Identifies this process.
    instance: Uuid,
    observed: Arc<Mutex<Observed>>,
    cached: Arc<tokio::sync::Mutex<Option<Arc<Summary>>>>,
}

/// What this instance has observed.
#[derive(Debug, Default)]
struct Observed {
    /// The calls that are in `minutes`.
    calls: u64,
    minutes: BTreeMap<DateTime<Utc>, u64>,
    /// The minutes whose calls are stored.
    stored: BTreeMap<DateTime<Utc>, u64>,
    /// The snapshots stored before `stored_at`.
    snapshots: u64,
    stored_at: Option<DateTime<Utc>>,
    outages: Outages,
}

impl Activity {
    /// A handle for this service.
    pub fn new(ctx: Context) -> Self {
        Self {
            ctx,
            instance: Uuid::new_v4(),
            observed: Arc::default(),
            cached: Arc::default(),
        }
    }

    /// The same handle, with the connections to Postgres of another context.
    #[must_use]
    pub fn on(&self, ctx: Context) -> Self {
        Self {
            ctx,
            ..self.clone()
        }
    }

    /// Since when servers are away.
    pub fn outages(&self) -> Outages {
        self.lock().outages
    }

    /// The summary of the service, at most five seconds old; older only while Postgres is away, but for the flush lag.
    pub async fn summary(&self) -> Result<Arc<Summary>, Failure> {
        // Held while the summary is read, so that concurrent callers share one read.
        let mut cached = self.cached.lock().await;
        let now = self.ctx.clock.now();
        let is_fresh =
            |it: &Arc<Summary>| (TimeDelta::zero()..CACHE_LIFETIME).contains(&(now - it.at));
        if let Some(fresh) = cached.as_ref().filter(|it| is_fresh(it)) {
            return Ok(Arc::clone(fresh));
        }
        let stale = cached.as_ref();
        if let Some(stale) = stale.filter(|_| self.outages().postgres.is_some()) {
            return Ok(self.with_present_lag(stale, now).await);
        }
        match (self.read(now).await, stale) {
            (Ok(summary), _) => Ok(Arc::clone(cached.insert(Arc::new(summary)))),
            (Err(postgres::Error::Unavailable(_)), Some(stale)) => {
                Ok(self.with_present_lag(stale, now).await)
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    async fn read(&self, now: DateTime<Utc>) -> Result<Summary, postgres::Error> {
        let postgres = &self.ctx.postgres;
        let last_minute = minute_of(now);
        let starts = (1..=MINUTES).rev();
        let starts = starts.map(|ago| last_minute - TimeDelta::minutes(ago.into()));
        let from = last_minute - TimeDelta::minutes(MINUTES.into());
        let calls = overview::calls(postgres, from).await?;
        let in_minute = |start: DateTime<Utc>| calls.get(&start).copied().unwrap_or(0);
        let rest = 60_u64.saturating_sub((now - last_minute).num_seconds().unsigned_abs());
        let recent_calls =
            in_minute(last_minute) + in_minute(last_minute - TimeDelta::minutes(1)) * rest / 60;
        let due = webhooks::due(postgres, now).await?;
        let overdue = due.into_iter().map(|(_, since)| now - since).max();
        Ok(Summary {
            at: now,
            organizations: overview::organizations(postgres, now).await?,
            calls: starts.map(|start| (start, in_minute(start))).collect(),
            recent_calls,
            flush_lag: self.flush_lag(now).await,
            webhook_lag: overdue.unwrap_or_default(),
            last_snapshot_at: overview::last_snapshot_at(postgres).await?,
        })
    }

    /// An old summary, with what Redis still knows.
    async fn with_present_lag(&self, stale: &Summary, now: DateTime<Utc>) -> Arc<Summary> {
        Arc::new(Summary {
            flush_lag: self.flush_lag(now).await,
            ..stale.clone()
        })
    }

    /// None at once while Redis is known to be away.
    async fn flush_lag(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        if self.outages().redis.is_some() {
            return None;
        }
        self.read_flush_lag(now).await.ok()
    }

    async fn read_flush_lag(&self, now: DateTime<Utc>) -> Result<TimeDelta, redis::Error> {
        let backlog = self.ctx.redis.pooled().await?.backlog().await?;
        let oldest = backlog.into_iter().map(|it| it.since).min();
        // Negative if the clock of another instance is ahead.
        let lag = oldest.map(|since| (now - since).max(TimeDelta::zero()));
        Ok(lag.unwrap_or_default())
    }

    /// Observes the servers, and stores the calls since the last round.
    pub async fn observe(&self) -> Result<(), postgres::Error> {
        let now = self.ctx.clock.now();
        let (unstored, stored_at) = self.count(now);
        let redis = tokio::time::timeout(PING_TIMEOUT, self.ctx.redis.ping());
        let recorded = tokio::time::timeout(PING_TIMEOUT, self.record(&unstored, now, stored_at));
        let (redis, recorded) = tokio::join!(redis, recorded);
        let mut observed = self.lock();
        let outages = &mut observed.outages;
        note(&mut outages.redis, matches!(redis, Ok(Ok(()))), now);
        note(&mut outages.postgres, matches!(recorded, Ok(Ok(()))), now);
        if let Ok(recorded) = recorded {
            recorded?;
            observed.stored.extend(unstored);
        }
        Ok(())
    }

    async fn record(
        &self,
        calls: &BTreeMap<DateTime<Utc>, u64>,
        now: DateTime<Utc>,
        stored_at: Option<DateTime<Utc>>,
    ) -> Result<(), postgres::Error> {
        let (postgres, oldest) = (&self.ctx.postgres, now - overview::KEPT);
        if calls.is_empty() && stored_at.is_none() {
            return postgres.ping().await;
        }
        overview::record(postgres, self.instance, calls, oldest, stored_at).await
    }

    /// Assigns the calls since the last round to this minute. Returns the minutes that Postgres lacks, and when a snapshot
    /// was last stored.
    fn count(&self, now: DateTime<Utc>) -> (BTreeMap<DateTime<Utc>, u64>, Option<DateTime<Utc>>) {
        let (calls, snapshots) = {
            let metrics = &self.ctx.metrics;
            (metrics.calls(), metrics.snapshots_stored())
        };
        let mut observed = self.lock();
        let new = calls.saturating_sub(observed.calls);
        observed.calls = calls;
        if new > 0 {
            *observed.minutes.entry(minute_of(now)).or_default() += new;
        }
        if snapshots > observed.snapshots {
            (observed.snapshots, observed.stored_at) = (snapshots, Some(now));
        }
        let oldest = now - overview::KEPT;
        observed.minutes.retain(|minute, _| *minute >= oldest);
        observed.stored.retain(|minute, _| *minute >= oldest);
        let stored = &observed.stored;
        let unstored = observed.minutes.iter();
        let unstored = unstored.filter(|(minute, calls)| stored.get(minute) != Some(calls));
        let unstored = unstored.map(|(minute, calls)| (*minute, *calls));
        (unstored.collect(), observed.stored_at)
    }

    /// Observes until `stop`, and then a last time.
    pub async fn run(self, stop: CancellationToken) {
        let mut job = Job::new(&self.ctx, None, "store how much is called");
        job.every(INTERVAL, &stop, || self.observe()).await;
        job.round(self.observe()).await;
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes whether a server replied.
fn note(away_since: &mut Option<DateTime<Utc>>, replied: bool, now: DateTime<Utc>) {
    if replied {
        *away_since = None;
    } else {
        away_since.get_or_insert(now);
    }
}

fn minute_of(instant: DateTime<Utc>) -> DateTime<Utc> {
    instant
        .duration_trunc(TimeDelta::minutes(1))
        .unwrap_or(instant)
}
