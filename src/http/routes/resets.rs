//! `POST /v1/organizations/{id}/reset` and `/v1/reset-expired`.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State as Shared;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::Reset;
use crate::domain::ids::{METERS_MAX, MeterId, OrganizationId, Reason};
use crate::domain::input::not_null;
use crate::domain::quantity::Count;
use crate::http::auth::{Administrator, InOrganization, ResetExpired};
use crate::http::extract::{Body, NoQuery};
use crate::http::idempotency::{Idempotency, replayable};
use crate::http::openapi::problems::{ExpiringProblems, ResettingProblems};
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::state::State;

/// What to reset, and why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"meters": ["api"], "reason": "goodwill after the outage"}))]
pub(in crate::http) struct ResetBody {
    /// These meters; all that have a limit or a count unless said.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(min_items = 1, max_items = 32, nullable = false)]
    meters: Option<BTreeSet<MeterId>>,
    /// For the audit log.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    reason: Option<Reason>,
}

/// What was closed and what was opened.
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
}

/// What a reset did to one meter.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct MeterReset {
    /// Units counted in the period that is closed.
    previous_count: Count,
    /// When that began.
    previous_period_start: DateTime<Utc>,
    /// When the period began that runs now.
    period_start: DateTime<Utc>,
    /// When the next begins; null where the period does not end by itself.
    #[schema(required)]
    reset_date: Option<DateTime<Utc>>,
}

/// Reset
///
/// In any mode: closes the running period of each meter into history with its count, and starts a new one at 0.
/// `resetDate` does not move. No call is counted in both periods, and none in neither; events that happened before the
/// reset and come after it count in the new one.
/// A 503 may have been committed, and is then finished when Redis is back; with an `Idempotency-Key` a repetition does not
/// reset twice.
#[utoipa::path(
    post,
    path = "/v1/organizations/{id}/reset",
    operation_id = "resetOrganization",
    tag = "Organizations",
    security(("key" = ["admin"])),
    params(Path<OrganizationId>, Idempotency),
    request_body(content = ResetBody, description = "Without a body, every meter is reset."),
    responses(
        (status = 200, description = "What was closed and opened; the next request anywhere counts in the new period.",
         body = ResetResult),
        ResettingProblems,
    )
)]
pub(in crate::http) async fn reset(
    Shared(state): Shared<State>,
    InOrganization(Administrator(caller), id): InOrganization<Administrator>,
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
    let reason = reason.as_ref().map(Reason::as_str);
    let payload = format!("reset {meters:?} {reason:?}");
    let attempt = idempotency.record(id.as_str(), &payload);
    let reset = state
        .admin
        .reset(&id, meters, reason, attempt.as_ref(), &caller.actor())
        .await?;
    let replayed = reset.replayed;
    Ok(replayable(Json(ResetResult::of(id, reset)), replayed))
}

/// What was reset.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"resetCount": 2, "organizations": ["org_123", "org_456"], "truncated": false}))]
pub(in crate::http) struct ExpiredResult {
    /// How many organizations were reset.
    #[schema(minimum = 0)]
    reset_count: usize,
    /// Which ones, up to 1,000.
    #[schema(max_items = 1000)]
    organizations: Vec<OrganizationId>,
    /// Whether there are more.
    truncated: bool,
}

/// Reset what is over
///
/// Every organization in scheduled mode whose `resetDate` has come: its period is ended and the next opened, counted or
/// not. The scheduler of any instance does the same within two seconds, unless `TALLYMAN_SCHEDULER` is off; calling it
/// twice, or at several places at once, is harmless.
#[utoipa::path(
    post,
    path = "/v1/reset-expired",
    operation_id = "resetExpired",
    tag = "Organizations",
    security(("key" = ["reset"])),
    params(Idempotency),
    responses(
        (status = 200, description = "What was reset.", body = ExpiredResult),
        ExpiringProblems,
    )
)]
pub(in crate::http) async fn reset_expired(
    Shared(state): Shared<State>,
    ResetExpired(caller): ResetExpired,
    idempotency: Idempotency,
    _: NoQuery,
) -> Result<Response, Error> {
    let actor = caller.actor();
    let attempt = idempotency.record(&actor.name, "reset-expired");
    let expired = state.admin.reset_expired(attempt.as_ref(), &actor).await?;
    let result = ExpiredResult {
        reset_count: expired.count,
        truncated: expired.count > expired.organizations.len(),
        organizations: expired.organizations,
    };
    Ok(replayable(Json(result), expired.replayed))
}

impl ResetResult {
    fn of(organization_id: OrganizationId, reset: Reset) -> Self {
        let meters = reset.meters.into_iter().map(|(meter, it)| {
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
        }
    }
}
