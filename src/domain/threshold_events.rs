//! The threshold events of a snapshot: what it crossed and was not notified yet.

use super::counter::Snapshot;
use super::event::{Event, ThresholdCrossing};
use super::limit::Rule;
use super::quantity::Count;
use super::threshold::{Crossings, Notified, PreviousLimit, Threshold, Thresholds, percent};

/// The events to record with a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterThresholdEvents {
    /// One for each threshold crossed and not notified yet.
    pub events: Vec<Event>,
    /// What is notified once they are recorded.
    pub notified: Notified,
}

impl Snapshot {
    /// Whether there may be events, whatever the percentages are. Usually not, which saves a look-up of the policy.
    pub fn may_have_threshold_events(&self) -> bool {
        let notified = self.thresholds.notified;
        !self.thresholds.previous_limits.is_empty()
            || !self.thresholds.crossed.is_empty()
            || percent(self.peak(), self.stamp.rule.limit) > notified.percent
            || (!notified.exceeded && self.current_span(None).is_exceeded())
    }

    /// The events to record with it, given the percentages of its limit, ascending.
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
            now = self.collect(&LimitSpan::of(previous, began), warn_at, now, &mut events);
            began = Some(previous.used);
        }
        if let Some(used) = began {
            let limit = self.stamp.rule.limit;
            now = now.under(limit, used, notified.since, notified.denied_before);
        }
        now = self.collect(&self.current_span(began), warn_at, now, &mut events);
        now.since = notified.since;
        now.denied_before = notified.denied_before;
        let pending = !previous_limits.is_empty() || !self.thresholds.crossed.is_empty();
        (now != *notified || pending).then_some(MeterThresholdEvents {
            events,
            notified: now,
        })
    }

    /// The highest count under the present limit.
    fn peak(&self) -> Count {
        self.used.max(self.thresholds.peak)
    }

    fn current_span(&self, began: Option<Count>) -> LimitSpan<'_> {
        LimitSpan {
            rule: self.stamp.rule,
            since: self.thresholds.notified.since,
            began,
            peak: self.peak(),
            denied: self.denied > self.thresholds.notified.denied_before,
            crossed: &self.thresholds.crossed,
        }
    }

    fn collect(
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

/// A limit, and what happened while it was effective.
struct LimitSpan<'a> {
    rule: Rule,
    since: u64,
    /// The count when it replaced another limit.
    began: Option<Count>,
    peak: Count,
    /// Whether a call was denied.
    denied: bool,
    crossed: &'a Crossings,
}

impl<'a> LimitSpan<'a> {
    fn of(previous: &'a PreviousLimit, began: Option<Count>) -> Self {
        Self {
            rule: previous.rule,
            since: previous.since,
            began,
            peak: previous.peak,
            denied: previous.denied > previous.denied_before,
            crossed: &previous.crossed,
        }
    }

    /// The count that crossed a threshold: the count when the limit took effect, if that crossed it already, else the
    /// recorded crossing. Without a record, because the threshold is new or Redis lost it, the highest count.
    fn count_at(&self, threshold: Threshold, limit: Count) -> Count {
        let crosses = |used: &Count| match threshold {
            Threshold::Percent(threshold) => percent(*used, Some(limit)) >= threshold,
            Threshold::Limit => *used > limit,
        };
        let recorded = || self.crossed.count(threshold);
        self.began
            .filter(crosses)
            .or_else(recorded)
            .unwrap_or(self.peak)
    }

    fn is_exceeded(&self) -> bool {
        self.rule.limit.is_some_and(|limit| self.peak > limit)
            || (self.denied && self.rule.cap().is_some())
    }
}

