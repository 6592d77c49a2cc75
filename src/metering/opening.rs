//! What to do about a counter that Redis does not know: open it at zero, or restore it.

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

use super::{Error, MARGIN, Metering};
use crate::counters::{Link, Opening, SHARDS, Shard};
use crate::domain::counter::{CounterId, Snapshot, Stamp};
use crate::domain::retention;
use crate::store::{self, usage};

/// Keep one instance from asking Postgres the same thing many times at once. For economy only.
#[derive(Debug)]
pub(super) struct Locks {
    pub(super) numbering: Mutex<()>,
    by_shard: Box<[Mutex<()>]>,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            numbering: Mutex::default(),
            by_shard: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Metering {
    /// Brings one counter into the present generation, or learns what keeps it from it (a newer
    /// policy, another generation). Either way the caller looks again.
    pub(super) async fn open(
        &self,
        link: &Link,
        counter: &CounterId,
        stamp: &Stamp,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        let shard = Shard::of(&counter.organization);
        let _one_at_a_time = match self.locks.by_shard.get(shard.index()) {
            Some(lock) => lock.lock().await,
            None => return Err(Error::Contended),
        };
        let expiry = retention::expiry(stamp.end, self.late);
        let opening = self
            .counters
            .open(link, counter, stamp, now, MARGIN.num_milliseconds(), expiry)
            .await?;
        let opening = match opening {
            Opening::Restore => self.restore(link, counter, stamp, now).await?,
            other => other,
        };
        match opening {
            Opening::Ready | Opening::Changed | Opening::Restore => Ok(()),
            Opening::TooManyMeters => Err(Error::TooManyMeters(counter.meter.clone())),
            Opening::Policy => {
                self.policies
                    .refresh(link, &counter.organization, stamp.version)
                    .await?;
                Ok(())
            }
            Opening::Generation => {
                self.counters.identify(link, &[shard]).await?;
                Ok(())
            }
        }
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
                retention::expiry(stamp.end, self.late),
            )
            .await?;
        tracing::debug!(org.id = %counter.organization, meter = %counter.meter, ?opening, "restored a counter");
        Ok(opening)
    }
}
