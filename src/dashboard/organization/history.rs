//! The history chart of an organization: its range, measure and type.

use axum::extract::{Path, Query};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Datelike as _, Months, NaiveTime, TimeDelta, Timelike as _, Utc};
use chrono_tz::Tz;
use serde::Deserialize;

use super::types::Slot;
use crate::dashboard::api::{Api, Failed, List, encode};
use crate::dashboard::chart::{Bucket, Chart, Kind, Line, draw};
use crate::dashboard::session::Viewer;

/// What to show, from the query of the page.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Choice {
    pub(super) meter: String,
    pub(super) range: String,
    pub(super) measure: String,
    pub(super) r#type: String,
    /// The meter whose limit form is open.
    pub(super) edit: String,
}

/// The ranges: name, label, hours, granularity.
const RANGES: [(&str, &str, i64, &str); 5] = [
    ("24h", "24 h", 24, "hour"),
    ("7d", "7 d", 7 * 24, "day"),
    ("30d", "30 d", 30 * 24, "day"),
    ("90d", "90 d", 90 * 24, "day"),
    ("1y", "1 y", 365 * 24, "month"),
];

impl Choice {
    fn range(&self) -> (&'static str, &'static str, i64, &'static str) {
        let chosen = RANGES.into_iter().find(|(name, ..)| *name == self.range);
        chosen.unwrap_or(("30d", "30 d", 30 * 24, "day"))
    }

    fn is_total(&self) -> bool {
        self.measure == "total"
    }

    fn kind(&self) -> Kind {
        match (self.r#type.as_str(), self.is_total()) {
            ("bars", _) | ("", false) => Kind::Bars,
            ("area", _) => Kind::Area,
            _ => Kind::Line,
        }
    }

    /// The meter and the range, as the API takes them.
    fn query(&self, now: DateTime<Utc>) -> String {
        let (_, _, hours, _) = self.range();
        let from = now - TimeDelta::hours(hours);
        let instant = |at: DateTime<Utc>| encode(&at.to_rfc3339());
        let (meter, from, to) = (encode(&self.meter), instant(from), instant(now));
        format!("meter={meter}&from={from}&to={to}")
    }

    /// The path of the API that has the rows of the chart, as CSV.
    pub(super) fn csv(&self, path: &str, now: DateTime<Utc>) -> String {
        let (_, _, _, unit) = self.range();
        let query = self.query(now);
        format!("{path}/history?{query}&granularity={unit}&limits=true&totals=true")
    }

    /// The query with another value of one part.
    fn with(&self, name: &str, value: &str) -> String {
        let kind = match self.kind() {
            Kind::Bars => "bars",
            Kind::Line => "line",
            Kind::Area => "area",
        };
        let own = [
            ("meter", self.meter.as_str()),
            ("range", self.range().0),
            ("measure", &self.measure),
            ("type", kind),
        ];
        let pairs = own.map(|(key, own)| (key, if key == name { value } else { own }));
        let pairs = pairs.into_iter().filter(|(_, value)| !value.is_empty());
        let pairs: Vec<String> = pairs
            .map(|(key, value)| format!("{key}={}", encode(value)))
            .collect();
        format!("?{}#history", pairs.join("&"))
    }
}

/// A link of a group, and whether it is the chosen one.
pub(super) struct Link {
    pub(super) href: String,
    pub(super) label: &'static str,
    pub(super) chosen: bool,
}

/// The chart with its links and its figures.
pub(super) struct History {
    pub(super) choice: Choice,
    pub(super) chart: Chart,
    /// `day`.
    pub(super) unit: &'static str,
    pub(super) label: String,
    pub(super) used: i64,
    pub(super) highest: i64,
    pub(super) denied: u64,
    pub(super) line: Option<Line>,
    /// The day on which the meter was first used.
    pub(super) first_use: Option<String>,
}

/// The API's page of rows.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Slots {
    data: Vec<Slot>,
    first_use: Option<DateTime<Utc>>,
}

impl History {
    pub(super) fn is_empty(&self) -> bool {
        self.chart
            .marks
            .iter()
            .all(|it| it.bucket.used == 0 && it.bucket.denied == 0)
    }

