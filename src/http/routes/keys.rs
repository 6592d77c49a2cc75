//! `GET` and `POST /v1/api-keys`, `DELETE /v1/api-keys/{id}`.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::api_key::{ApiKey, NewApiKey};
use crate::domain::ids::ApiKeyId;
use crate::http::auth::Administrator;
use crate::http::extract::{Body, NoQuery, Query};
use crate::http::idempotency::Idempotency;
use crate::http::list::{List, Page};
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::state::State;
use crate::postgres::api_keys;

type Keys = List<ApiKey, ApiKeyId>;

/// A new key with its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = CreatedApiKey)]
pub(in crate::http) struct Created {
    #[serde(flatten)]
    shown: ApiKey,
    /// The key to send in requests; shown only once.
    key: String,
}

/// List API keys
///
/// Newest first, including revoked and expired keys; without secrets, which are not stored.
#[utoipa::path(
    get,
    path = "/v1/api-keys",
    operation_id = "listApiKeys",
    tag = "API keys",
    security(("key" = ["admin"])),
    params(Page<ApiKeyId>),
    responses((status = 200, description = "A page of keys.", body = Keys))
)]
pub(in crate::http) async fn list_keys(
    Shared(state): Shared<State>,
    _: Administrator,
    Query(page): Query<Page<ApiKeyId>>,
) -> Result<Keys, Error> {
    let (postgres, size) = (&state.ctx.postgres, page.page_size);
    let found = api_keys::list(postgres, page.cursor.as_ref(), size.and_one()).await?;
    Ok(List::page(found, size, |key| key.id.clone()))
}

/// Create an API key
///
/// The secret is shown only once and not stored, so `Idempotency-Key` is refused.
/// A key with an `organizationId` is bound to that organization and may have the scopes `ingest`, `refund` and `read` only.
/// `expiresAt` must be in the future.
#[utoipa::path(
    post,
    path = "/v1/api-keys",
    operation_id = "createApiKey",
    tag = "API keys",
    security(("key" = ["admin"])),
    request_body = NewApiKey,
    responses(
        (status = 201, description = "The key with its secret.", body = Created,
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
    Administrator(caller): Administrator,
    idempotency: Idempotency,
    Body(new): Body<NewApiKey>,
) -> Result<Response, Error> {
    idempotency.refuse()?;
    let issued = state.admin.create_key(&new, &caller.actor()).await?;
    let created = Created {
        shown: issued.key,
        key: issued.text,
    };
    let headers = [(CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, headers, Json(created)).into_response())
}

/// Revoke an API key
///
/// Permanently. Every instance refuses the key within 5 seconds while Redis and Postgres are up.
#[utoipa::path(
    delete,
    path = "/v1/api-keys/{id}",
    operation_id = "revokeApiKey",
    tag = "API keys",
    security(("key" = ["admin"])),
    params(Path<ApiKeyId>),
    responses((status = 204, description = "The key is revoked, now or before."))
)]
pub(in crate::http) async fn revoke_key(
    Shared(state): Shared<State>,
    Administrator(caller): Administrator,
    Path(id): Path<ApiKeyId>,
    _: NoQuery,
) -> Result<StatusCode, Error> {
    if state.admin.revoke_key(&id, &caller.actor()).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Error::NotFound("there is no such API key"))
    }
}
