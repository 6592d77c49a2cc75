//! Counters, as Redis and Postgres hold them.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};

use super::ids::{MeterId, OrganizationId};
use super::limit::Rule;
use super::period::Period;
use super::policy::Policy;
use super::quantity::Count;
use super::text::{self, Malformed, field, fields};
use super::threshold::Thresholds;

/// Identifies a counter: one organization, one meter, one period.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CounterId {
    /// The organization.
    pub organization: OrganizationId,
    /// The meter.
    pub meter: MeterId,
    /// The start of the period.
    pub start: DateTime<Utc>,
}

impl CounterId {
    /// The counter of this period.
    pub fn new(organization: &OrganizationId, meter: &MeterId, start: DateTime<Utc>) -> Self {
        Self {
            organization: organization.clone(),
            meter: meter.clone(),
            start,
        }
    }
}

/// What the last decision about a counter was based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The data set of Redis in which the counter was created or restored.
    pub generation: u64,
    /// The policy version of the rule.
    pub version: u64,
    /// The limit.
    pub rule: Rule,
    /// When its period ends, or was closed.
    pub end: Option<DateTime<Utc>>,
    /// Whether a reset closed the period: it counts nothing more.
    pub closed: bool,
}

impl Stamp {
    /// The stamp of a counter under a policy.
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

/// The absolute value of a counter in Redis or Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The counter.
    pub counter: CounterId,
    /// What the last decision was based on. Its generation is the counter's.
    pub stamp: Stamp,
    /// Units counted, net of refunds.
    pub used: Count,
    /// Calls denied.
    pub denied: u64,
    /// Units refunded.
    pub refunded: u64,
    /// Grows with every change.
    pub sequence: u64,
    /// The hours that it still holds, ascending.
    pub hours: Vec<Hour>,
    /// The start of the oldest hour that is not stored yet, if any.
    pub oldest_unstored: Option<DateTime<Utc>>,
    /// Whether Postgres is not known to hold it.
    pub never_stored: bool,
    /// Its thresholds.
    pub thresholds: Thresholds,
    /// The last adjustment applied, if any.
    pub adjusted: Option<AppliedAdjustment>,
    /// The last pending operation that was drained into it; 0 if none was.
    pub drained: u64,
}

/// Usage in one hour of a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hour {
    /// When it begins, by the organization's wall clock.
    pub start: DateTime<Utc>,
    /// Units counted, net of refunds; negative if more was refunded.
    pub used: i64,
    /// Calls denied.
    pub denied: u64,
    /// Units refunded.
    pub refunded: u64,
}

/// An adjustment that was applied to a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedAdjustment {
    /// Its id; a counter contains all its adjustments up to this one.
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

impl FromStr for AppliedAdjustment {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let [id, applied, used, hour] = fields(text)?;
        Ok(Self {
            id: field(id)?,
            applied: field(applied)?,
            used: text::count(used)?,
            hour: DateTime::from_timestamp_millis(field(hour)?).ok_or(Malformed)?,
        })
    }
}

impl Snapshot {
    /// The hours that Postgres may not have.
    pub fn unstored_hours(&self) -> impl Iterator<Item = &Hour> {
        self.hours.iter().filter(|hour| {
            self.oldest_unstored
                .is_some_and(|oldest| hour.start >= oldest)
        })
    }
}