    /// Where the same rows are as CSV, below the page of the organization.
    pub(super) fn download(&self) -> String {
        let (meter, (range, ..)) = (encode(&self.choice.meter), self.choice.range());
        format!("history.csv?meter={meter}&range={range}")
    }

    pub(super) fn ranges(&self) -> Vec<Link> {
        let link = |(name, label, ..): (&str, &'static str, i64, &str)| Link {
            href: self.choice.with("range", name),
            label,
            chosen: self.choice.range().0 == name,
        };
        RANGES.into_iter().map(link).collect()
    }

    pub(super) fn measures(&self) -> Vec<Link> {
        let each = match self.unit {
            "hour" => "Per hour",
            "month" => "Per month",
            _ => "Per day",
        };
        let link = |(name, label)| Link {
            href: self.choice.with("measure", name),
            label,
            chosen: self.choice.is_total() == (name == "total"),
        };
        [("", each), ("total", "Running total")].map(link).into()
    }

    pub(super) fn types(&self) -> Vec<Link> {
        let link = |(name, label, kind)| Link {
            href: self.choice.with("type", name),
            label,
            chosen: self.choice.kind() == kind,
        };
        [
            ("bars", "Bars", Kind::Bars),
            ("line", "Line", Kind::Line),
            ("area", "Area", Kind::Area),
        ]
        .map(link)
        .into()
    }
}

/// The period that a meter is in, for the lines of the chart.
pub(super) struct Running {
    pub(super) start: DateTime<Utc>,
    pub(super) end: Option<DateTime<Utc>>,
    pub(super) limit: Option<u64>,
}

/// Reads the history of a meter.
pub(super) async fn read(
    api: &Api,
    path: &str,
    choice: Choice,
    running: Option<&Running>,
    (now, zone): (DateTime<Utc>, Tz),
) -> Result<History, Failed> {
    let (_, range, _, unit) = choice.range();
    let query = choice.query(now);
    let (slots, periods) = (
        format!("{path}/history?{query}&granularity={unit}&fill=zero&totals=true&pageSize=1000"),
        format!("{path}/history?{query}&granularity=period&pageSize=1000"),
    );
    let (slots, periods) =
        futures::try_join!(api.get::<Slots>(&slots), api.get::<List<Slot>>(&periods))?;
    let starts: Vec<DateTime<Utc>> = periods.data.iter().map(|it| it.start).collect();
    let buckets: Vec<Bucket> = slots
        .data
        .iter()
        .map(|slot| bucket(slot, &starts, unit, zone))
        .collect();
    let value = |slot: &Slot| {
        if choice.is_total() {
            slot.total.unwrap_or(slot.used)
        } else {
            slot.used
        }
    };
    let values: Vec<i64> = slots.data.iter().map(value).collect();
    let line = running.and_then(|running| line(running, choice.is_total(), unit, zone));
    let subject = if choice.is_total() {
        "running total"
    } else {
        unit
    };
    Ok(History {
        chart: draw(&buckets, &values, choice.is_total(), choice.kind(), line),
        unit,
        label: format!(
            "Units of {} used per {subject}, last {range}, {} of {zone}",
            choice.meter,
            plural(unit)
        ),
        used: buckets.iter().map(|it| it.used).sum(),
        highest: buckets.iter().map(|it| it.used).max().unwrap_or(0),
        denied: buckets.iter().map(|it| it.denied).sum(),
        line,
        first_use: slots
            .first_use
            .map(|at| at.with_timezone(&zone).format("%-d %B %Y").to_string()),
        choice,
    })
}

fn plural(unit: &str) -> &'static str {
    match unit {
        "hour" => "hours",
        "month" => "months",
        _ => "days",
    }
}

/// The limit where a mark is a count of a period, otherwise an even pace through it.
fn line(running: &Running, is_total: bool, unit: &str, zone: Tz) -> Option<Line> {
    let limit = running.limit.filter(|limit| *limit > 0)?;
    if is_total || is_period(running, unit, zone) {
        return Some(Line::Limit(limit));
    }
    let hours = u64::try_from((running.end? - running.start).num_hours()).ok()?;
    let own = match unit {
        "hour" => 1,
        "day" => 24,
        _ => return None,
    };
    (hours > own).then(|| Line::Pace(limit.saturating_mul(own) / hours))
}

