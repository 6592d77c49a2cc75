//! Who is about to reach a limit, and why.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use chrono_tz::Tz;
use futures::future::join_all;
use serde::Deserialize;

use super::list::Row;
use super::types::{Exhausted, Listed, Meter};
use crate::dashboard::api::{Api, Failed, List, encode};
use crate::dashboard::format::{TimeText, number, span, spark, time_text};

/// How many organizations about to reach a limit are shown.
const AT_RISK_MAX: usize = 6;

/// How many days their small charts show.
const DAYS: i64 = 14;

/// The height of these charts.
const SPARK_HEIGHT: f64 = 28.0;

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
    /// Its small chart; none where the history is too short.
    pub(super) spark: Option<String>,
}

impl AtRisk {
    fn new(listed: &Listed, now: DateTime<Utc>) -> Option<Self> {
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
            row: Row::new(listed, &BTreeMap::new(), now),
            remaining: number(meter.remaining.unwrap_or(0)),
            is_hard: meter.enforcement == "hard",
            meter: meter.meter,
            left: span((full_at - now).max(TimeDelta::seconds(1))),
            full_at: time_text(full_at, now, Tz::UTC),
            why: exhausted.why(),
            spark: None,
        })
    }

    /// Its last days, and the last 24 hours instead of the day that has not ended.
    async fn days(&self, api: &Api, last_day: u64, now: DateTime<Utc>) -> Option<String> {
        let from = (now - TimeDelta::days(DAYS)).to_rfc3339_opts(SecondsFormat::Secs, true);
        let path = format!(
            "/v1/organizations/{}/history?granularity=day&fill=zero&meter={}&from={}",
            encode(&self.row.id),
            encode(&self.meter),
            encode(&from)
        );
        let days: List<Day> = api.get(&path).await.ok()?;
        let whole = days.data.iter().filter(|day| !day.open);
        let mut used: Vec<u64> = whole
            .map(|day| u64::try_from(day.used).unwrap_or(0))
            .collect();
        used.push(last_day);
        (used.len() > 2).then(|| spark(&used, SPARK_HEIGHT))
    }
}

/// A day of the history.
#[derive(Debug, Deserialize)]
struct Day {
    used: i64,
    open: bool,
}

/// The organizations that run out first.
pub(super) async fn at_risk(api: &Api, now: DateTime<Utc>) -> Result<Vec<AtRisk>, Failed> {
    let path = format!("/v1/organizations?sort=exhausted&pageSize={AT_RISK_MAX}");
    let listed: List<Listed> = api.get(&path).await?;
    let rows = listed.data.iter().filter_map(|it| {
        let last_day = it.exhausted.as_ref()?.last_day;
        Some((AtRisk::new(it, now)?, last_day))
    });
    let drawn = rows.map(|(row, last_day)| async move {
        let spark = row.days(api, last_day, now).await;
        AtRisk { spark, ..row }
    });
    Ok(join_all(drawn).await)
}

impl Exhausted {
    /// What makes it run out.
    fn why(&self) -> String {
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
