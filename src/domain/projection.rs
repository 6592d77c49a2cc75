//! Projections: what a meter will have used at the end of its period, and when it will be full.
//!
//! The method, as docs/projections.md explains it: the next 24 hours are expected to be like the last 24, and every later
//! one like the average hour of the last 7 days. Both windows end with the current hour, which is not over, so a pace is
//! per second that has really passed.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::ids::MeterId;
use super::quantity::{COUNT_MAX, Count};

const HOUR: i64 = 60 * 60;

const DAY: i64 = 24 * HOUR;

/// How many days before the last one the usual day is the median of.
const DAYS_BEFORE: i64 = 6;

/// The fewest days before the last one that make a usual day.
const DAYS_MIN: usize = 3;

/// The shortest time since the first use of an organization that can tell a pace.
const OBSERVED_MIN: i64 = 6 * HOUR;

/// The paces of an organization's meters.
pub type Paces = BTreeMap<MeterId, Pace>;

/// How fast a meter has been used lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pace {
    day: Span,
    week: Span,
    /// The median of the 6 days before the last 24 hours; none if fewer than 3 of them were observed.
    pub usual_day: Option<u64>,
}

/// The units of a time that ends now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Span {
    units: u64,
    /// More than 0.
    seconds: u64,
}

/// What is expected of a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projection {
    /// Its count at the end of the period; none if the period does not end by itself.
    pub used: Option<Count>,
    /// When it reaches its limit; none if it already has, or will not before the period ends.
    pub full_at: Option<DateTime<Utc>>,
    /// What that is concluded from.
    pub pace: Pace,
}

