//! The history chart of an organization: its range, measure and type.

use chrono::{DateTime, Datelike as _, Months, NaiveTime, TimeDelta, Timelike as _, Utc};
use chrono_tz::Tz;
use serde::Deserialize;

use super::types::Slot;
use crate::dashboard::api::{Api, Failed, List, encode};
use crate::dashboard::chart::{Bucket, Chart, Kind, Line, draw, running_totals};

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
}

impl History {
    pub(super) fn is_empty(&self) -> bool {
        self.chart
            .marks
            .iter()
            .all(|it| it.bucket.used == 0 && it.bucket.denied == 0)
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
    let (_, range, hours, unit) = choice.range();
    let from = now - TimeDelta::hours(hours);
    let granularity = if unit == "hour" { "hour" } else { "day" };
    let query = |granularity: &str| {
        let from = encode(&from.to_rfc3339());
        let (to, meter) = (encode(&now.to_rfc3339()), encode(&choice.meter));
        format!(
            "{path}/history?meter={meter}&granularity={granularity}&fill=zero&pageSize=1000&from={from}&to={to}"
        )
    };
    let (slots, periods) = (
        query(granularity),
        query("period").replace("&fill=zero", ""),
    );
    let (slots, periods) = futures::try_join!(
        api.get::<List<Slot>>(&slots),
        api.get::<List<Slot>>(&periods)
    )?;
    let starts: Vec<DateTime<Utc>> = periods.data.iter().map(|it| it.start).collect();
    let buckets = buckets(&slots.data, &starts, unit, zone);
    let values = if choice.is_total() {
        let before = match running.filter(|running| running.start < from) {
            Some(running) => {
                used_between(api, path, &choice.meter, granularity, (running.start, from)).await?
            }
            None => 0,
        };
        running_totals(&buckets, before)
    } else {
        buckets.iter().map(|it| it.used).collect()
    };
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
        choice,
    })
}

/// What was counted in the running period before the range.
async fn used_between(
    api: &Api,
    path: &str,
    meter: &str,
    granularity: &str,
    (from, to): (DateTime<Utc>, DateTime<Utc>),
) -> Result<i64, Failed> {
    let (meter, from, to) = (
        encode(meter),
        encode(&from.to_rfc3339()),
        encode(&to.to_rfc3339()),
    );
    let query =
        format!("meter={meter}&granularity={granularity}&pageSize=1000&from={from}&to={to}");
    let slots: List<Slot> = api.get(&format!("{path}/history?{query}")).await?;
    Ok(slots.data.iter().map(|slot| slot.used).sum())
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

/// Slots as buckets; days of a month are added up.
fn buckets(slots: &[Slot], starts: &[DateTime<Utc>], unit: &str, zone: Tz) -> Vec<Bucket> {
    let mut buckets: Vec<(i32, u32, Bucket)> = Vec::new();
    for slot in slots {
        let local = slot.start.with_timezone(&zone);
        let end = slot.end.unwrap_or(DateTime::<Utc>::MAX_UTC);
        let begins = starts
            .iter()
            .any(|start| slot.start <= *start && *start < end);
        if unit == "month"
            && let Some((year, month, bucket)) = buckets.last_mut()
            && (*year, *month) == (local.year(), local.month())
        {
            bucket.used = bucket.used.saturating_add(slot.used);
            bucket.adjusted = bucket.adjusted.saturating_add(slot.adjusted);
            bucket.denied = bucket.denied.saturating_add(slot.denied);
            bucket.open |= slot.open;
            bucket.begins |= begins;
            continue;
        }
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
        let bucket = Bucket {
            label,
            short,
            used: slot.used,
            adjusted: slot.adjusted,
            denied: slot.denied,
            open: slot.open,
            begins,
        };
        buckets.push((local.year(), local.month(), bucket));
    }
    buckets.into_iter().map(|(.., bucket)| bucket).collect()
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
