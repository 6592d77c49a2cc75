//! `POST /v1/organizations/{id}/adjust`.

use axum::Json;
use axum::extract::State as Shared;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::Adjustment;
use crate::domain::ids::{MeterId, OrganizationId, Reason};
use crate::domain::quantity::{Correction, Count};
use crate::http::auth::{Administrator, InOrganization};
use crate::http::extract::Body;
use crate::http::idempotency::{Idempotency, replayable};
use crate::http::openapi::problems::AdjustingProblems;
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::state::State;
use crate::postgres::adjustments::AdjustmentRequest;

/// What to adjust, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"meter": "api", "amount": -100, "reason": "calls that failed on our side"}))]
pub(in crate::http) struct AdjustBody {
    /// `api` by default.
    #[serde(default)]
    meter: MeterId,
    /// Units to add, or to subtract if negative.
    amount: Correction,
    /// For the audit log.
    reason: Reason,
}

/// The result of an adjustment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "organizationId": "org_123", "meter": "api", "amount": -100, "applied": -100, "current": 401, "limit": 1000,
    "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z"
}))]
pub(in crate::http) struct AdjustResult {
    organization_id: OrganizationId,
    meter: MeterId,
    /// As requested.
    amount: i64,
    /// The change of the count; smaller than the amount if the count stopped at 0.
    applied: i64,
    /// The count right afterwards.
    current: Count,
    /// The limit; null if unlimited.
    #[schema(required)]
    limit: Option<Count>,
    /// Start of the adjusted period.
    period_start: DateTime<Utc>,
    /// Start of the next period; null if the period does not end by itself.
    #[schema(required)]
    reset_date: Option<DateTime<Utc>>,
}

/// Adjust a count
///
/// Adds units to the running count of a meter, or subtracts them. The count stops at 0 and may exceed the limit. History
/// shows adjustments separately, as `adjusted`. A 503 may have been committed and is then finished once Redis is up; with an
/// `Idempotency-Key` a retry does not adjust twice.
#[utoipa::path(
    post,
    path = "/v1/organizations/{id}/adjust",
    operation_id = "adjustOrganization",
    tag = "Organizations",
    security(("key" = ["admin"])),
    params(Path<OrganizationId>, Idempotency),
    request_body = AdjustBody,
    responses(
        (status = 200, description = "The adjustment, stored.", body = AdjustResult),
        AdjustingProblems,
    )
)]
pub(in crate::http) async fn adjust(
    Shared(state): Shared<State>,
    InOrganization(Administrator(caller), organization): InOrganization<Administrator>,
    idempotency: Idempotency,
    Body(body): Body<AdjustBody>,
) -> Result<Response, Error> {
    let AdjustBody {
        meter,
        amount,
        reason,
    } = body;
    let payload = format!("adjust {meter} {} {:?}", amount.get(), reason.as_str());
    let record = idempotency.record(organization.as_str(), &payload);
    let request = AdjustmentRequest {
        organization: &organization,
        meter: &meter,
        amount: amount.get(),
        reason: reason.as_str(),
        idempotency: record.as_ref(),
    };
    let Adjustment { replayed, finished } = state.admin.adjust(&request, &caller.actor()).await?;
    let result = AdjustResult {
        organization_id: organization,
        meter: finished.meter,
        amount: finished.amount,
        applied: finished.applied,
        current: finished.used,
        limit: finished.limit,
        period_start: finished.period.start,
        reset_date: finished.period.end,
    };
    Ok(replayable(Json(result), replayed))
}
