//! The card of a meter.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use super::types::{Limit, Meter};
use crate::dashboard::format::{
    Bar, Mark, TimeText, bar, has_warned, mark, number, percent, span, time_text,
};

/// A meter, as it is written.
pub(super) struct Card {
    pub(super) meter: String,
    pub(super) mark: Mark,
    pub(super) used: u64,
    pub(super) of: String,
    pub(super) percent: Option<String>,
    pub(super) bar: Option<Bar>,
    /// Where it warns first.
    pub(super) notch: Option<String>,
    /// What follows from the count, in sentences.
    pub(super) facts: Vec<String>,
    pub(super) resets: Option<TimeText>,
    /// Hundredths of a percent of the limit.
    pub(super) fullness: u128,
    pub(super) limit: Option<u64>,
}

impl Card {
    pub(super) fn new(
        name: &str,
        meter: &Meter,
        limit: Option<&Limit>,
        now: DateTime<Utc>,
        zone: Tz,
    ) -> Self {
        let (used, is_hard) = (meter.current, meter.enforcement == "hard");
        let warn_at = limit.and_then(|limit| limit.warn_at.first().copied());
        let warns = has_warned(used, meter.limit, warn_at);
        let limited = meter.limit.filter(|limit| *limit > 0);
        Self {
            meter: name.to_owned(),
            mark: mark(used, meter.limit, is_hard, warns),
            used,
            of: match meter.limit {
                None => "units, no limit".to_owned(),
                Some(0) => "units; none are included".to_owned(),
                Some(limit) => format!("of {} units", number(limit)),
            },
            percent: limited.map(|limit| percent(used, limit)),
            bar: limited.map(|limit| bar(used, limit)),
            notch: warn_at
                .filter(|it| *it < 100 && meter.overage == 0)
                .map(|it| format!("{it}%")),
            facts: facts(meter, limit, is_hard, now, zone),
            resets: meter.reset_date.map(|at| time_text(at, now, zone)),
            fullness: limited.map_or(0, |limit| u128::from(used) * 10_000 / u128::from(limit)),
            limit: meter.limit,
        }
    }
}

fn facts(
    meter: &Meter,
    limit: Option<&Limit>,
    is_hard: bool,
    now: DateTime<Utc>,
    zone: Tz,
) -> Vec<String> {
    let mut facts = Vec::new();
    if let Some(until) = limit.and_then(|limit| limit.until) {
        facts.push(format!(
            "A temporary limit until {}",
            time_text(until, now, zone).absolute
        ));
    }
    let refused = number(meter.denied);
    facts.push(match (meter.limit, meter.remaining) {
        (None, _) => "Counted, never refused".to_owned(),
        (Some(0), _) => format!("Calls are refused, {refused} so far"),
        (Some(_), Some(0)) if is_hard => format!("None left; calls are refused, {refused} so far"),
        (Some(_), Some(0)) => format!("{} over the limit; calls go on", number(meter.overage)),
        (Some(_), left) => {
            let then = if is_hard {
                "then calls are refused"
            } else {
                "then overage is counted"
            };
            format!("{} left, {then}", number(left.unwrap_or(0)))
        }
    });
    match &meter.projected {
        None => facts.push("No projection: too little history is known".to_owned()),
        Some(projected) => match (projected.full_at, projected.used) {
            (Some(full_at), _) => facts.push(format!(
                "Full in about {}, at {}",
                span((full_at - now).max(chrono::TimeDelta::seconds(1))),
                time_text(full_at, now, zone).absolute
            )),
            (None, Some(used)) => facts.push(format!("Ends the period at about {}", number(used))),
            (None, None) => {}
        },
    }
    facts
}
