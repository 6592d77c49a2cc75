//! How long answers took, by kind of fault, and whether the targets are met.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;

use super::client::{Answer, Class};
use super::journal::{Journal, Span};
use super::plan::{Kind, Victim};
use crate::latency::Latencies;

/// The target while a server is away, in milliseconds; or twice what answers take without a fault, if that is more.
const TARGET: f64 = 50.0;

/// In which answers may take longer.
const FIRST: Duration = Duration::from_secs(1);

/// A call that is sent so soon before a fault begins, or is undone, is not judged: it may be answered after that.
const SOON: Duration = Duration::from_millis(100);

/// Seconds that are shown one by one.
const SECONDS: usize = 10;

/// After a fault, in which answers are not those without a fault.
const RECOVERING: Duration = Duration::from_secs(3);

/// Too few answers for a percentile.
const FEW: u64 = 100;

/// One kind of fault, or none.
pub(super) struct Row {
    name: String,
    times: usize,
    all: Latencies,
    /// Of counting for known organizations.
    known: Latencies,
    /// Sent after the first second.
    rest: Latencies,
    /// By the second in which they were sent, after the fault began.
    seconds: Vec<Latencies>,
    unavailable: usize,
    unanswered: usize,
    /// Calls for known organizations that were not decided.
    known_failed: u64,
    /// Calls after the first second that were not refused with 503.
    not_refused: u64,
    kind: Option<Kind>,
    is_both: bool,
}

impl Row {
    fn new(name: String, kind: Option<Kind>, is_both: bool) -> Result<Self> {
        let seconds = (0..SECONDS).map(|_| Latencies::new());
        Ok(Self {
            name,
            times: 0,
            all: Latencies::new()?,
            known: Latencies::new()?,
            rest: Latencies::new()?,
            seconds: seconds.collect::<Result<_>>()?,
            unavailable: 0,
            unanswered: 0,
            known_failed: 0,
            not_refused: 0,
            kind,
            is_both,
        })
    }

    /// The kind of fault.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Adds an answer to a call that was sent `since` the fault began.
    fn add(&mut self, answer: &Answer, since: Option<Duration>, is_judged: bool) {
        self.all.add(answer.took);
        if is_judged && answer.class == Class::Known {
            self.known.add(answer.took);
            self.known_failed += u64::from(!matches!(answer.status, 200 | 429));
        }
        self.unavailable += usize::from(answer.status == 503);
        self.unanswered += usize::from(answer.status == 504);
        let Some(since) = since else { return };
        if since >= FIRST && is_judged {
            self.rest.add(answer.took);
            self.not_refused += u64::from(answer.status != 503);
        }
        let second = usize::try_from(since.as_secs()).unwrap_or(SECONDS);
        if let Some(second) = self.seconds.get_mut(second) {
            second.add(answer.took);
        }
    }

    /// Whether a fault that makes Redis refuse calls had no effect, which is a defect of the tool.
    pub(super) fn is_without_effect(&self) -> bool {
        let refuses = self.kind.is_some_and(|kind| {
            let is_away = kind.is_away() && kind.victim() == Victim::Redis;
            is_away
                || matches!(
                    kind,
                    Kind::RedisBusy | Kind::RedisFull | Kind::RedisReadOnly
                )
        });
        refuses && self.all.len() >= FEW && self.unavailable + self.unanswered == 0
    }

