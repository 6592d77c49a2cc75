//! The stylesheet, the script and the icon, embedded in the executable.

use axum::Router;
use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::state::Dashboard;

/// The routes of the files.
pub(super) fn routes() -> Router<Dashboard> {
    Router::new().route("/dashboard/assets/{file}", get(file))
}

async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let (kind, text) = match name.as_str() {
        "tallyman.css" => (
            "text/css; charset=utf-8",
            include_str!("../../assets/tallyman.css"),
        ),
        "tallyman.js" => (
            "text/javascript; charset=utf-8",
            include_str!("../../assets/tallyman.js"),
        ),
        "icon.svg" => ("image/svg+xml", include_str!("../../assets/icon.svg")),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    // The same name has other content after an upgrade, so it is revalidated each time.
    let etag = format!("\"{:016x}\"", xxhash_rust::xxh3::xxh3_64(text.as_bytes()));
    let fields = [(CACHE_CONTROL, "no-cache"), (ETAG, etag.as_str())];
    if headers
        .get(IF_NONE_MATCH)
        .is_some_and(|known| known == etag.as_str())
    {
        return (StatusCode::NOT_MODIFIED, fields).into_response();
    }
    ([(CONTENT_TYPE, kind)], fields, text).into_response()
}
