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
mod idempotency;
mod instant;
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

use std::convert::Infallible;

use axum::body::{Bytes, HttpBody};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::{BoxError, Router};
use tower::{Layer, Service, ServiceBuilder};
use tower_http::catch_panic::CatchPanicLayer;

use crate::http::state::State;
use deadline::Deadline;
use problem::Error;
use request_log::RequestLog;

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
        .layer(layers(state, None));
    Dispatch::new(state, others)
}

/// The shared layers as one, because the router boxes each layer for every request; around a single `route`, or around a
/// router, which tells the route of each request.
fn layers<S>(
    state: &State,
    route: Option<&'static str>,
) -> impl Layer<
    S,
    Service: Service<
        Request,
        Response = Response<impl HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static>,
        Error = Infallible,
        Future: Send,
    > + Clone
                 + Send
                 + Sync
                 + 'static,
> + Clone
+ Send
+ Sync
+ 'static
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    ServiceBuilder::new()
        .layer(RequestLog::layer(state.ctx.metrics.clone(), route))
        .option_layer(cors::layer(&state.cors_origins))
        .layer(CatchPanicLayer::custom(|_| {
            Error::panicked().into_response()
        }))
        .layer(Deadline::layer(state.request_timeout))
}
