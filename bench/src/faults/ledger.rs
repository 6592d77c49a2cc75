//! What was acknowledged, and what is unknown, of each organization and meter.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use super::journal::Journal;

/// How units were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Consume,
    Track,
    Refund,
    Adjust,
}

/// The units that a call changed a meter by; negative where it subtracts.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) organization: Rc<str>,
    pub(super) meter: &'static str,
    pub(super) effect: Effect,
    /// Acknowledged.
    pub(super) counted: i64,
    /// Perhaps counted in addition.
    pub(super) unknown: i64,
    /// Counted in addition if an idempotency record was lost between two attempts.
    pub(super) repeated: i64,
    /// The start of its period, as the service writes it; none where the answer does not tell.
    pub(super) period: Option<Rc<str>>,
    /// Acknowledged while Redis was away.
    pub(super) queued: bool,
    pub(super) sent: Duration,
    pub(super) answered: Duration,
}

/// An organization was deleted between these times.
#[derive(Debug, Clone)]
pub(super) struct Deletion {
    pub(super) organization: Rc<str>,
    pub(super) sent: Duration,
    /// The end of time, if it is not known whether it was deleted.
    pub(super) answered: Duration,
}

/// A period that a reset closed, and the count that it reported.
#[derive(Debug, Clone)]
pub(super) struct Closed {
    pub(super) organization: Rc<str>,
    pub(super) meter: String,
    pub(super) period: String,
    pub(super) count: i64,
}

/// All calls of a run.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The hard limit that every organization has, unless it is changed.
    limit: i64,
    entries: RefCell<Vec<Entry>>,
    pub(super) deletions: RefCell<Vec<Deletion>>,
    pub(super) closed: RefCell<Vec<Closed>>,
    /// Organizations that were deleted, and not called since.
    pub(super) gone: RefCell<Vec<Rc<str>>>,
    /// The highest hard limit that was ever requested.
    limits: RefCell<HashMap<Rc<str>, i64>>,
    pub(super) calls: Cell<u64>,
}

/// What may have been counted of one meter.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    /// By period: at least, and at most.
    pub(super) periods: BTreeMap<Rc<str>, Period>,
    /// Counted in a period that is not known.
    pub(super) somewhere: i64,
    /// May have been counted in any period: at least (not positive), and at most.
    pub(super) unknown: (i64, i64),
}

/// What may have been counted in one period.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Period {
    pub(super) least: i64,
    pub(super) most: i64,
    /// Granted by consumes, less what was refunded.
    pub(super) granted: i64,
    /// Of that, what Redis may have lost.
    pub(super) lost: i64,
    /// Counted without regard to a limit.
    pub(super) unlimited: i64,
}

impl Ledger {
    pub(super) fn new(limit: i64) -> Self {
        Self {
            limit,
            entries: RefCell::default(),
            deletions: RefCell::default(),
            closed: RefCell::default(),
            gone: RefCell::default(),
            limits: RefCell::default(),
            calls: Cell::new(0),
        }
    }

    pub(super) fn add(&self, entry: Entry) {
        if (entry.counted, entry.unknown, entry.repeated) != (0, 0, 0) {
            self.entries.borrow_mut().push(entry);
        }
    }

    /// A limit is requested.
    pub(super) fn request_limit(&self, organization: &Rc<str>, limit: i64) {
        let mut limits = self.limits.borrow_mut();
        let highest = limits.entry(Rc::clone(organization)).or_insert(self.limit);
        *highest = limit.max(*highest);
    }

    /// The highest hard limit that an organization may have had.
    pub(super) fn limit(&self, organization: &str) -> i64 {
        let limits = self.limits.borrow();
        limits.get(organization).copied().unwrap_or(self.limit)
    }

    /// Acknowledged units, and unknown ones.
    pub(super) fn totals(&self) -> (i64, i64) {
        let entries = self.entries.borrow();
        let sum = |of: fn(&Entry) -> i64| entries.iter().map(of).sum();
        (sum(|it| it.counted), sum(|it| it.unknown))
    }

