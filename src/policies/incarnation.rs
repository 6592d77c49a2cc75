//! Writes policies to Redis, after erasing the counters of a stale incarnation.
//!
//! A counter adopts the newest policy that it meets, so a counter from before a deletion would continue under the
//! policy of the organization's new incarnation. Therefore Redis and callers get that policy only after every counter
//! that a call under it can reach has been erased. The deletion, the sweep, or a call erases them: the first to notice.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};

use super::cache::parse;
use crate::context::Context;
use crate::domain::counter::{CounterId, Stamp};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::policy::Policy;
use crate::domain::retention::EARLY_MAX;
use crate::domain::schedule::Schedule;
use crate::failure::Failure;
use crate::postgres;
use crate::postgres::organizations::Sources;
use crate::redis::{Configuration, Configured, Connection, PolicyText};

/// A policy resolved from Postgres, and its JSON for Redis.
pub(super) struct SerializedPolicy<'a> {
    organization: &'a OrganizationId,
    pub(super) policy: Policy,
    incarnation: u64,
    json: String,
}

impl<'a> SerializedPolicy<'a> {
    /// Leaves out what no event can reach any more: calendars that ended before `oldest_end`.
    pub(super) fn new(
        organization: &'a OrganizationId,
        sources: &Sources,
        oldest_end: DateTime<Utc>,
    ) -> Result<Self, Failure> {
        let mut policy = sources.policy();
        policy.schedule = policy.schedule.since(oldest_end);
        let json = serde_json::to_string(&policy)
            .map_err(|error| postgres::Error::Inconsistent(error.to_string()))?;
        Ok(Self {
            organization,
            policy,
            incarnation: sources.incarnation,
            json,
        })
    }

    /// The value in Redis.
    pub(super) fn text(&self) -> String {
        format!("{} {}", self.policy.version, self.json)
    }

    pub(super) fn configuration<'b>(
        &'b self,
        running: &'b [(CounterId, Stamp)],
    ) -> Configuration<'b> {
        Configuration {
            organization: self.organization,
            policy: PolicyText {
                version: self.policy.version,
                incarnation: self.incarnation,
                json: &self.json,
            },
            running,
        }
    }
}

/// Writes policies to Redis; returns what Redis then knows of each, and how many counters were erased first.
pub(super) async fn write(
    ctx: &Context,
    connection: &Connection,
    policies: &[SerializedPolicy<'_>],
) -> Result<Vec<(Configured, usize)>, Failure> {
    let now = ctx.clock.now();
    let configurations: Vec<_> = policies.iter().map(|it| it.configuration(&[])).collect();
    let replies = connection.configure(&configurations, now);
    let mut written = Vec::with_capacity(policies.len());
    for (policy, reply) in policies.iter().zip(replies.await?) {
        written.push(match reply {
            Configured::Stale {
                policy: stale,
                meters,
            } => {
                // The periods of an unreadable policy cannot be known.
                let stale = parse(&stale).map(|it| it.schedule);
                let schedules = stale.iter().chain([&policy.policy.schedule]);
                let counters = reachable(policy.organization, schedules, &meters, now, ctx.late);
                start_incarnation(connection, policy, &counters, now).await?
            }
            Configured::Known { .. } => (reply, 0),
        });
    }
    Ok(written)
}

/// Erases the reachable counters of a stale incarnation, and writes the policy of the new one.
async fn start_incarnation(
    connection: &Connection,
    policy: &SerializedPolicy<'_>,
    counters: &[CounterId],
    now: DateTime<Utc>,
) -> Result<(Configured, usize), Failure> {
    let (organization, incarnation) = (policy.organization, policy.incarnation);
    let erased = connection
        .erase(organization, incarnation, counters)
        .await?;
    let configuration = policy.configuration(&[]);
    let started = connection.start_incarnation(&configuration, now).await?;
    Ok((started, erased))
}

/// Every counter that an event under one of these schedules can reach at `now`.
pub(super) fn reachable<'a>(
    organization: &OrganizationId,
    schedules: impl Iterator<Item = &'a Schedule>,
    meters: &[MeterId],
    now: DateTime<Utc>,
    late: TimeDelta,
) -> Vec<CounterId> {
    let mut counters = BTreeSet::new();
    for schedule in schedules {
        let regular = period_starts(schedule, now - late, now + EARLY_MAX);
        for meter in meters {
            let resets = schedule.resets.get(meter).into_iter();
            let reset = resets.flat_map(|reset| [reset.closed_start, reset.at]);
            let starts = regular.iter().copied().chain(reset);
            counters.extend(starts.map(|start| CounterId::new(organization, meter, start)));
        }
    }
    counters.into_iter().collect()
}

/// The starts of all periods, of meters that were never reset, that contain an instant from `from` to `to`, both
/// included.
fn period_starts(
    schedule: &Schedule,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> Vec<DateTime<Utc>> {
    let (mut starts, mut at) = (Vec::new(), to);
    loop {
        let start = schedule.period(at).start;
        starts.push(start);
        match start.checked_sub_signed(TimeDelta::milliseconds(1)) {
            Some(before) if before >= from => at = before,
            _ => return starts,
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono_tz::Tz;

    use super::*;
    use crate::domain::calendar::Calendar;
    use crate::domain::period::{ResetMode, ResetPeriod};
    use crate::domain::schedule::Activity;

    fn schedule(period: ResetPeriod) -> Schedule {
        Schedule::new(ResetMode::Lazy, Calendar::plain(period, Tz::UTC))
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn every_period_that_an_event_can_reach_is_found() {
        let (from, to) = (at("2031-03-01T10:30:00Z"), at("2031-03-02T12:05:00Z"));
        let of = |schedule: &Schedule| period_starts(schedule, from, to);
        assert_eq!(of(&schedule(ResetPeriod::Hourly)).len(), 27);
        assert_eq!(
            of(&schedule(ResetPeriod::Daily)),
            [at("2031-03-02T00:00:00Z"), at("2031-03-01T00:00:00Z")]
        );
        let changed = schedule(ResetPeriod::Daily).changed(
            ResetMode::Lazy,
            Calendar::plain(ResetPeriod::Weekly, Tz::UTC),
            at("2031-03-02T11:00:00Z"),
            Activity::Running,
        );
        assert_eq!(
            of(&changed),
            [at("2031-03-02T00:00:00Z"), at("2031-03-01T00:00:00Z")]
        );
    }
}
