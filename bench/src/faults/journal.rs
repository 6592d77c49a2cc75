//! What happened during a run: faults, losses of data, and what should not have happened.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant, UNIX_EPOCH};

use sqlx::types::chrono::{DateTime, Utc};

use super::plan::{Kind, Victim};

/// A rule that the service must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// Acknowledged ≤ counted ≤ acknowledged + unknown.
    Counted,
    /// Hard limits are not exceeded by what was granted.
    Granted,
    /// History equals the counters.
    History,
    /// The count that a reset reported is final.
    Reset,
    /// Thresholds are notified once.
    Events,
    /// `GET /v1/verify` finds no difference.
    Verified,
    /// Nothing of a deleted organization remains.
    Deleted,
    /// Every call is answered within its deadline.
    Deadline,
    /// No call fails for a reason that its caller cannot know.
    Answers,
    /// After a fault everything works again without help.
    Recovery,
    /// Outages cost callers milliseconds.
    Latency,
}

impl Rule {
    pub(super) const ALL: [Self; 11] = [
        Self::Counted,
        Self::Granted,
        Self::History,
        Self::Reset,
        Self::Events,
        Self::Verified,
        Self::Deleted,
        Self::Deadline,
        Self::Answers,
        Self::Recovery,
        Self::Latency,
    ];

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Counted => "acknowledged ≤ counted ≤ acknowledged + unknown",
            Self::Granted => "grants ≤ limit",
            Self::History => "history = counters",
            Self::Reset => "what a reset closed is final",
            Self::Events => "each threshold is notified once",
            Self::Verified => "verify is clean",
            Self::Deleted => "nothing of a deleted organization remains",
            Self::Deadline => "every call is answered within its deadline",
            Self::Answers => "no unexpected answer",
            Self::Recovery => "ready again after each fault, without help",
            Self::Latency => "latency targets",
        }
    }
}

/// When a fault happened, since the start of the run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) kind: Kind,
    pub(super) from: Duration,
    /// When the tool began to undo it.
    pub(super) undo: Duration,
    /// When that was done.
    pub(super) to: Duration,
}

/// When acknowledged counts may have been lost, which is documented.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loss {
    /// What was acknowledged before is stored.
    pub(super) from: Duration,
    /// What is sent after this is kept.
    pub(super) to: Duration,
}

/// The record of a run.
#[derive(Debug)]
pub(super) struct Journal {
    start: Instant,
    /// The same by the machine's clock, since 1970.
    started_at: Duration,
    /// When Redis last began to have other data.
    pub(super) redis_changed: Cell<Duration>,
    pub(super) spans: RefCell<Vec<Span>>,
    pub(super) losses: RefCell<Vec<Loss>>,
    pub(super) violations: RefCell<Vec<(Rule, String)>>,
    /// When a connection to an instance broke before the answer, and which call that was.
    pub(super) broken: RefCell<Vec<(Duration, String)>>,
    /// When the tool itself had no CPU, and for how long.
    pub(super) stalls: RefCell<Vec<(Duration, Duration)>>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            started_at: UNIX_EPOCH.elapsed().unwrap_or_default(),
            redis_changed: Cell::default(),
            spans: RefCell::default(),
            losses: RefCell::default(),
            violations: RefCell::default(),
            broken: RefCell::default(),
            stalls: RefCell::default(),
        }
    }

    /// The time since the start of the run.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// A time of the run by the machine's clock.
    pub(super) fn wall_time(&self, at: Duration) -> DateTime<Utc> {
        DateTime::from(UNIX_EPOCH + self.started_at + at)
    }

    /// A rule was broken.
    pub(super) fn violation(&self, rule: Rule, text: impl Into<String>) {
        self.violations.borrow_mut().push((rule, text.into()));
    }

    /// Connections break only when an instance ends.
    pub(super) fn check_broken(&self) {
        let (slack, spans) = (Duration::from_secs(1), self.spans.borrow());
        for (at, text) in self.broken.borrow().iter() {
            let ends = spans.iter().any(|span| {
                let is_instance = span.kind.victim() == Victim::Instance;
                is_instance && span.from <= *at && *at <= span.to + slack
            });
            if !ends {
                self.violation(Rule::Answers, text.as_str());
            }
        }
    }

    /// How long the tool had no CPU between two times.
    pub(super) fn stalled(&self, from: Duration, to: Duration) -> Duration {
        let stalls = self.stalls.borrow();
        let within = stalls.iter().rev().take_while(|(at, _)| *at >= from);
        within
            .filter(|(at, _)| *at <= to)
            .map(|(_, stall)| *stall)
            .sum()
    }

    /// Whether a call at this time may have been lost, or its idempotency record.
    pub(super) fn is_lossy(&self, sent: Duration, answered: Duration) -> bool {
        let losses = self.losses.borrow();
        losses.iter().any(|it| sent <= it.to && answered >= it.from)
    }
}
