//! `GET /v1/verify`: compares the counters in Redis with Postgres.

use axum::Json;
use axum::extract::State as Shared;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::verification::{Mismatch, Totals};
use crate::http::auth::{Administrator, OrganizationParam};
use crate::http::extract::Query;
use crate::http::list::PageSize;
use crate::http::openapi::problems::NeedsCounterStore;
use crate::http::problem::Error;
use crate::http::state::State;
use crate::usage::verify::Difference;

/// What to compare.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct VerifyQuery {
    /// Only this organization; by default all.
    #[param(value_type = Option<OrganizationId>)]
    organization_id: Option<OrganizationParam>,
    /// The number of organizations, not of differences.
    #[serde(default)]
    #[param(inline)]
    page_size: PageSize,
    /// The `nextCursor` of the previous page.
    #[param(value_type = Option<String>)]
    cursor: Option<OrganizationId>,
}

/// The differences of a page of organizations.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "data": [{
        "organizationId": "org_123", "meter": "api", "periodStart": "2026-11-01T00:00:00Z", "mismatch": "hours",
        "expected": {"used": 501, "denied": 2, "refunded": 0}, "found": {"used": 500, "denied": 2, "refunded": 0}
    }],
    "organizations": 100, "counters": 117, "nextCursor": null
}))]
pub(in crate::http) struct Verification {
    data: Vec<CounterDifference>,
    /// How many organizations were compared.
    organizations: usize,
    /// How many counters were compared.
    counters: usize,
    /// Null on the last page.
    #[schema(required)]
    next_cursor: Option<OrganizationId>,
}

/// One difference of one counter.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct CounterDifference {
    organization_id: OrganizationId,
    meter: MeterId,
    period_start: DateTime<Utc>,
    mismatch: Mismatch,
    /// The totals in Redis, or for `storedHours` in the snapshot.
    expected: Totals,
    /// The totals in Postgres, or for `hours` and `storedHours` of the hours.
    found: Totals,
}

impl From<Difference> for CounterDifference {
    fn from(it: Difference) -> Self {
        Self {
            organization_id: it.counter.organization,
            meter: it.counter.meter,
            period_start: it.counter.start,
            mismatch: it.mismatch,
            expected: it.expected,
            found: it.found,
        }
    }
}

/// Verify counters
///
/// Compares running and recently ended counters in Redis with Postgres and with their hours. Changes nothing, and is correct
/// under concurrent calls: a count that is not stored yet is no difference.
#[utoipa::path(
    get,
    path = "/v1/verify",
    operation_id = "verify",
    tag = "Organizations",
    security(("key" = ["admin"])),
    params(VerifyQuery),
    responses(
        (status = 200, description = "The differences; none if everything agrees.", body = Verification),
        NeedsCounterStore,
    )
)]
pub(in crate::http) async fn verify(
    Shared(state): Shared<State>,
    Administrator(caller): Administrator,
    Query(query): Query<VerifyQuery>,
) -> Result<Json<Verification>, Error> {
    let named = query.organization_id.as_ref();
    let (organizations, next_cursor) = if let Some(organization) = caller.authorize_filter(named)? {
        if !state.verifier.exists(&organization).await? {
            return Err(Error::NotFound("there is no such organization"));
        }
        (vec![organization], None)
    } else {
        let count = query.page_size.get();
        let after = query.cursor.as_ref();
        let page = state.verifier.organizations_after(after, count).await?;
        let full = page.len() >= usize::try_from(count).unwrap_or(usize::MAX);
        let last = page.last().filter(|_| full).cloned();
        (page, last)
    };
    let report = state.verifier.verify(&organizations).await?;
    Ok(Json(Verification {
        data: report
            .differences
            .into_iter()
            .map(CounterDifference::from)
            .collect(),
        organizations: organizations.len(),
        counters: report.counters,
        next_cursor,
    }))
}
