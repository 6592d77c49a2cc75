//! `POST /v1/organizations/{id}/embed-links`: links to a card of usage for pages of the organization's own application.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State as Shared;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::usage::usage_for;
use crate::auth::{EmbedLink, Theme};
use crate::domain::ids::{METERS_MAX, MeterId, OrganizationId};
use crate::domain::input::not_null;
use crate::http::auth::{Identity, InOrganization, Read};
use crate::http::extract::{Body, NoQuery};
use crate::http::openapi::problems::MayBeOverloaded;
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::state::State;

/// The lifetime of a link, in seconds.
const LIFETIME_MIN: u64 = 60;
const LIFETIME_DEFAULT: u64 = 3600;
const LIFETIME_MAX: u64 = 24 * 3600;

/// What the card shows.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"meters": ["api"], "expiresIn": 3600, "theme": "light"}))]
pub(in crate::http) struct EmbedLinkBody {
    /// The meters to show; by default all with a limit or a count.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(min_items = 1, max_items = 32, nullable = false)]
    meters: Option<BTreeSet<MeterId>>,
    /// How long the link works, in seconds; an hour by default.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(minimum = 60, maximum = 86400, nullable = false)]
    expires_in: Option<u64>,
    /// The colours; by default those of the reader's system.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    theme: Option<Theme>,
}

/// A link.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"url": "/embed/5f1c09….eyJrZXki…", "expiresAt": "2026-11-22T11:15:30Z"}))]
pub(in crate::http) struct CreatedEmbedLink {
    /// The path and nothing else of the URL: clients put the address before it at which browsers reach this service.
    url: String,
    /// When the link stops working.
    expires_at: DateTime<Utc>,
}

/// Create an embed link
///
/// A short-lived link to a card with the usage of the organization, for a frame in a page of an origin that
/// `TALLYMAN_EMBED_ORIGINS` lists. Who has the link sees the card without a key, and nothing else. It ends early when the key
/// that created it is revoked or expires.
#[utoipa::path(
    post,
    path = "/v1/organizations/{id}/embed-links",
    operation_id = "createEmbedLink",
    tag = "Usage",
    security(("key" = ["read"])),
    params(Path<OrganizationId>),
    request_body(content = EmbedLinkBody, description = "Without a body, every meter is shown for an hour."),
    responses((status = 200, description = "The link.", body = CreatedEmbedLink), MayBeOverloaded)
)]
pub(in crate::http) async fn create_embed_link(
    Shared(state): Shared<State>,
    InOrganization(Read(caller), organization): InOrganization<Read>,
    _: NoQuery,
    body: Option<Body<EmbedLinkBody>>,
) -> Result<Json<CreatedEmbedLink>, Error> {
    let Identity::Key(key) = caller.identity() else {
        return Err(Error::Forbidden("this needs a key with the scope read"));
    };
    let body = body.map(|Body(body)| body).unwrap_or_default();
    let named = body.meters.as_ref().map(BTreeSet::len);
    if let Some(named) = named.filter(|named| !(1..=METERS_MAX).contains(named)) {
        let detail =
            format!("must be an array of 1 to {METERS_MAX} meters, or be left out; got {named}");
        return Err(invalid("/meters", detail));
    }
    let lifetime = body.expires_in.unwrap_or(LIFETIME_DEFAULT);
    if !(LIFETIME_MIN..=LIFETIME_MAX).contains(&lifetime) {
        let detail = format!(
            "must be a number of seconds from {LIFETIME_MIN} to {LIFETIME_MAX}; got {lifetime}"
        );
        return Err(invalid("/expiresIn", detail));
    }
    // An unknown organization is refused here, not in the frame.
    usage_for(&state, &caller, &organization).await?;
    let lifetime = TimeDelta::seconds(i64::try_from(lifetime).unwrap_or(0));
    // In whole seconds, as in the token.
    let expires_at = (state.ctx.clock.now() + lifetime).timestamp();
    let expires_at = DateTime::from_timestamp(expires_at, 0).ok_or(Error::Internal)?;
    let link = EmbedLink {
        key: key.id.clone(),
        organization,
        meters: body.meters.unwrap_or_default(),
        theme: body.theme,
        expires_at,
    };
    let token = state.auth.embed_token(&link);
    Ok(Json(CreatedEmbedLink {
        url: format!("/embed/{}", token.ok_or(Error::DatabaseUnavailable)?),
        expires_at,
    }))
}

fn invalid(pointer: &str, detail: String) -> Error {
    Error::InvalidField {
        pointer: pointer.to_owned(),
        detail,
    }
}
