//! Usage summaries, by which the list of organizations is sorted and filtered.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use strum::VariantArray;
use utoipa::ToSchema;

use super::ids::MeterId;
use super::limit::{Enforcement, Rule};
use super::period::Period;
use super::projection::Paces;
use super::quantity::Count;

/// The state of a meter, or of an organization: that of its worst meter. Best first.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ToSchema,
    VariantArray,
)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Below every percentage of `warnAt`.
    Ok,
    /// At the lowest percentage, or above.
    Warning,
    /// Beyond the limit, or at a hard limit above 0: the next consume is denied.
    Exceeded,
}

/// The last stored usage of one meter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterSummary {
    /// When the period began.
    pub start: DateTime<Utc>,
    /// When it ends, unless in manual mode.
    pub end: Option<DateTime<Utc>>,
    /// Its count.
    pub used: Count,
    /// Its limit; none = unlimited.
    pub limit: Option<Count>,
    /// What happens beyond the limit.
    pub enforcement: Enforcement,
    /// The lowest percentage of `warnAt`, if any.
    pub warn_at: Option<u16>,
}

impl MeterSummary {
    /// Its rule.
    pub fn rule(&self) -> Rule {
        Rule {
            limit: self.limit,
            enforcement: self.enforcement,
        }
    }

    /// Its period.
    pub fn period(&self) -> Period {
        Period {
            start: self.start,
            end: self.end,
        }
    }

    fn state(&self) -> State {
        let Some(limit) = self.limit else {
            return State::Ok;
        };
        let full = self.enforcement == Enforcement::Hard && limit > Count::ZERO;
        if self.used > limit || (full && self.used == limit) {
            return State::Exceeded;
        }
        let (used, limit) = (u128::from(self.used.get()), u128::from(limit.get()));
        let warns = self.warn_at.is_some_and(|percentage| {
            limit > 0 && used.saturating_mul(100) >= limit.saturating_mul(percentage.into())
        });
        if warns { State::Warning } else { State::Ok }
    }

    /// Hundredths of a per cent of the limit used; [`FULLNESS_MAX`] for usage under a limit of 0.
    fn fullness(&self) -> u64 {
        match (self.used, self.limit) {
            (Count::ZERO, _) | (_, None) => 0,
            (used, Some(limit)) => hundredths(used, limit).unwrap_or(FULLNESS_MAX),
        }
    }
}

/// Hundredths of a per cent of the limit used, rounded down; none under a limit of 0.
pub fn hundredths(used: Count, limit: Count) -> Option<u64> {
    let share = u128::from(used.get()).saturating_mul(10_000);
    let share = share.checked_div(limit.get().into())?;
    Some(u64::try_from(share.min(FULLNESS_MAX.into())).unwrap_or(FULLNESS_MAX))
}

/// From this fullness on, an organization is nearly full.
pub const NEARLY_FULL: u64 = 9500;

/// The largest fullness, which fits into a `bigint`.
const FULLNESS_MAX: u64 = i64::MAX.unsigned_abs();

/// The last stored usage of an organization in the running periods.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsageSummary {
    /// The counted meters.
    pub meters: BTreeMap<MeterId, MeterSummary>,
}

impl UsageSummary {
    /// Applies what was stored of a meter, unless its period does not run at `now`. An event that is minutes early appears
    /// with the first event of its period.
    pub fn update(&mut self, meter: &MeterId, stored: MeterSummary, now: DateTime<Utc>) {
        let known = self.meters.get(meter);
        if known.is_none_or(|known| known.start <= stored.start) && stored.start <= now {
            self.meters.insert(meter.clone(), stored);
        }
        self.prune(now);
    }

    /// Removes meters whose period has ended.
    pub fn prune(&mut self, now: DateTime<Utc>) {
        self.meters.retain(|_, it| it.period().contains(now));
    }

    /// The state of the worst meter.
    pub fn state(&self) -> State {
        let states = self.meters.values().map(MeterSummary::state);
        states.max().unwrap_or(State::Ok)
    }

    /// Whether a meter is at or above a hard limit above 0, or above one of 0.
    pub fn denies(&self) -> bool {
        self.meters
            .values()
            .any(|it| it.enforcement == Enforcement::Hard && it.state() == State::Exceeded)
    }

    /// The fullness of the fullest meter, in hundredths of a per cent.
    pub fn fullness(&self) -> u64 {
        let all = self.meters.values().map(MeterSummary::fullness);
        all.max().unwrap_or(0)
    }

