//! The limits of an organization, and what their forms start with.

use chrono::{DateTime, TimeDelta, Utc};

use super::types::{Limit, Settings, Usage};
use crate::dashboard::format::{number, time_text};

/// The limit of a meter, and what its form starts with.
pub(super) struct LimitRow {
    pub(super) meter: String,
    pub(super) text: String,
    pub(super) enforcement: String,
    pub(super) source: String,
    pub(super) is_temporary: bool,
    pub(super) used: u64,
    pub(super) limit: String,
    pub(super) warn_at: String,
    pub(super) ends: Option<String>,
    pub(super) week: String,
    pub(super) day: String,
}

/// The limits, by meter.
pub(super) fn rows(settings: &Settings, usage: &Usage, now: DateTime<Utc>) -> Vec<LimitRow> {
    let zone = settings.time_zone;
    let absolute = |at| time_text(at, now, zone).absolute;
    let row = |(meter, limit): (&String, &Limit)| {
        let counted = usage.meters.get(meter);
        LimitRow {
            meter: meter.clone(),
            text: limit.limit.map_or("Unlimited".to_owned(), number),
            enforcement: limit.enforcement.clone(),
            source: match (limit.source.as_str(), limit.until) {
                (_, Some(until)) => format!("Until {}", absolute(until)),
                ("organization", _) => "Own".to_owned(),
                ("plan", _) => format!("Plan {}", settings.plan_id),
                _ => "Default".to_owned(),
            },
            is_temporary: limit.until.is_some(),
            used: counted.map_or(0, |it| it.current),
            limit: limit.limit.map_or(String::new(), number),
            warn_at: limit
                .warn_at
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
            ends: counted.and_then(|it| it.reset_date).map(absolute),
            week: absolute(now + TimeDelta::days(7)),
            day: absolute(now + TimeDelta::days(1)),
        }
    };
    settings.limits.iter().map(row).collect()
}
