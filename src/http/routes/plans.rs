//! `GET /v1/plans`, and `GET`, `PUT` and `DELETE /v1/plans/{id}`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::display::MeterDisplay;
use crate::domain::feature::{Feature, Features};
use crate::domain::ids::{MeterId, PlanId, PlanName};
use crate::domain::input::not_null;
use crate::domain::limit::LimitOverride;
use crate::domain::plan;
use crate::http::auth::{Administrator, Read};
use crate::http::dry_run::{DryRun, Reach};
use crate::http::etag::{Conditions, Tagged};
use crate::http::extract::{Body, NoQuery, Query};
use crate::http::list::{List, Page};
use crate::http::openapi::problems::MayBeInUse;
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::state::State;

type Plans = List<Plan, PlanId>;

/// A plan as stored.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "pro", "name": "Pro", "limits": {"api": {"limit": 10000, "enforcement": "soft", "warnAt": [80, 100]}},
    "features": {"sso": true}, "meters": {"api": {"label": "API", "unit": "calls"}}, "version": 129
}))]
pub(in crate::http) struct Plan {
    id: PlanId,
    name: PlanName,
    /// By meter.
    limits: BTreeMap<MeterId, LimitOverride>,
    #[schema(value_type = BTreeMap<String, Feature>)]
    features: Features,
    /// How its meters are shown, by meter.
    meters: BTreeMap<MeterId, MeterDisplay>,
    /// Increases with every change.
    version: u64,
}

impl From<plan::Plan> for Plan {
    fn from(plan: plan::Plan) -> Self {
        Self {
            id: plan.id,
            name: plan.name,
            limits: plan.limits,
            features: plan.features,
            meters: plan.meters,
            version: plan.version,
        }
    }
}

impl Plan {
    fn tagged(plan: plan::Plan) -> Tagged<Self> {
        Tagged {
            version: plan.version,
            state: plan.into(),
        }
    }
}

/// The content of a plan.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({
    "name": "Pro", "limits": {"api": {"limit": 10000, "enforcement": "soft", "warnAt": [80, 100]}},
    "features": {"sso": true}, "meters": {"api": {"label": "API", "unit": "calls"}}
}))]
pub(in crate::http) struct PlanSettings {
    /// Display name; the id by default.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    name: Option<PlanName>,
    /// By meter. Meters that are not named are unlimited; on the default plan, the limit of the service's settings
    /// applies to them.
    #[serde(default)]
    limits: BTreeMap<MeterId, LimitOverride>,
    /// By name.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Feature>, example = json!({"sso": true, "seats": 5, "support": "email"}))]
    features: Features,
    /// How its meters are shown, by meter.
    #[serde(default)]
    meters: BTreeMap<MeterId, MeterDisplay>,
}

/// List plans
///
/// By id, including the default plan of the service's settings even if it was never put. Needs a key that is not bound to
/// an organization.
#[utoipa::path(
    get,
    path = "/v1/plans",
    operation_id = "listPlans",
    tag = "Plans",
    security(("key" = ["read"])),
    params(Page<PlanId>),
    responses((status = 200, description = "A page of plans.", body = Plans))
)]
pub(in crate::http) async fn list_plans(
    Shared(state): Shared<State>,
    Read(caller): Read,
    Query(page): Query<Page<PlanId>>,
) -> Result<Plans, Error> {
    caller.authorize_all()?;
    let found = state
        .admin
        .plans(page.cursor.as_ref(), page.page_size.and_one());
    Ok(List::page(found.await?, page.page_size, |plan| {
        plan.id.clone()
    }))
}

