//! The endpoints of the Better Auth usage-tracking plugin, compatible with its client.
//!
//! The same use cases with the plugin's names: its `api` is the meter `api`, and errors are `{"error": …}` with the
//! plugin's statuses. Session cookies are not accepted.

mod refusal;
mod types;

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::request::Parts;

use crate::admin::PluginUpdate;
use crate::domain::history::{Granularity, Order};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::quantity::Count;
use crate::http::auth::{Caller, OrganizationParam, PlatformAdministrator, Read, ResetExpired};
use crate::http::extract::{Body, Query};
use crate::http::problem::Error;
use crate::http::routes::history::check_range;
use crate::http::routes::usage::usage_for;
use crate::http::state::State;
use crate::usage::history::{Entry, List};
pub(super) use refusal::PluginSchemas;
use refusal::{PluginRefusals, Refusal};
use types::{
    HistoryQuery, KeyInBody, PluginEntry, PluginExpired, PluginHistory, PluginLimits, PluginMeter,
    PluginReset, PluginSuccess, PluginUsage, UsageQuery,
};

/// The response of an endpoint.
type Answer<T> = Result<Json<T>, Refusal>;

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
/// Periods of the meter `api` that have ended or were reset, newest first; with `granularity` calendar intervals, including the
/// running one.
#[utoipa::path(
    get,
    path = "/get-usage-history",
    operation_id = "pluginGetUsageHistory",
    tag = "Better Auth",
    security(("key" = ["read"]), ("token" = [])),
    params(HistoryQuery),
    responses((status = 200, description = "The past usage.", body = PluginHistory), PluginRefusals)
)]
pub(in crate::http) async fn get_usage_history(
    Shared(state): Shared<State>,
    caller: Result<Read, Error>,
    query: Result<Query<HistoryQuery>, Error>,
) -> Answer<PluginHistory> {
    let (Read(caller), Query(query)) = (caller?, query?);
    let organization = organization(&caller, query.organization_id.as_ref())?;
    check_range(query.from, query.to)?;
    let granularity = query.granularity.unwrap_or(Granularity::Period);
    let (from, to) = state.history.range(granularity, query.from, query.to);
    let list = List {
        organizations: Some(vec![organization]),
        meters: Some(vec![MeterId::default()]),
        granularity,
        from,
        to,
        fill: false,
        limits: false,
        totals: false,
        order: Order::Desc,
        zone: None,
    };
    // One more, because the running period may be among them.
    let limit = usize::from(query.limit.0);
    let entries = state.history.page(&list, None, limit + 1).await?;
    let past = entries
        .into_iter()
        .filter_map(|entry| past(entry, granularity));
    let history = past.take(limit).collect();
    Ok(Json(PluginHistory { history }))
}

/// The entry of a row; none for a running period.
fn past(entry: Entry, granularity: Granularity) -> Option<PluginEntry> {
    let position = entry.row.position;
    let (kind, date) = match granularity {
        Granularity::Period if entry.open && !entry.row.closed => return None,
        Granularity::Period => ("", entry.row.end?),
        Granularity::Month => ("month:", position.start),
        Granularity::Week => ("week:", position.start),
        Granularity::Day => ("day:", position.start),
        Granularity::Hour => ("hour:", position.start),
    };
    let start = position.start.timestamp_millis();
    Some(PluginEntry {
        id: format!("{}:{}:{kind}{start}", position.organization, position.meter),
        organization_id: position.organization,
        metric_type: position.meter,
        value: entry.row.used,
        date,
        created_at: date,
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
        enforcement: body.enforcement,
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
    caller.take_time();
    let expired = state.admin.reset_expired(None, &caller.actor()).await?;
    Ok(Json(PluginExpired {
        success: true,
        reset_count: expired.count,
        organizations: expired.organizations,
    }))
}
