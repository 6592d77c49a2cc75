//! `GET /v1/organizations/{id}/usage`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Shared;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::feature::{Feature, Features};
use crate::domain::ids::{MeterId, MeterLabel, MeterUnit, OrganizationId, PlanId};
use crate::domain::limit::Enforcement;
use crate::domain::period::{ResetMode, ResetPeriod};
use crate::domain::policy::Policy;
use crate::domain::quantity::Count;
use crate::domain::summary::hundredths;
use crate::http::auth::{Caller, InOrganization, Read};
use crate::http::extract::Query;
use crate::http::openapi::problems::MayBeOverloaded;
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::routes::projections::Projected;
use crate::http::state::State;
use crate::postgres;
use crate::usage::{MeterUsage, OrganizationUsage};

/// The usage of an organization in its running periods.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "organizationId": "org_123", "planId": "free", "features": {}, "resetMode": "lazy", "resetPeriod": "monthly",
    "timeZone": "UTC",
    "meters": {"api": {
        "current": 5, "limit": 1000, "remaining": 995, "overage": 0, "percentage": 0.5, "enforcement": "hard",
        "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z", "label": "API", "unit": "calls",
        "denied": 0, "fallback": null
    }},
    "exact": true, "snapshotAt": null
}))]
pub(in crate::http) struct Usage {
    organization_id: OrganizationId,
    plan_id: PlanId,
    #[schema(value_type = BTreeMap<String, Feature>)]
    features: Features,
    reset_mode: ResetMode,
    reset_period: ResetPeriod,
    /// Where the wall clock of its periods is.
    #[schema(value_type = String)]
    time_zone: Tz,
    /// Every meter with a limit or a count.
    meters: BTreeMap<MeterId, UsedMeter>,
    /// Whether the counts include every answered call; false while Redis is down and these are the last snapshots.
    exact: bool,
    /// Where `exact` is false, when the newest of the counts was stored; else null.
    #[schema(required)]
    snapshot_at: Option<DateTime<Utc>>,
}

/// The query of a usage.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct UsageQuery {
    /// Whether to add `projected` to each meter, which reads the history of the last 7 days.
    #[serde(default)]
    projected: bool,
}

/// One meter in its running period, with what the period has denied.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct UsedMeter {
    #[serde(flatten)]
    usage: Meter,
    /// What people call the meter; null if neither the organization nor its plan says so.
    #[schema(required)]
    label: Option<MeterLabel>,
    /// What one unit is, in the plural; null like `label`.
    #[schema(required)]
    unit: Option<MeterUnit>,
    /// Calls denied in the running period.
    denied: u64,
    /// While a temporary limit applies, what follows it; else null.
    #[schema(required)]
    fallback: Option<Fallback>,
    /// Only with `projected=true`; null where the history is too short, or away.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Projected>, required = false)]
    projected: Option<Expectation>,
}

/// A projection, or null.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Expectation(Option<Projected>);

/// The limit below a temporary one.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Fallback {
    /// When the temporary limit ends.
    at: DateTime<Utc>,
    /// The limit from then on; null if unlimited.
    #[schema(required)]
    limit: Option<Count>,
}

/// One meter in its running period.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct Meter {
    /// The count of the running period.
    current: Count,
    /// The limit of a period; null if unlimited.
    #[schema(required)]
    limit: Option<Count>,
    /// `limit - current`, at least 0; null if unlimited.
    #[schema(required)]
    remaining: Option<Count>,
    /// `current - limit`, at least 0.
    overage: Count,
    /// `current` in per cent of `limit`, rounded down to two decimals; null if the limit is null or 0.
    #[schema(required)]
    percentage: Option<f64>,
    enforcement: Enforcement,
    /// Start of the running period.
    period_start: DateTime<Utc>,
    /// Start of the next period; null if the period does not end by itself.
    #[schema(required)]
    reset_date: Option<DateTime<Utc>>,
}

/// Get the usage of an organization
///
/// Exact, without waiting for a flush. An unknown organization is 404.
#[utoipa::path(
    get,
    path = "/v1/organizations/{id}/usage",
    operation_id = "getUsage",
    tag = "Usage",
    security(("key" = ["read"]), ("token" = [])),
    params(Path<OrganizationId>, UsageQuery),
    responses((status = 200, description = "The running periods.", body = Usage), MayBeOverloaded)
)]
pub(in crate::http) async fn usage(
    Shared(state): Shared<State>,
    InOrganization(Read(caller), organization): InOrganization<Read>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<Usage>, Error> {
    let usage = usage_for(&state, &caller, &organization).await?;
    let mut projections = if query.projected {
        match state.usage.projections(&organization, &usage).await {
            Err(postgres::Error::Unavailable(_)) => Some(BTreeMap::new()),
            projections => Some(projections?),
        }
    } else {
        None
    };
    let mut projected = |meter: &MeterId| {
        let projections = projections.as_mut()?;
        Some(Expectation(projections.remove(meter).map(Projected::from)))
    };
    Ok(Json(Usage {
        organization_id: organization,
        features: usage.policy.feature_values(),
        snapshot_at: usage.snapshot_at,
        meters: usage
            .meters
            .iter()
            .map(|it| {
                let projected = projected(&it.meter);
                (it.meter.clone(), used(it, &usage.policy, projected))
            })
            .collect(),
        plan_id: usage.policy.plan_id,
        reset_mode: usage.policy.schedule.mode(),
        reset_period: usage.policy.schedule.calendar().reset_period(),
        time_zone: usage.policy.schedule.calendar().time_zone(),
        exact: usage.exact,
    }))
}

/// The usage of an organization. A token's organization exists even if it was never counted.
pub(in crate::http) async fn usage_for(
    state: &State,
    caller: &Caller,
    organization: &OrganizationId,
) -> Result<OrganizationUsage, Error> {
    match state.usage.usage(organization).await? {
        Some(usage) => Ok(usage),
        None if caller.trusts_existence() => Ok(state.usage.usage_of_unknown(organization).await?),
        None => Err(Error::NotFound("there is no such organization")),
    }
}

fn used(usage: &MeterUsage, policy: &Policy, projected: Option<Expectation>) -> UsedMeter {
    let until = policy.limits.get(&usage.meter).and_then(|it| it.until);
    let display = policy.meters.get(&usage.meter).cloned().unwrap_or_default();
    UsedMeter {
        label: display.label,
        unit: display.unit,
        denied: usage.denied,
        fallback: until.map(|at| Fallback {
            at,
            limit: policy.rule_at(&usage.meter, at).limit,
        }),
        projected,
        usage: meter(usage),
    }
}

pub(in crate::http) fn meter(usage: &MeterUsage) -> Meter {
    Meter {
        current: usage.used,
        limit: usage.rule.limit,
        remaining: usage.remaining(),
        overage: usage.overage(),
        percentage: percentage(usage),
        enforcement: usage.rule.enforcement,
        period_start: usage.period.start,
        reset_date: usage.period.end,
    }
}

/// Used of limit in per cent, to two decimals; none if the limit is 0 or missing.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 hundredths")]
pub(in crate::http) fn percentage(usage: &MeterUsage) -> Option<f64> {
    hundredths(usage.used, usage.rule.limit?).map(|share| share as f64 / 100.0)
}
