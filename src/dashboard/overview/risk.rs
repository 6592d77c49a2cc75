//! Who is about to reach a limit, and why.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

use super::list::Row;
use super::types::{Exhausted, Listed, Meter};
use crate::dashboard::format::{TimeText, number, span, time_text};

/// From so many times its usual day on, usage is unusual.
const UNUSUAL_MIN: f64 = 1.5;

/// An organization about to reach a limit, and why.
pub(super) struct AtRisk {
    pub(super) row: Row,
    pub(super) meter: String,
    pub(super) remaining: String,
    pub(super) is_hard: bool,
    pub(super) left: String,
    pub(super) full_at: TimeText,
    pub(super) why: String,
}

impl AtRisk {
    pub(super) fn new(
        listed: &Listed,
        plans: &BTreeMap<String, String>,
        now: DateTime<Utc>,
    ) -> Option<Self> {
        let exhausted = listed.exhausted.as_ref()?;
        let own = listed.meters.get(&exhausted.meter).cloned();
        let meter = Meter {
            meter: exhausted.meter.clone(),
            ..own.or(listed.fullest.clone())?
        };
        let full_at = exhausted.full_at;
        let listed = &Listed {
            organization_id: listed.organization_id.clone(),
            name: listed.name.clone(),
            plan_id: listed.plan_id.clone(),
            state: listed.state.clone(),
            fullest: Some(meter.clone()),
            exhausted: None,
            meters: BTreeMap::new(),
            ..*listed
        };
        Some(Self {
            row: Row::new(listed, plans, now),
            remaining: number(meter.remaining.unwrap_or(0)),
            is_hard: meter.enforcement == "hard",
            meter: meter.meter,
            left: span((full_at - now).max(TimeDelta::seconds(1))),
            full_at: time_text(full_at, now, Tz::UTC),
            why: exhausted.why(),
        })
    }
}

impl Exhausted {
    /// What makes it run out.
    pub(super) fn why(&self) -> String {
        let last_day = number(self.last_day);
        match (self.times_usual, self.usual_day) {
            (Some(times), Some(usual)) if times >= UNUSUAL_MIN => format!(
                "It uses {times:.1} times its usual day: {last_day} in the last 24 h, usually {}.",
                number(usual)
            ),
            (_, Some(usual)) => format!(
                "Nothing unusual: {last_day} in the last 24 h, usually {}. The limit is small for what it does.",
                number(usual)
            ),
            _ => format!(
                "It used {last_day} in the last 24 h; its history is too short to say what is usual."
            ),
        }
    }
}
