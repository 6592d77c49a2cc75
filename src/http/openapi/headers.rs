//! Response headers, described once and referred to.

use std::collections::BTreeMap;

use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Ref, RefOr, Response, ResponseBuilder};

use crate::http::request_log::REQUEST_ID;

/// Each header with its description and an example.
const HEADERS: [(&str, &str, &str); 8] = [
    (
        REQUEST_ID,
        "The request's own id, 1 to 128 visible ASCII characters, or a new one.",
        "019aa0f0-7d1c-7c3a-9c7e-2f6b1f0e8d11",
    ),
    (
        "RateLimit-Policy",
        "One member for each limited meter: `q` limit, `w` length of the period in seconds \
         (draft-ietf-httpapi-ratelimit-headers-11). A period without end has no `w`.",
        "\"api\";q=1000;w=2592000",
    ),
    (
        "RateLimit",
        "One member for each limited meter: `r` remaining, `t` seconds to the next period, or to the end of a temporary \
         limit that is lower than the lasting one.",
        "\"api\";r=995;t=597600",
    ),
    (
        "Retry-After",
        "Seconds. For a 429: until the same call would be granted without other usage; absent where waiting does not help. For a 401: until another key is looked up.",
        "1",
    ),
    (
        "Idempotent-Replayed",
        "`true` for a replay of the response to an earlier request with the same `Idempotency-Key`.",
        "true",
    ),
    (
        "Preference-Applied",
        "`return=minimal` where it left out the body.",
        "return=minimal",
    ),
    (
        "ETag",
        "The `version` as an entity tag, for `If-Match` and `If-None-Match`.",
        "\"17\"",
    ),
    ("WWW-Authenticate", "`Bearer`.", "Bearer"),
];

/// The descriptions, for the document's components.
pub(super) fn components() -> BTreeMap<String, RefOr<Header>> {
    HEADERS
        .map(|(name, description, example)| {
            let text = ObjectBuilder::new().schema_type(Type::String);
            let header = HeaderBuilder::new()
                .schema(Some(text.examples([example])))
                .description(Some(description));
            (name.to_owned(), header.build().into())
        })
        .into()
}

/// Adds headers to a response.
pub(in crate::http) fn with_headers(response: ResponseBuilder, names: &[&str]) -> RefOr<Response> {
    let mut response = response.build();
    for name in names {
        add(&mut response, name);
    }
    response.into()
}

/// Adds a header to a response.
pub(super) fn add(response: &mut Response, name: &str) {
    let header = Ref::new(format!("#/components/headers/{name}"));
    response.headers.insert(name.to_owned(), RefOr::Ref(header));
}
