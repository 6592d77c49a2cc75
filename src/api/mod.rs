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
mod observe;
mod operations;
mod problem;
mod rate_limit;
mod reading;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{delete, get, post, put};
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;

use crate::state::State;
use problem::Error;

/// The largest body that any call needs, bytes.
const BODY_MAX: usize = 64 * 1024;

/// The largest body of a batch, bytes: 10,000 items with ids and keys of some length.
const BATCH_BODY_MAX: usize = 8 * 1024 * 1024;

/// Every route, with the layers that all of them share.
pub fn router(state: State) -> Router {
    let cors = cors::layer(&state.cors_origins);
    let metrics = if state.metrics_apart {
        Router::new()
    } else {
        Router::new().route("/metrics", get(operations::metrics))
    };
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
        .merge(metrics)
        .fallback(|| async { Error::NotFound("there is nothing at this path") })
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(CatchPanicLayer::custom(|_| {
            Error::panicked().into_response()
        }))
        .layer(option_layer(cors))
        .layer(middleware::from_fn_with_state(
            state.clone(),
            observe::observe,
        ))
        .with_state(state)
}

/// The metrics alone, for an address that only those reach who may see them.
pub fn metrics_router(state: State) -> Router {
    Router::new()
        .route("/metrics", get(operations::metrics_to_anybody))
        .with_state(state)
}
