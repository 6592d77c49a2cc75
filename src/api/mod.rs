//! HTTP and JSON: every route on this page, one file for each group of calls.
//!
//! Handlers translate; they decide nothing. Permission is a type in a handler's signature
//! ([`extract`]): one that takes none of `Ingest`, `Refund`, `Read` and `Administrator` is public.

mod admin;
mod batch;
mod cors;
mod counting;
mod directory;
mod extract;
mod history;
mod in_force;
mod keys;
mod operations;
mod problem;
mod rate_limit;
mod reading;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use uuid::Uuid;

use crate::state::State;
use extract::REQUEST_ID;
use problem::Error;

/// The largest body that any call needs, bytes.
const BODY_MAX: usize = 64 * 1024;

/// The largest body of a batch, bytes: 10,000 items with ids and keys of some length.
const BATCH_BODY_MAX: usize = 8 * 1024 * 1024;

/// Every route, with the layers that all of them share.
pub fn router(state: State) -> Router {
    let cors = cors::layer(&state.cors_origins);
    Router::new()
        .route("/v1/track", post(counting::track))
        .route("/v1/consume", post(counting::consume))
        .route("/v1/check", post(counting::check))
        .route("/v1/refund", post(counting::refund))
        .route(
            "/v1/batch",
            post(batch::batch).layer(DefaultBodyLimit::max(BATCH_BODY_MAX)),
        )
        .route("/v1/organizations", get(directory::organizations))
        .route(
            "/v1/organizations/{id}",
            put(admin::put_organization).get(admin::get_organization),
        )
        .route(
            "/v1/organizations/{id}/limits",
            get(in_force::limits).patch(admin::patch_limits),
        )
        .route(
            "/v1/organizations/{id}/features/{feature}",
            get(in_force::feature),
        )
        .route("/v1/organizations/{id}/usage", get(reading::usage))
        .route("/v1/api-keys", get(keys::list_keys).post(keys::create_key))
        .route("/v1/api-keys/{id}", delete(keys::revoke_key))
        .route(
            "/v1/organizations/{id}/history",
            get(history::of_organization),
        )
        .route("/v1/history", get(history::of_all))
        .route("/healthz", get(operations::healthz))
        .route("/readyz", get(operations::readyz))
        .fallback(|| async { Error::NotFound("there is nothing at this path") })
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(CatchPanicLayer::custom(|_| Error::Internal.into_response()))
        .layer(option_layer(cors))
        .layer(middleware::from_fn(name_request))
        .with_state(state)
}

/// Every request has an id, the caller's or a new one, and every response carries it.
async fn name_request(mut request: Request, next: Next) -> Response {
    const NAME: HeaderName = HeaderName::from_static(REQUEST_ID);
    let given = request
        .headers()
        .get(NAME)
        .filter(|id| is_fit(id.as_bytes()))
        .cloned();
    let id = given.or_else(|| HeaderValue::from_str(&Uuid::now_v7().to_string()).ok());
    if let Some(id) = &id {
        request.headers_mut().insert(NAME, id.clone());
    }
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.headers_mut().insert(NAME, id);
    }
    response
}

/// Whether a caller's id may be repeated in headers and logs.
fn is_fit(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}
