//! How full an organization is: what the list of organizations shows, and is sorted and filtered by.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::MeterId;
use super::period::Period;
use super::policy::{Enforcement, Rule};
use super::quantity::Count;

/// How an organization, or one meter, stands to its limits; the worst meter decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Below every percentage at which people are told.
    Ok,
    /// At the lowest of them, or above.
    Warning,
    /// Beyond the limit, or at a hard one that includes anything: the next consume is refused.
    Exceeded,
}

impl State {
    /// Every state, best first.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Warning, Self::Exceeded];
}

/// One meter in one period, as last stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterSummary {
    /// When the period began.
    pub start: DateTime<Utc>,
    /// When it ends, if it ends by itself.
    pub end: Option<DateTime<Utc>>,
    /// Units counted in it.
    pub used: Count,
    /// Units that it includes; none = unlimited.
    pub limit: Option<Count>,
    /// What happens beyond the limit.
    pub enforcement: Enforcement,
    /// The lowest percentage at which people are told, if any is.
    pub warn_at: Option<u16>,
}

impl MeterSummary {
    /// How far it may go.
    pub fn rule(&self) -> Rule {
        Rule {
            limit: self.limit,
            enforcement: self.enforcement,
        }
    }

    /// The period that was counted in.
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

    /// Used of limit in hundredths of a per cent; boundless where nothing is included and something used.
    fn fullness(&self) -> u64 {
        match (self.used, self.limit) {
            (Count::ZERO, _) | (_, None) => 0,
            (used, Some(limit)) => hundredths(used, limit).unwrap_or(FULLNESS_MAX),
        }
    }
}

/// Used of limit in hundredths of a per cent, rounded down, so that nothing looks fuller than it is; none where nothing
/// is included.
pub fn hundredths(used: Count, limit: Count) -> Option<u64> {
    let share = u128::from(used.get()).saturating_mul(10_000);
    let share = share.checked_div(limit.get().into())?;
    Some(
        share
            .try_into()
            .map_or(FULLNESS_MAX, |share: u64| share.min(FULLNESS_MAX)),
    )
}

/// The largest fullness; it fits into a signed number.
const FULLNESS_MAX: u64 = i64::MAX.unsigned_abs();

/// An organization's meters in the periods that run, as last stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsageSummary {
    /// Those that were counted, by name.
    pub meters: BTreeMap<MeterId, MeterSummary>,
}

impl UsageSummary {
    /// Takes in what was stored of a meter, unless it is of a period that does not run at `now`; an
    /// event that is early by minutes shows with the next one.
    pub fn update(&mut self, meter: &MeterId, news: MeterSummary, now: DateTime<Utc>) {
        let held = self.meters.get(meter);
        if held.is_none_or(|held| held.start <= news.start) && news.start <= now {
            // Where it is over, the pruning takes it out.
            self.meters.insert(meter.clone(), news);
        }
        self.prune(now);
    }

    /// Leaves out what is over.
    pub fn prune(&mut self, now: DateTime<Utc>) {
        self.meters.retain(|_, it| it.period().contains(now));
    }

    /// How the worst meter stands.
    pub fn state(&self) -> State {
        let states = self.meters.values().map(MeterSummary::state);
        states.max().unwrap_or(State::Ok)
    }

    /// How full the fullest meter is, in hundredths of a per cent.
    pub fn fullness(&self) -> u64 {
        let all = self.meters.values().map(MeterSummary::fullness);
        all.max().unwrap_or(0)
    }

    /// Units of one meter.
    pub fn current(&self, meter: &MeterId) -> Count {
        self.meters.get(meter).map_or(Count::ZERO, |it| it.used)
    }

    /// When the first of these periods ends.
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
    fn a_meter_warns_from_its_lowest_level_and_exceeds_when_the_next_unit_does_not_fit() {
        for (standing, state) in [
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
            assert_eq!(standing.state(), state, "{standing:?}");
        }
        let silent = MeterSummary {
            warn_at: None,
            ..meter(99, Some(100))
        };
        assert_eq!(silent.state(), State::Ok);
    }

    #[test]
    fn fullness_is_exact_to_the_hundredth_and_boundless_where_nothing_is_included() {
        assert_eq!(meter(1, Some(3)).fullness(), 3333);
        assert_eq!(meter(250, Some(100)).fullness(), 25_000);
        assert_eq!(meter(0, Some(0)).fullness(), 0);
        assert_eq!(meter(1, Some(0)).fullness(), FULLNESS_MAX);
        assert_eq!(meter(5, None).fullness(), 0);
    }

    #[test]
    fn only_what_runs_is_taken_in_and_what_is_over_falls_out() {
        let (api, tokens): (MeterId, MeterId) = ("api".parse().unwrap(), "tokens".parse().unwrap());
        let mut standing = UsageSummary::default();
        standing.update(&api, meter(5, None), at(2));
        standing.update(&tokens, meter(7, None), at(2));
        assert_eq!(standing.current(&api).get(), 5);

        // A late event of an older period, and an early one of the next.
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
        standing.update(&api, older, at(2));
        standing.update(&api, next.clone(), at(30));
        assert_eq!(standing.current(&api).get(), 5);

        standing.update(&api, next, at(31));
        assert_eq!(standing.current(&api).get(), 1);
        assert_eq!(standing.meters.len(), 1);
        // Closed by a reset.
        let closed = MeterSummary {
            start: at(31),
            end: Some(at(31)),
            ..meter(9, None)
        };
        standing.update(&api, closed, at(31));
        assert!(standing.meters.is_empty());
    }
}
