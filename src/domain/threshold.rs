//! Thresholds: which a count has crossed, and which of them are to be told.
//!
//! A percentage of `warnAt` is crossed where the count reaches it; the limit, where the count passes it, or where a
//! hard one refuses a call. Each is told once, also while the count goes up and down around it. A limit that changes
//! takes back what is not crossed by the new one, so that it can be told again.

use std::fmt;
use std::str::FromStr;

use super::counter::Snapshot;
use super::event::{Crossing, Event};
use super::policy::{Enforcement, Rule};
use super::quantity::Count;

/// What a counter remembers of its thresholds beside its count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Thresholds {
    /// What was told, and since when the limit holds that it was told of.
    pub told: Told,
    /// The most that was counted under this limit, if that is more than what is counted now.
    pub peak: Count,
    /// Limits that held before, and that nothing was told of yet; oldest first.
    pub past: Vec<Past>,
}

/// What was told of a counter's thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
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
impl fmt::Display for Told {
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

impl FromStr for Told {
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

impl Told {
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
pub struct Past {
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
}

/// `since:denied before:limit:enforcement:peak:denied:used`, such as `0:0:1000:h:1000:3:950`, as scripts write it.
impl FromStr for Past {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        fn number(text: &str) -> Result<u64, Unreadable> {
            text.parse().map_err(|_| Unreadable)
        }
        fn count(text: &str) -> Result<Count, Unreadable> {
            Count::try_from(number(text)?).map_err(|_| Unreadable)
        }
        let parts: Vec<&str> = text.split(':').collect();
        let [since, denied_before, limit, enforcement, peak, denied, used] = parts[..] else {
            return Err(Unreadable);
        };
        Ok(Self {
            since: number(since)?,
            denied_before: number(denied_before)?,
            rule: Rule {
                limit: (!limit.is_empty()).then(|| count(limit)).transpose()?,
                enforcement: match enforcement {
                    "h" => Enforcement::Hard,
                    "s" => Enforcement::Soft,
                    _ => return Err(Unreadable),
                },
            },
            peak: count(peak)?,
            denied: number(denied)?,
            used: count(used)?,
        })
    }
}

/// What is to be told of a snapshot when it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Each threshold that was crossed and not told yet.
    pub events: Vec<Event>,
    /// What is told then.
    pub told: Told,
}

impl Snapshot {
    /// Whether there may be news, whatever the percentages are. Almost always there are none, and then nobody
    /// need look the percentages up.
    pub fn may_have_news(&self) -> bool {
        let told = self.thresholds.told;
        !self.thresholds.past.is_empty()
            || percent(self.peak(), self.stamp.rule.limit) > told.percent
            || (!told.exceeded && self.reign().is_exceeded())
    }

    /// What is to be told of it, given the percentages that its limit has, ascending.
    pub fn news(&self, warn_at: &[u16]) -> Option<News> {
        let Thresholds { told, past, .. } = &self.thresholds;
        let (mut now, mut events) = (*told, Vec::new());
        for (position, past) in past.iter().enumerate() {
            if let Some(before) = position
                .checked_sub(1)
                .and_then(|it| self.thresholds.past.get(it))
            {
                now = now.under(past.rule.limit, before.used, past.since, past.denied_before);
            }
            now = self.tell(&Reign::of(past), warn_at, now, &mut events);
        }
        if let Some(last) = past.last() {
            let limit = self.stamp.rule.limit;
            now = now.under(limit, last.used, told.since, told.denied_before);
        }
        now = self.tell(&self.reign(), warn_at, now, &mut events);
        now.since = told.since;
        now.denied_before = told.denied_before;
        (now != *told || !past.is_empty()).then_some(News { events, told: now })
    }

    /// The most that was counted under the present limit.
    fn peak(&self) -> Count {
        self.used.max(self.thresholds.peak)
    }

    fn reign(&self) -> Reign {
        Reign {
            rule: self.stamp.rule,
            since: self.thresholds.told.since,
            peak: self.peak(),
            refused: self.denied > self.thresholds.told.denied_before,
        }
    }

