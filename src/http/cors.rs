//! What browsers let pages of other origins do: call, and read what the answers say in headers.
//! Never with cookies, which `/v1` does not know.

use std::time::Duration;

use axum::http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, RETRY_AFTER,
};
use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::request_log::REQUEST_ID;
use crate::config::Origins;

/// How long a browser may remember that it may call.
const MEMORY: Duration = Duration::from_hours(1);

/// The layer that answers browsers; none where nobody's pages may call.
pub(super) fn layer(origins: &Origins) -> Option<CorsLayer> {
    const NAME: HeaderName = HeaderName::from_static(REQUEST_ID);
    let allowed = match origins {
        Origins::Any => AllowOrigin::any(),
        Origins::Only(origins) if origins.is_empty() => return None,
        Origins::Only(origins) => AllowOrigin::list(
            origins
                .iter()
                .filter_map(|origin| HeaderValue::from_str(origin).ok()),
        ),
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ])
        .allow_headers([
            ACCEPT,
            AUTHORIZATION,
            CONTENT_TYPE,
            IF_MATCH,
            IF_NONE_MATCH,
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("prefer"),
            NAME,
        ])
        .expose_headers([
            ETAG,
            RETRY_AFTER,
            HeaderName::from_static("idempotent-replayed"),
            HeaderName::from_static("preference-applied"),
            HeaderName::from_static("ratelimit"),
            HeaderName::from_static("ratelimit-policy"),
            NAME,
        ])
        .max_age(MEMORY);
    Some(layer)
}