    /// The bounds of every organization and meter.
    pub(super) fn bounds(&self, journal: &Journal) -> BTreeMap<(Rc<str>, &'static str), Bounds> {
        let deletions = self.deletions.borrow();
        let mut all: BTreeMap<(Rc<str>, &'static str), Bounds> = BTreeMap::new();
        for entry in self.entries.borrow().iter() {
            let of_it = deletions
                .iter()
                .filter(|it| it.organization == entry.organization);
            let is_erased = of_it
                .clone()
                .any(|it| it.answered < Duration::MAX && entry.answered < it.sent);
            let is_ambiguous = of_it
                .clone()
                .any(|it| entry.sent <= it.answered && it.sent <= entry.answered);
            let key = (Rc::clone(&entry.organization), entry.meter);
            let bounds = all.entry(key).or_default();
            bounds.add(entry, journal, is_erased, is_ambiguous);
        }
        all
    }

    /// Everything about one meter of an organization, for people.
    pub(super) fn describe(&self, organization: &str, meter: &str, journal: &Journal) -> String {
        let mut lines = Vec::new();
        for it in self.entries.borrow().iter() {
            if &*it.organization == organization && it.meter == meter {
                let Entry {
                    effect,
                    counted,
                    unknown,
                    repeated,
                    queued,
                    ..
                } = it;
                let period = it.period.as_deref().unwrap_or("unknown period");
                let lossy = if journal.is_lossy(it.sent, it.answered) {
                    " may be lost"
                } else {
                    ""
                };
                let text = format!(
                    "{effect:?} counted {counted} unknown {unknown} repeated {repeated} in {period} queued {queued}{lossy}"
                );
                lines.push((it.sent, it.answered, text));
            }
        }
        for it in self.deletions.borrow().iter() {
            if &*it.organization == organization {
                lines.push((it.sent, it.answered, "deleted".to_owned()));
            }
        }
        lines.sort();
        let lines = lines.iter().map(|(sent, answered, text)| {
            format!(
                "{:.3} to {:.3} s: {text}\n",
                sent.as_secs_f64(),
                answered.as_secs_f64()
            )
        });
        lines.collect()
    }
}

impl Bounds {
    fn add(&mut self, entry: &Entry, journal: &Journal, is_erased: bool, is_ambiguous: bool) {
        let is_lossy = journal.is_lossy(entry.sent, entry.answered);
        let mut unknown = entry.unknown;
        if is_lossy || is_ambiguous {
            unknown += entry.repeated;
        }
        self.unknown.0 += unknown.min(0);
        self.unknown.1 += unknown.max(0);
        if is_erased {
            return;
        }
        let durable = entry.queued || entry.effect == Effect::Adjust;
        let is_uncertain = is_ambiguous || is_lossy && !durable;
        let Some(period) = &entry.period else {
            if is_uncertain {
                self.unknown.1 += entry.counted;
            } else {
                self.somewhere += entry.counted;
            }
            return;
        };
        let period = self.periods.entry(Rc::clone(period)).or_default();
        if entry.counted > 0 || !is_uncertain {
            period.most += entry.counted;
        }
        if entry.counted < 0 || !is_uncertain {
            period.least += entry.counted;
        }
        match entry.effect {
            Effect::Consume if !entry.queued => {
                period.granted += entry.counted;
                if is_uncertain {
                    period.lost += entry.counted;
                }
            }
            Effect::Refund => period.granted += entry.counted,
            _ => period.unlimited += entry.counted.max(0),
        }
    }

    /// The lowest and highest possible sum over all periods.
    pub(super) fn total(&self) -> (i64, i64) {
        let least: i64 = self.periods.values().map(|it| it.least).sum();
        let most: i64 = self.periods.values().map(|it| it.most).sum();
        let (low, high) = self.unknown;
        (least + self.somewhere + low, most + self.somewhere + high)
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::Loss;
    use super::*;

    fn entry(counted: i64, unknown: i64, second: u64) -> Entry {
        Entry {
            organization: "org".into(),
            meter: "api",
            effect: if counted < 0 {
                Effect::Refund
            } else {
                Effect::Consume
            },
            counted,
            unknown,
            repeated: 0,
            period: Some("now".into()),
            queued: false,
            sent: Duration::from_secs(second),
            answered: Duration::from_secs(second),
        }
    }

    fn total(ledger: &Ledger, journal: &Journal) -> (i64, i64) {
        let bounds = ledger.bounds(journal);
        bounds[&("org".into(), "api")].total()
    }

    #[test]
    fn unknown_lost_and_deleted_units_widen_the_bounds_and_others_do_not() {
        let (journal, ledger) = (Journal::new(), Ledger::new(100));
        ledger.add(entry(5, 0, 1));
        ledger.add(entry(-2, 0, 2));
        ledger.add(entry(0, 3, 3));
        ledger.add(Entry {
            repeated: 7,
            ..entry(1, 0, 4)
        });
        assert_eq!(total(&ledger, &journal), (4, 7));
        let seconds = Duration::from_secs;
        journal.losses.borrow_mut().push(Loss {
            from: seconds(2),
            to: seconds(5),
        });
        // The refund and the last consume may be lost, and the latter may be counted twice.
        assert_eq!(total(&ledger, &journal), (3, 16));
        let deletion = |sent, answered| Deletion {
            organization: "org".into(),
            sent: seconds(sent),
            answered: seconds(answered),
        };
        // Unknown units may be counted late.
        ledger.deletions.borrow_mut().push(deletion(6, 7));
        assert_eq!(total(&ledger, &journal), (0, 10));
        ledger.add(entry(4, 0, 8));
        ledger.add(entry(6, 0, 7));
        assert_eq!(total(&ledger, &journal), (4, 20));
    }

    #[test]
    fn the_highest_limit_counts() {
        let ledger = Ledger::new(100);
        let organization = Rc::from("org");
        assert_eq!(ledger.limit("org"), 100);
        ledger.request_limit(&organization, 120);
        ledger.request_limit(&organization, 90);
        assert_eq!(ledger.limit("org"), 120);
    }
}
