//! The overview: who is about to reach a limit, and all organizations.

mod list;
mod risk;
mod types;

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::Query;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::api::{Failed, List, encode};
use super::filters;
use super::format::{TimeText, number, spark, time_text};
use super::frame::{Frame, Rendered, Section};
use super::look::origin;
use super::plan_names::plan_names;
use super::session::Viewer;
use super::state::Dashboard;
use list::{Filters, Row};
use risk::AtRisk;
use types::{Listed, Summary};

/// How many organizations the search offers at once.
const HITS_MAX: usize = 8;

/// The routes of this page.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/", get(async || Redirect::to("/dashboard")))
        .route("/dashboard", get(overview))
        .route("/dashboard/hits", get(hits))
}

/// A server that is away, for a notice.
struct Outage {
    server: &'static str,
    is_redis: bool,
    since: TimeText,
    effect: &'static str,
}

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    frame: Frame,
    at: TimeText,
    summary: Summary,
    snapshot: Option<TimeText>,
    outages: Vec<Outage>,
    /// None while Postgres is away, like the rows.
    at_risk: Option<Vec<AtRisk>>,
    rows: Option<Vec<Row>>,
    plans: BTreeMap<String, String>,
    filters: Filters,
    next: Option<String>,
    stored_at: Option<TimeText>,
    origin: String,
}

impl Overview {
    /// Whether nothing was ever counted.
    fn is_first_run(&self) -> bool {
        let is_empty = self.rows.as_ref().is_some_and(Vec::is_empty) && self.filters.is_empty();
        is_empty && self.summary.organizations.total == 0
    }

    /// When the counts on this page were stored, while Redis is away.
    fn stale(&self) -> Option<&TimeText> {
        let snapshot = self.snapshot.as_ref();
        snapshot.filter(|_| self.summary.redis_away_since.is_some())
    }

    fn exceeded(&self) -> u64 {
        let by_state = &self.summary.organizations.by_state;
        by_state.exceeded_soft + by_state.exceeded_hard
    }

    fn warning(&self) -> u64 {
        let by_state = &self.summary.organizations.by_state;
        by_state.warning + by_state.nearly_full
    }

    fn spark(&self) -> String {
        let calls: Vec<u64> = self
            .summary
            .calls
            .iter()
            .map(|minute| minute.calls)
            .collect();
        spark(&calls, 26.0)
    }

    fn calls_range(&self) -> String {
        let calls = || self.summary.calls.iter().map(|minute| minute.calls);
        let (least, most) = (calls().min().unwrap_or(0), calls().max().unwrap_or(0));
        format!("{} to {}", number(least), number(most))
    }

    fn lag(&self) -> String {
        let lag = self.summary.flush_lag_seconds;
        lag.map_or("unknown".to_owned(), |seconds| format!("{seconds:.1} s"))
    }

    /// A column heading: its link, and how the list is sorted by it.
    fn heading(&self, column: &str) -> Heading {
        let order = self.filters.order();
        let (is_ascending, is_descending) =
            (order == column, order.strip_prefix('-') == Some(column));
        let next = if is_descending {
            column.to_owned()
        } else {
            format!("-{column}")
        };
        Heading {
            link: self.filters.with("sort", &next),
            sort: match (is_ascending, is_descending) {
                (true, _) => Some(("ascending", "↑")),
                (_, true) => Some(("descending", "↓")),
                _ => None,
            },
        }
    }
}

/// A column heading of the list.
struct Heading {
    link: String,
    sort: Option<(&'static str, &'static str)>,
}

async fn overview(
    viewer: Viewer,
    Query(filters): Query<Filters>,
    headers: HeaderMap,
) -> Result<Rendered<Overview>, Response> {
    let (api, now) = (&viewer.api, viewer.look.now);
    let summary: Summary = api.get("/v1/summary").await.map_err(viewer.fail())?;
    let plans = unless_away(plan_names(&viewer).await).map_err(viewer.fail())?;
    let plans = plans.unwrap_or_default();
    let path = filters.path();
    let (at_risk, list) = tokio::join!(
        risk::at_risk(api, &plans, now),
        api.get::<List<Listed>>(&path)
    );
    let at_risk = unless_away(at_risk).map_err(viewer.fail())?;
    let list = unless_away(list).map_err(viewer.fail())?;
    let utc = |at| time_text(at, now, Tz::UTC);
    let listed = list.iter().flat_map(|list| &list.data);
    let stored_at = listed.filter_map(|it| it.stored_at).max();
    let next = list.as_ref().and_then(|list| list.next_cursor.as_ref());
    let row = |it: &Listed| Row::new(it, &plans, now);
    Ok(Rendered(Overview {
        frame: viewer.frame(Section::Overview, "Overview"),
        at: utc(summary.at),
        snapshot: summary.last_snapshot_at.map(utc),
        outages: outages(&summary, now),
        at_risk,
        next: next.map(|cursor| filters.with("cursor", cursor)),
        rows: list.map(|list| list.data.iter().map(row).collect()),
        stored_at: stored_at.map(utc),
        origin: origin(&headers),
        summary,
        plans,
        filters,
    }))
}

/// None while Postgres is away: the page shows the rest.
fn unless_away<T>(read: Result<T, Failed>) -> Result<Option<T>, Failed> {
    match read {
        Err(failed) if failed.status == StatusCode::SERVICE_UNAVAILABLE => Ok(None),
        other => other.map(Some),
    }
}

fn outages(summary: &Summary, now: DateTime<Utc>) -> Vec<Outage> {
    let servers = [
        (
            "Redis",
            summary.redis_away_since,
            "Calls that count are refused with 503 until it is back. What was answered before is not lost. Changes to limits take effect then, too.",
        ),
        (
            "Postgres",
            summary.postgres_away_since,
            "Calls are counted; what they count is stored once it is back. Nothing can be changed until then.",
        ),
    ];
    let outage = |(server, since, effect): (&'static str, Option<DateTime<Utc>>, &'static str)| {
        Some(Outage {
            server,
            is_redis: server == "Redis",
            since: time_text(since?, now, Tz::UTC),
            effect,
        })
    };
    servers.into_iter().filter_map(outage).collect()
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Search {
    q: String,
}

/// An organization that the search offers.
#[derive(Serialize)]
struct Hit {
    id: String,
    name: Option<String>,
    meter: String,
    percent: String,
    state: &'static str,
    label: &'static str,
}

async fn hits(viewer: Viewer, Query(search): Query<Search>) -> Result<Json<Vec<Hit>>, Response> {
    let mut path = format!("/v1/organizations?view=brief&pageSize={HITS_MAX}");
    if !search.q.is_empty() {
        path = format!("{path}&search={}", encode(&search.q));
    }
    let found: List<Listed> = viewer.api.get(&path).await.map_err(viewer.fail())?;
    let now = viewer.look.now;
    let hit = |listed: &Listed| {
        let row = Row::new(listed, &BTreeMap::new(), now);
        Hit {
            id: row.id,
            name: row.name,
            meter: row.meter,
            percent: row.percent,
            state: row.mark.class,
            label: row.mark.label,
        }
    };
    Ok(Json(found.data.iter().map(hit).collect()))
}
