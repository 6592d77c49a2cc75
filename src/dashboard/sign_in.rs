//! Signing in and out, and the theme.

use askama::Template;
use axum::Router;
use axum::extract::{Query, Request, State as Shared};
use axum::http::header::SET_COOKIE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use super::form::{Posted, fields, is_same_origin};
use super::frame::{Frame, Rendered};
use super::look::{Look, THEME, is_https};
use super::session::{self, COOKIE_NAME};
use super::state::Dashboard;
use crate::auth::Refused;
use crate::domain::api_key::{ApiKey, Scope};
use crate::http::Peer;
use crate::postgres::api_keys::{self, KeyRecord, PresentedKey};

const NOT_ACCEPTED: &str = "This key is not accepted: it is mistyped, revoked or expired";
const NOT_PERMITTED: &str = "This key may not read everything: it needs the scope admin or read, and no organization of its own";
const TOO_MANY: &str = "This key is not accepted, and too many keys from this address were not; wait a minute before you try another";
const AWAY: &str = "The service cannot look up keys now; try again in a moment";

/// The routes of these pages.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/dashboard/sign-in", get(show).post(sign_in))
        .route("/dashboard/sign-out", post(sign_out))
        .route("/dashboard/theme", post(theme))
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    to: String,
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct Page {
    frame: Frame,
    error: Option<&'static str>,
    to: String,
}

async fn show(
    Shared(dashboard): Shared<Dashboard>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    page(&dashboard, &headers, None, asked.to)
}

fn page(
    dashboard: &Dashboard,
    headers: &HeaderMap,
    error: Option<&'static str>,
    to: String,
) -> Response {
    let look = Look::new(headers, dashboard.state.ctx.clock.now());
    let title = if error.is_some() {
        "Error: Sign in"
    } else {
        "Sign in"
    };
    let page = Page {
        frame: Frame::outside(&look, title),
        error,
        to,
    };
    let status = match error {
        Some(TOO_MANY) => StatusCode::TOO_MANY_REQUESTS,
        Some(_) => StatusCode::UNPROCESSABLE_ENTITY,
        None => StatusCode::OK,
    };
    (status, Rendered(page)).into_response()
}

async fn sign_in(Shared(dashboard): Shared<Dashboard>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let fields = match fields(Request::from_parts(parts.clone(), body)).await {
        Ok(fields) => fields,
        Err(response) => return response,
    };
    let to = fields.text("to").to_owned();
    let refuse = |error| page(&dashboard, &parts.headers, Some(error), to.clone());
    if !is_same_origin(&parts) {
        return refuse(NOT_ACCEPTED);
    }
    match viewer_key(&dashboard, fields.text("key"), &parts).await {
        Ok(key) => {
            let now = dashboard.state.ctx.clock.now();
            match session::start(&dashboard.state.auth, &key.id, key.name.as_str(), now) {
                Some(session) => {
                    let lifetime = session::LIFETIME.num_seconds();
                    let secure = if is_https(&parts) { "; Secure" } else { "" };
                    let cookie = format!(
                        "{COOKIE_NAME}={session}; Path=/dashboard; Max-Age={lifetime}; HttpOnly; SameSite=Strict{secure}"
                    );
                    ([(SET_COOKIE, cookie)], Redirect::to(own_path(&to))).into_response()
                }
                None => refuse(AWAY),
            }
        }
        Err(error) => refuse(error),
    }
}

/// A key that may look at the dashboard.
async fn viewer_key(
    dashboard: &Dashboard,
    text: &str,
    parts: &Parts,
) -> Result<ApiKey, &'static str> {
    let (auth, postgres) = (&dashboard.state.auth, &dashboard.state.ctx.postgres);
    let presented = PresentedKey::parse(text).ok_or(NOT_ACCEPTED)?;
    let address = parts.extensions.get().map(|peer: &Peer| peer.ip);
    let record = auth.authenticate(presented, address).await;
    let record = record.map_err(|_| AWAY)?.map_err(|refused| match refused {
        Refused::Invalid => NOT_ACCEPTED,
        Refused::TooManyFailures { .. } => TOO_MANY,
    })?;
    let proven = auth.prove(&record).await.map_err(|_| AWAY)?;
    let may_look = |key: &KeyRecord| key.scopes.permit(Scope::Read) && key.organization.is_none();
    match proven {
        Some(key) if may_look(&key) => {
            let key = api_keys::get(postgres, &key.id).await.map_err(|_| AWAY)?;
            key.ok_or(NOT_ACCEPTED)
        }
        Some(_) => Err(NOT_PERMITTED),
        None => Err(NOT_ACCEPTED),
    }
}

/// A path of the dashboard, so that a link to the sign-in page cannot lead elsewhere.
fn own_path(to: &str) -> &str {
    let is_own =
        to == "/dashboard" || to.starts_with("/dashboard/") || to.starts_with("/dashboard?");
    if is_own { to } else { "/dashboard" }
}

async fn sign_out(_: Posted) -> Response {
    let ended = format!("{COOKIE_NAME}=; Path=/dashboard; Max-Age=0; HttpOnly; SameSite=Strict");
    ([(SET_COOKIE, ended)], Redirect::to("/dashboard/sign-in")).into_response()
}

async fn theme(Posted(_, fields): Posted) -> Response {
    let theme = match fields.text("theme") {
        "light" => "light",
        "dark" => "dark",
        _ => "system",
    };
    // The script sets it, too.
    let cookie = format!("{THEME}={theme}; Path=/; Max-Age=31536000; SameSite=Strict");
    ([(SET_COOKIE, cookie)], Redirect::to("/dashboard")).into_response()
}