    /// The fullest of the limited meters, the first by name of several.
    pub fn fullest(&self) -> Option<&MeterId> {
        let limited = self.meters.iter().rev();
        let limited = limited.filter(|(_, it)| it.limit.is_some());
        let fullest = limited.max_by_key(|(_, it)| it.fullness());
        fullest.map(|(meter, _)| meter)
    }

    /// The count of one meter.
    pub fn current(&self, meter: &MeterId) -> Count {
        self.meters.get(meter).map_or(Count::ZERO, |it| it.used)
    }

    /// The meter that is expected to reach its limit first, and when, before its period ends.
    pub fn exhausted(&self, paces: &Paces, now: DateTime<Utc>) -> Option<(MeterId, DateTime<Utc>)> {
        let expected = self.meters.iter().filter_map(|(meter, it)| {
            let full_at = paces.get(meter)?.full_at(it.used, it.limit?, now)?;
            it.end
                .is_none_or(|end| full_at < end)
                .then_some((meter, full_at))
        });
        let first = expected.min_by_key(|(_, full_at)| *full_at);
        first.map(|(meter, full_at)| (meter.clone(), full_at))
    }

    /// When the first of the periods ends.
    pub fn end(&self) -> Option<DateTime<Utc>> {
        self.meters.values().filter_map(|it| it.end).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: u32) -> DateTime<Utc> {
        format!("2031-03-{day:02}T00:00:00Z").parse().unwrap()
    }

    fn meter(used: u64, limit: Option<u64>) -> MeterSummary {
        MeterSummary {
            start: at(1),
            end: Some(at(31)),
            used: Count::try_from(used).unwrap(),
            limit: limit.map(|units| Count::try_from(units).unwrap()),
            enforcement: Enforcement::Hard,
            warn_at: Some(80),
        }
    }

    fn soft(used: u64, limit: u64) -> MeterSummary {
        MeterSummary {
            enforcement: Enforcement::Soft,
            ..meter(used, Some(limit))
        }
    }

    #[test]
    fn a_meter_warns_from_its_lowest_percentage_and_exceeds_when_the_next_unit_does_not_fit() {
        for (summary, state) in [
            (meter(79, Some(100)), State::Ok),
            (meter(80, Some(100)), State::Warning),
            (meter(99, Some(100)), State::Warning),
            (meter(100, Some(100)), State::Exceeded),
            (meter(101, Some(100)), State::Exceeded),
            (soft(100, 100), State::Warning),
            (soft(101, 100), State::Exceeded),
            (meter(1_000_000, None), State::Ok),
            (meter(0, Some(0)), State::Ok),
            (meter(1, Some(0)), State::Exceeded),
            (meter(799, Some(1000)), State::Ok),
        ] {
            assert_eq!(summary.state(), state, "{summary:?}");
        }
        let silent = MeterSummary {
            warn_at: None,
            ..meter(99, Some(100))
        };
        assert_eq!(silent.state(), State::Ok);
    }

    #[test]
    fn fullness_is_exact_to_the_hundredth_and_maximal_under_a_limit_of_zero() {
        assert_eq!(meter(1, Some(3)).fullness(), 3333);
        assert_eq!(meter(250, Some(100)).fullness(), 25_000);
        assert_eq!(meter(0, Some(0)).fullness(), 0);
        assert_eq!(meter(1, Some(0)).fullness(), FULLNESS_MAX);
        assert_eq!(meter(5, None).fullness(), 0);
    }

    #[test]
    fn only_running_periods_are_kept() {
        let (api, tokens): (MeterId, MeterId) = ("api".parse().unwrap(), "tokens".parse().unwrap());
        let mut summary = UsageSummary::default();
        summary.update(&api, meter(5, None), at(2));
        summary.update(&tokens, meter(7, None), at(2));
        assert_eq!(summary.current(&api).get(), 5);

        // A late event of an older period, and an early event of the next.
        let older = MeterSummary {
            start: at(1) - chrono::Duration::days(28),
            end: Some(at(1)),
            ..meter(900, None)
        };
        let next = MeterSummary {
            start: at(31),
            end: None,
            ..meter(1, None)
        };
        summary.update(&api, older, at(2));
        summary.update(&api, next.clone(), at(30));
        assert_eq!(summary.current(&api).get(), 5);

        summary.update(&api, next, at(31));
        assert_eq!(summary.current(&api).get(), 1);
        assert_eq!(summary.meters.len(), 1);
        // Closed by a reset.
        let closed = MeterSummary {
            start: at(31),
            end: Some(at(31)),
            ..meter(9, None)
        };
        summary.update(&api, closed, at(31));
        assert!(summary.meters.is_empty());
    }
}
