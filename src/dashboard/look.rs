//! What a request says about how its page looks, in cookies.

use axum::http::HeaderMap;
use axum::http::header::{COOKIE, HOST};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use chrono::{DateTime, Utc};
use percent_encoding::percent_decode_str;

use crate::http::Peer;

/// The cookie with the notice of the last change.
pub(super) const NOTICE: &str = "tallyman_notice";

/// The cookie with the theme.
pub(super) const THEME: &str = "theme";

/// What a request says about how its page looks.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub(super) now: DateTime<Utc>,
    /// None follows the system.
    pub(super) theme: Option<&'static str>,
    /// What the last form did.
    pub(super) notice: Option<String>,
}

impl Look {
    pub(super) fn new(headers: &HeaderMap, now: DateTime<Utc>) -> Self {
        let notice = cookie(headers, NOTICE).filter(|text| !text.is_empty());
        let notice = notice.map(|text| percent_decode_str(text).decode_utf8_lossy().into_owned());
        Self {
            now,
            theme: match cookie(headers, THEME) {
                Some("light") => Some("light"),
                Some("dark") => Some("dark"),
                _ => None,
            },
            notice,
        }
    }
}

/// The value of a cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(COOKIE).iter();
    let mut pairs = all
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split("; "));
    pairs
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
        .map(|(_, value)| value)
}

/// Whether the browser came by HTTPS, to this service or, as that says, to a proxy in front.
pub(super) fn is_https(parts: &Parts) -> bool {
    let peer: Option<&Peer> = parts.extensions.get();
    let forwarded = parts.headers.get("x-forwarded-proto");
    peer.is_some_and(|peer| peer.is_tls) || forwarded.is_some_and(|proto| proto == "https")
}

/// The URL that the browser has for this service, without a path.
pub(super) fn origin(parts: &Parts) -> String {
    let scheme = if is_https(parts) { "https" } else { "http" };
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or(parts.uri.authority().map(Authority::as_str));
    format!("{scheme}://{}", host.unwrap_or("127.0.0.1:7400"))
}
