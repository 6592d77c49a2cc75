//! Brings counters that Redis does not know into its present data set: opened at zero where nothing can have
//! been counted, restored from Postgres, or begun where a reset closed the one before.
//!
//! Counts nothing and decides nothing about policies: where Redis knows a newer one, the caller learns it.

use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};
use tokio::sync::Mutex;

use crate::counters::{self, Correction, Counters, Link, Next, Opening, SHARDS, Shard};
use crate::domain::counter::{CounterId, Snapshot, Stamp};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::{Period, hour};
use crate::domain::policy::Policy;
use crate::domain::retention;
use crate::metrics::Metrics;
use crate::store::adjustments::Pending;
use crate::store::usage::{self, AllNews};
use crate::store::{self, Store};

/// By so much a data set must be older than a period for a missing counter of that period to be zero:
/// [`EARLY`](retention::EARLY), and a minute by which the clocks of instances may differ.
const MARGIN: Duration = Duration::minutes(6);

/// How often something is tried with what the last attempt taught, before it is given up.
const ROUNDS_MAX: usize = 20;

/// The handle on opening; clones share everything.
#[derive(Debug, Clone)]
pub struct Opener {
    counters: Counters,
    store: Store,
    /// How long after its end a period takes late events.
    late: Duration,
    locks: Arc<Locks>,
    metrics: Metrics,
}

/// Keep one instance from asking Postgres the same thing many times at once. For economy only.
#[derive(Debug)]
struct Locks {
    numbering: Mutex<()>,
    by_shard: Box<[Mutex<()>]>,
}

/// Why a counter could not be brought into the data set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis.
    #[error(transparent)]
    Counters(#[from] counters::Error),
    /// Postgres, which was needed because Redis did not know.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The organization has as many meters as it may have.
    #[error("the organization has as many meters as it may have; {0} would be one more")]
    TooManyMeters(MeterId),
    /// The state kept changing under the call.
    #[error("the counters kept changing under the call")]
    Contended,
}

/// How far an opening came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// The counter stands, in the generation that the caller named.
    Ready,
    /// Something was done or learned; look again.
    Again,
    /// Redis knows no policy of the organization, or a newer one; look again with that.
    OlderPolicy,
}

impl Opener {
    /// A handle on these.
    pub fn new(counters: Counters, store: Store, late: Duration, metrics: Metrics) -> Self {
        let locks = Locks {
            numbering: Mutex::default(),
            by_shard: (0..SHARDS).map(|_| Mutex::default()).collect(),
        };
        Self {
            counters,
            store,
            late,
            locks: Arc::new(locks),
            metrics,
        }
    }

    /// Sees to it that the data set of a shard has a number.
    pub async fn number(&self, link: &Link, shard: Shard) -> Result<(), Error> {
        let _one_at_a_time = self.locks.numbering.lock().await;
        if link.generation(shard).is_some() {
            return Ok(());
        }
        // All at once: after a restart of Redis every shard is in need.
        let nameless: Vec<Shard> = Shard::all()
            .filter(|shard| link.generation(*shard).is_none())
            .collect();
        let unnumbered = self.counters.identify(link, &nameless).await?;
        if !unnumbered.is_empty() {
            let number = self.store.draw_generation().await?;
            self.metrics.generation_drawn();
            self.counters.number(link, &unnumbered, number).await?;
        }
        Ok(())
    }