/// The start of the 7 days that paces are of.
pub fn observed_from(now: DateTime<Utc>) -> DateTime<Utc> {
    let start = day_start(now).saturating_sub(DAYS_BEFORE.saturating_mul(DAY));
    DateTime::from_timestamp(start, 0).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// The start of the last 24 hours, of which the current one is the last, in Unix seconds.
fn day_start(now: DateTime<Utc>) -> i64 {
    let now = now.timestamp();
    let hour = now.saturating_sub(now.rem_euclid(HOUR));
    hour.saturating_add(HOUR).saturating_sub(DAY)
}

impl Pace {
    /// The pace of a meter with these units by slot. `since` is the first use of the organization, or an earlier instant; none
    /// if that is too short ago.
    pub fn of(
        slots: &BTreeMap<DateTime<Utc>, i64>,
        since: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Option<Self> {
        let day = day_start(now);
        let since = since.max(observed_from(now)).timestamp();
        let passed = |from: i64| now.timestamp().saturating_sub(from);
        if passed(since) < OBSERVED_MIN {
            return None;
        }
        let units = |from: i64, to: i64| {
            let within = slots
                .iter()
                .map(|(start, units)| (start.timestamp(), units));
            let within = within.filter(|(start, _)| (from..to).contains(start));
            let units = within.fold(0_i64, |sum, (_, units)| sum.saturating_add(*units));
            units.max(0).unsigned_abs()
        };
        let span = |from: i64| Span {
            units: units(from, i64::MAX),
            seconds: passed(from.max(since)).unsigned_abs(),
        };
        let before = (1..=DAYS_BEFORE).map(|ago| day.saturating_sub(ago.saturating_mul(DAY)));
        let before = before.filter(|start| *start >= since);
        let before = before.map(|start| units(start, start.saturating_add(DAY)));
        Some(Self {
            day: span(day),
            week: span(since),
            usual_day: median(before.collect()),
        })
    }

    /// Units in the last 24 hours.
    pub fn last_day(&self) -> u64 {
        self.day.units
    }

    /// How many times the usual day the last 24 hours are, in tenths, rounded; none without a usual day above 0.
    pub fn tenths_of_usual(&self) -> Option<u64> {
        let usual = self.usual_day?;
        let tenths = self.day.units.saturating_mul(10);
        tenths.saturating_add(usual / 2).checked_div(usual)
    }

    /// Whether the meter was used in the last 7 days.
    pub fn is_used(&self) -> bool {
        self.week.units > 0
    }

    /// What a meter will have used at a later instant.
    pub fn used_at(&self, used: Count, at: DateTime<Utc>, now: DateTime<Utc>) -> Count {
        let seconds = at.timestamp().saturating_sub(now.timestamp()).max(0);
        let first = self.day.after(seconds.min(DAY).unsigned_abs());
        let later = seconds.saturating_sub(DAY).max(0);
        let later = self.week.after(later.unsigned_abs());
        let units = used.get().saturating_add(first).saturating_add(later);
        Count::try_from(units.min(COUNT_MAX)).unwrap_or(used)
    }

    /// When a meter will reach a limit; none if it already has, or never will.
    pub fn full_at(&self, used: Count, limit: Count, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let missing = limit.saturating_sub(used).get();
        if missing == 0 {
            return None;
        }
        let first = self.day.after(DAY.unsigned_abs());
        let seconds = if missing <= first {
            self.day.until(missing)?
        } else {
            let later = self.week.until(missing.saturating_sub(first))?;
            later.saturating_add(DAY.unsigned_abs())
        };
        let seconds = TimeDelta::try_seconds(i64::try_from(seconds).ok()?)?;
        now.checked_add_signed(seconds)
    }
}

impl Span {
    /// The units of so many seconds at this pace.
    fn after(self, seconds: u64) -> u64 {
        let units = u128::from(self.units).saturating_mul(seconds.into());
        let units = units.checked_div(self.seconds.into()).unwrap_or(0);
        u64::try_from(units).unwrap_or(u64::MAX)
    }

    /// The fewest seconds of so many units at this pace; none if it is 0.
    fn until(self, units: u64) -> Option<u64> {
        let seconds = u128::from(units).saturating_mul(self.seconds.into());
        (self.units > 0)
            .then(|| seconds.div_ceil(self.units.into()))
            .and_then(|seconds| u64::try_from(seconds).ok())
    }
}

fn median(mut days: Vec<u64>) -> Option<u64> {
    days.sort_unstable();
    let upper = days.get(days.len() / 2).copied()?;
    let lower = days.get(days.len().saturating_sub(1) / 2).copied()?;
    (days.len() >= DAYS_MIN).then(|| u64::midpoint(lower, upper))
}

#[cfg(test)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "test data is small, and an overflow would fail the test"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> DateTime<Utc> {
        "2031-03-15T12:30:00Z".parse().unwrap()
    }

    fn count(units: u64) -> Count {
        Count::try_from(units).unwrap()
    }

    /// Equal units in each of the last hours, the current one included.
    fn hourly(hours: &[(i64, i64)]) -> BTreeMap<DateTime<Utc>, i64> {
        let current: DateTime<Utc> = "2031-03-15T12:00:00Z".parse().unwrap();
        let hours = hours.iter();
        hours
            .map(|(ago, units)| (current - TimeDelta::hours(*ago), *units))
            .collect()
    }

    #[test]
    fn the_next_day_is_like_the_last_and_later_ones_like_the_average_day() {
        let slots = hourly(&[(0, 100), (23, 135), (24, 500), (167, 270), (168, 9999)]);
        let pace = Pace::of(&slots, DateTime::<Utc>::MIN_UTC, now()).unwrap();
        assert_eq!(pace.last_day(), 235);
        // 10 an hour for 23.5 hours, and 6 an hour for 167.5.
        let used_in = |hours| {
            let at = now() + TimeDelta::hours(hours);
            pace.used_at(count(7), at, now()).get()
        };
        assert_eq!([0, 1, 24, 25, 48].map(used_in), [7, 17, 247, 253, 391]);
        let full = |limit| pace.full_at(count(7), count(limit), now());
        let after = |hours| Some(now() + TimeDelta::hours(hours));
        assert_eq!(full(7), None);
        assert_eq!(full(17), after(1));
        assert_eq!(full(247), after(24));
        assert_eq!(full(253), after(25));
    }

    #[test]
    fn the_usual_day_is_the_median_of_those_before_the_last() {
        let days = [(0, 410), (30, 80), (50, 100), (80, 120), (100, 7000)];
        let pace = |since| Pace::of(&hourly(&days), since, now());
        let long_ago = pace(DateTime::<Utc>::MIN_UTC).unwrap();
        assert_eq!(long_ago.usual_day, Some(90));
        assert_eq!(long_ago.tenths_of_usual(), Some(46));
        let four_days = pace(now() - TimeDelta::days(5)).unwrap();
        assert_eq!(four_days.usual_day, Some(110));
        let short = pace(now() - TimeDelta::days(3)).unwrap();
        assert_eq!((short.usual_day, short.tenths_of_usual()), (None, None));
    }

    #[test]
    fn six_hours_are_enough_for_a_pace_of_what_was_observed() {
        let slots = hourly(&[(0, 10), (5, 50)]);
        let since = |hours| Pace::of(&slots, now() - TimeDelta::hours(hours), now());
        assert_eq!(since(5), None);
        let pace = since(6).unwrap();
        let tomorrow = now() + TimeDelta::hours(24);
        assert_eq!(pace.used_at(count(0), tomorrow, now()).get(), 240);
    }

    #[test]
    fn nothing_is_full_of_nothing_and_refunds_are_not_use() {
        let pace = Pace::of(&hourly(&[(1, -5)]), DateTime::<Utc>::MIN_UTC, now()).unwrap();
        assert!(!pace.is_used());
        assert_eq!(pace.full_at(count(1), count(2), now()), None);
        assert_eq!(pace.tenths_of_usual(), None);
    }

    proptest! {
        #[test]
        fn a_meter_is_full_in_the_first_second_in_which_its_expected_count_is_the_limit(
            slots in proptest::collection::btree_map(0_i64..167, 0_i64..100_000, 1..40),
            used in 0_u64..1_000_000,
            missing in 1_u64..10_000_000,
        ) {
            let slots: Vec<(i64, i64)> = slots.into_iter().collect();
            let pace = Pace::of(&hourly(&slots), DateTime::<Utc>::MIN_UTC, now()).unwrap();
            let (used, limit) = (count(used), count(used + missing));
            let at = |at| pace.used_at(used, at, now());
            match pace.full_at(used, limit, now()) {
                Some(full) => {
                    prop_assert!(at(full) >= limit);
                    prop_assert!(at(full - TimeDelta::seconds(1)) < limit);
                }
                None => prop_assert!(!pace.is_used()),
            }
        }
    }
}
