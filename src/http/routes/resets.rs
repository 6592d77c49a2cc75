//! `POST /v1/organizations/{id}/reset` and `/v1/reset-expired`.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin;
use crate::domain::ids::{METERS_MAX, MeterId, OrganizationId, Reason};
use crate::domain::input::not_null;
use crate::domain::quantity::Count;
use crate::http::auth::{Administrator, InOrganization, ResetExpired};
use crate::http::dry_run::{DryRun, Reach};
use crate::http::extract::{Body, NoQuery, Query};
use crate::http::idempotency::{Idempotency, replayable};
use crate::http::openapi::problems::{ExpiringProblems, ResettingProblems};
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::state::State;
use crate::postgres::Actor;

/// What to reset, and why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"meters": ["api"], "reason": "goodwill after the outage"}))]
pub(in crate::http) struct ResetBody {
    /// The meters to reset; by default all with a limit or a count.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(min_items = 1, max_items = 32, nullable = false)]
    meters: Option<BTreeSet<MeterId>>,
    /// For the audit log.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    reason: Option<Reason>,
}

/// The closed and the new periods.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "organizationId": "org_123",
    "meters": {"api": {
        "previousCount": 501, "previousPeriodStart": "2026-11-01T00:00:00Z",
        "periodStart": "2026-11-22T10:15:30.250Z", "resetDate": "2026-12-01T00:00:00Z"
    }}
}))]
pub(in crate::http) struct ResetResult {
    organization_id: OrganizationId,
    /// Each meter that was reset.
    meters: BTreeMap<MeterId, MeterReset>,
    /// Only in a dry run: what the reset would reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    dry_run: Option<Reach>,
}

/// What a reset did to one meter.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct MeterReset {
    /// The count of the closed period.
    previous_count: Count,
    /// Start of the closed period.
    previous_period_start: DateTime<Utc>,
    /// Start of the new period.
    period_start: DateTime<Utc>,
    /// Start of the next period; null if the period does not end by itself.
    #[schema(required)]
    reset_date: Option<DateTime<Utc>>,
}

/// Reset usage
///
/// In any mode: closes the running period of each meter with its count and starts a new one at 0. `resetDate` does not
/// change. Each call is counted in exactly one of the two periods; late events from before the reset count in the new one.
/// A 503 may have been committed and is then finished once Redis is up; with an `Idempotency-Key` a retry does not reset
/// twice. With `dryRun=true` nothing is changed: the response has the meters and counts of a reset at this moment, and in
/// `dryRun` how many deliveries to webhooks it would cause.
#[utoipa::path(
    post,
    path = "/v1/organizations/{id}/reset",
    operation_id = "resetOrganization",
    tag = "Organizations",
    security(("key" = ["admin"])),
    params(Path<OrganizationId>, DryRun, Idempotency),
    request_body(content = ResetBody, description = "Without a body, every meter is reset."),
    responses(
        (status = 200, description = "The closed and the new periods; the next request on every instance counts in the new one.",
         body = ResetResult),
        ResettingProblems,
    )
)]
pub(in crate::http) async fn reset(
    Shared(state): Shared<State>,
    InOrganization(Administrator(caller), id): InOrganization<Administrator>,
    Query(query): Query<DryRun>,
    idempotency: Idempotency,
    body: Option<Body<ResetBody>>,
) -> Result<Response, Error> {
    let ResetBody { meters, reason } = body.map(|Body(body)| body).unwrap_or_default();
    let named = meters.as_ref().map(BTreeSet::len);
    if let Some(named) = named.filter(|named| !(1..=METERS_MAX).contains(named)) {
        return Err(Error::InvalidField {
            pointer: "/meters".to_owned(),
            detail: format!(
                "must be an array of 1 to {METERS_MAX} meters, or be left out; got {named}"
            ),
        });
    }
    if query.dry_run {
        let result = preview(&state, id, meters.as_ref(), &caller.actor()).await?;
        return Ok(Json(result).into_response());
    }
    let reason = reason.as_ref().map(Reason::as_str);
    let payload = format!("reset {meters:?} {reason:?}");
    let record = idempotency.record(id.as_str(), &payload);
    let reset = state
        .admin
        .reset(&id, meters, reason, record.as_ref(), &caller.actor())
        .await?;
    let replayed = reset.replayed;
    Ok(replayable(
        Json(ResetResult::of(id, reset.meters)),
        replayed,
    ))
}

async fn preview(
    state: &State,
    id: OrganizationId,
    meters: Option<&BTreeSet<MeterId>>,
    actor: &Actor,
) -> Result<ResetResult, Error> {
    let usage = state.usage.usage(&id).await?;
    let usage = usage.ok_or(Error::NotFound("there is no such organization"))?;
    if !usage.exact {
        return Err(Error::CounterStoreUnavailable);
    }
    let preview = state.admin.preview_reset(&id, meters, &usage, actor);
    let preview = preview.await?;
    let reach = Reach {
        organizations: 1,
        webhook_deliveries: preview.webhook_deliveries,
    };
    Ok(ResetResult {
        dry_run: Some(reach),
        ..ResetResult::of(id, preview.meters)
    })
}

/// Which organizations were reset.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"resetCount": 2, "organizations": ["org_123", "org_456"], "truncated": false}))]
pub(in crate::http) struct ExpiredResult {
    /// How many organizations were reset.
    #[schema(minimum = 0)]
    reset_count: usize,
    /// Their ids, at most 1,000.
    #[schema(max_items = 1000)]
    organizations: Vec<OrganizationId>,
    /// Whether more than the listed ones were reset.
    truncated: bool,
}

/// Reset expired periods
///
/// Of every organization in scheduled mode whose `resetDate` has passed: ends its period and opens the next. Every instance
/// does this within two seconds unless `TALLYMAN_SCHEDULER` is off. Retries and concurrent calls are safe.
#[utoipa::path(
    post,
    path = "/v1/reset-expired",
    operation_id = "resetExpired",
    tag = "Organizations",
    security(("key" = ["reset"])),
    params(Idempotency),
    responses(
        (status = 200, description = "The organizations that were reset.", body = ExpiredResult),
        ExpiringProblems,
    )
)]
pub(in crate::http) async fn reset_expired(
    Shared(state): Shared<State>,
    ResetExpired(caller): ResetExpired,
    idempotency: Idempotency,
    _: NoQuery,
) -> Result<Response, Error> {
    caller.take_time();
    let actor = caller.actor();
    let record = idempotency.record(&actor.name, "reset-expired");
    let expired = state.admin.reset_expired(record.as_ref(), &actor).await?;
    let result = ExpiredResult {
        reset_count: expired.count,
        truncated: expired.count > expired.organizations.len(),
        organizations: expired.organizations,
    };
    Ok(replayable(Json(result), expired.replayed))
}

impl ResetResult {
    fn of(organization_id: OrganizationId, meters: BTreeMap<MeterId, admin::MeterReset>) -> Self {
        let meters = meters.into_iter().map(|(meter, it)| {
            let result = MeterReset {
                previous_count: it.previous_count,
                previous_period_start: it.previous_start,
                period_start: it.period.start,
                reset_date: it.period.end,
            };
            (meter, result)
        });
        Self {
            organization_id,
            meters: meters.collect(),
            dry_run: None,
        }
    }
}