    /// Brings one counter of a running period, or of one that is over, into the generation of its stamp, or
    /// learns what keeps it from it. `policy` is what the stamp was made by.
    pub async fn open(
        &self,
        link: &Link,
        policy: &Policy,
        counter: &CounterId,
        stamp: &Stamp,
        now: DateTime<Utc>,
    ) -> Result<Opened, Error> {
        let shard = Shard::of(&counter.organization);
        let _one_at_a_time = match self.locks.by_shard.get(shard.index()) {
            Some(lock) => lock.lock().await,
            None => return Err(Error::Contended),
        };
        let (margin, expiry) = (
            MARGIN.num_milliseconds(),
            retention::expiry(stamp.end, self.late),
        );
        let begins_at_a_reset = policy
            .schedule
            .resets
            .get(&counter.meter)
            .filter(|reset| reset.at == counter.start);
        // A period that begins at a reset is never opened by itself: the one before must be closed in the same step.
        let opening = match begins_at_a_reset {
            Some(reset) => {
                let next = Next {
                    counter,
                    reset: *reset,
                    stamp,
                    expiry,
                };
                self.counters.close(link, &next, now, margin).await?
            }
            None => {
                self.counters
                    .open(link, counter, stamp, now, margin, expiry)
                    .await?
            }
        };
        let opening = match (opening, begins_at_a_reset) {
            (Opening::Restore, _) => self.restore(link, counter, stamp, now).await?,
            (Opening::RestoreClosed, Some(reset)) => {
                let closed = CounterId {
                    start: reset.closed_start,
                    ..counter.clone()
                };
                let stamp = Stamp {
                    end: Some(reset.at),
                    ..*stamp
                };
                match self.restore(link, &closed, &stamp, now).await? {
                    Opening::Ready => Opening::Changed,
                    other => other,
                }
            }
            (other, _) => other,
        };
        match opening {
            Opening::Ready => Ok(Opened::Ready),
            Opening::Changed | Opening::Restore | Opening::RestoreClosed => Ok(Opened::Again),
            Opening::Policy => Ok(Opened::OlderPolicy),
            Opening::TooManyMeters => Err(Error::TooManyMeters(counter.meter.clone())),
            Opening::Generation => {
                self.counters.identify(link, &[shard]).await?;
                Ok(Opened::Again)
            }
        }
    }

    /// Finishes the last reset of a meter: closes the counter that it ended, begins the next, and stores what the
    /// closed one holds. Doing it twice is harmless.
    pub async fn finish_reset(
        &self,
        link: &Link,
        policy: &Policy,
        organization: &OrganizationId,
        meter: &MeterId,
        now: DateTime<Utc>,
    ) -> Result<Opened, Error> {
        let Some(reset) = policy.schedule.resets.get(meter) else {
            return Ok(Opened::OlderPolicy);
        };
        let shard = Shard::of(organization);
        let counter_since = |start| CounterId {
            organization: organization.clone(),
            meter: meter.clone(),
            start,
        };
        let begun = policy.schedule.period_of(meter, reset.at, now);
        for _ in 0..ROUNDS_MAX {
            let Some(generation) = link.generation(shard) else {
                self.number(link, shard).await?;
                continue;
            };
            let stamp = Stamp::of(policy, meter, begun, generation);
            let opened = self
                .open(link, policy, &counter_since(begun.start), &stamp, now)
                .await?;
            match opened {
                Opened::Again => {}
                Opened::OlderPolicy => return Ok(opened),
                Opened::Ready => {
                    let closed = [counter_since(reset.closed_start)];
                    let read = self.counters.read(link, &closed).await?;
                    self.store(read.into_iter().flatten().collect(), now)
                        .await?;
                    return Ok(opened);
                }
            }
        }
        Err(Error::Contended)
    }

    /// Brings the counter of a period into the present data set.
    pub async fn ready(
        &self,
        link: &Link,
        policy: &Policy,
        counter: &CounterId,
        now: DateTime<Utc>,
    ) -> Result<Opened, Error> {
        let shard = Shard::of(&counter.organization);
        let schedule = &policy.schedule;
        let period = Period {
            start: counter.start,
            end: schedule.period_of(&counter.meter, counter.start, now).end,
        };
        for _ in 0..ROUNDS_MAX {
            let Some(generation) = link.generation(shard) else {
                self.number(link, shard).await?;
                continue;
            };
            let stamp = Stamp::of(policy, &counter.meter, period, generation);
            match self.open(link, policy, counter, &stamp, now).await? {
                Opened::Again => {}
                opened => return Ok(opened),
            }
        }
        Err(Error::Contended)
    }

