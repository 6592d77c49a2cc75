//! Thresholds: which a count has crossed, and which of them are to be notified.
//!
//! A percentage of `warnAt` is crossed where the count reaches it; the limit, where the count passes it, or where a
//! hard one refuses a call. Each is told once, also while the count goes up and down around it. A limit that changes
//! takes back what is not crossed by the new one, so that it can be told again.

use std::fmt;
use std::str::FromStr;

use super::counter::Snapshot;
use super::event::{Event, ThresholdCrossing};
use super::policy::{Enforcement, MeterLimit, Rule};
use super::quantity::Count;

/// What a counter remembers of its thresholds beside its count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Thresholds {
    /// What was told, and since when the limit holds that it was told of.
    pub notified: Notified,
    /// The most that was counted under this limit, if that is more than what is counted now.
    pub peak: Count,
    /// Limits that held before, and that nothing was told of yet; oldest first.
    pub previous_limits: Vec<PreviousLimit>,
    /// What was crossed under this limit and is not told yet.
    pub crossed: Crossings,
}

/// What a counter is watched for while it is counted, as scripts take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedThresholds {
    /// The lowest count that crosses anything; none without a limit.
    pub lowest: Option<u64>,
    /// The percentages, separated by spaces; also without a limit, because the counter may know a newer one.
    pub percents: String,
}

impl WatchedThresholds {
    /// What a limit is watched for.
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

/// What was crossed under one limit, each threshold with the count that was the first to do so: that after the call, or
/// the one that the first refused call has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Crossings(Vec<(Threshold, Count)>);

/// What can be crossed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threshold {
    /// A percentage of the limit.
    Percent(u16),
    /// The limit, which is passed or refuses.
    Limit,
}

impl Crossings {
    /// The count that has crossed a threshold; none where that is not known.
    fn count(&self, threshold: Threshold) -> Option<Count> {
        let mut all = self.0.iter();
        let found = all.find(|(crossed, _)| *crossed == threshold);
        found.map(|(_, count)| *count)
    }
}

/// `threshold=count,` for each, such as `80=801,!=1003,`, where `!` is the limit, as scripts write it.
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
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let all = text.split_terminator(',').map(|crossed| {
            let (threshold, count) = crossed.split_once('=').ok_or(Unreadable)?;
            let threshold = match threshold {
                "!" => Threshold::Limit,
                percent => Threshold::Percent(percent.parse().map_err(|_| Unreadable)?),
            };
            Ok((threshold, count_of(count)?))
        });
        all.collect::<Result<_, _>>().map(Self)
    }
}

fn number_of(text: &str) -> Result<u64, Unreadable> {
    text.parse().map_err(|_| Unreadable)
}

fn count_of(text: &str) -> Result<Count, Unreadable> {
    Count::try_from(number_of(text)?).map_err(|_| Unreadable)
}

/// What was told of a counter's thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Notified {
    /// The highest percentage that need not be told any more.
    pub percent: u16,
    /// Whether it was told that the limit was exceeded.
    pub exceeded: bool,
    /// The policy version since which the limit holds; 0 since the period began.
    pub since: u64,
    /// Calls that were refused in the period before.
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

/// What nobody has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("says nothing of thresholds")]
pub struct Unreadable;

impl FromStr for Notified {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let parts: Vec<&str> = text.split(':').collect();
        let [percent, exceeded @ ("0" | "1"), since, denied] = parts[..] else {
            return Err(Unreadable);
        };
        Ok(Self {
            percent: percent.parse().map_err(|_| Unreadable)?,
            exceeded: exceeded == "1",
            since: since.parse().map_err(|_| Unreadable)?,
            denied_before: denied.parse().map_err(|_| Unreadable)?,
        })
    }
}

impl Notified {
    /// What remains of it when another limit holds from a policy version on, while so much is used and so many calls
    /// were refused.
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

/// A limit that held before, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousLimit {
    /// The policy version since which it held.
    pub since: u64,
    /// Calls that were refused in the period before.
    pub denied_before: u64,
    /// The limit.
    pub rule: Rule,
    /// The most that was counted under it.
    pub peak: Count,
    /// Calls that had been refused in the period when it ended.
    pub denied: u64,
    /// Units that were counted when it ended.
    pub used: Count,
    /// What was crossed under it.
    pub crossed: Crossings,
}

