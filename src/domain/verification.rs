//! Whether what is held of a counter in two places fits together, and adds up.
//!
//! Calls go on meanwhile. Redis is therefore read before and after Postgres: nothing that was stored at all can be
//! newer than what is read afterwards, and everything that was settled before must be there.

use serde::Serialize;
use utoipa::ToSchema;

use super::counter::{CounterId, Snapshot};

/// What was counted, refused and given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct Totals {
    /// Units counted, less those given back.
    pub used: i64,
    /// Calls refused.
    pub denied: i64,
    /// Units given back.
    pub refunded: i64,
}

impl Totals {
    /// What a counter holds.
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            used: signed(snapshot.used.get()),
            denied: signed(snapshot.denied),
            refunded: signed(snapshot.refunded),
        }
    }

    /// What its hours come to.
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

/// What Redis holds of a counter.
#[derive(Debug, Clone)]
pub struct LiveCounter {
    /// The counter.
    pub snapshot: Snapshot,
    /// The sequence that Redis believes Postgres to hold.
    pub settled: u64,
}

/// What Postgres holds of a counter.
#[derive(Debug, Clone)]
pub struct StoredCounter {
    /// Which.
    pub counter: CounterId,
    /// The data set that it comes from, and its sequence there.
    pub version: (u64, u64),
    /// What the snapshot says.
    pub sums: Totals,
    /// What its hours come to.
    pub hours: Totals,
    /// What those of them come to that Redis held before.
    pub hours_in_redis: Totals,
}

/// What does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mismatch {
    /// The hours do not add up to the count in Redis.
    Hours,
    /// The hours in Postgres do not add up to the snapshot there.
    StoredHours,
    /// The snapshot of the same state has other numbers.
    Snapshot,
    /// The snapshot is of a state that Redis has not come to.
    Ahead,
    /// Redis takes for stored what Postgres does not have.
    Settled,
}

/// Every way in which a counter does not fit, with what was expected and what was found.
pub fn mismatches(
    before: Option<&LiveCounter>,
    stored: Option<&StoredCounter>,
    after: Option<&LiveCounter>,
) -> Vec<(Mismatch, Totals, Totals)> {
    let mut found = Vec::new();
    if let Some(stored) = stored
        && stored.hours != stored.sums
    {
        found.push((Mismatch::StoredHours, stored.sums, stored.hours));
    }
    if let Some(LiveCounter { snapshot, settled }) = before {
        let sums = Totals::of(snapshot);
        // Hours that no event reaches any more are in Postgres alone.
        let older = stored.map_or(Totals::default(), |it| it.hours.minus(it.hours_in_redis));
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
