//! The overview: who is about to reach a limit, and all organizations.

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::{Query, State as Shared};
use axum::http::HeaderMap;
use axum::http::header::HOST;
use axum::response::{Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use super::api::encode;
use super::filters;
use super::format::{
    Bar, Mark, Moment, bar, compact, mark, moment, number, percent, shortened, span, spark,
};
use super::frame::{Frame, Rendered, Section};
use super::session::Viewer;
use super::state::Dashboard;

/// How many organizations about to reach a limit are shown.
const AT_RISK_MAX: usize = 6;

/// How many organizations a page of the list has.
const PAGE_SIZE: usize = 25;

/// How many organizations the search offers at once.
const HITS_MAX: usize = 8;

/// From so many times its usual day on, usage is unusual.
const UNUSUAL_MIN: f64 = 1.5;

/// The routes of this page.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/", get(async || Redirect::to("/dashboard")))
        .route("/dashboard", get(overview))
        .route("/dashboard/hits", get(hits))
}

/// The filters of the list.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct Filters {
    search: String,
    plan: String,
    state: String,
    sort: String,
    cursor: String,
}

impl Filters {
    /// The path of the list in the API.
    fn path(&self) -> String {
        let mut path = format!(
            "/v1/organizations?pageSize={PAGE_SIZE}&view=brief&sort={}",
            self.order()
        );
        for (name, value) in [
            ("search", &self.search),
            ("planId", &self.plan),
            ("cursor", &self.cursor),
        ] {
            if !value.is_empty() {
                path = format!("{path}&{name}={}", encode(value));
            }
        }
        match self.state.as_str() {
            "" => path,
            "near" => format!("{path}&minPercentage=95"),
            state => format!("{path}&state={}", encode(state)),
        }
    }