    /// Applies an adjustment to its counter, and stores what that holds then. Doing it twice is harmless.
    pub async fn adjust(
        &self,
        link: &Link,
        policy: &Policy,
        adjustment: &Pending,
        now: DateTime<Utc>,
    ) -> Result<Opened, Error> {
        let counter = &adjustment.counter;
        let shard = Shard::of(&counter.organization);
        // Not in an hour that the counter may have dropped, however long this took.
        let at = now
            .checked_sub_signed(self.late)
            .map_or(adjustment.at, |oldest| adjustment.at.max(oldest));
        let (hour, _) = hour(policy.schedule.calendar.time_zone(), at);
        for _ in 0..ROUNDS_MAX {
            let Some(generation) = link.generation(shard) else {
                self.number(link, shard).await?;
                continue;
            };
            let correction = Correction {
                id: adjustment.id,
                counter,
                generation,
                policy_version: policy.version,
                amount: adjustment.amount,
                hour,
            };
            match self.counters.adjust(link, &correction, now).await? {
                Opening::Ready => {
                    let read = self.counters.read(link, std::slice::from_ref(counter));
                    self.store(read.await?.into_iter().flatten().collect(), now)
                        .await?;
                    return Ok(Opened::Ready);
                }
                Opening::Policy => return Ok(Opened::OlderPolicy),
                Opening::Generation => {
                    self.counters.identify(link, &[shard]).await?;
                }
                _ => {
                    let opened = self.ready(link, policy, counter, now).await?;
                    if opened == Opened::OlderPolicy {
                        return Ok(opened);
                    }
                }
            }
        }
        Err(Error::Contended)
    }

    async fn store(&self, snapshots: Vec<Snapshot>, now: DateTime<Utc>) -> Result<(), Error> {
        let hours = snapshots
            .iter()
            .flat_map(Snapshot::unstored_hours)
            .map(|hour| hour.start);
        usage::ensure_partitions(&self.store, hours).await?;
        // The flusher has them to store as well, and tells what is to be told.
        usage::store(&self.store, &snapshots, &AllNews::new(), now).await?;
        Ok(())
    }

    async fn restore(
        &self,
        link: &Link,
        counter: &CounterId,
        stamp: &Stamp,
        now: DateTime<Utc>,
    ) -> Result<Opening, Error> {
        let held: Option<Snapshot> = self
            .counters
            .read(link, std::slice::from_ref(counter))
            .await?
            .into_iter()
            .next()
            .flatten();
        if held
            .as_ref()
            .is_some_and(|held| held.stamp.generation == stamp.generation)
        {
            return Ok(Opening::Ready);
        }
        if let Some(held) = &held {
            usage::ensure_partitions(&self.store, held.hours.iter().map(|hour| hour.start)).await?;
        }
        let hours_from = retention::oldest_hour(now, self.late);
        let restored =
            usage::restore(&self.store, counter, held.as_ref(), stamp, hours_from, now).await;
        let restored = match restored {
            Err(store::Error::NewerGeneration) => return Ok(Opening::Generation),
            Err(store::Error::OlderPolicy) => return Ok(Opening::Policy),
            Err(store::Error::TooManyMeters) => return Ok(Opening::TooManyMeters),
            other => other?,
        };
        let opening = self
            .counters
            .restore(
                link,
                held.as_ref(),
                &restored.snapshot,
                &restored.meters,
                stamp.version,
                // Not at once, where an adjustment comes to a period that is long over.
                retention::expiry(restored.snapshot.stamp.end, self.late)
                    .map(|expiry| expiry.max(now + Duration::hours(1))),
            )
            .await?;
        tracing::debug!(org.id = %counter.organization, meter = %counter.meter, ?opening, "restored a counter");
        Ok(opening)
    }
}
