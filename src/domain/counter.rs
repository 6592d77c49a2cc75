//! A count, wherever it is held: its name, what it was decided by, and what it holds.

use chrono::{DateTime, Utc};

use super::ids::{MeterId, OrganizationId};
use super::period::Period;
use super::policy::{Policy, Rule};
use super::quantity::Count;
use super::threshold::Thresholds;

/// Which count: one organization, one meter, one period.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CounterId {
    /// Whose.
    pub organization: OrganizationId,
    /// Of what.
    pub meter: MeterId,
    /// Since when.
    pub start: DateTime<Utc>,
}

/// What one counter was last decided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The data set that the counter was created or restored in.
    pub generation: u64,
    /// The policy that the rule comes from.
    pub version: u64,
    /// How far the counter may go.
    pub rule: Rule,
    /// When its period ends, or was closed.
    pub end: Option<DateTime<Utc>>,
    /// Whether a reset ended the period; nothing is counted in it any more.
    pub closed: bool,
}

impl Stamp {
    /// The stamp of a counter that this policy decides about.
    pub fn of(policy: &Policy, meter: &MeterId, period: Period, generation: u64) -> Self {
        Self {
            generation,
            version: policy.version,
            rule: policy.rule(meter),
            end: period.end,
            closed: false,
        }
    }
}

/// One counter as Redis or Postgres holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Which counter.
    pub counter: CounterId,
    /// What it was last decided by; its generation is the counter's epoch.
    pub stamp: Stamp,
    /// Units counted.
    pub used: Count,
    /// Calls refused.
    pub denied: u64,
    /// Units given back; `used` is what remains.
    pub refunded: u64,
    /// Grows with every change.
    pub sequence: u64,
    /// Every hour that is still held, ascending.
    pub hours: Vec<Hour>,
    /// The start of the oldest hour that was not stored yet, if any was not.
    pub oldest_unstored: Option<DateTime<Utc>>,
    /// What it remembers of its thresholds.
    pub thresholds: Thresholds,
}

/// What was counted in one hour of a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hour {
    /// When it begins, by the organization's wall clock.
    pub start: DateTime<Utc>,
    /// Units counted, less those given back; negative where more was given back than counted.
    pub used: i64,
    /// Calls refused.
    pub denied: u64,
    /// Units given back.
    pub refunded: u64,
}

impl Snapshot {
    /// The hours that Postgres may lack.
    pub fn unstored_hours(&self) -> impl Iterator<Item = &Hour> {
        self.hours.iter().filter(|hour| {
            self.oldest_unstored
                .is_some_and(|oldest| hour.start >= oldest)
        })
    }
}
