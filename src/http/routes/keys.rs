//! `GET` and `POST /v1/api-keys`, `DELETE /v1/api-keys/{id}`.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::api_key::{ApiKey, NewApiKey};
use crate::domain::ids::ApiKeyId;
use crate::http::extract::{Administrator, Body, Idempotency, KeyPath, NoQuery, PageSize, Query};
use crate::http::problem::Error;
use crate::http::state::State;

/// Which keys to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Page {
    #[param(inline)]
    page_size: Option<PageSize>,
    /// The `nextCursor` of the page before.
    cursor: Option<ApiKeyId>,
}

/// Some keys, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "data": [{
        "id": "0123456789abcdef", "name": "auth server", "scopes": ["ingest", "read"], "organizationId": null,
        "createdAt": "2026-11-01T09:30:00Z", "expiresAt": null, "lastUsedAt": "2026-11-23T10:14:00Z", "revokedAt": null
    }],
    "nextCursor": null
}))]
pub(in crate::http) struct Keys {
    data: Vec<ApiKey>,
    /// Null on the last page.
    #[schema(required)]
    next_cursor: Option<ApiKeyId>,
}

/// A new key, with the secret.
#[derive(Serialize, ToSchema)]
#[schema(as = CreatedApiKey)]
pub(in crate::http) struct Created {
    #[serde(flatten)]
    shown: ApiKey,
    /// What its owner sends; shown this once.
    key: String,
}

/// List API keys
///
/// Newest first, revoked and expired ones included; without their secrets, which nobody keeps.
#[utoipa::path(
    get,
    path = "/v1/api-keys",
    operation_id = "listApiKeys",
    tag = "API keys",
    security(("key" = ["admin"])),
    params(Page),
    responses((status = 200, description = "A page of keys.", body = Keys))
)]
pub(in crate::http) async fn list_keys(
    Shared(state): Shared<State>,
    _: Administrator,
    Query(page): Query<Page>,
) -> Result<Json<Keys>, Error> {
    let size = page.page_size.unwrap_or_default();
    let mut data = state
        .admin
        .keys(page.cursor.as_ref(), size.and_one())
        .await?;
    let last = size.cut(&mut data);
    Ok(Json(Keys {
        next_cursor: last.map(|key| key.id.clone()),
        data,
    }))
}

/// Make an API key
///
/// Its secret is shown this once, and not kept; so this takes no `Idempotency-Key`.
/// A key with an `organizationId` reaches nothing else, and has the scopes `ingest`, `refund` and `read` at most.
/// `expiresAt` lies in the future.
#[utoipa::path(
    post,
    path = "/v1/api-keys",
    operation_id = "createApiKey",
    tag = "API keys",
    security(("key" = ["admin"])),
    request_body = NewApiKey,
    responses(
        (status = 201, description = "The key, with its secret.", body = Created,
            headers(("Cache-Control" = String, description = "`no-store`")),
            example = json!({
                "id": "0123456789abcdef", "name": "auth server", "scopes": ["ingest", "read"], "organizationId": "org_123",
                "createdAt": "2026-11-01T09:30:00Z", "expiresAt": "2040-01-01T00:00:00Z", "lastUsedAt": null,
                "revokedAt": null, "key": "tm_0123456789abcdef_secret"
            }))
    )
)]
pub(in crate::http) async fn create_key(
    Shared(state): Shared<State>,
    Administrator(_, actor): Administrator,
    _: NoQuery,
    attempt: Idempotency,
    Body(wish): Body<NewApiKey>,
) -> Result<Response, Error> {
    attempt.refuse()?;
    let issued = state.admin.create_key(&wish, &actor).await?;
    let created = Created {
        shown: issued.key,
        key: issued.text,
    };
    let headers = [(CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, headers, Json(created)).into_response())
}

/// Revoke an API key
///
/// For good. It stops everywhere within 5 seconds while Redis and Postgres are up.
#[utoipa::path(
    delete,
    path = "/v1/api-keys/{id}",
    operation_id = "revokeApiKey",
    tag = "API keys",
    security(("key" = ["admin"])),
    params(KeyPath),
    responses((status = 204, description = "It is revoked, or was."))
)]
pub(in crate::http) async fn revoke_key(
    Shared(state): Shared<State>,
    Administrator(_, actor): Administrator,
    KeyPath(id): KeyPath,
    _: NoQuery,
) -> Result<StatusCode, Error> {
    if state.admin.revoke_key(&id, &actor).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Error::NotFound("there is no such API key"))
    }
}