    fn order(&self) -> &'static str {
        match self.sort.as_str() {
            "id" => "id",
            "-id" => "-id",
            "percentage" => "percentage",
            "current" => "current",
            "-current" => "-current",
            _ => "-percentage",
        }
    }

    /// The query of this page with another value of one filter, on the first page.
    fn with(&self, name: &str, value: &str) -> String {
        let own = [
            ("search", self.search.as_str()),
            ("plan", &self.plan),
            ("state", &self.state),
            ("sort", &self.sort),
        ];
        let pairs = own
            .into_iter()
            .map(|(key, own)| (key, if key == name { value } else { own }));
        let extra = (name == "cursor").then_some((name, value));
        let pairs = pairs.chain(extra).filter(|(_, value)| !value.is_empty());
        let pairs: Vec<String> = pairs
            .map(|(key, value)| format!("{key}={}", encode(value)))
            .collect();
        format!("/dashboard?{}", pairs.join("&"))
    }

    fn is_empty(&self) -> bool {
        [&self.search, &self.plan, &self.state, &self.cursor]
            .iter()
            .all(|it| it.is_empty())
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    at: DateTime<Utc>,
    organizations: Organizations,
    calls_per_minute: u64,
    calls: Vec<Minute>,
    flush_lag_seconds: Option<f64>,
    last_snapshot_at: Option<DateTime<Utc>>,
    redis_away_since: Option<DateTime<Utc>>,
    postgres_away_since: Option<DateTime<Utc>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Organizations {
    total: u64,
    new_this_week: u64,
    by_state: ByState,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ByState {
    warning: u64,
    nearly_full: u64,
    exceeded_soft: u64,
    exceeded_hard: u64,
}

#[derive(Debug, Deserialize)]
struct Minute {
    calls: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page<T> {
    data: Vec<T>,
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    organization_id: String,
    name: Option<String>,
    plan_id: String,
    state: String,
    current: u64,
    period_over: bool,
    stored_at: Option<DateTime<Utc>>,
    fullest: Option<Meter>,
    exhausted: Option<Exhausted>,
    #[serde(default)]
    meters: BTreeMap<String, Meter>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meter {
    #[serde(default)]
    meter: String,
    current: u64,
    limit: Option<u64>,
    remaining: Option<u64>,
    enforcement: String,
    reset_date: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Exhausted {
    meter: String,
    full_at: DateTime<Utc>,
    last_day: u64,
    usual_day: Option<u64>,
    times_usual: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct PlanName {
    id: String,
    name: String,
}

/// A row of the list, as it is written.
struct Row {
    id: String,
    name: Option<String>,
    mark: Mark,
    meter: String,
    percent: String,
    bar: Option<Bar>,
    used: String,
    used_exactly: u64,
    limit: String,
    resets: Option<Moment>,
    plan: String,
}

impl Row {
    fn new(listed: &Listed, plans: &BTreeMap<String, String>, now: DateTime<Utc>) -> Self {
        let meter = listed.fullest.as_ref();
        let (used, limit) = meter.map_or((listed.current, None), |it| (it.current, it.limit));
        let mark = if listed.period_over {
            Mark {
                class: "",
                icon: "i-clock",
                label: "Period over",
            }
        } else {
            let is_hard = meter.is_none_or(|it| it.enforcement == "hard");
            mark(used, limit, is_hard, listed.state != "ok")
        };
        Self {
            id: listed.organization_id.clone(),
            name: listed
                .name
                .clone()
                .filter(|name| *name != listed.organization_id),
            mark,
            meter: meter.map_or("api".to_owned(), |it| it.meter.clone()),
            percent: limit.map_or("–".to_owned(), |limit| percent(used, limit)),
            bar: limit.filter(|it| *it > 0).map(|limit| bar(used, limit)),
            used: compact(used),
            used_exactly: used,
            limit: limit.map_or("no limit".to_owned(), compact),
            resets: meter
                .and_then(|it| it.reset_date)
                .map(|at| moment(at, now, Tz::UTC)),
            plan: plans
                .get(&listed.plan_id)
                .unwrap_or(&listed.plan_id)
                .clone(),
        }
    }

    fn shortened(&self) -> Option<(&str, &str, &str)> {
        shortened(&self.id)
    }

    fn path(&self) -> String {
        format!("/dashboard/organizations/{}", encode(&self.id))
    }
}

/// An organization about to reach a limit, and why.
struct AtRisk {
    row: Row,
    meter: String,
    remaining: String,
    is_hard: bool,
    left: String,
    full_at: Moment,
    why: String,
}

impl AtRisk {
    fn new(listed: &Listed, plans: &BTreeMap<String, String>, now: DateTime<Utc>) -> Option<Self> {
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
            full_at: moment(full_at, now, Tz::UTC),
            why: exhausted.why(),
        })
    }
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

/// A server that is away, for a notice.
struct Outage {
    server: &'static str,
    since: Moment,
    effect: &'static str,
}

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    frame: Frame,
    at: Moment,
    summary: Summary,
    snapshot: Option<Moment>,
    outages: Vec<Outage>,
    at_risk: Vec<AtRisk>,
    rows: Vec<Row>,
    plans: BTreeMap<String, String>,
    filters: Filters,
    next: Option<String>,
    stored_at: Option<Moment>,
    origin: String,
}

impl Overview {
    fn is_first_run(&self) -> bool {
        self.summary.organizations.total == 0 && self.rows.is_empty() && self.filters.is_empty()
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
    let at_risk = format!("/v1/organizations?sort=exhausted&pageSize={AT_RISK_MAX}");
    let list = filters.path();
    let read = async {
        futures::try_join!(
            api.get::<Summary>("/v1/summary"),
            api.get::<Page<PlanName>>("/v1/plans?pageSize=100"),
            api.get::<Page<Listed>>(&at_risk),
            api.get::<Page<Listed>>(&list),
        )
    };
    let (summary, plans, at_risk, list) = read.await.map_err(viewer.fail())?;
    let plans: BTreeMap<String, String> =
        plans.data.into_iter().map(|it| (it.id, it.name)).collect();
    let utc = |at| moment(at, now, Tz::UTC);
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let stored_at = list.data.iter().filter_map(|it| it.stored_at).max();
    Ok(Rendered(Overview {
        frame: Frame::new(&viewer, Section::Overview, "Overview"),
        at: utc(summary.at),
        snapshot: summary.last_snapshot_at.map(utc),
        outages: outages(&summary, now),
        at_risk: at_risk
            .data
            .iter()
            .filter_map(|it| AtRisk::new(it, &plans, now))
            .collect(),
        rows: list
            .data
            .iter()
            .map(|it| Row::new(it, &plans, now))
            .collect(),
        next: list
            .next_cursor
            .map(|cursor| filters.with("cursor", &cursor)),
        stored_at: stored_at.map(utc),
        origin: format!("http://{}", host.unwrap_or("127.0.0.1:7400")),
        summary,
        plans,
        filters,
    }))
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
            since: moment(since?, now, Tz::UTC),
            effect,
        })
    };
    servers.into_iter().filter_map(outage).collect()
}

#[derive(Deserialize)]
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

async fn hits(
    Shared(dashboard): Shared<Dashboard>,
    viewer: Viewer,
    Query(search): Query<Search>,
) -> Result<Json<Vec<Hit>>, Response> {
    let path = format!(
        "/v1/organizations?view=brief&pageSize={HITS_MAX}&search={}",
        encode(&search.q)
    );
    let found: Page<Listed> = viewer.api.get(&path).await.map_err(viewer.fail())?;
    let now = dashboard.state.ctx.clock.now();
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
