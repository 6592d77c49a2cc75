//! What every request passes before its handler: the log, CORS, the handling of panics and the deadline.

use std::convert::Infallible;

use axum::BoxError;
use axum::body::{Bytes, HttpBody};
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use tower::{Layer, Service, ServiceBuilder};
use tower_http::catch_panic::CatchPanicLayer;

use super::cors;
use super::deadline::Deadline;
use super::problem::Error;
use super::request_log::RequestLog;
use super::state::State;

/// The shared layers as one, because the router boxes each layer for every request; around a single `route`, or around a
/// router, which tells the route of each request.
pub(super) fn layers<S>(
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
