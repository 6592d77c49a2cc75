//! Verification: whether a counter agrees between Redis and Postgres, and with its hours.
//!
//! Calls continue meanwhile, so Redis is read before and after Postgres: a stored snapshot cannot be newer than the second
//! reading, and everything settled at the first must be stored.

use serde::Serialize;
use utoipa::ToSchema;

use super::counter::{CounterId, Snapshot};

/// Totals of a counter or of its hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct Totals {
    /// Units counted, net of refunds.
    pub used: i64,
    /// Calls denied.
    pub denied: i64,
    /// Units refunded.
    pub refunded: i64,
}

impl Totals {
    /// The totals of a counter.
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            used: signed(snapshot.used.get()),
            denied: signed(snapshot.denied),
            refunded: signed(snapshot.refunded),
        }
    }

    /// The totals of its hours.
    fn of_hours(snapshot: &Snapshot) -> Self {
        let hours = snapshot.hours.iter().map(|hour| Self {
            used: hour.used,
            denied: signed(hour.denied),
            refunded: signed(hour.refunded),
        });
        hours.fold(Self::default(), Self::plus)
    }

    fn plus(self, other: Self) -> Self {
        Self {
            used: self.used.saturating_add(other.used),
            denied: self.denied.saturating_add(other.denied),
            refunded: self.refunded.saturating_add(other.refunded),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            used: self.used.saturating_sub(other.used),
            denied: self.denied.saturating_sub(other.denied),
            refunded: self.refunded.saturating_sub(other.refunded),
        }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A counter in Redis.
#[derive(Debug, Clone)]
pub struct LiveCounter {
    /// The counter.
    pub snapshot: Snapshot,
    /// The sequence that Postgres confirmed to Redis.
    pub settled: u64,
}

/// A counter in Postgres.
#[derive(Debug, Clone)]
pub struct StoredCounter {
    /// The counter.
    pub counter: CounterId,
    /// Generation and sequence of the stored snapshot.
    pub version: (u64, u64),
    /// The totals of the snapshot.
    pub sums: Totals,
    /// Whether hours of its period may have been dropped because of their age.
    pub hours_dropped: bool,
    /// The totals of its hours, without dropped ones.
    pub hours: Totals,
    /// The totals of those hours that Redis held at the first reading.
    pub hours_in_redis: Totals,
}

/// A mismatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mismatch {
    /// The hours do not add up to the count in Redis.
    Hours,
    /// The hours in Postgres do not add up to the snapshot there.
    StoredHours,
    /// The snapshot of the same version has other totals.
    Snapshot,
    /// The snapshot is newer than the counter in Redis.
    Ahead,
    /// Redis considers stored what Postgres does not have.
    Settled,
}

/// Every mismatch of a counter, with the expected and the actual totals.
pub fn mismatches(
    before: Option<&LiveCounter>,
    stored: Option<&StoredCounter>,
    after: Option<&LiveCounter>,
) -> Vec<(Mismatch, Totals, Totals)> {
    let mut found = Vec::new();
    if let Some(stored) = stored
        && !stored.hours_dropped
        && stored.hours != stored.sums
    {
        found.push((Mismatch::StoredHours, stored.sums, stored.hours));
    }
    if let Some(LiveCounter { snapshot, settled }) = before {
        let sums = Totals::of(snapshot);
        // Hours that no late event can reach are in Postgres only, until they are dropped. What the stored hours lack then
        // is the count of the dropped ones, which does not change.
        let older = stored.map_or(Totals::default(), |it| {
            let all = if it.hours_dropped { it.sums } else { it.hours };
            all.minus(it.hours_in_redis)
        });
        let hours = older.plus(Totals::of_hours(snapshot));
        if hours != sums {
            found.push((Mismatch::Hours, sums, hours));
        }
        let version = stored.map_or((0, 0), |stored| stored.version);
        if version < (snapshot.stamp.generation, *settled) && *settled > 0 {
            let there = stored.map_or(Totals::default(), |stored| stored.sums);
            found.push((Mismatch::Settled, sums, there));
        }
    }
    if let Some(stored) = stored {
        for counted in [before, after].into_iter().flatten() {
            let sums = Totals::of(&counted.snapshot);
            if stored.version == version(counted) && stored.sums != sums {
                found.push((Mismatch::Snapshot, sums, stored.sums));
                break;
            }
        }
        if let Some(counted) = after.filter(|counted| stored.version > version(counted)) {
            found.push((Mismatch::Ahead, Totals::of(&counted.snapshot), stored.sums));
        }
    }
    found
}

fn version(counted: &LiveCounter) -> (u64, u64) {
    (counted.snapshot.stamp.generation, counted.snapshot.sequence)
}
