//! Thresholds of a counter: what was crossed, and what was notified.
//!
//! A percentage of `warnAt` is crossed when the count reaches it; the limit, when the count exceeds it or a hard limit
//! denies a call. Each is notified once in a period, also if the count falls and rises again. A changed limit resets
//! those that it does not cross, so that they can be notified again.

use std::fmt;
use std::str::FromStr;

use super::limit::{Enforcement, MeterLimit, Rule};
use super::quantity::Count;
use super::text::{self, Malformed, field, fields};

/// The state of a counter's thresholds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Thresholds {
    /// What was notified, and since when the limit has been effective.
    pub notified: Notified,
    /// The highest count under this limit, if higher than the present one.
    pub peak: Count,
    /// Previous limits whose crossings are not recorded yet; oldest first.
    pub previous_limits: Vec<PreviousLimit>,
    /// Crossings under this limit that are not recorded yet.
    pub crossed: Crossings,
}

/// The thresholds that scripts watch while they count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedThresholds {
    /// The lowest count that crosses any threshold; none without a limit.
    pub lowest: Option<u64>,
    /// The percentages, separated by spaces; also without a limit, because the counter may have a newer one.
    pub percents: String,
}

impl WatchedThresholds {
    /// The thresholds of a limit.
    pub fn of(limit: &MeterLimit) -> Self {
        let lowest = limit.limit.map(|units| {
            let units = units.get();
            let reached = limit.warn_at.iter().min().filter(|_| units > 0);
            let reached = reached.map(|percent| {
                let mark = u128::from(units).saturating_mul((*percent).into());
                u64::try_from(mark.div_ceil(100)).unwrap_or(u64::MAX)
            });
            let exceeded = units.saturating_add(1);
            reached.map_or(exceeded, |reached| reached.min(exceeded))
        });
        let percents = limit.warn_at.iter().map(u16::to_string);
        Self {
            lowest,
            percents: percents.collect::<Vec<_>>().join(" "),
        }
    }
}

/// What can be crossed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threshold {
    /// A percentage of the limit.
    Percent(u16),
    /// The limit: exceeded, or the reason of a denial.
    Limit,
}

/// The thresholds crossed under one limit, each with the first count that crossed it: the count after the call, or before
/// the first denied call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Crossings(Vec<(Threshold, Count)>);

impl Crossings {
    /// Whether nothing was crossed.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The count that crossed a threshold, if it is known.
    pub(super) fn count(&self, threshold: Threshold) -> Option<Count> {
        let mut all = self.0.iter();
        let found = all.find(|(crossed, _)| *crossed == threshold);
        found.map(|(_, count)| *count)
    }
}

/// `threshold=count,` for each, such as `80=801,!=1003,`, where `!` is the limit. Shared with the scripts.
impl fmt::Display for Crossings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(threshold, count)| {
            match threshold {
                Threshold::Percent(percent) => write!(f, "{percent}")?,
                Threshold::Limit => f.write_str("!")?,
            }
            write!(f, "={},", count.get())
        })
    }
}

impl FromStr for Crossings {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let all = text.split_terminator(',').map(|crossed| {
            let (threshold, count) = crossed.split_once('=').ok_or(Malformed)?;
            let threshold = match threshold {
                "!" => Threshold::Limit,
                percent => Threshold::Percent(field(percent)?),
            };
            Ok((threshold, text::count(count)?))
        });
        all.collect::<Result<_, _>>().map(Self)
    }
}

/// What was notified of a counter's thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Notified {
    /// The highest notified percentage.
    pub percent: u16,
    /// Whether exceeding the limit was notified.
    pub exceeded: bool,
    /// The policy version since which the limit has been effective; 0 since the period began.
    pub since: u64,
    /// Calls that were denied in the period before that.
    pub denied_before: u64,
}

/// `percent:exceeded:since:denied`, such as `80:0:17:5`.
impl fmt::Display for Notified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exceeded = u8::from(self.exceeded);
        let (percent, since, denied) = (self.percent, self.since, self.denied_before);
        write!(f, "{percent}:{exceeded}:{since}:{denied}")
    }
}

impl FromStr for Notified {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let [percent, exceeded @ ("0" | "1"), since, denied] = fields(text)? else {
            return Err(Malformed);
        };
        Ok(Self {
            percent: field(percent)?,
            exceeded: exceeded == "1",
            since: field(since)?,
            denied_before: field(denied)?,
        })
    }
}

impl Notified {
    /// What stays notified under another limit, effective since a policy version, at a count and a number of denials.
    #[must_use]
    pub fn under(self, limit: Option<Count>, used: Count, since: u64, denied: u64) -> Self {
        Self {
            percent: self.percent.min(percent(used, limit)),
            exceeded: self.exceeded && limit.is_some_and(|limit| used > limit),
            since,
            denied_before: denied,
        }
    }
}

