//! `GET`, `PUT`, `PATCH` and `DELETE /v1/organizations/{id}`, `PATCH /v1/organizations/{id}/limits`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Shared;
use axum::response::Response;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::domain::display::MeterDisplay;
use crate::domain::feature::{Feature, Features};
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::limit::MeterLimit;
use crate::domain::organization::OrganizationSettings;
use crate::domain::patch::OrganizationPatch;
use crate::domain::period::{ResetMode, ResetPeriod};
use crate::domain::policy::Policy;
use crate::http::auth::{Administrator, InOrganization, Provision, PutOrganization};
use crate::http::etag::{Conditions, Tagged};
use crate::http::extract::{Body, NoQuery};
use crate::http::openapi::problems::NeedsCounterStore;
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::routes::patches::{LimitChange, LimitPatch, SettingsPatch};
use crate::http::state::State;
use crate::postgres::organizations::Sources;

/// The effective settings and limits of an organization.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "organizationId": "org_123", "planId": "free", "features": {"sso": true}, "resetMode": "lazy",
    "resetPeriod": "monthly", "resetDay": 15, "resetMonth": null, "anchor": null, "timeZone": "Europe/Berlin",
    "metadata": {"stripeCustomer": "cus_1"},
    "limits": {"api": {"limit": 1000, "enforcement": "hard", "warnAt": [80, 100], "source": "default"}},
    "meters": {"api": {"label": "API", "unit": "calls"}}, "version": 3
}))]
#[expect(
    clippy::struct_field_names,
    reason = "the fields are the names in the JSON"
)]
pub(in crate::http) struct Organization {
    organization_id: OrganizationId,
    plan_id: PlanId,
    #[schema(value_type = BTreeMap<String, Feature>)]
    features: Features,
    reset_mode: ResetMode,
    reset_period: ResetPeriod,
    #[schema(required)]
    reset_day: Option<u8>,
    #[schema(required)]
    reset_month: Option<u8>,
    #[schema(required)]
    anchor: Option<DateTime<Utc>>,
    #[schema(value_type = String)]
    time_zone: Tz,
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    limits: BTreeMap<MeterId, MeterLimit>,
    /// How meters are shown, by meter.
    meters: BTreeMap<MeterId, MeterDisplay>,
    /// Increases with every change of the organization, its plan or the defaults.
    version: u64,
}

impl Organization {
    fn of(organization_id: OrganizationId, sources: &Sources, now: DateTime<Utc>) -> Tagged<Self> {
        let policy = sources.resolve(now);
        let calendar = policy.schedule.calendar();
        let metadata = sources
            .organization
            .as_ref()
            .map(|it| it.settings.metadata.clone());
        let state = Self {
            organization_id,
            reset_mode: policy.schedule.mode(),
            reset_period: calendar.reset_period(),
            reset_day: calendar.reset_day(),
            reset_month: calendar.reset_month(),
            anchor: calendar.anchor(),
            time_zone: calendar.time_zone(),
            metadata: metadata.unwrap_or_default(),
            version: policy.version,
            features: policy.feature_values(),
            plan_id: policy.plan_id,
            limits: policy.limits,
            meters: policy.meters,
        };
        Tagged {
            version: state.version,
            state,
        }
    }
}

/// The effective limits; meters that are not listed are unlimited.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "organizationId": "org_123",
    "limits": {
        "api": {"limit": 1000, "enforcement": "hard", "warnAt": [80, 100], "source": "default"},
        "tokens": {"limit": 1500, "enforcement": "hard", "warnAt": [80, 100], "source": "organization"}
    },
    "meters": {"tokens": {"unit": "tokens"}}, "version": 2
}))]
#[expect(
    clippy::struct_field_names,
    reason = "the fields are the names in the JSON"
)]
pub(in crate::http) struct Limits {
    organization_id: OrganizationId,
    limits: BTreeMap<MeterId, MeterLimit>,
    /// How meters are shown, by meter.
    meters: BTreeMap<MeterId, MeterDisplay>,
    /// Increases with every change of the organization, its plan or the defaults.
    version: u64,
}

impl Limits {
    pub(in crate::http) fn of(organization_id: OrganizationId, policy: Policy) -> Tagged<Self> {
        Tagged {
            version: policy.version,
            state: Self {
                organization_id,
                limits: policy.limits,
                meters: policy.meters,
                version: policy.version,
            },
        }
    }
}

/// Get an organization
///
/// The effective settings. An unknown organization is 404.
#[utoipa::path(
    get,
    path = "/v1/organizations/{id}",
    operation_id = "getOrganization",
    tag = "Organizations",
    security(("key" = ["provision"])),
    params(Path<OrganizationId>, Conditions),
    responses(
        (status = 200, description = "The settings and limits.", body = Organization),
        (status = 304, description = "The client already has this version."),
        NeedsCounterStore,
    )
)]
pub(in crate::http) async fn get_organization(
    Shared(state): Shared<State>,
    InOrganization(_, id): InOrganization<Provision>,
    _: NoQuery,
    Conditions(conditions): Conditions,
) -> Result<Response, Error> {
    let sources = state.admin.organization(&id).await?;
    Organization::of(id, &sources, state.ctx.clock.now()).unless_known(&conditions)
}