/// `since:denied before:limit:enforcement:peak:denied:used:crossed`, such as `0:0:1000:h:1000:3:950:80=801,`, as scripts
/// write it.
impl FromStr for PreviousLimit {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let parts: Vec<&str> = text.split(':').collect();
        let [
            since,
            denied_before,
            limit,
            enforcement,
            peak,
            denied,
            used,
            crossed,
        ] = parts[..]
        else {
            return Err(Unreadable);
        };
        Ok(Self {
            since: number_of(since)?,
            denied_before: number_of(denied_before)?,
            rule: Rule {
                limit: (!limit.is_empty()).then(|| count_of(limit)).transpose()?,
                enforcement: match enforcement {
                    "h" => Enforcement::Hard,
                    "s" => Enforcement::Soft,
                    _ => return Err(Unreadable),
                },
            },
            peak: count_of(peak)?,
            denied: number_of(denied)?,
            used: count_of(used)?,
            crossed: crossed.parse()?,
        })
    }
}

/// What is to be told of a snapshot when it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterThresholdEvents {
    /// Each threshold that was crossed and not told yet.
    pub events: Vec<Event>,
    /// What is told then.
    pub notified: Notified,
}

impl Snapshot {
    /// Whether there may be news, whatever the percentages are. Almost always there are none, and then nobody
    /// need look the percentages up.
    pub fn may_have_threshold_events(&self) -> bool {
        let notified = self.thresholds.notified;
        !self.thresholds.previous_limits.is_empty()
            || self.thresholds.crossed != Crossings::default()
            || percent(self.peak(), self.stamp.rule.limit) > notified.percent
            || (!notified.exceeded && self.current_span(None).is_exceeded())
    }

    /// What is to be told of it, given the percentages that its limit has, ascending.
    pub fn threshold_events(&self, warn_at: &[u16]) -> Option<MeterThresholdEvents> {
        let Thresholds {
            notified,
            previous_limits,
            ..
        } = &self.thresholds;
        let (mut now, mut began, mut events) = (*notified, None, Vec::new());
        for previous in previous_limits {
            if let Some(used) = began {
                now = now.under(
                    previous.rule.limit,
                    used,
                    previous.since,
                    previous.denied_before,
                );
            }
            now = self.tell(&LimitSpan::of(previous, began), warn_at, now, &mut events);
            began = Some(previous.used);
        }
        if let Some(used) = began {
            let limit = self.stamp.rule.limit;
            now = now.under(limit, used, notified.since, notified.denied_before);
        }
        now = self.tell(&self.current_span(began), warn_at, now, &mut events);
        now.since = notified.since;
        now.denied_before = notified.denied_before;
        let settles =
            !previous_limits.is_empty() || self.thresholds.crossed != Crossings::default();
        (now != *notified || settles).then_some(MeterThresholdEvents {
            events,
            notified: now,
        })
    }

    /// The most that was counted under the present limit.
    fn peak(&self) -> Count {
        self.used.max(self.thresholds.peak)
    }

