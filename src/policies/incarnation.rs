//! What a deleted organization has left in Redis: erased before anybody learns the policy of its new life.
//!
//! A counter takes the newest policy that it meets, so one of a former life would go on under the new one. That is
//! why no policy of a new life is made known, here or to a caller, before every counter that calls
//! under it could reach is gone. Who finds them first erases them: the deletion itself, the sweep, or a call.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Policies, Written, held};
use crate::domain::counter::CounterId;
use crate::domain::ids::MeterId;
use crate::domain::retention::{self, EARLY_MAX};
use crate::domain::schedule::Schedule;
use crate::failure::Failure;
use crate::redis::{Configured, Connection};

impl Policies {
    /// No event that is still to come reaches what ended before this, with a day to spare.
    pub fn reach(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        retention::oldest_end(now, self.ctx.late)
    }

    /// Makes policies known to Redis; returns what Redis then knows of each, and how many counters were erased for it.
    pub(super) async fn make_known(
        &self,
        connection: &Connection,
        policies: &[Written<'_>],
    ) -> Result<Vec<(Configured, usize)>, Failure> {
        let now = self.ctx.clock.now();
        let configurations: Vec<_> = policies.iter().map(|it| it.configuration(&[])).collect();
        let configured = connection.configure(&configurations, now).await?;
        let mut known = Vec::with_capacity(configured.len());
        for (written, configured) in policies.iter().zip(configured) {
            known.push(match configured {
                Configured::Former { policy, meters } => {
                    self.start_incarnation(connection, written, &policy, &meters)
                        .await?
                }
                Configured::Known { .. } => (configured, 0),
            });
        }
        Ok(known)
    }

    /// Erases what calls could reach of a former life, and makes the policy of the new one known.
    async fn start_incarnation(
        &self,
        connection: &Connection,
        written: &Written<'_>,
        former: &str,
        meters: &[MeterId],
    ) -> Result<(Configured, usize), Failure> {
        let now = self.ctx.clock.now();
        let organization = written.organization;
        // What cannot be read says nothing about its periods.
        let former = held(former);
        let (from, to) = (now - self.ctx.late, now + EARLY_MAX);
        let schedules = former
            .iter()
            .chain([&written.policy])
            .map(|it| &it.schedule);
        let mut reachable = BTreeSet::new();
        for schedule in schedules {
            let regular = starts(schedule, from, to);
            for meter in meters {
                let resets = schedule.resets.get(meter).into_iter();
                let reset = resets.flat_map(|reset| [reset.closed_start, reset.at]);
                reachable.extend(regular.iter().copied().chain(reset).map(|start| CounterId {
                    organization: organization.clone(),
                    meter: meter.clone(),
                    start,
                }));
            }
        }
        let reachable: Vec<CounterId> = reachable.into_iter().collect();
        let erased = connection
            .erase(organization, written.incarnation, &reachable)
            .await?;
        let configuration = written.configuration(&[]);
        let anew = connection.start_incarnation(&configuration, now).await?;
        Ok((anew, erased))
    }
}

/// The starts of all periods of meters that were never reset, which contain an instant of this range, its ends
/// included.
fn starts(schedule: &Schedule, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<DateTime<Utc>> {
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
    use crate::domain::period::{Calendar, ResetMode, ResetPeriod};
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
        let of = |schedule: &Schedule| starts(schedule, from, to);
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
