//! Garbage collection: flushed counters that no event can reach, and organizations without counters. Neither expires by
//! itself.

use std::collections::BTreeMap;

use ::redis::cmd;
use chrono::{DateTime, Utc};

use super::channel::Channel;
use super::error::Error;
use super::keys::Shard;
use super::scripts::{GC_COUNTERS, GC_ORGANIZATIONS};
use crate::domain::counter::CounterId;
use crate::domain::verification::LiveCounter;

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Counters.
    pub counters: usize,
    /// Organizations.
    pub organizations: usize,
}

impl Channel {
    /// Leases the collection for `ms`; false if another instance has it. Saves work, nothing depends on it.
    pub async fn lease_gc(&self, ms: u64) -> Result<bool, Error> {
        let arguments = (self.keys.gc_lease(), "", "NX", "PX", ms);
        let taken: Option<String> = self.query(cmd("SET").arg(arguments)).await?;
        Ok(taken.is_some())
    }

    /// One step of a scan of all keys; returns the cursor of the next. A scan starts, and has ended, at cursor 0.
    ///
    /// Deletes clean counters whose period ended before one instant, and organizations without counters whose policy was
    /// written before another.
    pub async fn collect(
        &self,
        cursor: u64,
        ended_before: DateTime<Utc>,
        written_before: DateTime<Utc>,
    ) -> Result<(u64, Collected), Error> {
        let keys = &self.keys;
        let pattern = keys.pattern_of_collected();
        let (next, found) = self.scan(&pattern, cursor).await?;
        let (mut candidates, mut hashes) = (Vec::new(), Vec::new());
        for key in &found {
            if let Some(shard) = keys.parse_organizations(key) {
                hashes.push([key.clone(), keys.policies(shard)]);
            }
            // A period that started later has not ended before.
            let counter = keys.parse_counter(key);
            candidates.extend(counter.filter(|it| it.start < ended_before));
        }
        let written_before = written_before.timestamp_millis();
        let calls = hashes.iter();
        let calls = calls.map(|keys| GC_ORGANIZATIONS.call(keys, written_before));
        let organizations: Vec<usize> = self.invoke_all(&GC_ORGANIZATIONS, calls).await?;
        let counters = self.collect_counters(&candidates, ended_before);
        let collected = Collected {
            counters: counters.await?,
            organizations: organizations.into_iter().sum(),
        };
        Ok((next, collected))
    }

    async fn collect_counters(
        &self,
        candidates: &[CounterId],
        ended_before: DateTime<Utc>,
    ) -> Result<usize, Error> {
        let keys = &self.keys;
        let read = self.read_each(candidates).await?;
        let mut due: BTreeMap<Shard, Vec<String>> = BTreeMap::new();
        // A corrupt counter stays, to be examined.
        for LiveCounter { snapshot, settled } in read.iter().flatten().flatten() {
            let over = snapshot.stamp.end.is_some_and(|end| end < ended_before);
            if over && *settled == snapshot.sequence {
                let shard = Shard::of(&snapshot.counter.organization);
                let keys_of_shard = due
                    .entry(shard)
                    .or_insert_with(|| vec![keys.generation(shard)]);
                keys_of_shard.push(keys.counter(&snapshot.counter));
            }
        }
        let mut deleted = 0;
        for keys in due.values() {
            let call = GC_COUNTERS.call(keys, ended_before.timestamp_millis());
            deleted += self.invoke::<usize>(&GC_COUNTERS, &call).await?;
        }
        Ok(deleted)
    }
}