    /// Which target is missed; none if none is, or there is no target. `usual` is the row without a fault.
    pub(super) fn missed(&self, usual: &Self) -> Option<String> {
        let is_postgres = self.kind.map(Kind::victim) == Some(Victim::Postgres);
        // To begin sessions again and again takes the CPU from calls.
        let has_target = match self.kind {
            Some(Kind::PostgresSessionsEnded) => false,
            Some(kind) => is_postgres || kind.is_away(),
            None => self.is_both,
        };
        let (what, latencies) = if is_postgres {
            ("counting for known organizations", &self.known)
        } else {
            ("all, after the first second", &self.rest)
        };
        let p99 = latencies.milliseconds(0.99);
        let most = TARGET.max(2.0 * usual.known.milliseconds(0.99));
        if has_target && latencies.len() >= FEW && p99 > most {
            let name = &self.name;
            return Some(format!(
                "{name}: p99 of {what}: {p99:.0} ms, not {most:.0} ms"
            ));
        }
        let percentage = |some: u64, all: &Latencies| 100 * some / all.len().max(1);
        let (what, share) = if self.is_both {
            let not_refused = percentage(self.not_refused, &self.rest);
            ("calls are not answered with 503", not_refused)
        } else {
            let failed = percentage(self.known_failed, &self.known);
            ("calls for known organizations fail", failed)
        };
        let fails = format!("{}: {share} % of the {what}", self.name);
        ((is_postgres || self.is_both) && share > 0).then_some(fails)
    }
}

/// The table: first the row without a fault, then one for each kind.
pub(super) fn rows(answers: &[Answer], journal: &Journal) -> Result<Vec<Row>> {
    let spans = journal.spans.borrow();
    let mut rows = BTreeMap::from([((0, None), Row::new("no fault".to_owned(), None, false)?)]);
    for answer in answers {
        let at = answer.sent;
        let during: Vec<&Span> = spans
            .iter()
            .filter(|it| it.from <= at && at <= it.to)
            .collect();
        let is_recovering = || {
            spans
                .iter()
                .any(|it| it.to <= at && at <= it.to + RECOVERING)
        };
        let away = |victim| {
            let mut spans = during.iter();
            spans.find(|it| it.kind.victim() == victim && it.kind.is_away())
        };
        let is_both = away(Victim::Redis).is_some() && away(Victim::Postgres).is_some();
        let (place, kind, name) = match during[..] {
            [] if is_recovering() => (1, None, "the 3 s after a fault".to_owned()),
            [] => (0, None, String::new()),
            [span] => (2, Some(span.kind), span.kind.name()),
            _ if is_both => (4, None, "both servers away".to_owned()),
            _ => (3, None, "other pairs".to_owned()),
        };
        let row = match rows.entry((place, kind)) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(row) => row.insert(Row::new(name, kind, is_both)?),
        };
        let began = during.iter().map(|it| it.from).max();
        let since = began.and_then(|began| at.checked_sub(began));
        let changes = spans.iter().any(|it| {
            (at..at + SOON).contains(&it.from)
                || (it.from <= at && it.undo < at + SOON && at <= it.to)
        });
        row.add(answer, since, !changes);
    }
    for ((_, kind), row) in &mut rows {
        row.times = spans.iter().filter(|it| Some(it.kind) == *kind).count();
    }
    Ok(rows.into_values().collect())
}

/// Both tables as text.
pub(super) fn table(rows: &[Row], judged: bool) -> String {
    let mut text = format!(
        "{:<28}{:>6}{:>9}{:>8}{:>9}{:>9}{:>9}{:>7}{:>7}  verdict\n",
        "fault", "times", "answers", "p50 ms", "p99 ms", "max ms", "known*", "503", "504"
    );
    for row in rows {
        let verdict = match row.missed(&rows[0]) {
            _ if !judged => "",
            Some(_) => "missed",
            None => "ok",
        };
        let _ = writeln!(
            text,
            "{:<28}{:>6}{:>9}{:>8.1}{:>9.1}{:>9.0}{:>9.1}{:>7}{:>7}  {verdict}",
            row.name,
            row.times,
            row.all.len(),
            row.all.milliseconds(0.5),
            row.all.milliseconds(0.99),
            row.all.max(),
            row.known.milliseconds(0.99),
            row.unavailable,
            row.unanswered,
        );
    }
    text += "* p99 of counting for known organizations, ms\n\np99 in ms, by the second after a fault began\n";
    for row in rows.iter().filter(|row| row.kind.is_some() || row.is_both) {
        let _ = write!(text, "{:<28}", row.name);
        for second in row.seconds.iter().filter(|second| !second.is_empty()) {
            let _ = write!(text, "{:>7.0}", second.milliseconds(0.99));
        }
        text.push('\n');
    }
    text
}
