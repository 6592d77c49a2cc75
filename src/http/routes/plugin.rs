//! The endpoints of the Better Auth usage-tracking plugin, compatible with its client.
//!
//! The same use cases with the plugin's names: its `api` is the meter `api`, and errors are `{"error": …}` with the
//! plugin's statuses. Session cookies are not accepted.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State as Shared;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses, OpenApi, ToSchema};

use crate::admin::PluginUpdate;
use crate::domain::feature::{Feature, Features};
use crate::domain::history::{Granularity, Order};
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::input::integer;
use crate::domain::input::not_null;
use crate::domain::period::{ResetMode, ResetPeriod};
use crate::domain::quantity::Count;
use crate::http::auth::{Caller, OrganizationParam, PlatformAdministrator, Read, ResetExpired};
use crate::http::extract::{Body, Query};
use crate::http::openapi::headers::with_headers;
use crate::http::problem::Error;
use crate::http::routes::usage::usage_for;
use crate::http::state::State;
use crate::usage::history::{Entry, List};

/// The response of an endpoint.
type Answer<T> = Result<Json<T>, Refusal>;

/// Whose usage to return.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct UsageQuery {
    /// The organization; by default that of the JWT.
    #[param(value_type = Option<OrganizationId>)]
    organization_id: Option<OrganizationParam>,
}

/// Whose history to return, and how many entries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct HistoryQuery {
    /// The organization; by default that of the JWT.
    #[param(value_type = Option<OrganizationId>)]
    organization_id: Option<OrganizationParam>,
    /// The maximum number of entries.
    #[serde(default)]
    #[param(value_type = u16, required = false, minimum = 1, maximum = 1000, default = 30)]
    limit: HistoryLimit,
}

/// The maximum number of entries: 1 to 1000, by default 30.
#[derive(Debug, Clone, Copy)]
struct HistoryLimit(u16);

impl Default for HistoryLimit {
    fn default() -> Self {
        Self(30)
    }
}

impl<'de> Deserialize<'de> for HistoryLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let limit = integer(deserializer, 1..=1000, "an integer from 1 to 1000")?;
        Ok(Self(u16::try_from(limit).unwrap_or_default()))
    }
}

/// The usage of an organization.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "api": {"current": 5, "limit": 1000, "resetDate": "2026-12-01T00:00:00Z"},
    "features": {"sso": true}, "planId": "free", "resetMode": "lazy", "resetPeriod": "monthly"
}))]
pub(in crate::http) struct PluginUsage {
    api: PluginMeter,
    /// Null if there are none.
    #[schema(value_type = Option<BTreeMap<String, Feature>>, required)]
    features: Option<Features>,
    plan_id: PlanId,
    reset_mode: ResetMode,
    reset_period: ResetPeriod,
}

/// The meter `api` in its running period.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct PluginMeter {
    current: Count,
    /// Null if unlimited.
    #[schema(required)]
    limit: Option<Count>,
    /// Null if the period does not end by itself.
    #[schema(required)]
    reset_date: Option<DateTime<Utc>>,
}

/// Past periods, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "history": [{
        "id": "org_123:api:1793491200000", "organizationId": "org_123", "metricType": "api", "value": 450,
        "date": "2026-12-01T00:00:00Z", "createdAt": "2026-12-01T00:00:00Z"
    }]
}))]
pub(in crate::http) struct PluginHistory {
    history: Vec<PluginEntry>,
}

/// One period that has ended or was reset.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct PluginEntry {
    /// Stable for a period.
    id: String,
    organization_id: OrganizationId,
    /// The meter.
    metric_type: MeterId,
    /// Units counted in the period.
    value: i64,
    /// When the period ended.
    date: DateTime<Utc>,
    /// Equal to `date`.
    created_at: DateTime<Utc>,
}

/// What to reset.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"organizationId": "org_123", "resetApi": true}))]
pub(in crate::http) struct PluginReset {
    #[schema(value_type = OrganizationId)]
    organization_id: OrganizationParam,
    /// False resets nothing.
    #[serde(default = "yes")]
    #[schema(default = true)]
    reset_api: bool,
}

fn yes() -> bool {
    true
}

/// What to change; absent fields stay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"organizationId": "org_123", "apiLimit": 5000, "resetMode": "lazy", "resetPeriod": "monthly"}))]
pub(in crate::http) struct PluginLimits {
    #[schema(value_type = OrganizationId)]
    organization_id: OrganizationParam,
    /// The limit of the meter `api`.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = Count)]
    api_limit: Option<Count>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = ResetMode)]
    reset_mode: Option<ResetMode>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = ResetPeriod)]
    reset_period: Option<ResetPeriod>,
}

/// An API key in the body.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"apiKey": "tm_…"}))]
pub(in crate::http) struct KeyInBody {
    #[schema(value_type = String)]
    api_key: Option<String>,
}

