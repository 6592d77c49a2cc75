//! `GET` and `POST /v1/api-keys`, `DELETE /v1/api-keys/{id}`.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::extract::{Administrator, Body, Idempotency, KeyPath, NoQuery, Query};
use super::problem::Error;
use crate::domain::api_key::{ApiKey, NewApiKey};
use crate::domain::ids::ApiKeyId;
use crate::state::State;

/// Which keys to list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Page {
    page_size: Option<u32>,
    cursor: Option<ApiKeyId>,
}

const PAGE_SIZE: u32 = 100;
const PAGE_SIZE_MAX: u32 = 1000;

/// Some keys, newest first.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Keys {
    data: Vec<ApiKey>,
    next_cursor: Option<ApiKeyId>,
}

/// A new key, with the secret.
#[derive(Serialize)]
pub(super) struct Created {
    #[serde(flatten)]
    shown: ApiKey,
    /// What its owner sends; shown this once.
    key: String,
}

/// Every key, revoked and expired ones included.
pub(super) async fn list_keys(
    Shared(state): Shared<State>,
    _: Administrator,
    Query(page): Query<Page>,
) -> Result<Json<Keys>, Error> {
    let size = page.page_size.unwrap_or(PAGE_SIZE);
    if !(1..=PAGE_SIZE_MAX).contains(&size) {
        let detail = format!("pageSize must be a number from 1 to {PAGE_SIZE_MAX}");
        return Err(Error::MalformedRequest(detail));
    }
    // One more than is shown tells whether there are more.
    let mut data = state.admin.keys(page.cursor.as_ref(), size + 1).await?;
    let more = data.len() > size as usize;
    data.truncate(size as usize);
    let last = data.last().filter(|_| more);
    Ok(Json(Keys {
        next_cursor: last.map(|key| key.id.clone()),
        data,
    }))
}

/// Makes a key, and shows it this once.
pub(super) async fn create_key(
    Shared(state): Shared<State>,
    Administrator(_, actor): Administrator,
    _: NoQuery,
    Idempotency(attempt): Idempotency,
    Body(wish): Body<NewApiKey>,
) -> Result<Response, Error> {
    if attempt.is_some() {
        let detail = "this takes no Idempotency-Key, because the secret in its answer is not kept";
        return Err(Error::MalformedRequest(detail.to_owned()));
    }
    let issued = state.admin.create_key(&wish, &actor).await?;
    let created = Created {
        shown: issued.key,
        key: issued.text,
    };
    let headers = [(CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, headers, Json(created)).into_response())
}

/// Revokes a key for good.
pub(super) async fn revoke_key(
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
