//! When a call that a limit has refused would be granted.
//!
//! If nobody else calls, what decides about the call changes only where a period of one of its meters ends, which
//! empties the meter, and where a temporary limit ends, after which what lies below it holds. What has become possible
//! at one of these instants may be impossible again at the next, so all meters are asked at each of them.

use chrono::{DateTime, Utc};

use super::decision::Demand;
use super::ids::MeterId;
use super::policy::Policy;
use super::quantity::Count;

/// One meter of a call that was refused.
#[derive(Debug, Clone, Copy)]
pub struct DeniedMeter<'a> {
    /// Which one.
    pub meter: &'a MeterId,
    /// What the call wants of it.
    pub demand: Demand,
    /// What is used in its period.
    pub used: Count,
    /// When that period ends, if it ends by itself.
    pub end: Option<DateTime<Utc>>,
}

impl DeniedMeter<'_> {
    fn fits(&self, policy: &Policy, at: DateTime<Utc>) -> bool {
        let over = self.end.is_some_and(|end| end <= at);
        let used = if over { Count::ZERO } else { self.used };
        self.demand.fits(policy.rule_at(self.meter, at), used)
    }
}

/// The first instant from `now` on at which a call that wants all of this would be granted, by the policy at `now`; none
/// where waiting does not help.
pub fn earliest_grant(
    policy: &Policy,
    call: &[DeniedMeter<'_>],
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let ends = call.iter().filter_map(|it| it.end);
    let limits = call.iter().filter_map(|it| policy.limits.get(it.meter));
    let changes = ends.chain(limits.filter_map(|limit| limit.until));
    let mut changes: Vec<DateTime<Utc>> = changes.filter(|at| *at > now).collect();
    changes.push(now);
    changes.sort_unstable();
    let mut changes = changes.into_iter();
    changes.find(|at| call.iter().all(|it| it.fits(policy, *at)))
}

#[cfg(test)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "an overflow here is a failed test"
)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::Duration;
    use chrono_tz::Tz;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::period::{ResetMode, ResetPeriod};
    use crate::domain::plan::Plan;
    use crate::domain::policy::{
        DefaultCalendar, Defaults, Enforcement, Limit, LimitOverride, Organization,
        OrganizationSettings, TemporaryLimit,
    };
    use crate::domain::quantity::COUNT_MAX;

    const NOW: &str = "2031-03-15T12:20:00Z";

    /// Longer than any of what is generated takes to change.
    const MINUTES: i64 = 26 * 60;

    fn count(units: u64) -> Count {
        Count::try_from(units).unwrap()
    }

    /// One meter: its limit, a temporary one until so many minutes from now, what is used, and what is wanted.
    #[derive(Debug, Clone)]
    struct Meter {
        limit: Option<u64>,
        soft: bool,
        temporary: Option<(Option<u64>, i64)>,
        used: u64,
        demand: Demand,
    }

    fn meters() -> impl Strategy<Value = Vec<Meter>> {
        let units = || proptest::option::weighted(0.85, 0..12_u64);
        // Some of them long after the period.
        let until = prop_oneof![1..100_i64, 1..1500_i64];
        let meter = (
            units(),
            prop::bool::weighted(0.1),
            proptest::option::weighted(0.7, (units(), until)),
            prop_oneof![9 => 0..15_u64, 1 => COUNT_MAX - 3..=COUNT_MAX],
            (0..8_u64, 0..3_u64),
        );
        let meter = meter.prop_map(|(limit, soft, temporary, used, (amount, more))| Meter {
            limit,
            soft,
            temporary,
            used,
            demand: Demand {
                amount,
                need: amount + more,
            },
        });
        prop::collection::vec(meter, 1..4)
    }

    fn name(position: usize) -> MeterId {
        format!("m{position}").parse().unwrap()
    }

    fn policy(meters: &[Meter], mode: ResetMode, period: ResetPeriod) -> Policy {
        let now: DateTime<Utc> = NOW.parse().unwrap();
        let defaults = Defaults {
            plan_id: "free".parse().unwrap(),
            limits: BTreeMap::new(),
            calendar: DefaultCalendar {
                reset_mode: mode,
                reset_period: period,
                time_zone: Tz::UTC,
            },
        };
        let limits = meters.iter().enumerate().map(|(position, meter)| {
            let own = LimitOverride {
                limit: Some(Limit(meter.limit.map(count))),
                enforcement: meter.soft.then_some(Enforcement::Soft),
                warn_at: None,
            };
            (name(position), own)
        });
        let temporary = meters.iter().enumerate().filter_map(|(position, meter)| {
            let (limit, minutes) = meter.temporary?;
            let limit = TemporaryLimit {
                limit: Limit(limit.map(count)),
                until: now + Duration::minutes(minutes),
            };
            Some((name(position), limit))
        });
        let organization = Organization {
            settings: OrganizationSettings::default(),
            limits: limits.collect(),
            temporary: temporary.collect(),
            ..Organization::default()
        };
        let plan = Plan {
            id: defaults.plan_id.clone(),
            name: "Free".parse().unwrap(),
            limits: BTreeMap::new(),
            features: BTreeMap::new(),
            version: 1,
        };
        Policy::resolve(&defaults, 1, &[], &plan, Some(&organization))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// As if the call were made again every minute, each time by the policy and in the period of that minute.
        #[test]
        fn it_is_the_first_minute_at_which_trying_again_and_again_succeeds(
            meters in meters(),
            mode in prop::sample::select(ResetMode::ALL.to_vec()),
            period in prop::sample::select(vec![ResetPeriod::Hourly, ResetPeriod::Daily]),
        ) {
            let now: DateTime<Utc> = NOW.parse().unwrap();
            let policy = policy(&meters, mode, period);
            let began = policy.schedule.period(now).start;
            let names: Vec<MeterId> = (0..meters.len()).map(name).collect();
            let succeeds = |at: DateTime<Utc>| {
                let policy = policy.clone().at(at);
                meters.iter().zip(&names).all(|(meter, name)| {
                    let runs = policy.schedule.running(name, at).start == began;
                    let used = if runs { count(meter.used) } else { Count::ZERO };
                    let within = |cap: Count| used.get() + meter.demand.need <= cap.get();
                    policy.rule(name).cap().is_none_or(within)
                        && used.get() + meter.demand.amount <= COUNT_MAX
                })
            };
            let tried = (0..MINUTES).map(|minute| now + Duration::minutes(minute)).find(|at| succeeds(*at));
            let at_now = policy.clone().at(now);
            let call: Vec<DeniedMeter<'_>> = meters
                .iter()
                .zip(&names)
                .map(|(meter, name)| DeniedMeter {
                    meter: name,
                    demand: meter.demand,
                    used: count(meter.used),
                    end: at_now.schedule.running(name, now).end,
                })
                .collect();
            prop_assert_eq!(earliest_grant(&at_now, &call, now), tried);
        }
    }

    /// The one meter is free until the other one is.
    #[test]
    fn what_fits_at_different_times_fits_at_none() {
        let meter = |limit, temporary, minutes| Meter {
            limit: Some(limit),
            soft: false,
            temporary: Some((Some(temporary), minutes)),
            used: 5,
            demand: Demand { amount: 5, need: 5 },
        };
        // Fits from the 10th minute on, and up to the 10th.
        let meters = [meter(10, 0, 10), meter(0, 10, 10)];
        let now: DateTime<Utc> = NOW.parse().unwrap();
        let policy = policy(&meters, ResetMode::Manual, ResetPeriod::Daily).at(now);
        let names = [name(0), name(1)];
        let call = [0, 1].map(|position: usize| DeniedMeter {
            meter: &names[position],
            demand: meters[position].demand,
            used: count(meters[position].used),
            end: None,
        });
        assert_eq!(earliest_grant(&policy, &call, now), None);
        let first = now + Duration::minutes(10);
        assert_eq!(earliest_grant(&policy, &call[..1], now), Some(first));
        assert_eq!(earliest_grant(&policy, &call[1..], now), Some(now));
    }
}
