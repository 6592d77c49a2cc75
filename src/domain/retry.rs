//! When a denied call would be granted.
//!
//! Without other calls, the decision changes only when the period of one of its meters ends, which resets the count, and
//! when a temporary limit ends, which restores the limit below it. A meter that fits at one of these instants may not fit
//! at the next, so each instant is checked for all meters.

use chrono::{DateTime, Utc};

use super::decision::Demand;
use super::ids::MeterId;
use super::policy::Policy;
use super::quantity::Count;

/// One meter of a denied call.
#[derive(Debug, Clone, Copy)]
pub struct DeniedMeter<'a> {
    /// The meter.
    pub meter: &'a MeterId,
    /// What the call demands of it.
    pub demand: Demand,
    /// The count of its period.
    pub used: Count,
    /// When the period ends, unless in manual mode.
    pub end: Option<DateTime<Utc>>,
}

impl DeniedMeter<'_> {
    fn fits(&self, policy: &Policy, at: DateTime<Utc>) -> bool {
        let over = self.end.is_some_and(|end| end <= at);
        let used = if over { Count::ZERO } else { self.used };
        self.demand.fits(policy.rule_at(self.meter, at), used)
    }
}

/// The first instant from `now` on at which the call would be granted under the policy at `now`; none if never.
pub fn earliest_grant(
    policy: &Policy,
    meters: &[DeniedMeter<'_>],
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let ends = meters.iter().filter_map(|it| it.end);
    let limits = meters.iter().filter_map(|it| policy.limits.get(it.meter));
    let changes = ends.chain(limits.filter_map(|limit| limit.until));
    let mut changes: Vec<DateTime<Utc>> = changes.filter(|at| *at > now).collect();
    changes.push(now);
    changes.sort_unstable();
    let mut changes = changes.into_iter();
    changes.find(|at| meters.iter().all(|it| it.fits(policy, *at)))
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
    use strum::VariantArray as _;

    use super::*;
    use crate::domain::limit::{Enforcement, Limit, LimitOverride, TemporaryLimit};
    use crate::domain::organization::{
        DefaultCalendar, Defaults, Organization, OrganizationSettings,
    };
    use crate::domain::period::{ResetMode, ResetPeriod};
    use crate::domain::plan::Plan;
    use crate::domain::quantity::COUNT_MAX;

    const NOW: &str = "2031-03-15T12:20:00Z";

    /// Longer than any generated period or temporary limit.
    const MINUTES: i64 = 26 * 60;

    fn count(units: u64) -> Count {
        Count::try_from(units).unwrap()
    }

    /// A meter: limit, temporary limit for so many minutes, count and demand.
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
        // Some end long after the period.
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
                ..LimitOverride::default()
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
            meters: BTreeMap::new(),
            version: 1,
        };
        Policy::resolve(&defaults, 1, &[], &plan, Some(&organization))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Compares with retrying every minute, under the policy and in the period of that minute.
        #[test]
        fn the_earliest_grant_is_the_first_minute_in_which_a_retry_succeeds(
            meters in meters(),
            mode in prop::sample::select(ResetMode::VARIANTS.to_vec()),
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

    /// One meter fits until the other one does.
    #[test]
    fn meters_that_fit_at_different_times_never_fit_together() {
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
