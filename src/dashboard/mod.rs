//! The dashboard: server-rendered pages over the HTTP API.
//!
//! A page is a client of `/v1` in the same process: its handler calls the API with the viewer's key ([`api`]) and renders the
//! response into a template. So permissions, validation and problem details are those of the API. Pages work without
//! JavaScript; forms redirect after a change.

mod api;
mod assets;
mod audit;
mod changes;
mod chart;
mod conflict;
mod embed;
mod filters;
mod form;
mod form_view;
mod format;
mod frame;
mod keys;
mod live;
mod look;
mod organization;
mod overview;
mod plan_names;
mod plans;
mod session;
mod sign_in;
mod state;
mod webhooks;

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{Redirect, Response};
use axum::routing::get;
use serde_json::json;

use crate::http;
use crate::http::state::State;
use api::Failed;
use session::Viewer;
use state::Dashboard;

/// No inline script or style, and nothing from elsewhere.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
     base-uri 'none'; frame-ancestors 'none'",
);

/// The pages.
pub fn router(state: &State) -> Router {
    let dashboard = Dashboard::new(state.clone(), http::api(state.clone()));
    Router::new()
        .merge(overview::routes())
        .merge(organization::routes())
        .merge(plans::routes())
        .merge(keys::routes())
        .merge(webhooks::routes())
        .merge(audit::routes())
        .merge(live::routes())
        .merge(sign_in::routes())
        .merge(embed::routes())
        .route(
            "/dashboard/",
            get(async || Redirect::permanent("/dashboard")),
        )
        .route("/dashboard/{*unknown}", get(unknown))
        .layer(axum::middleware::map_response(secured))
        .merge(assets::routes())
        .with_state(dashboard)
}

/// The page of a path that has none.
async fn unknown(viewer: Viewer) -> Response {
    let failed = Failed {
        status: StatusCode::NOT_FOUND,
        problem: json!({"detail": "there is no page at this address"}),
    };
    viewer.fail()(failed)
}

async fn secured(mut response: Response) -> Response {
    let headers: &mut HeaderMap = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ] {
        headers.entry(name).or_insert(value);
    }
    response
}
