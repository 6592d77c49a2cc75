//! HTTP and JSON: every route on this page, one file for each group of calls.
//!
//! Handlers translate; they decide nothing. Permission is a type in a handler's signature
//! ([`extract`]): one that takes none of `Ingest`, `Refund`, `Read` and `Administrator` is public.

mod admin;
mod cors;
mod counting;
mod directory;
mod extract;
mod history;
mod in_force;
mod keys;
mod openapi;
mod operations;
mod problem;
mod rate_limit;
mod reading;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::state::State;
use extract::REQUEST_ID;
use problem::Error;

/// The largest body that any call needs, bytes.
const BODY_MAX: usize = 64 * 1024;

/// Every route, and its description.
fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::with_openapi(openapi::outline())
        .routes(routes!(counting::track))
        .routes(routes!(counting::consume))
        .routes(routes!(counting::check))
        .routes(routes!(counting::refund))
        .routes(routes!(reading::usage))
        .routes(routes!(history::of_organization))
        .routes(routes!(history::of_all))
        .routes(routes!(directory::organizations))
        .routes(routes!(admin::get_organization, admin::put_organization))
        .routes(routes!(in_force::limits, admin::patch_limits))
        .routes(routes!(in_force::feature))
        .routes(routes!(keys::list_keys, keys::create_key))
        .routes(routes!(keys::revoke_key))
        .routes(routes!(operations::healthz))
        .routes(routes!(operations::readyz))
        .routes(routes!(openapi::openapi_json))
        .routes(routes!(openapi::reference::docs))
}

/// The OpenAPI document of every route.
pub fn openapi() -> utoipa::openapi::OpenApi {
    openapi::complete(routes().into_openapi())
}

/// Every route, with the layers that all of them share.
pub fn router(state: State) -> Router {
    let cors = cors::layer(&state.cors_origins);
    let (routes, _) = routes().split_for_parts();
    routes
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