/// The threshold of the limit itself.
const FULL: u16 = 100;

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use proptest::prelude::*;

    use super::*;
    use crate::domain::counter::{CounterId, Stamp};
    use crate::domain::limit::Enforcement;

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
            drained: 0,
            thresholds: Thresholds::default(),
        }
    }

    /// The events, `80 of 100` for a percentage and `! of 100` for an exceeded limit, and what is notified then.
    fn events(snapshot: &Snapshot, warn_at: &[u16]) -> (Vec<String>, Notified) {
        let found = snapshot.threshold_events(warn_at);
        assert!(found.is_none() || snapshot.may_have_threshold_events());
        let Some(MeterThresholdEvents { events, notified }) = found else {
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
    fn each_threshold_is_notified_when_reached_and_all_of_them_on_a_jump() {
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
                events(&snapshot(used, hard(100)), &[80, 100, 300]).0,
                words,
                "{used}"
            );
        }
        let soft = Rule {
            enforcement: Enforcement::Soft,
            ..hard(100)
        };
        assert_eq!(events(&snapshot(101, soft), &[]).0, ["! of 100"]);
        assert_eq!(events(&snapshot(101, Rule::default()), &[80]).0, [""; 0]);
        // A limit of 0 has no percentages.
        assert_eq!(events(&snapshot(0, hard(0)), &[80]).0, [""; 0]);
        assert_eq!(events(&snapshot(1, hard(0)), &[80]).0, ["! of 0"]);
    }

    #[test]
    fn the_first_denial_is_notified_below_the_limit() {
        let mut denied = snapshot(95, hard(100));
        denied.denied = 1;
        let (words, now) = events(&denied, &[80]);
        assert_eq!(words, ["80 of 100", "! of 100"]);
        denied.thresholds.notified = now;
        denied.denied = 7;
        assert_eq!(events(&denied, &[80]).0, [""; 0]);
        denied.stamp.rule.enforcement = Enforcement::Soft;
        denied.thresholds.notified = Notified::default();
        assert_eq!(events(&denied, &[80]).0, ["80 of 100"]);
    }

    #[test]
    fn a_peak_is_notified_once() {
        let mut hovering = snapshot(70, hard(100));
        hovering.thresholds.peak = count(85);
        let (words, now) = events(&hovering, &[80]);
        assert_eq!(words, ["80 of 100"]);
        hovering.thresholds.notified = now;
        hovering.used = count(90);
        assert_eq!(events(&hovering, &[80]).0, [""; 0]);
    }

    #[test]
    fn crossings_under_a_previous_limit_are_events_of_that_limit() {
        let mut raised = snapshot(120, hard(1000));
        raised.denied = 2;
        raised.thresholds.notified.since = 9;
        raised.thresholds.notified.denied_before = 2;
        raised.thresholds.previous_limits = vec!["0:0:100:h:100:2:100:".parse().unwrap()];
        let (words, now) = events(&raised, &[80, 100]);
        assert_eq!(words, ["80 of 100", "100 of 100", "! of 100"]);
        assert_eq!((now.percent, now.exceeded, now.since), (10, false, 9));

        // Raised and lowered again: one event for each of the three limits.
        let mut lowered = snapshot(130, hard(110));
        lowered.thresholds.notified.since = 9;
        lowered.thresholds.previous_limits = vec![
            "0:0:100:h:90:0:90:".parse().unwrap(),
            "8:0:1000:h:130:0:130:".parse().unwrap(),
        ];
        let (words, now) = events(&lowered, &[80, 100]);
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
        // A threshold that was added later.
        assert_eq!(current(&one, &[50, 80]), [500, 83, 101]);
        // Lowered below the count, and then raised: crossed by the change, and by calls.
        one.thresholds.notified.since = 9;
        one.thresholds.previous_limits = vec![
            "0:0:100:h:90:1:70:80=90,!=88,".parse().unwrap(),
            "8:1:60:h:70:1:65:".parse().unwrap(),
        ];
        one.stamp.rule = hard(200);
        one.thresholds.crossed = "80=190,100=203,!=203,".parse().unwrap();
        // 80 % of 60 and the limit were crossed before, as events of the limit 100.
        assert_eq!(current(&one, &[80, 100]), [90, 88, 70, 190, 203, 203]);
    }

    proptest! {
        /// However often snapshots are examined, each threshold up to the highest count is notified once.
        #[test]
        fn each_threshold_is_notified_once(
            counts in proptest::collection::vec((0..150_u64, any::<bool>()), 1..20),
            warn_at in proptest::collection::btree_set(1..150_u16, 0..5),
        ) {
            let warn_at: Vec<u16> = warn_at.into_iter().collect();
            let (mut all, mut memory, mut highest) = (Vec::new(), Thresholds::default(), 0);
            for (used, examined) in counts {
                memory.peak = count(highest);
                highest = highest.max(used);
                let mut one = snapshot(used, hard(100));
                one.thresholds = memory.clone();
                if examined {
                    let (words, now) = events(&one, &warn_at);
                    all.extend(words);
                    memory.notified = now;
                }
            }
            let mut last = snapshot(0, hard(100));
            memory.peak = count(highest);
            last.thresholds = memory;
            all.extend(events(&last, &warn_at).0);
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
