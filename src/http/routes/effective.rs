//! `GET /v1/organizations/{id}/limits` and `/features/{feature}`: the effective policy and its sources.

use axum::Json;
use axum::extract::State as Shared;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::feature::Feature;
use crate::domain::ids::OrganizationId;
use crate::domain::limit::Source;
use crate::domain::policy::Policy;
use crate::http::auth::{Caller, InOrganization, Read};
use crate::http::etag::Conditions;
use crate::http::extract::NoQuery;
use crate::http::path::{FeatureName, Path};
use crate::http::problem::Error;
use crate::http::routes::organizations::Limits;
use crate::http::state::State;

/// One feature of an organization.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"feature": "sso", "enabled": true, "value": true, "source": "organization"}))]
pub(in crate::http) struct EffectiveFeature {
    feature: String,
    /// Whether the value is `true`, a number other than 0, or a non-empty text.
    enabled: bool,
    /// Null if it is not set.
    #[schema(required)]
    value: Option<Feature>,
    source: Source,
}

/// Get the effective limits
///
/// With their sources: a limit is the organization's if it overrides any part of it. Meters that are not listed are unlimited.
#[utoipa::path(
    get,
    path = "/v1/organizations/{id}/limits",
    operation_id = "getLimits",
    tag = "Organizations",
    security(("key" = ["read"]), ("token" = [])),
    params(Path<OrganizationId>, Conditions),
    responses(
        (status = 200, description = "The limits.", body = Limits),
        (status = 304, description = "The client already has this version."),
    )
)]
pub(in crate::http) async fn limits(
    Shared(state): Shared<State>,
    InOrganization(Read(caller), id): InOrganization<Read>,
    _: NoQuery,
    Conditions(conditions): Conditions,
) -> Result<Response, Error> {
    let policy = policy(&state, &caller, &id).await?;
    Limits::of(id, policy).unless_known(&conditions)
}

/// Get a feature
///
/// A feature that is not set is off.
#[utoipa::path(
    get,
    path = "/v1/organizations/{id}/features/{feature}",
    operation_id = "getFeature",
    tag = "Organizations",
    security(("key" = ["read"]), ("token" = [])),
    params(Path<OrganizationId>, Path<FeatureName>),
    responses((status = 200, description = "The feature.", body = EffectiveFeature))
)]
pub(in crate::http) async fn feature(
    Shared(state): Shared<State>,
    InOrganization(Read(caller), id): InOrganization<Read>,
    Path(FeatureName(feature)): Path<FeatureName>,
    _: NoQuery,
) -> Result<Json<EffectiveFeature>, Error> {
    let policy = policy(&state, &caller, &id).await?;
    let (value, source) = policy.feature(&feature);
    Ok(Json(EffectiveFeature {
        enabled: value.is_some_and(Feature::is_enabled),
        value: value.cloned(),
        source,
        feature,
    }))
}

/// The policy of an organization. A token's organization exists even if it was never counted.
async fn policy(state: &State, caller: &Caller, id: &OrganizationId) -> Result<Policy, Error> {
    match state.usage.effective(id).await? {
        Some(policy) => Ok(policy),
        None if caller.trusts_existence() => Ok(state.usage.stored_policy(id).await?),
        None => Err(Error::NotFound("there is no such organization")),
    }
}