    fn tell(&self, reign: &Reign, warn_at: &[u16], told: Told, events: &mut Vec<Event>) -> Told {
        let Some(limit) = reign.rule.limit else {
            return told;
        };
        let crossing = |threshold: u16| Crossing {
            organization_id: self.counter.organization.clone(),
            meter: self.counter.meter.clone(),
            threshold,
            current: self.used,
            limit,
            period_start: self.counter.start,
            reset_date: self.stamp.end,
            limit_version: reign.since,
        };
        let mut now = told;
        let reached = percent(reign.peak, Some(limit));
        for threshold in warn_at {
            if (*threshold <= reached) && (*threshold > told.percent) {
                events.push(Event::UsageWarning(crossing(*threshold)));
                now.percent = now.percent.max(*threshold);
            }
        }
        if !told.exceeded && reign.is_exceeded() {
            events.push(Event::LimitExceeded(crossing(FULL)));
            now.exceeded = true;
        }
        now
    }
}

/// A limit while it holds.
struct Reign {
    rule: Rule,
    since: u64,
    peak: Count,
    /// Whether a call was refused.
    refused: bool,
}

impl Reign {
    fn of(past: &Past) -> Self {
        Self {
            rule: past.rule,
            since: past.since,
            peak: past.peak,
            refused: past.denied > past.denied_before,
        }
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
    fn told(snapshot: &Snapshot, warn_at: &[u16]) -> (Vec<String>, Told) {
        let news = snapshot.news(warn_at);
        assert!(news.is_none() || snapshot.may_have_news());
        let Some(News { events, told }) = news else {
            return (Vec::new(), snapshot.thresholds.told);
        };
        let words = events.iter().map(|event| match event {
            Event::UsageWarning(it) => format!("{} of {}", it.threshold, it.limit.get()),
            Event::LimitExceeded(it) => format!("! of {}", it.limit.get()),
            other => panic!("{other:?}"),
        });
        (words.collect(), told)
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
        refused.thresholds.told = now;
        refused.denied = 7;
        assert_eq!(told(&refused, &[80]).0, [""; 0]);
        refused.stamp.rule.enforcement = Enforcement::Soft;
        refused.thresholds.told = Told::default();
        assert_eq!(told(&refused, &[80]).0, ["80 of 100"]);
    }

    #[test]
    fn what_went_up_and_came_down_is_told_and_not_told_again() {
        let mut hovering = snapshot(70, hard(100));
        hovering.thresholds.peak = count(85);
        let (words, now) = told(&hovering, &[80]);
        assert_eq!(words, ["80 of 100"]);
        hovering.thresholds.told = now;
        hovering.used = count(90);
        assert_eq!(told(&hovering, &[80]).0, [""; 0]);
    }

    #[test]
    fn another_limit_takes_back_what_it_does_not_cross() {
        let before = Told {
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
            let expected = Told {
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
        raised.thresholds.told.since = 9;
        raised.thresholds.told.denied_before = 2;
        raised.thresholds.past = vec!["0:0:100:h:100:2:100".parse().unwrap()];
        let (words, now) = told(&raised, &[80, 100]);
        assert_eq!(words, ["80 of 100", "100 of 100", "! of 100"]);
        assert_eq!((now.percent, now.exceeded, now.since), (10, false, 9));

        // Raised and lowered again: each of the three for itself.
        let mut lowered = snapshot(130, hard(110));
        lowered.thresholds.told.since = 9;
        lowered.thresholds.past = vec![
            "0:0:100:h:90:0:90".parse().unwrap(),
            "8:0:1000:h:130:0:130".parse().unwrap(),
        ];
        let (words, now) = told(&lowered, &[80, 100]);
        assert_eq!(words, ["80 of 100", "80 of 110", "100 of 110", "! of 110"]);
        assert_eq!((now.percent, now.exceeded), (100, true));
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
        fn what_was_told_parses_back(percent: u16, exceeded: bool, since: u64, denied_before: u64) {
            let told = Told { percent, exceeded, since, denied_before };
            prop_assert_eq!(told.to_string().parse(), Ok(told));
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
                    memory.told = now;
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
