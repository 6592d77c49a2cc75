//! Forgetting what is of no use any more, because nothing of an organization expires by itself: counters of periods
//! that are long over, and organizations of which nothing was counted.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{Connection, Error, Redis, Shard, scripts};
use crate::domain::counter::CounterId;
use crate::domain::verification::Counted;

/// What was forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Counters.
    pub counters: usize,
    /// Organizations.
    pub organizations: usize,
}

impl Redis {
    /// Takes the task for `ms`; false where somebody else has it. For economy only: nothing depends on it.
    pub async fn lease_forgetting(&self, connection: &Connection, ms: u64) -> Result<bool, Error> {
        let taken = self
            .take(connection, [self.0.keys.forgetting()], ms)
            .await?;
        Ok(taken == [true])
    }

    /// One step of a walk through everything, which begins, and has ended, at 0; returns where it goes on.
    ///
    /// Forgets counters that Postgres holds exactly and whose period ended before one instant, and organizations of
    /// which nothing was counted and whose policy was written before another.
    pub async fn forget(
        &self,
        connection: &Connection,
        cursor: u64,
        ended_before: DateTime<Utc>,
        written_before: DateTime<Utc>,
    ) -> Result<(u64, Collected), Error> {
        let keys = &self.0.keys;
        let (next, found) = self
            .walk(connection, &keys.pattern_of_use(), cursor)
            .await?;
        let (mut counters, mut hashes) = (Vec::new(), Vec::new());
        for key in &found {
            if let Some(shard) = keys.parse_organizations(key) {
                hashes.push((shard, key.as_str()));
            }
            // What began later has not ended before.
            let counter = keys.parse_counter(key);
            counters.extend(counter.filter(|it| it.start < ended_before));
        }
        let organizations =
            scripts::forget_organizations(connection, keys, &hashes, written_before).await?;
        let held = scripts::read_each(connection, keys, &counters).await?;
        let mut due: BTreeMap<Shard, Vec<&CounterId>> = BTreeMap::new();
        // What cannot be read stays, for somebody to look at.
        for Counted { snapshot, settled } in held.iter().flatten().flatten() {
            let over = snapshot.stamp.end.is_some_and(|end| end < ended_before);
            if over && *settled == snapshot.sequence {
                let shard = Shard::of(&snapshot.counter.organization);
                due.entry(shard).or_default().push(&snapshot.counter);
            }
        }
        let mut counters = 0;
        for (shard, due) in &due {
            counters +=
                scripts::forget_counters(connection, keys, *shard, due, ended_before).await?;
        }
        let forgotten = Collected {
            counters,
            organizations,
        };
        Ok((next, forgotten))
    }
}
