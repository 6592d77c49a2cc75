//! A count, wherever it is held: its name, what it was decided by, and what it holds.

use std::fmt;
use std::str::FromStr;

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
    /// What it was last decided by; its generation is the counter's generation.
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
    /// Whether Postgres never was seen to hold anything of it.
    pub never_stored: bool,
    /// What it remembers of its thresholds.
    pub thresholds: Thresholds,
    /// The last adjustment that it contains, if any.
    pub adjusted: Option<AppliedAdjustment>,
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

/// An adjustment that a count contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedAdjustment {
    /// Names it; a count contains every one of its adjustments up to this.
    pub id: u64,
    /// What the count changed by.
    pub applied: i64,
    /// The count right afterwards.
    pub used: Count,
    /// The hour that it is counted in.
    pub hour: DateTime<Utc>,
}

/// `id:applied:used:hour`, such as `7:-100:401:1795341600000`, as the script writes it.
impl fmt::Display for AppliedAdjustment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, applied, used) = (self.id, self.applied, self.used.get());
        write!(f, "{id}:{applied}:{used}:{}", self.hour.timestamp_millis())
    }
}

/// What nobody has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("says nothing of an adjustment")]
pub struct Unreadable;

impl FromStr for AppliedAdjustment {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let parts: Vec<&str> = text.split(':').collect();
        let [id, applied, used, hour] = parts[..] else {
            return Err(Unreadable);
        };
        let used: u64 = used.parse().map_err(|_| Unreadable)?;
        let hour = hour.parse().ok().and_then(DateTime::from_timestamp_millis);
        Ok(Self {
            id: id.parse().map_err(|_| Unreadable)?,
            applied: applied.parse().map_err(|_| Unreadable)?,
            used: Count::try_from(used).map_err(|_| Unreadable)?,
            hour: hour.ok_or(Unreadable)?,
        })
    }
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
