//! The limits of an organization, their forms, and what another administrator has changed meanwhile.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

use super::types::{Limit, Settings, Usage};
use crate::dashboard::conflict::Row;
use crate::dashboard::form::Fields;
use crate::dashboard::form_view::{FormView, Refused};
use crate::dashboard::format::{number, time_text};

/// The form for the limit of a meter that has none.
pub(super) const ADD: &str = "add-limit";

/// The limit of a meter, and its form.
pub(super) struct LimitRow {
    pub(super) meter: String,
    pub(super) text: String,
    pub(super) enforcement: String,
    pub(super) source: String,
    pub(super) is_temporary: bool,
    pub(super) used: u64,
    pub(super) ends: Option<String>,
    pub(super) week: String,
    pub(super) day: String,
    pub(super) form: FormView,
}

impl LimitRow {
    pub(super) fn hint(&self) -> String {
        let used = number(self.used);
        format!("Units in a period. Empty is unlimited, 0 is nothing. {used} are used.")
    }
}

/// The id of the form of a meter's limit.
pub(super) fn form_id(meter: &str) -> String {
    format!("limit-{meter}")
}

/// The limits, by meter; the form of the meter `edit` is open.
pub(super) fn rows(
    settings: &Settings,
    usage: &Usage,
    now: DateTime<Utc>,
    edit: &str,
    refused: Option<&Refused<'_>>,
) -> Vec<LimitRow> {
    let zone = settings.time_zone;
    let absolute = |at| time_text(at, now, zone).absolute;
    let row = |(meter, limit): (&String, &Limit)| {
        let counted = usage.meters.get(meter);
        let mut form = form(meter, limit, settings.version);
        form.is_open = edit == meter;
        LimitRow {
            meter: meter.clone(),
            text: limit_text(limit),
            enforcement: limit.enforcement.clone(),
            source: source_text(limit, settings, now),
            is_temporary: limit.until.is_some(),
            used: counted.map_or(0, |it| it.current),
            ends: counted.and_then(|it| it.reset_date).map(absolute),
            week: absolute(now + TimeDelta::days(7)),
            day: absolute(now + TimeDelta::days(1)),
            form: form.or_refused(refused),
        }
    };
    settings.limits.iter().map(row).collect()
}

fn form(meter: &str, limit: &Limit, version: u64) -> FormView {
    FormView::new(form_id(meter))
        .field("version", "", version.to_string())
        .field("mode", "Change", "temporary")
        .field(
            "limit",
            "New limit",
            limit.limit.map_or(String::new(), number),
        )
        .field("until", "Until, if for a while", "7d")
        .field("at", "Another time", "")
        .field(
            "enforcement",
            "When it is reached, if for good",
            limit.enforcement.clone(),
        )
        .field("warnAt", "Warn at, if for good", percentages(limit))
}

/// The form for the limit of another meter.
pub(super) fn add_form(version: u64, refused: Option<&Refused<'_>>) -> FormView {
    FormView::new(ADD)
        .field("version", "", version.to_string())
        .field("meter", "Meter", "")
        .field("limit", "Limit", "")
        .field("enforcement", "When it is reached", "hard")
        .or_refused(refused)
}

/// A refusal of a limit that was removed meanwhile, and its form with it: the form for another meter then shows it.
pub(super) fn of_added<'a>(
    rows: &[LimitRow],
    refused: Option<&Refused<'a>>,
) -> Option<Refused<'a>> {
    let refused = refused.filter(|it| it.form.starts_with("limit-"))?;
    let is_shown = rows.iter().any(|row| row.form.is_refused());
    (!is_shown).then(|| Refused {
        form: ADD.to_owned(),
        pointer: refused.pointer.clone(),
        ..*refused
    })
}

fn percentages(limit: &Limit) -> String {
    let all = limit.warn_at.iter().map(ToString::to_string);
    all.collect::<Vec<_>>().join(", ")
}

fn limit_text(limit: &Limit) -> String {
    limit.limit.map_or("Unlimited".to_owned(), number)
}

fn source_text(limit: &Limit, settings: &Settings, now: DateTime<Utc>) -> String {
    match (limit.source.as_str(), limit.until) {
        (_, Some(until)) => format!(
            "Until {}",
            time_text(until, now, settings.time_zone).absolute
        ),
        ("organization", _) => "Own".to_owned(),
        ("plan", _) => format!("Plan {}", settings.plan_id),
        _ => "Default".to_owned(),
    }
}

/// What was entered for a limit, next to what is stored now.
pub(super) fn compared(entered: &Fields, settings: &Settings, now: DateTime<Utc>) -> Vec<Row> {
    let meter = entered.text("meter");
    let stored = settings.limits.get(meter);
    let row = |label: &str, entered: String, stored: Option<String>| Row {
        label: format!("{label} of {meter}"),
        entered,
        stored: stored.unwrap_or("–".to_owned()),
    };
    let mode = entered.text("mode");
    let units = match (mode, entered.limit("limit")) {
        ("inherit", _) => "What the plan says".to_owned(),
        (_, Value::Null) => "Unlimited".to_owned(),
        (_, units) => units
            .as_u64()
            .map_or_else(|| entered.text("limit").to_owned(), number),
    };
    let lasts = match (mode, entered.text("until")) {
        ("inherit", _) => format!("Plan {}", settings.plan_id),
        ("lasting", _) => "Own".to_owned(),
        (_, "1d") => "For 1 day from now".to_owned(),
        (_, "reset") => "Until the period ends".to_owned(),
        (_, "at") => format!("Until {}", entered.text("at").replace('T', " ")),
        _ => "For 1 week from now".to_owned(),
    };
    let mut rows = vec![
        row("Limit", units, stored.map(limit_text)),
        row(
            "Source",
            lasts,
            stored.map(|it| source_text(it, settings, now)),
        ),
    ];
    if mode == "lasting" {
        let enforcement = entered.text("enforcement").to_owned();
        rows.push(row(
            "Enforcement",
            enforcement,
            stored.map(|it| it.enforcement.clone()),
        ));
        if let Some(entered) = entered.given("warnAt") {
            rows.push(row("Warnings", entered.to_owned(), stored.map(percentages)));
        }
    }
    rows
}
