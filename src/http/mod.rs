//! The HTTP API: the router with its layers. Handlers are in `routes`.

mod auth;
mod body;
mod charges;
mod cors;
mod deadline;
mod dispatch;
mod dry_run;
mod etag;
mod extract;
mod failures;
mod hot_path;
mod idempotency;
mod instant;
mod layers;
mod list;
mod openapi;
mod parse;
mod path;
mod peer;
mod problem;
mod rate_limit;
mod request_log;
mod routes;
pub mod state;
mod usage_result;

use axum::Router;

use crate::http::state::State;
use problem::Error;

pub use auth::LocalCaller;
pub use body::BATCH_BODY_MAX;
pub use dispatch::{Answering, Dispatch};
pub use peer::Peer;
pub use problem::refusal;
pub use routes::health::metrics_router;

/// The OpenAPI document of every route.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes::openapi()
}

/// The routes of the API without layers, for calls within this process; see [`LocalCaller`].
pub fn api(state: State) -> Router {
    let (routes, _) = routes::routes(!state.metrics_apart, &state.plugin_path).split_for_parts();
    routes.with_state(state)
}

/// Every route, and the pages of the dashboard, with the shared layers.
pub fn service(state: &State, pages: Router) -> Dispatch {
    let (routes, _) = routes::routes(!state.metrics_apart, &state.plugin_path).split_for_parts();
    let others = routes
        .with_state(state.clone())
        .merge(pages)
        .fallback(|| async { Error::NotFound("there is nothing at this path") })
        .method_not_allowed_fallback(|| async { Error::MethodNotAllowed })
        .layer(layers::layers(state, None));
    Dispatch::new(state, others)
}
