//! Garbage collection: flushed counters that no event can reach, and organizations without counters. Neither expires by
//! itself.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use ::redis::cmd;
use chrono::{DateTime, Utc};

use super::error::Error;
use super::routes::Routes;
use super::scripts::{GC_COUNTERS, GC_ORGANIZATIONS};
use super::shard::Shard;
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

impl AddAssign for Collected {
    fn add_assign(&mut self, other: Self) {
        self.counters += other.counters;
        self.organizations += other.organizations;
    }
}

impl Routes {
    /// A shard of each master that is reached: its part of the keys is collected by itself.
    pub fn parts(&self) -> Vec<Shard> {
        let masters = self.masters();
        let reached = masters.filter(|(_, channel)| channel.is_ok());
        reached.map(|(shard, _)| shard).collect()
    }

    /// Leases the collection of a part for `ms`; false if another instance has it. Saves work, nothing depends on it.
    pub async fn lease_gc(&self, part: Shard, ms: u64) -> Result<bool, Error> {
        let arguments = (self.keys.gc_lease(part), "", "NX", "PX", ms);
        let taken: Option<String> = self.query(part, cmd("SET").arg(arguments)).await?;
        Ok(taken.is_some())
    }

    /// One step of a scan of the keys of a part; returns the cursor of the next. A scan starts, and has ended, at cursor 0.
    ///
    /// Deletes clean counters whose period ended before one instant, and organizations without counters whose policy was
    /// written before another.
    pub async fn collect(
        &self,
        part: Shard,
        cursor: u64,
        ended_before: DateTime<Utc>,
        written_before: DateTime<Utc>,
    ) -> Result<(u64, Collected), Error> {
        let keys = &self.keys;
        let pattern = keys.pattern_of_collected();
        let (next, found) = self.channel(part)?.scan(&pattern, cursor).await?;
        let (mut candidates, mut hashes) = (Vec::new(), Vec::new());
        for key in &found {
            if let Some(shard) = keys.parse_organizations(key) {
                hashes.push((shard, [key.clone(), keys.policies(shard)]));
            }
            // A period that started later has not ended before.
            let counter = keys.parse_counter(key);
            candidates.extend(counter.filter(|it| it.start < ended_before));
        }
        let written_before = written_before.timestamp_millis();
        let calls = hashes.iter();
        let calls =
            calls.map(|(shard, keys)| (*shard, GC_ORGANIZATIONS.call(keys, written_before)));
        let organizations: Vec<usize> = self.invoke_each(&GC_ORGANIZATIONS, calls).await?;
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
        for (shard, keys) in &due {
            let call = GC_COUNTERS.call(keys, ended_before.timestamp_millis());
            deleted += self.invoke::<usize>(*shard, &GC_COUNTERS, &call).await?;
        }
        Ok(deleted)
    }
}