/// Get a plan
///
/// As stored; `GET /v1/organizations/{id}/limits` has the effective limits of an organization. Needs a key that is not bound
/// to an organization.
#[utoipa::path(
    get,
    path = "/v1/plans/{id}",
    operation_id = "getPlan",
    tag = "Plans",
    security(("key" = ["read"])),
    params(Path<PlanId>, Conditions),
    responses(
        (status = 200, description = "The plan.", body = Plan),
        (status = 304, description = "The client already has this version."),
    )
)]
pub(in crate::http) async fn get_plan(
    Shared(state): Shared<State>,
    Read(caller): Read,
    Path(id): Path<PlanId>,
    _: NoQuery,
    Conditions(conditions): Conditions,
) -> Result<Response, Error> {
    caller.authorize_all()?;
    let plan = state.admin.plan(&id).await?;
    Plan::tagged(plan).unless_known(&conditions)
}

/// A plan as put, or as it would be.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct PutPlan {
    #[serde(flatten)]
    plan: Plan,
    /// Only in a dry run: what the change would reach. `version` is then the present one, or 0 if the plan does not exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    dry_run: Option<Reach>,
}

/// Create or replace a plan
///
/// An organization's own settings override its plan: limit by limit, each part of a limit on its own, and feature by
/// feature. In the same way, the default plan overrides the limits of the service's settings.
/// A change is effective for every organization on the plan within 2 seconds on every instance, and keeps counts. A request
/// that changes nothing keeps `version`. With `dryRun=true` nothing is changed; `dryRun` in the response then says how many
/// organizations the change would reach. It sends no event by itself: thresholds are compared once an organization is
/// counted again.
#[utoipa::path(
    put,
    path = "/v1/plans/{id}",
    operation_id = "putPlan",
    tag = "Plans",
    security(("key" = ["admin"])),
    params(Path<PlanId>, DryRun, Conditions),
    request_body = PlanSettings,
    responses((status = 200, description = "The plan.", body = PutPlan, example = json!({
        "id": "pro", "name": "Pro", "limits": {"api": {"limit": 10000, "enforcement": "soft", "warnAt": [80, 100]}},
        "features": {"sso": true}, "meters": {"api": {"label": "API", "unit": "calls"}}, "version": 129
    })))
)]
pub(in crate::http) async fn put_plan(
    Shared(state): Shared<State>,
    Administrator(caller): Administrator,
    Path(id): Path<PlanId>,
    Query(query): Query<DryRun>,
    Conditions(conditions): Conditions,
    Body(settings): Body<PlanSettings>,
) -> Result<Response, Error> {
    let plan = plan::Plan {
        name: settings.name.unwrap_or_else(|| PlanName::from(&id)),
        id,
        limits: settings.limits,
        features: settings.features,
        meters: settings.meters,
        version: 0,
    };
    let admin = &state.admin;
    if query.dry_run {
        let preview = admin.preview_plan(plan, &conditions).await?;
        let reach = Reach {
            organizations: preview.organizations,
            webhook_deliveries: 0,
        };
        return Ok(Json(PutPlan {
            plan: preview.plan.into(),
            dry_run: Some(reach),
        })
        .into_response());
    }
    let plan = admin.put_plan(plan, &conditions, &caller.actor()).await?;
    let tagged = Tagged {
        version: plan.version,
        state: PutPlan {
            plan: plan.into(),
            dry_run: None,
        },
    };
    Ok(tagged.into_response())
}

/// Delete a plan
///
/// A plan with organizations is 409, and so is the default plan: to reset it to the service's settings, put it without limits.
#[utoipa::path(
    delete,
    path = "/v1/plans/{id}",
    operation_id = "deletePlan",
    tag = "Plans",
    security(("key" = ["admin"])),
    params(Path<PlanId>, Conditions),
    responses((status = 204, description = "The plan is deleted."), MayBeInUse)
)]
pub(in crate::http) async fn delete_plan(
    Shared(state): Shared<State>,
    Administrator(caller): Administrator,
    Path(id): Path<PlanId>,
    _: NoQuery,
    Conditions(conditions): Conditions,
) -> Result<StatusCode, Error> {
    state
        .admin
        .delete_plan(&id, &conditions, &caller.actor())
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