/// Create an organization or replace its settings
///
/// All settings; absent ones come from the plan or the defaults. The plan must exist. A setting that contradicts the others
/// is 400. `limits` replaces the organization's own limits, in the same step; without it they stay, and so do temporary
/// limits in any case. With `If-None-Match: *` only an organization that does not exist is created, for which the scope
/// `provision` suffices; a 412 then means that it exists and that its settings and limits are effective. A change of the
/// calendar keeps `periodStart` and the count, and ends the running period at the new calendar's next boundary. A 503 may have
/// been committed and is then applied once Redis is up; retrying is safe.
#[utoipa::path(
    put,
    path = "/v1/organizations/{id}",
    operation_id = "putOrganization",
    tag = "Organizations",
    security(("key" = ["admin"])),
    params(Path<OrganizationId>, Conditions),
    request_body = OrganizationSettings,
    responses(
        (status = 200, description = "The settings and limits, effective for the next request.", body = Organization),
        NeedsCounterStore,
    )
)]
pub(in crate::http) async fn put_organization(
    Shared(state): Shared<State>,
    InOrganization(PutOrganization(caller), id): InOrganization<PutOrganization>,
    Conditions(conditions): Conditions,
    Body(settings): Body<OrganizationSettings>,
) -> Result<Tagged<Organization>, Error> {
    let admin = &state.admin;
    let sources = admin
        .put_organization(&id, settings, &conditions, &caller.actor())
        .await?;
    Ok(Organization::of(id, &sources, state.ctx.clock.now()))
}

/// Change settings
///
/// A merge patch (RFC 7386) of a known organization: `null` restores the plan's or the service's default; features and
/// metadata are merged by name. All changes are applied or none. Everything else is as for PUT.
#[utoipa::path(
    patch,
    path = "/v1/organizations/{id}",
    operation_id = "patchOrganization",
    tag = "Organizations",
    security(("key" = ["admin"])),
    params(Path<OrganizationId>, Conditions),
    request_body = SettingsPatch,
    responses(
        (status = 200, description = "The settings and limits, effective for the next request.", body = Organization),
        NeedsCounterStore,
    )
)]
pub(in crate::http) async fn patch_organization(
    Shared(state): Shared<State>,
    InOrganization(Administrator(caller), id): InOrganization<Administrator>,
    Conditions(conditions): Conditions,
    Body(patch): Body<OrganizationPatch>,
) -> Result<Tagged<Organization>, Error> {
    let admin = &state.admin;
    let sources = admin
        .patch_organization(&id, patch, &conditions, &caller.actor())
        .await?;
    Ok(Organization::of(id, &sources, state.ctx.clock.now()))
}

/// The result of a deletion.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "organizationId": "org_123", "deleted": true, "counters": 2, "historyRows": 1480, "apiKeysRevoked": 1, "background": false
}))]
pub(in crate::http) struct DeletionReport {
    organization_id: OrganizationId,
    /// Always true; an unknown organization is 404.
    deleted: bool,
    /// Counters erased from Redis.
    counters: usize,
    /// Deleted history rows, by period and by hour.
    history_rows: u64,
    /// Revoked keys that were bound to the organization.
    api_keys_revoked: usize,
    /// Whether old history or idempotency records are still being erased. They affect only the history of an organization
    /// that is counted again meanwhile.
    background: bool,
}

/// Delete an organization
///
/// Erases counts and settings from Redis and Postgres and revokes keys bound to the organization; the audit log stays.
/// Calls in flight do not revive it. A later call starts at 0 with the default settings. A 503 may have been committed and
/// is then applied once Redis is up; a retry is then 404.
#[utoipa::path(
    delete,
    path = "/v1/organizations/{id}",
    operation_id = "deleteOrganization",
    tag = "Organizations",
    security(("key" = ["admin"])),
    params(Path<OrganizationId>, Conditions),
    responses((status = 200, description = "The organization is deleted.", body = DeletionReport), NeedsCounterStore)
)]
pub(in crate::http) async fn delete_organization(
    Shared(state): Shared<State>,
    InOrganization(Administrator(caller), id): InOrganization<Administrator>,
    _: NoQuery,
    Conditions(conditions): Conditions,
) -> Result<Json<DeletionReport>, Error> {
    let admin = &state.admin;
    let deletion = admin
        .delete_organization(&id, &conditions, &caller.actor())
        .await?;
    Ok(Json(DeletionReport {
        organization_id: id,
        deleted: true,
        counters: deletion.counters,
        history_rows: deletion.history_rows,
        api_keys_revoked: deletion.api_keys,
        background: deletion.background,
    }))
}

/// Change limits
///
/// Of a known organization, for the meters in the body. Absent fields stay or are inherited from the plan.
/// `null` in place of a limit removes the organization's own limit, so that the inherited one applies.
/// `temporary` overrides the limit until an instant; `null` ends it early.
/// A limit below the count refuses from then on and changes no count.
/// A 503 may have been committed and is then applied once Redis is up; retrying is safe.
#[utoipa::path(
    patch,
    path = "/v1/organizations/{id}/limits",
    operation_id = "patchLimits",
    tag = "Organizations",
    security(("key" = ["admin"])),
    params(Path<OrganizationId>, Conditions),
    request_body = LimitPatch,
    responses(
        (status = 200, description = "All limits, effective for the next request on every instance.", body = Limits),
        NeedsCounterStore,
    )
)]
pub(in crate::http) async fn patch_limits(
    Shared(state): Shared<State>,
    InOrganization(Administrator(caller), id): InOrganization<Administrator>,
    Conditions(conditions): Conditions,
    Body(changes): Body<BTreeMap<MeterId, Option<LimitChange>>>,
) -> Result<Tagged<Limits>, Error> {
    let changes = changes
        .into_iter()
        .map(|(meter, change)| (meter, change.map(LimitChange::into)))
        .collect();
    let admin = &state.admin;
    let sources = admin
        .patch_limits(&id, changes, &conditions, &caller.actor())
        .await?;
    Ok(Limits::of(id, sources.resolve(state.ctx.clock.now())))
}
