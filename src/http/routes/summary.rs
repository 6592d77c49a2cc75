//! `GET /v1/summary`: the overview of the service.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Shared;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::ids::PlanId;
use crate::http::auth::Read;
use crate::http::extract::NoQuery;
use crate::http::problem::Error;
use crate::http::state::State;
use crate::postgres::overview;

/// The overview of the service.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "at": "2026-11-23T10:14:00Z",
    "organizations": {
        "total": 200, "newThisWeek": 4, "byPlan": {"free": 180, "pro": 20},
        "byState": {"ok": 150, "warning": 30, "nearlyFull": 10, "exceededSoft": 4, "exceededHard": 6}
    },
    "callsPerMinute": 1200, "calls": [{"start": "2026-11-23T10:13:00Z", "calls": 1200}],
    "flushLagSeconds": 0.4, "webhookLagSeconds": 0.0, "lastSnapshotAt": "2026-11-23T10:13:59Z",
    "redisAwaySince": null, "postgresAwaySince": null
}))]
#[schema(as = ServiceSummary)]
pub(in crate::http) struct Summary {
    /// When this was read, at most 5 seconds ago; longer ago only while Postgres is away, and then without the flush lag.
    at: DateTime<Utc>,
    organizations: Organizations,
    /// Calls that count or check, of all instances, in the last complete minute; each item of a batch is one.
    calls_per_minute: u64,
    /// The same for each of the last 60 complete minutes, oldest first.
    #[schema(max_items = 60)]
    calls: Vec<Minute>,
    /// The age of the oldest counted call that Postgres does not have; null while Redis is away.
    #[schema(required)]
    flush_lag_seconds: Option<f64>,
    /// How long the most overdue delivery to a webhook has been due.
    webhook_lag_seconds: f64,
    /// When counts were last stored in Postgres, with a delay of some seconds; null if they never were.
    #[schema(required)]
    last_snapshot_at: Option<DateTime<Utc>>,
    /// Since when Redis does not reply to this instance; null while it does.
    #[schema(required)]
    redis_away_since: Option<DateTime<Utc>>,
    /// Since when Postgres does not reply to this instance; null while it does.
    #[schema(required)]
    postgres_away_since: Option<DateTime<Utc>>,
}

/// How many organizations there are, as last stored.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OrganizationCounts)]
pub(super) struct Organizations {
    total: u64,
    /// First counted or configured in the last 7 days.
    new_this_week: u64,
    /// On each plan that has any.
    by_plan: BTreeMap<PlanId, u64>,
    by_state: ByState,
}

/// By the state of the worst meter; each organization is in one.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = OrganizationsByState)]
struct ByState {
    /// Below every percentage of `warnAt`, and below 95 %.
    ok: u64,
    /// At the lowest percentage of `warnAt` or above, and below 95 %.
    warning: u64,
    /// At 95 % or above, and not exceeded.
    nearly_full: u64,
    /// Above a soft limit, and not denied.
    exceeded_soft: u64,
    /// At a hard limit or above: calls are denied.
    exceeded_hard: u64,
}

/// The calls of a minute.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CallMinute)]
struct Minute {
    start: DateTime<Utc>,
    calls: u64,
}

/// Get the summary
///
/// The service at a glance: its organizations by plan and by state, the calls of all instances in the last hour, and whether
/// it keeps up. Needs a key that is not bound to an organization.
#[utoipa::path(
    get,
    path = "/v1/summary",
    operation_id = "getSummary",
    tag = "Usage",
    security(("key" = ["read"])),
    responses((status = 200, description = "The summary.", body = Summary))
)]
pub(in crate::http) async fn summary(
    Shared(state): Shared<State>,
    Read(caller): Read,
    _: NoQuery,
) -> Result<Json<Summary>, Error> {
    caller.authorize_all()?;
    let summary = state.activity.summary().await?;
    let outages = state.activity.outages();
    let calls = summary.calls.iter();
    let calls = calls.map(|&(start, calls)| Minute { start, calls });
    Ok(Json(Summary {
        at: summary.at,
        organizations: organizations(&summary.organizations),
        calls_per_minute: summary.calls.last().map_or(0, |(_, calls)| *calls),
        calls: calls.collect(),
        flush_lag_seconds: summary.flush_lag.map(seconds),
        webhook_lag_seconds: seconds(summary.webhook_lag),
        last_snapshot_at: summary.last_snapshot_at,
        redis_away_since: outages.redis,
        postgres_away_since: outages.postgres,
    }))
}

pub(super) fn organizations(counted: &overview::Organizations) -> Organizations {
    let by_state = counted.by_state;
    Organizations {
        total: counted.total,
        new_this_week: counted.new_this_week,
        by_plan: counted.by_plan.clone(),
        by_state: ByState {
            ok: by_state.ok,
            warning: by_state.warning,
            nearly_full: by_state.nearly_full,
            exceeded_soft: by_state.exceeded_soft,
            exceeded_hard: by_state.exceeded_hard,
        },
    }
}

pub(super) fn seconds(lag: TimeDelta) -> f64 {
    lag.as_seconds_f64()
}