    fn current_span(&self, began: Option<Count>) -> LimitSpan<'_> {
        LimitSpan {
            rule: self.stamp.rule,
            since: self.thresholds.notified.since,
            began,
            peak: self.peak(),
            refused: self.denied > self.thresholds.notified.denied_before,
            crossed: &self.thresholds.crossed,
        }
    }

    fn tell(
        &self,
        span: &LimitSpan<'_>,
        warn_at: &[u16],
        notified: Notified,
        events: &mut Vec<Event>,
    ) -> Notified {
        let Some(limit) = span.rule.limit else {
            return notified;
        };
        let crossing = |threshold: Threshold| ThresholdCrossing {
            organization_id: self.counter.organization.clone(),
            meter: self.counter.meter.clone(),
            threshold: match threshold {
                Threshold::Percent(percent) => percent,
                Threshold::Limit => FULL,
            },
            current: span.count_at(threshold, limit),
            limit,
            period_start: self.counter.start,
            reset_date: self.stamp.end,
            limit_version: span.since,
        };
        let mut now = notified;
        let reached = percent(span.peak, Some(limit));
        for threshold in warn_at {
            if (*threshold <= reached) && (*threshold > notified.percent) {
                let percent = Threshold::Percent(*threshold);
                events.push(Event::UsageWarning(crossing(percent)));
                now.percent = now.percent.max(*threshold);
            }
        }
        if !notified.exceeded && span.is_exceeded() {
            events.push(Event::LimitExceeded(crossing(Threshold::Limit)));
            now.exceeded = true;
        }
        now
    }
}

/// A limit while it holds.
struct LimitSpan<'a> {
    rule: Rule,
    since: u64,
    /// What was counted when it began, where it took the place of another limit.
    began: Option<Count>,
    peak: Count,
    /// Whether a call was refused.
    refused: bool,
    crossed: &'a Crossings,
}

impl<'a> LimitSpan<'a> {
    fn of(previous: &'a PreviousLimit, began: Option<Count>) -> Self {
        Self {
            rule: previous.rule,
            since: previous.since,
            began,
            peak: previous.peak,
            refused: previous.denied > previous.denied_before,
            crossed: &previous.crossed,
        }
    }

    /// The count that has crossed a threshold: what was counted already when the limit began to hold, else what the call
    /// left that crossed it. Where nobody has noted that, because the threshold was added or Redis lost what it held, the
    /// most that was counted.
    fn count_at(&self, threshold: Threshold, limit: Count) -> Count {
        let crosses = |used: &Count| match threshold {
            Threshold::Percent(threshold) => percent(*used, Some(limit)) >= threshold,
            Threshold::Limit => *used > limit,
        };
        let noted = || self.crossed.count(threshold);
        self.began
            .filter(crosses)
            .or_else(noted)
            .unwrap_or(self.peak)
    }

    fn is_exceeded(&self) -> bool {
        self.rule.limit.is_some_and(|limit| self.peak > limit)
            || (self.refused && self.rule.cap().is_some())
    }
}

/// The threshold that is the limit itself.
const FULL: u16 = 100;

/// The percentages that a call has crossed which found so much used, and left so much.
pub fn crossed(before: Count, after: Count, limit: Option<Count>, warn_at: &[u16]) -> Vec<u16> {
    let (was, is) = (percent(before, limit), percent(after, limit));
    if is <= was {
        return Vec::new();
    }
    let all = warn_at.iter().copied();
    all.filter(|threshold| was < *threshold && *threshold <= is)
        .collect()
}

