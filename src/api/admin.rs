//! `PUT` and `GET /v1/organizations/{id}`, `PATCH /v1/organizations/{id}/limits`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Shared;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Serialize;
use serde_json::{Map, Value};

use super::extract::{Administrator, Body, NoQuery, OrganizationPath};
use super::problem::Error;
use crate::admin::LimitChanges;
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::period::{ResetMode, ResetPeriod};
use crate::domain::policy::{Features, MeterLimit, OrganizationSettings, Policy};
use crate::state::State;
use crate::store::organizations::Sources;

/// An organization's settings in force, and its limits.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::struct_field_names,
    reason = "the fields are the names in the JSON"
)]
pub(super) struct Organization {
    organization_id: OrganizationId,
    plan_id: PlanId,
    features: Features,
    reset_mode: ResetMode,
    reset_period: ResetPeriod,
    reset_day: Option<u8>,
    reset_month: Option<u8>,
    anchor: Option<DateTime<Utc>>,
    time_zone: Tz,
    metadata: Map<String, Value>,
    limits: BTreeMap<MeterId, MeterLimit>,
    version: u64,
}

impl Organization {
    fn of(organization_id: OrganizationId, sources: &Sources) -> Self {
        let policy = sources.resolve();
        let calendar = &policy.schedule.calendar;
        let metadata = sources
            .organization
            .as_ref()
            .map(|it| it.settings.metadata.clone());
        Self {
            organization_id,
            reset_mode: policy.schedule.mode,
            reset_period: calendar.reset_period(),
            reset_day: calendar.reset_day(),
            reset_month: calendar.reset_month(),
            anchor: calendar.anchor(),
            time_zone: calendar.time_zone(),
            metadata: metadata.unwrap_or_default(),
            version: policy.version,
            plan_id: policy.plan_id,
            features: policy.features,
            limits: policy.limits,
        }
    }
}

/// The limits in force; a meter that is not named is counted without limit.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::struct_field_names,
    reason = "the fields are the names in the JSON"
)]
pub(super) struct Limits {
    organization_id: OrganizationId,
    limits: BTreeMap<MeterId, MeterLimit>,
    version: u64,
}

impl Limits {
    pub(super) fn of(organization_id: OrganizationId, policy: Policy) -> Self {
        Self {
            organization_id,
            limits: policy.limits,
            version: policy.version,
        }
    }
}

/// The settings of an organization.
pub(super) async fn get_organization(
    Shared(state): Shared<State>,
    Administrator(caller, _): Administrator,
    OrganizationPath(named): OrganizationPath,
    _: NoQuery,
) -> Result<Json<Organization>, Error> {
    let id = caller.reach(&named)?;
    let sources = state.admin.organization(&id).await?;
    Ok(Json(Organization::of(id, &sources)))
}

/// Replaces the settings of an organization, limits aside.
pub(super) async fn put_organization(
    Shared(state): Shared<State>,
    Administrator(caller, actor): Administrator,
    OrganizationPath(named): OrganizationPath,
    _: NoQuery,
    Body(settings): Body<OrganizationSettings>,
) -> Result<Json<Organization>, Error> {
    let id = caller.reach(&named)?;
    let sources = state.admin.put_organization(&id, settings, &actor).await?;
    Ok(Json(Organization::of(id, &sources)))
}

/// Changes the limits that the body names.
pub(super) async fn patch_limits(
    Shared(state): Shared<State>,
    Administrator(caller, actor): Administrator,
    OrganizationPath(named): OrganizationPath,
    _: NoQuery,
    Body(changes): Body<LimitChanges>,
) -> Result<Json<Limits>, Error> {
    let id = caller.reach(&named)?;
    let sources = state.admin.patch_limits(&id, changes, &actor).await?;
    Ok(Json(Limits::of(id, sources.resolve())))
}
