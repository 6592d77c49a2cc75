//! The responses of calls that count.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::openapi::example::{Example, ExampleBuilder};
use utoipa::openapi::schema::AllOfBuilder;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema as _};

use super::headers::with_headers;
use crate::http::problem::{MEDIA_TYPE, Problem};
use crate::http::usage_result::UsageResult;

type Responses = BTreeMap<String, RefOr<Response>>;

/// Of a check.
pub(in crate::http) struct Checked;

/// Of a track, a refund, and a consume that is granted.
pub(in crate::http) struct Counted;

/// Of a consume that is refused.
pub(in crate::http) struct Refused;

impl IntoResponses for Checked {
    fn responses() -> Responses {
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name(UsageResult::name())))
            .examples_from_iter([example("one", one()), example("several", several())]);
        let response = ResponseBuilder::new()
            .description("The usage result: of one meter, or of each in `meters` and `require`.")
            .content("application/json", content.build());
        [("200".to_owned(), counted(response, &[]))].into()
    }
}

impl IntoResponses for Counted {
    fn responses() -> Responses {
        let mut responses = Checked::responses();
        let minimal = ResponseBuilder::new()
            .description("The same without a body, with `Prefer: return=minimal`.");
        responses.insert("204".to_owned(), counted(minimal, &["Preference-Applied"]));
        responses
    }
}

impl IntoResponses for Refused {
    fn responses() -> Responses {
        let schema = AllOfBuilder::new()
            .item(Ref::from_schema_name(Problem::name()))
            .item(Ref::from_schema_name(UsageResult::name()));
        let content = ContentBuilder::new()
            .schema(Some(schema))
            .examples_from_iter([example("limit_exceeded", refusal())]);
        let response = ResponseBuilder::new()
            .description(
                "The organization's limit refused; nothing was counted. Includes the usage result; empty with \
                 `Prefer: return=minimal`.",
            )
            .content(MEDIA_TYPE, content.build());
        let headers = ["Retry-After", "Preference-Applied"];
        [("429".to_owned(), counted(response, &headers))].into()
    }
}

/// Adds the headers of every call that counts, and some more.
fn counted(response: ResponseBuilder, more: &[&str]) -> RefOr<Response> {
    let common = ["RateLimit-Policy", "RateLimit", "Idempotent-Replayed"];
    with_headers(response, &[&common, more].concat())
}

fn example(name: &str, value: Value) -> (String, Example) {
    let example = ExampleBuilder::new().value(Some(value));
    (name.to_owned(), example.build())
}

fn one() -> Value {
    json!({
        "allowed": true, "organizationId": "org_123", "meter": "api", "amount": 2, "current": 5, "limit": 1000,
        "remaining": 995, "overage": 0, "enforcement": "hard", "periodStart": "2026-11-01T00:00:00Z",
        "resetDate": "2026-12-01T00:00:00Z"
    })
}

fn several() -> Value {
    let tokens = json!({
        "allowed": true, "organizationId": "org_123", "meter": "tokens", "amount": 1200, "current": 1200,
        "limit": null, "remaining": null, "overage": 0, "enforcement": "hard",
        "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z"
    });
    json!({"allowed": true, "organizationId": "org_123", "meters": {"api": one(), "tokens": tokens}})
}

fn refusal() -> Value {
    json!({
        "type": "urn:tallyman:problem:limit_exceeded", "title": "Limit exceeded", "status": 429,
        "detail": "the organization's limit does not allow this; nothing was counted", "code": "limit_exceeded",
        "allowed": false, "organizationId": "org_123", "meter": "api", "amount": 999, "current": 5, "limit": 1000,
        "remaining": 995, "overage": 0, "enforcement": "hard", "periodStart": "2026-11-01T00:00:00Z",
        "resetDate": "2026-12-01T00:00:00Z", "deniedBy": ["api"], "first": true, "retryAt": "2026-12-01T00:00:00Z"
    })
}
