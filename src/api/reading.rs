//! `GET /v1/organizations/{id}/usage`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Shared;
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::extract::{NoQuery, OrganizationPath, Read};
use super::problem::Error;
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::period::{ResetMode, ResetPeriod};
use crate::domain::policy::{Enforcement, Features};
use crate::domain::quantity::Count;
use crate::metering::MeterUsage;
use crate::state::State;

/// What an organization has used in its running periods.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Usage {
    organization_id: OrganizationId,
    plan_id: PlanId,
    features: Features,
    reset_mode: ResetMode,
    reset_period: ResetPeriod,
    meters: BTreeMap<MeterId, Meter>,
    /// False where Redis is away and this is the last snapshot.
    exact: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meter {
    current: Count,
    limit: Option<Count>,
    remaining: Option<Count>,
    overage: Count,
    percentage: Option<f64>,
    enforcement: Enforcement,
    period_start: DateTime<Utc>,
    reset_date: Option<DateTime<Utc>>,
}

/// The usage of one organization, exact now.
pub(super) async fn usage(
    Shared(state): Shared<State>,
    Read(caller): Read,
    OrganizationPath(named): OrganizationPath,
    _: NoQuery,
) -> Result<Json<Usage>, Error> {
    let organization = caller.reach(&named)?;
    let found = state.metering.usage(&organization).await?;
    let usage = found.ok_or(Error::NotFound("there is no such organization"))?;
    Ok(Json(Usage {
        organization_id: organization,
        plan_id: usage.policy.plan_id,
        features: usage.policy.features,
        reset_mode: usage.policy.schedule.mode,
        reset_period: usage.policy.schedule.calendar.reset_period(),
        meters: usage
            .meters
            .iter()
            .map(|it| (it.meter.clone(), meter(it)))
            .collect(),
        exact: usage.exact,
    }))
}

pub(super) fn meter(usage: &MeterUsage) -> Meter {
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

/// Used of limit in per cent, to two decimals; none where there is no limit, or nothing is included.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts stay below 2^53, where doubles are exact"
)]
pub(super) fn percentage(usage: &MeterUsage) -> Option<f64> {
    let limit = usage.rule.limit.filter(|limit| *limit > Count::ZERO)?;
    let share = usage.used.get() as f64 / limit.get() as f64;
    Some((share * 10_000.0).round() / 100.0)
}
