//! The overview: who is about to reach a limit, and all organizations.

mod list;
mod outage;
mod risk;
mod types;

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::Query;
use axum::http::request::Parts;
use axum::response::{Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::api::{List, encode, unless_away};
use super::filters;
use super::format::{TimeText, time_text};
use super::frame::{Frame, Rendered, Section};
use super::look::origin;
use super::plan_names::plan_names;
use super::session::Viewer;
use super::state::Dashboard;
use list::{Filters, Row};
use outage::{Outage, outages};
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

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    frame: Frame,
    at: TimeText,
    /// None while Postgres is away, if this instance has not read it before.
    summary: Option<Summary>,
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
        let total = self.summary.as_ref().map(|it| it.organizations.total);
        is_empty && total == Some(0)
    }

    /// When the counts on this page were stored, while Redis is away.
    fn stale(&self) -> Option<&TimeText> {
        let snapshot = self.snapshot.as_ref();
        snapshot.filter(|_| self.outages.iter().any(|it| it.is_redis))
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
    parts: Parts,
) -> Result<Rendered<Overview>, Response> {
    let (api, now) = (&viewer.api, viewer.look.now);
    let path = filters.path();
    let lists = async {
        let (plans, list) = tokio::join!(plan_names(&viewer), api.get::<List<Listed>>(&path));
        Ok((plans?, list?))
    };
    let (summary, lists, at_risk) = tokio::join!(
        api.get::<Summary>("/v1/summary"),
        lists,
        risk::at_risk(api, now)
    );
    let summary = unless_away(summary).map_err(viewer.fail())?;
    let (plans, list) = unless_away(lists).map_err(viewer.fail())?.unzip();
    let at_risk = unless_away(at_risk).map_err(viewer.fail())?;
    let plans = plans.unwrap_or_default();
    let utc = |at| time_text(at, now, Tz::UTC);
    let listed = list.iter().flat_map(|list| &list.data);
    let stored_at = listed.filter_map(|it| it.stored_at).max();
    let next = list.as_ref().and_then(|list| list.next_cursor.as_ref());
    let row = |it: &Listed| Row::new(it, &plans, now);
    Ok(Rendered(Overview {
        frame: viewer.frame(Section::Overview, "Overview"),
        at: utc(summary.as_ref().map_or(now, |it| it.at)),
        snapshot: summary.as_ref().and_then(|it| it.last_snapshot_at).map(utc),
        outages: outages(summary.as_ref(), list.is_some(), now),
        at_risk,
        next: next.map(|cursor| filters.with("cursor", cursor)),
        rows: list.map(|list| list.data.iter().map(row).collect()),
        stored_at: stored_at.map(utc),
        origin: origin(&parts),
        summary,
        plans,
        filters,
    }))
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