/// A limit that was effective before, and what happened under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousLimit {
    /// The policy version since which it was effective.
    pub since: u64,
    /// Calls that were denied in the period before that.
    pub denied_before: u64,
    /// The limit.
    pub rule: Rule,
    /// The highest count under it.
    pub peak: Count,
    /// Calls that had been denied in the period when it ended.
    pub denied: u64,
    /// The count when it ended.
    pub used: Count,
    /// What was crossed under it.
    pub crossed: Crossings,
}

/// `since:denied before:limit:enforcement:peak:denied:used:crossed`, such as `0:0:1000:h:1000:3:950:80=801,`. Written by
/// the scripts.
impl FromStr for PreviousLimit {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let [
            since,
            denied_before,
            limit,
            enforcement,
            peak,
            denied,
            used,
            crossed,
        ] = fields(text)?;
        let limit = (!limit.is_empty()).then(|| text::count(limit));
        Ok(Self {
            since: field(since)?,
            denied_before: field(denied_before)?,
            rule: Rule {
                limit: limit.transpose()?,
                enforcement: match enforcement {
                    "h" => Enforcement::Hard,
                    "s" => Enforcement::Soft,
                    _ => return Err(Malformed),
                },
            },
            peak: text::count(peak)?,
            denied: field(denied)?,
            used: text::count(used)?,
            crossed: field(crossed)?,
        })
    }
}

/// The percentages that a call crossed which changed the count from `before` to `after`.
pub fn crossed(before: Count, after: Count, limit: Option<Count>, warn_at: &[u16]) -> Vec<u16> {
    let (was, is) = (percent(before, limit), percent(after, limit));
    let all = warn_at.iter().copied();
    all.filter(|threshold| was < *threshold && *threshold <= is)
        .collect()
}

/// The percentage of a limit that is used, rounded down; 0 without a limit and under a limit of 0. Clamped far above the
/// highest valid threshold.
pub(super) fn percent(used: Count, limit: Option<Count>) -> u16 {
    let Some(limit) = limit else { return 0 };
    u128::from(used.get())
        .saturating_mul(100)
        .checked_div(limit.get().into())
        .map_or(0, |percent| u16::try_from(percent).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::quantity::COUNT_MAX;

    fn count(units: u64) -> Count {
        Count::try_from(units).unwrap()
    }

    #[test]
    fn a_changed_limit_resets_what_it_does_not_cross() {
        let before = Notified {
            percent: 100,
            exceeded: true,
            since: 0,
            denied_before: 0,
        };
        // Raised, lowered a bit, and lifted.
        for (limit, percent, exceeded) in [
            (Some(200), 60, false),
            (Some(110), 100, true),
            (None, 0, false),
        ] {
            let now = before.under(limit.map(count), count(120), 5, 3);
            let expected = Notified {
                percent,
                exceeded,
                since: 5,
                denied_before: 3,
            };
            assert_eq!(now, expected);
        }
    }

    #[test]
    fn scripts_watch_from_the_lowest_threshold_on() {
        let from = |limit: Option<u64>, warn_at: &[u16]| {
            let limit = MeterLimit {
                limit: limit.map(count),
                warn_at: warn_at.to_vec(),
                ..MeterLimit::default()
            };
            let watched = WatchedThresholds::of(&limit);
            (watched.lowest, watched.percents)
        };
        let watched = |from: u64, percents: &str| (Some(from), percents.to_owned());
        assert_eq!(from(None, &[80]), (None, "80".to_owned()));
        assert_eq!(from(Some(0), &[80]), watched(1, "80"));
        assert_eq!(from(Some(999), &[80, 100]), watched(800, "80 100"));
        assert_eq!(from(Some(10), &[]), watched(11, ""));
        assert_eq!(from(Some(10), &[500]), watched(11, "500"));
    }

    #[test]
    fn a_call_crosses_the_percentages_between_its_counts() {
        let crossed = |before, after| {
            crossed(
                count(before),
                count(after),
                Some(count(10)),
                &[80, 100, 120],
            )
        };
        assert_eq!(crossed(7, 8), [80]);
        assert_eq!(crossed(8, 9), [0; 0]);
        assert_eq!(crossed(0, 50), [80, 100, 120]);
        assert_eq!(crossed(9, 8), [0; 0]);
    }

    proptest! {
        #[test]
        fn crossings_round_trip(
            crossed in proptest::collection::vec((proptest::option::of(any::<u16>()), 0..=COUNT_MAX), 0..5),
        ) {
            let crossed = crossed.into_iter().map(|(percent, units)| {
                (percent.map_or(Threshold::Limit, Threshold::Percent), count(units))
            });
            let crossed = Crossings(crossed.collect());
            prop_assert_eq!(crossed.to_string().parse(), Ok(crossed));
        }

        #[test]
        fn notified_round_trips(percent: u16, exceeded: bool, since: u64, denied_before: u64) {
            let notified = Notified { percent, exceeded, since, denied_before };
            prop_assert_eq!(notified.to_string().parse(), Ok(notified));
        }
    }
}
