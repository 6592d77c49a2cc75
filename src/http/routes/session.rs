//! `GET /v1/session`: who the caller is.

use axum::Json;
use axum::extract::State as Shared;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::User;
use crate::domain::api_key::{ApiKey, Scope, Scopes};
use crate::domain::ids::{ApiKeyName, OrganizationId};
use crate::http::auth::{Caller, Identity};
use crate::http::extract::NoQuery;
use crate::http::problem::Error;
use crate::http::state::State;
use crate::postgres::api_keys;

/// The key or the JWT of a request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "type": "key", "id": "0123456789abcdef", "actor": "key:0123456789abcdef", "name": "auth server",
    "scopes": ["ingest", "read"], "organizationId": null, "expiresAt": null
}))]
pub(in crate::http) struct Session {
    r#type: SessionType,
    /// The id of the key, or the `sub` of the JWT.
    id: String,
    /// The name of this caller in the audit log.
    actor: String,
    /// The display name of the key; null for a JWT.
    #[schema(required)]
    name: Option<ApiKeyName>,
    /// What it permits; `admin` includes all, `provision` includes `ingest` and `read`.
    scopes: Scopes,
    /// The only organization that it has access to. Null is all for a key, and none for a JWT.
    #[schema(required)]
    organization_id: Option<OrganizationId>,
    /// When it expires; null is never.
    #[schema(required)]
    expires_at: Option<DateTime<Utc>>,
}

/// The credential.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum SessionType {
    /// An API key.
    Key,
    /// A JWT of a user of the auth server.
    User,
}

/// Get the session
///
/// Who the caller is: the key or the JWT of this request, and what it permits. Needs any valid key or JWT.
#[utoipa::path(
    get,
    path = "/v1/session",
    operation_id = "getSession",
    tag = "API keys",
    security(("key" = []), ("token" = [])),
    responses((status = 200, description = "The key or the JWT.", body = Session))
)]
pub(in crate::http) async fn session(
    Shared(state): Shared<State>,
    caller: Caller,
    _: NoQuery,
) -> Result<Json<Session>, Error> {
    let session = match caller.identity() {
        Identity::Key(record) => {
            // A record that is not proven by Postgres may be forged.
            let proven = state.auth.prove(record).await?;
            let proven = proven.ok_or(Error::Unauthenticated)?;
            let key = api_keys::get(&state.ctx.postgres, &proven.id).await?;
            of_key(key.ok_or(Error::Unauthenticated)?, caller.name())
        }
        Identity::User(user) => of_user(user, caller.name()),
    };
    Ok(Json(session))
}

fn of_key(key: ApiKey, actor: String) -> Session {
    Session {
        r#type: SessionType::Key,
        id: key.id.to_string(),
        actor,
        name: Some(key.name),
        scopes: key.scopes,
        organization_id: key.organization_id,
        expires_at: key.expires_at,
    }
}

fn of_user(user: &User, actor: String) -> Session {
    Session {
        r#type: SessionType::User,
        id: user.id.to_string(),
        actor,
        name: None,
        scopes: Scope::Read.into(),
        organization_id: user.organization.clone(),
        expires_at: user.expires_at,
    }
}