/// How many per cent of a limit are reached; 0 where nothing or everything is included. Past the highest percentage
/// that a threshold may be at it makes no difference.
fn percent(used: Count, limit: Option<Count>) -> u16 {
    let Some(limit) = limit else { return 0 };
    u128::from(used.get())
        .saturating_mul(100)
        .checked_div(limit.get().into())
        .map_or(0, |percent| u16::try_from(percent).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use proptest::prelude::*;

    use super::*;
    use crate::domain::counter::{CounterId, Stamp};
    use crate::domain::quantity::COUNT_MAX;

    fn count(units: u64) -> Count {
        Count::try_from(units).unwrap()
    }

    fn hard(limit: u64) -> Rule {
        Rule {
            limit: Some(count(limit)),
            enforcement: Enforcement::Hard,
        }
    }

    fn snapshot(used: u64, rule: Rule) -> Snapshot {
        let start: DateTime<Utc> = "2031-03-01T00:00:00Z".parse().unwrap();
        Snapshot {
            counter: CounterId {
                organization: "org_1".parse().unwrap(),
                meter: "api".parse().unwrap(),
                start,
            },
            stamp: Stamp {
                generation: 1,
                version: 9,
                rule,
                end: None,
                closed: false,
            },
            used: count(used),
            denied: 0,
            refunded: 0,
            sequence: 1,
            hours: Vec::new(),
            oldest_unstored: None,
            never_stored: false,
            adjusted: None,
            thresholds: Thresholds::default(),
        }
    }

    /// What is told: percentages, and `!` where the limit is exceeded, each with the limit that it is of.
    fn told(snapshot: &Snapshot, warn_at: &[u16]) -> (Vec<String>, Notified) {
        let news = snapshot.threshold_events(warn_at);
        assert!(news.is_none() || snapshot.may_have_threshold_events());
        let Some(MeterThresholdEvents { events, notified }) = news else {
            return (Vec::new(), snapshot.thresholds.notified);
        };
        let words = events.iter().map(|event| match event {
            Event::UsageWarning(it) => format!("{} of {}", it.threshold, it.limit.get()),
            Event::LimitExceeded(it) => format!("! of {}", it.limit.get()),
            other => panic!("{other:?}"),
        });
        (words.collect(), notified)
    }

    #[test]
    fn every_threshold_is_told_when_it_is_reached_all_of_them_on_a_jump() {
        for (used, words) in [
            (0, vec![]),
            (79, vec![]),
            (80, vec!["80 of 100"]),
            (100, vec!["80 of 100", "100 of 100"]),
            (101, vec!["80 of 100", "100 of 100", "! of 100"]),
            (
                300,
                vec!["80 of 100", "100 of 100", "300 of 100", "! of 100"],
            ),
        ] {
            assert_eq!(
                told(&snapshot(used, hard(100)), &[80, 100, 300]).0,
                words,
                "{used}"
            );
        }
        let soft = Rule {
            enforcement: Enforcement::Soft,
            ..hard(100)
        };
        assert_eq!(told(&snapshot(101, soft), &[]).0, ["! of 100"]);
        assert_eq!(told(&snapshot(101, Rule::default()), &[80]).0, [""; 0]);
        // Of a limit of 0 there are no percentages.
        assert_eq!(told(&snapshot(0, hard(0)), &[80]).0, [""; 0]);
        assert_eq!(told(&snapshot(1, hard(0)), &[80]).0, ["! of 0"]);
    }

    #[test]
    fn the_first_refusal_is_told_although_the_limit_is_not_reached() {
        let mut refused = snapshot(95, hard(100));
        refused.denied = 1;
        let (words, now) = told(&refused, &[80]);
        assert_eq!(words, ["80 of 100", "! of 100"]);
        refused.thresholds.notified = now;
        refused.denied = 7;
        assert_eq!(told(&refused, &[80]).0, [""; 0]);
        refused.stamp.rule.enforcement = Enforcement::Soft;
        refused.thresholds.notified = Notified::default();
        assert_eq!(told(&refused, &[80]).0, ["80 of 100"]);
    }

    #[test]
    fn what_went_up_and_came_down_is_told_and_not_told_again() {
        let mut hovering = snapshot(70, hard(100));
        hovering.thresholds.peak = count(85);
        let (words, now) = told(&hovering, &[80]);
        assert_eq!(words, ["80 of 100"]);
        hovering.thresholds.notified = now;
        hovering.used = count(90);
        assert_eq!(told(&hovering, &[80]).0, [""; 0]);
    }

    #[test]
    fn another_limit_takes_back_what_it_does_not_cross() {
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
    fn what_was_crossed_under_a_limit_that_is_gone_already_is_told_of_that_limit() {
        let mut raised = snapshot(120, hard(1000));
        raised.denied = 2;
        raised.thresholds.notified.since = 9;
        raised.thresholds.notified.denied_before = 2;
        raised.thresholds.previous_limits = vec!["0:0:100:h:100:2:100:".parse().unwrap()];
        let (words, now) = told(&raised, &[80, 100]);
        assert_eq!(words, ["80 of 100", "100 of 100", "! of 100"]);
        assert_eq!((now.percent, now.exceeded, now.since), (10, false, 9));

        // Raised and lowered again: each of the three for itself.
        let mut lowered = snapshot(130, hard(110));
        lowered.thresholds.notified.since = 9;
        lowered.thresholds.previous_limits = vec![
            "0:0:100:h:90:0:90:".parse().unwrap(),
            "8:0:1000:h:130:0:130:".parse().unwrap(),
        ];
        let (words, now) = told(&lowered, &[80, 100]);
        assert_eq!(words, ["80 of 100", "80 of 110", "100 of 110", "! of 110"]);
        assert_eq!((now.percent, now.exceeded), (100, true));
    }

    #[test]
    fn a_crossing_has_the_count_that_crossed_it() {
        let current = |snapshot: &Snapshot, warn_at: &[u16]| -> Vec<u64> {
            let events = snapshot.threshold_events(warn_at).unwrap().events;
            let crossings = events.iter().filter_map(Event::crossing);
            crossings.map(|it| it.current.get()).collect()
        };
        let mut one = snapshot(500, hard(100));
        one.thresholds.crossed = "80=83,100=100,!=101,".parse().unwrap();
        assert_eq!(current(&one, &[80, 100]), [83, 100, 101]);
        // One that was added later.
        assert_eq!(current(&one, &[50, 80]), [500, 83, 101]);
        // Lowered below the count, and then raised: what was crossed at once, and what by calls.
        one.thresholds.notified.since = 9;
        one.thresholds.previous_limits = vec![
            "0:0:100:h:90:1:70:80=90,!=88,".parse().unwrap(),
            "8:1:60:h:70:1:65:".parse().unwrap(),
        ];
        one.stamp.rule = hard(200);
        one.thresholds.crossed = "80=190,100=203,!=203,".parse().unwrap();
        // 80 % of 60 and the limit were crossed before, and told of 100.
        assert_eq!(current(&one, &[80, 100]), [90, 88, 70, 190, 203, 203]);
    }

    #[test]
    fn what_a_counter_is_watched_for_begins_at_its_lowest_threshold() {
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
    fn a_call_says_which_percentages_it_has_crossed() {
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
        fn what_was_crossed_parses_back(
            crossed in proptest::collection::vec((proptest::option::of(any::<u16>()), 0..=COUNT_MAX), 0..5),
        ) {
            let crossed = crossed.into_iter().map(|(percent, units)| {
                (percent.map_or(Threshold::Limit, Threshold::Percent), count(units))
            });
            let crossed = Crossings(crossed.collect());
            prop_assert_eq!(crossed.to_string().parse(), Ok(crossed));
        }

        #[test]
        fn what_was_told_parses_back(percent: u16, exceeded: bool, since: u64, denied_before: u64) {
            let notified = Notified { percent, exceeded, since, denied_before };
            prop_assert_eq!(notified.to_string().parse(), Ok(notified));
        }

        /// However often it is looked at, each threshold is told once, and those are told that the highest count
        /// has crossed.
        #[test]
        fn each_threshold_is_told_once(
            counts in proptest::collection::vec((0..150_u64, any::<bool>()), 1..20),
            warn_at in proptest::collection::btree_set(1..150_u16, 0..5),
        ) {
            let warn_at: Vec<u16> = warn_at.into_iter().collect();
            let (mut all, mut memory, mut highest) = (Vec::new(), Thresholds::default(), 0);
            for (used, looked_at) in counts {
                memory.peak = count(highest);
                highest = highest.max(used);
                let mut one = snapshot(used, hard(100));
                one.thresholds = memory.clone();
                if looked_at {
                    let (words, now) = told(&one, &warn_at);
                    all.extend(words);
                    memory.notified = now;
                }
            }
            let mut last = snapshot(0, hard(100));
            memory.peak = count(highest);
            last.thresholds = memory;
            all.extend(told(&last, &warn_at).0);
            let mut expected: Vec<String> = warn_at
                .iter()
                .filter(|it| u64::from(**it) <= highest)
                .map(|it| format!("{it} of 100"))
                .collect();
            expected.extend((highest > 100).then(|| "! of 100".to_owned()));
            all.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(all, expected);
        }
    }
}
