//! Sessions: a signed cookie that names the API key a viewer signed in with.
//!
//! The cookie holds the id and the name of the key and an expiry, never the key. Every request looks the key up again, so a session ends
//! when its key is revoked. Any instance accepts it, also after a restart, because the signature's secret is in Postgres.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Redirect, Response};
use chrono::{DateTime, TimeDelta, Utc};
use percent_encoding::percent_decode_str;

use super::api::{Api, Failed, encode};
use super::frame::{Frame, Section, failure};
use super::look::{Look, cookie};
use super::state::Dashboard;
use crate::auth::Auth;
use crate::domain::api_key::Scope;
use crate::domain::ids::ApiKeyId;
use crate::http::LocalCaller;

/// How long a session lasts.
pub(super) const LIFETIME: TimeDelta = TimeDelta::hours(12);

/// The cookie.
pub(super) const COOKIE_NAME: &str = "tallyman_session";

/// What a session and its CSRF tokens are signed under. No id of a key contains these letters.
const SESSION: &str = "session";
const CSRF: &str = "csrf";

/// Who looks at a page.
#[derive(Debug, Clone)]
pub(super) struct Viewer {
    /// The API as this viewer's key sees it.
    pub(super) api: Api,
    /// The name of the key.
    pub(super) name: String,
    /// Whether the key may change anything.
    pub(super) is_admin: bool,
    /// The token that each form must repeat.
    pub(super) csrf: String,
    pub(super) look: Look,
}

impl Viewer {
    /// The frame of a page in this section.
    pub(super) fn frame(&self, section: Section, title: impl Into<String>) -> Frame {
        Frame {
            section,
            viewer: self.name.clone(),
            is_admin: self.is_admin,
            csrf: self.csrf.clone(),
            notice: self.look.notice.clone(),
            ..Frame::outside(&self.look, title)
        }
    }

    /// Makes the page that explains an error of the API.
    pub(super) fn fail(&self) -> impl Fn(Failed) -> Response + '_ {
        |failed| failure(&self.look, &failed)
    }
}

/// A new session of this key; none until Postgres has been reached.
pub(super) fn start(auth: &Auth, key: &ApiKeyId, name: &str, now: DateTime<Utc>) -> Option<String> {
    let expires = now.checked_add_signed(LIFETIME)?.timestamp();
    auth.sign(SESSION, &format!("{key}.{expires}.{}", encode(name)))
}

/// The key of a session that has not expired, and its name.
fn key_of(auth: &Auth, session: &str, now: DateTime<Utc>) -> Option<(ApiKeyId, String)> {
    let text = auth.verify(SESSION, session)?;
    let (key, rest) = text.split_once('.')?;
    let (expires, name) = rest.split_once('.')?;
    let is_valid = now.timestamp() < expires.parse().ok()?;
    let name = percent_decode_str(name).decode_utf8_lossy();
    is_valid.then(|| Some((key.parse().ok()?, name.into_owned())))?
}

/// The CSRF token of a session.
fn csrf_of(auth: &Auth, session: &str) -> Option<String> {
    let signed = auth.sign(CSRF, session)?;
    Some(signed.split('.').next()?.to_owned())
}

impl FromRequestParts<Dashboard> for Viewer {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        dashboard: &Dashboard,
    ) -> Result<Self, Response> {
        let (auth, now) = (&dashboard.state.auth, dashboard.state.ctx.clock.now());
        let look = Look::new(&parts.headers, now);
        let to_sign_in = || sign_in(parts).into_response();
        let session = cookie(&parts.headers, COOKIE_NAME).ok_or_else(to_sign_in)?;
        let (key, name) = key_of(auth, session, now).ok_or_else(to_sign_in)?;
        let csrf = csrf_of(auth, session).ok_or_else(to_sign_in)?;
        let record = auth
            .known(&key)
            .await
            .map_err(|_| failure(&look, &away()))?;
        let record = record.ok_or_else(to_sign_in)?;
        let is_admin = record.scopes.permit(Scope::Admin);
        let caller = LocalCaller::new(record, parts).ok_or_else(|| failure(&look, &away()))?;
        let api = Api::new(dashboard.api.clone(), caller);
        Ok(Self {
            api,
            name,
            is_admin,
            csrf,
            look,
        })
    }
}

/// Neither Redis nor Postgres tells whether the key is valid.
fn away() -> Failed {
    Failed {
        status: StatusCode::SERVICE_UNAVAILABLE,
        problem: serde_json::json!({"detail": "the service cannot look up your key now; try again in a moment"}),
    }
}

/// The sign-in page, which leads back to the page that was asked for.
fn sign_in(parts: &Parts) -> Redirect {
    let asked = parts
        .uri
        .path_and_query()
        .map_or("/dashboard", |it| it.as_str());
    let to = if parts.method == axum::http::Method::GET {
        asked
    } else {
        "/dashboard"
    };
    Redirect::to(&format!("/dashboard/sign-in?to={}", encode(to)))
}
