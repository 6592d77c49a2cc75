//! How long answers took, by kind of fault, and whether the targets are met.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;

use super::client::{Answer, Class};
use super::journal::{Journal, Span};
use super::plan::{Kind, Victim};
use crate::latency::Latencies;

/// The target while a server is away, in milliseconds.
const TARGET: f64 = 50.0;

/// In which answers may take longer.
const FIRST: Duration = Duration::from_secs(1);

/// Seconds that are shown one by one.
const SECONDS: usize = 10;

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
            kind,
            is_both,
        })
    }

    /// The kind of fault.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn add(&mut self, answer: &Answer, since: Option<Duration>) {
        self.all.add(answer.took);
        if answer.class == Class::Known {
            self.known.add(answer.took);
            self.known_failed += u64::from(!matches!(answer.status, 200 | 429));
        }
        self.unavailable += usize::from(answer.status == 503);
        self.unanswered += usize::from(answer.status == 504);
        let Some(since) = since else { return };
        if since >= FIRST {
            self.rest.add(answer.took);
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
            is_away || matches!(kind, Kind::RedisFull | Kind::RedisReadOnly)
        });
        refuses && self.all.len() >= FEW && self.unavailable + self.unanswered == 0
    }

    /// Which target is missed; none if none is, or there is no target.
    pub(super) fn missed(&self) -> Option<String> {
        let victim = self.kind.map(Kind::victim);
        let redis_away = victim == Some(Victim::Redis) && self.kind.is_some_and(Kind::is_away);
        let (what, latencies) = match victim {
            _ if self.is_both || redis_away => ("all, after the first second", &self.rest),
            Some(Victim::Postgres) => ("known organizations", &self.known),
            _ => return None,
        };
        let p99 = latencies.milliseconds(0.99);
        if latencies.len() >= FEW && p99 > TARGET {
            return Some(format!(
                "{}: p99 of {what}: {p99:.0} ms, not {TARGET:.0} ms",
                self.name
            ));
        }
        let share = 100 * self.known_failed / self.known.len().max(1);
        if victim == Some(Victim::Postgres) && share > 0 {
            return Some(format!(
                "{}: {share} % of the calls for known organizations fail",
                self.name
            ));
        }
        None
    }
}

/// The table, in the order of the kinds.
pub(super) fn rows(answers: &[Answer], journal: &Journal) -> Result<Vec<Row>> {
    let spans = journal.spans.borrow();
    let mut rows: BTreeMap<(usize, Option<Kind>), Row> = BTreeMap::new();
    for answer in answers {
        let during: Vec<&Span> = spans
            .iter()
            .filter(|span| span.from <= answer.sent && answer.sent <= span.to)
            .collect();
        let kind = match during[..] {
            [span] => Some(span.kind),
            _ => None,
        };
        let away = |victim| {
            let of_it = |span: &&&Span| span.kind.victim() == victim && span.kind.is_away();
            during.iter().find(of_it).copied()
        };
        let both = away(Victim::Redis).zip(away(Victim::Postgres));
        let (place, name) = match (kind, during.len(), both) {
            (Some(kind), ..) => (1, kind.name()),
            (None, 0, _) => (0, "no fault".to_owned()),
            (None, _, Some(_)) => (3, "both servers away".to_owned()),
            (None, ..) => (2, "other pairs".to_owned()),
        };
        let since = match both {
            Some((one, other)) => answer.sent.checked_sub(one.from.max(other.from)),
            None => during
                .iter()
                .filter_map(|span| answer.sent.checked_sub(span.from))
                .min(),
        };
        let row = match rows.entry((place, kind)) {
            std::collections::btree_map::Entry::Occupied(row) => row.into_mut(),
            std::collections::btree_map::Entry::Vacant(row) => {
                row.insert(Row::new(name, kind, both.is_some())?)
            }
        };
        row.add(answer, since);
    }
    for ((_, kind), row) in &mut rows {
        row.times = spans.iter().filter(|span| Some(span.kind) == *kind).count();
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
        let verdict = match row.missed() {
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