/// Success.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"success": true}))]
pub(in crate::http) struct PluginSuccess {
    success: bool,
}

/// The plugin's error format.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"error": "Organization not found"}))]
pub(in crate::http) struct PluginError {
    error: String,
}

/// Why an endpoint refused a request.
#[derive(Debug)]
pub(in crate::http) enum Refusal {
    /// The request names no organization, and the token has none.
    NoOrganization,
    /// A problem, as on every other endpoint.
    Problem(Error),
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Problem(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = |error: &str| {
            Json(PluginError {
                error: error.to_owned(),
            })
        };
        let error = match self {
            Self::NoOrganization => {
                return (StatusCode::BAD_REQUEST, body("No organization found")).into_response();
            }
            Self::Problem(error) => error,
        };
        let reason = error.reason();
        let (status, mut headers, problem) = error.parts();
        headers.remove(header::CONTENT_TYPE);
        let body = match status {
            StatusCode::UNAUTHORIZED => body("Unauthorized"),
            StatusCode::NOT_FOUND => body("Organization not found"),
            StatusCode::INTERNAL_SERVER_ERROR => body("Internal server error"),
            _ => body(&problem.in_a_line()),
        };
        let mut response = (status, headers, body).into_response();
        response.extensions_mut().insert(reason);
        response
    }
}

/// Registers the schema of refusals.
#[derive(OpenApi)]
#[openapi(components(schemas(PluginError)))]
pub(in crate::http) struct PluginSchemas;

/// The error responses of every endpoint here.
pub(in crate::http) struct PluginRefusals;

impl IntoResponses for PluginRefusals {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        [
            ("400", "A field is invalid, or no organization is named."),
            ("401", "Missing or invalid credentials."),
            ("403", "Insufficient permissions."),
            ("404", "Unknown organization."),
            ("413", "The body is too large."),
            ("415", "The body is not declared as JSON."),
            ("422", "The organization has too many meters."),
            ("500", "Internal error."),
            ("503", "Redis, Postgres or the auth server is unavailable."),
        ]
        .map(|(status, description)| {
            let content = Content::new(Some(Ref::from_schema_name(PluginError::name())));
            let response = ResponseBuilder::new()
                .description(description)
                .content("application/json", content);
            let response = match status {
                "401" => with_headers(response, &["WWW-Authenticate"]),
                "503" => with_headers(response, &["Retry-After"]),
                _ => response.into(),
            };
            (status.to_owned(), response)
        })
        .into()
    }
}

/// The named organization or the token's, if the caller has access to it.
fn organization(
    caller: &Caller,
    named: Option<&OrganizationParam>,
) -> Result<OrganizationId, Refusal> {
    match named {
        Some(named) => Ok(caller.authorize(named)?),
        None => caller
            .default_organization()
            .cloned()
            .ok_or(Refusal::NoOrganization),
    }
}

/// Get the usage of an organization
///
/// The meter `api` in its running period, including every answered call.
#[utoipa::path(
    get,
    path = "/get-usage",
    operation_id = "pluginGetUsage",
    tag = "Better Auth",
    security(("key" = ["read"]), ("token" = [])),
    params(UsageQuery),
    responses((status = 200, description = "The running period.", body = PluginUsage), PluginRefusals)
)]
pub(in crate::http) async fn get_usage(
    Shared(state): Shared<State>,
    caller: Result<Read, Error>,
    query: Result<Query<UsageQuery>, Error>,
) -> Answer<PluginUsage> {
    let (Read(caller), Query(query)) = (caller?, query?);
    let organization = organization(&caller, query.organization_id.as_ref())?;
    let usage = usage_for(&state, &caller, &organization).await?;
    let api = usage
        .meters
        .iter()
        .find(|it| it.meter == MeterId::default());
    let period = usage
        .policy
        .schedule
        .running(&MeterId::default(), state.ctx.clock.now());
    Ok(Json(PluginUsage {
        api: PluginMeter {
            current: api.map_or(Count::ZERO, |api| api.used),
            limit: api.and_then(|api| api.rule.limit),
            reset_date: api.map_or(period, |api| api.period).end,
        },
        features: Some(usage.policy.feature_values()).filter(|features| !features.is_empty()),
        plan_id: usage.policy.plan_id,
        reset_mode: usage.policy.schedule.mode(),
        reset_period: usage.policy.schedule.calendar().reset_period(),
    }))
}