/// Whether periods begin and end with the buckets of this unit.
fn is_period(running: &Running, unit: &str, zone: Tz) -> bool {
    let local = |at: DateTime<Utc>| at.with_timezone(&zone).naive_local();
    let Some(end) = running.end.map(local) else {
        return false;
    };
    let start = local(running.start);
    let is_first = match unit {
        "hour" => start.minute() == 0,
        "day" => start.time() == NaiveTime::MIN,
        _ => start.time() == NaiveTime::MIN && start.day() == 1,
    };
    let next = match unit {
        "hour" => Some(start + TimeDelta::hours(1)),
        "day" => Some(start + TimeDelta::days(1)),
        _ => start.checked_add_months(Months::new(1)),
    };
    is_first && next == Some(end)
}

fn bucket(slot: &Slot, starts: &[DateTime<Utc>], unit: &str, zone: Tz) -> Bucket {
    let local = slot.start.with_timezone(&zone);
    let end = slot.end.unwrap_or(DateTime::<Utc>::MAX_UTC);
    let mut starts = starts.iter();
    let (label, short) = match unit {
        "hour" => (
            local.format("%a %-d %b, %H:%M").to_string(),
            format!("{:02}:{:02}", local.hour(), local.minute()),
        ),
        "month" => (
            local.format("%B %Y").to_string(),
            local.format("%b").to_string(),
        ),
        _ => (
            local.format("%a %-d %b").to_string(),
            local.format("%-d %b").to_string(),
        ),
    };
    Bucket {
        label,
        short,
        used: slot.used,
        adjusted: slot.adjusted,
        denied: slot.denied,
        open: slot.open,
        begins: starts.any(|start| slot.start <= *start && *start < end),
    }
}

/// The rows of the chart as CSV.
pub(super) async fn download(
    viewer: Viewer,
    Path(id): Path<String>,
    Query(choice): Query<Choice>,
) -> Result<Response, Response> {
    let path = format!("/v1/organizations/{}", encode(&id));
    let path = choice.csv(&path, viewer.look.now);
    let body = viewer.api.open(&path, "text/csv").await;
    let body = body.map_err(viewer.fail())?;
    // Both ids are valid now, and so have no quotation mark.
    let (meter, (range, ..)) = (&choice.meter, choice.range());
    let disposition = format!("attachment; filename=\"{id} {meter} {range}.csv\"");
    let headers = [
        (CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
        (CONTENT_DISPOSITION, disposition),
    ];
    Ok((headers, body).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_a_line_where_a_bucket_is_a_period_and_otherwise_a_pace() {
        let line = |start: &str, end: &str, unit, is_total| {
            let at = |text: &str| text.parse().ok();
            let running = Running {
                start: at(start).unwrap(),
                end: at(end),
                limit: Some(2400),
            };
            line(&running, is_total, unit, Tz::Europe__Berlin)
        };
        // A day and a month of Berlin, one with a change to summer time.
        let day = ("2026-11-28T23:00:00Z", "2026-11-29T23:00:00Z");
        let month = ("2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z");
        let from_15th = ("2026-11-14T23:00:00Z", "2026-12-14T23:00:00Z");
        let limit = Some(Line::Limit(2400));
        assert_eq!(line(day.0, day.1, "day", false), limit);
        assert_eq!(line(day.0, day.1, "hour", false), Some(Line::Pace(100)));
        assert_eq!(line(month.0, month.1, "month", false), limit);
        assert_eq!(line(from_15th.0, from_15th.1, "month", false), None);
        assert_eq!(
            line(from_15th.0, from_15th.1, "day", false),
            Some(Line::Pace(80))
        );
        assert_eq!(line(from_15th.0, from_15th.1, "day", true), limit);
        assert_eq!(line(day.0, "never", "day", false), None);
    }
}
