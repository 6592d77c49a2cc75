//! CORS: pages of allowed origins may call the API and read its response headers. Origins that are listed by name may
//! send credentials, because the clients of auth servers always do; the API reads no cookies.

use std::time::Duration;

use axum::http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, RETRY_AFTER,
};
use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::request_log::REQUEST_ID;
use crate::config::Origins;

/// How long a browser may cache a preflight response.
const MAX_AGE: Duration = Duration::from_hours(1);

/// The layer; none where no origin is allowed.
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
        .allow_credentials(matches!(origins, Origins::Only(_)))
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
        .max_age(MAX_AGE);
    Some(layer)
}