/// Get the past usage of an organization
///
/// Periods of the meter `api` that have ended or were reset, newest first.
#[utoipa::path(
    get,
    path = "/get-usage-history",
    operation_id = "pluginGetUsageHistory",
    tag = "Better Auth",
    security(("key" = ["read"]), ("token" = [])),
    params(HistoryQuery),
    responses((status = 200, description = "The past periods.", body = PluginHistory), PluginRefusals)
)]
pub(in crate::http) async fn get_usage_history(
    Shared(state): Shared<State>,
    caller: Result<Read, Error>,
    query: Result<Query<HistoryQuery>, Error>,
) -> Answer<PluginHistory> {
    let (Read(caller), Query(query)) = (caller?, query?);
    let organization = organization(&caller, query.organization_id.as_ref())?;
    let (from, to) = state.history.range(Granularity::Period, None, None);
    let list = List {
        organizations: Some(vec![organization]),
        meter: Some(MeterId::default()),
        granularity: Granularity::Period,
        from,
        to,
        fill: false,
        order: Order::Desc,
        zone: None,
    };
    // One more, because the running period may be among them.
    let limit = usize::from(query.limit.0);
    let entries = state.history.page(&list, None, limit + 1).await?;
    let history = entries.into_iter().filter_map(past).take(limit).collect();
    Ok(Json(PluginHistory { history }))
}

fn past(entry: Entry) -> Option<PluginEntry> {
    if entry.open && !entry.row.closed {
        return None;
    }
    let (position, end) = (entry.row.position, entry.row.end?);
    let start = position.start.timestamp_millis();
    Some(PluginEntry {
        id: format!("{}:{}:{start}", position.organization, position.meter),
        organization_id: position.organization,
        metric_type: position.meter,
        value: entry.row.used,
        date: end,
        created_at: end,
    })
}

/// Reset usage
///
/// Closes the running period of the meter `api` and starts a new one at 0; `resetDate` does not change.
#[utoipa::path(
    post,
    path = "/reset",
    operation_id = "pluginReset",
    tag = "Better Auth",
    security(("key" = ["admin"]), ("token" = ["platform"])),
    request_body = PluginReset,
    responses((status = 200, description = "The usage is reset.", body = PluginSuccess), PluginRefusals)
)]
pub(in crate::http) async fn reset(
    Shared(state): Shared<State>,
    caller: Result<PlatformAdministrator, Error>,
    body: Result<Body<PluginReset>, Error>,
) -> Answer<PluginSuccess> {
    let (caller, Body(body)) = (caller?, body?);
    let organization = caller.authorize(&body.organization_id)?;
    if body.reset_api {
        let meters = Some(BTreeSet::from([MeterId::default()]));
        let actor = caller.0.actor();
        let reset = state.admin.reset(&organization, meters, None, None, &actor);
        reset.await?;
    } else {
        state.admin.organization(&organization).await?;
    }
    Ok(Json(PluginSuccess { success: true }))
}

/// Change limits
///
/// Effective for the next request on every instance. Creates an unknown organization.
/// A different `resetPeriod` removes `resetDay` and `resetMonth`.
#[utoipa::path(
    post,
    path = "/update-limits",
    operation_id = "pluginUpdateLimits",
    tag = "Better Auth",
    security(("key" = ["admin"]), ("token" = ["platform"])),
    request_body = PluginLimits,
    responses((status = 200, description = "The limits are changed.", body = PluginSuccess), PluginRefusals)
)]
pub(in crate::http) async fn update_limits(
    Shared(state): Shared<State>,
    caller: Result<PlatformAdministrator, Error>,
    body: Result<Body<PluginLimits>, Error>,
) -> Answer<PluginSuccess> {
    let (caller, Body(body)) = (caller?, body?);
    let organization = caller.authorize(&body.organization_id)?;
    let update = PluginUpdate {
        limit: body.api_limit,
        reset_mode: body.reset_mode,
        reset_period: body.reset_period,
    };
    let actor = &caller.0.actor();
    state
        .admin
        .plugin_update(&organization, update, actor)
        .await?;
    Ok(Json(PluginSuccess { success: true }))
}

/// Which organizations were reset.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"success": true, "resetCount": 1, "organizations": ["org_123"]}))]
pub(in crate::http) struct PluginExpired {
    success: bool,
    /// How many organizations were reset.
    reset_count: usize,
    /// Their ids, at most 1,000.
    organizations: Vec<OrganizationId>,
}

/// Reset expired periods
///
/// Of every organization in scheduled mode whose `resetDate` has passed. The credential is the key in the body, with the
/// scope `reset`. Safe to retry.
#[utoipa::path(
    post,
    path = "/reset-expired",
    operation_id = "pluginResetExpired",
    tag = "Better Auth",
    request_body = KeyInBody,
    responses((status = 200, description = "The organizations that were reset.", body = PluginExpired), PluginRefusals)
)]
pub(in crate::http) async fn reset_expired(
    Shared(state): Shared<State>,
    parts: Parts,
    body: Result<Body<KeyInBody>, Error>,
) -> Answer<PluginExpired> {
    let Body(KeyInBody { api_key }) = body?;
    let ResetExpired(caller) = ResetExpired::with_key(api_key.as_deref(), &parts, &state).await?;
    let expired = state.admin.reset_expired(None, &caller.actor()).await?;
    Ok(Json(PluginExpired {
        success: true,
        reset_count: expired.count,
        organizations: expired.organizations,
    }))
}
