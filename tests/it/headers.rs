//! Counting: response headers, minimal responses and refused query parameters.

use reqwest::Method;
use serde_json::{Value, json};
use sfv::{List, ListEntry, Parser};

use crate::support::{Answer, Instance, World};

const MINIMAL: (&str, &str) = ("prefer", "return=minimal");

/// Seconds from the world's initial time to the end of its period.
const LEFT: i64 = 16 * 86_400 + 43_200;
const MONTH: i64 = 31 * 86_400;

/// Parses a header as an RFC 9651 list of strings with two integer parameters each.
fn members(answer: &Answer, header: &str, first: &str, second: &str) -> Vec<(String, i64, i64)> {
    let list: List = Parser::new(answer.header(header)).parse().unwrap();
    let parsed = |entry: &ListEntry| {
        let ListEntry::Item(item) = entry else {
            panic!("{header} has an inner list")
        };
        let integer = |name: &str| {
            let value = item.params.get(name)?.as_integer()?;
            Some(i64::from(value))
        };
        let name = item.bare_item.as_string().unwrap().as_str().to_owned();
        (name, integer(first).unwrap(), integer(second).unwrap())
    };
    list.iter().map(parsed).collect()
}

fn policies(answer: &Answer) -> Vec<(String, i64, i64)> {
    members(answer, "ratelimit-policy", "q", "w")
}

fn limits(answer: &Answer) -> Vec<(String, i64, i64)> {
    members(answer, "ratelimit", "r", "t")
}

fn member(meter: &str, first: i64, second: i64) -> (String, i64, i64) {
    (meter.to_owned(), first, second)
}

async fn post(
    service: &Instance,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Value>,
) -> Answer {
    service.http.send(Method::POST, path, headers, body).await
}

async fn limit(service: &Instance, limits: Value) {
    let path = "/v1/organizations/org_1";
    assert_eq!(service.http.put(path, json!({})).await.status, 200);
    let answer = service.http.patch(&format!("{path}/limits"), limits).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn every_counting_response_has_the_limit_and_the_remaining_units() {
    let world = World::new().await;
    let service = world.instance().await;
    for (path, left) in [
        ("/v1/track", 990),
        ("/v1/consume", 980),
        ("/v1/check", 980),
        ("/v1/refund", 990),
    ] {
        let body = json!({"organizationId": "org_1", "amount": 10});
        let answer = service.http.post(path, body).await;
        assert_eq!(policies(&answer), [member("api", 1000, MONTH)], "{path}");
        assert_eq!(limits(&answer), [member("api", left, LEFT)], "{path}");
    }
    let body = json!({"organizationId": "org_1", "amount": 991});
    let refused = service.http.post("/v1/consume", body).await;
    assert_eq!(refused.status, 429);
    assert_eq!(policies(&refused), [member("api", 1000, MONTH)]);
    assert_eq!(limits(&refused), [member("api", 990, LEFT)]);
    assert_eq!(refused.header("retry-after"), LEFT.to_string());
}

#[tokio::test]
async fn a_call_on_several_meters_has_a_member_for_each_that_is_limited() {
    let world = World::new().await;
    let service = world.instance().await;
    limit(
        &service,
        json!({"tokens.in-1_a": {"limit": 5}, "seats": {"limit": 0}}),
    )
    .await;
    let body = json!({"organizationId": "org_1", "meters": {"api": 1, "storage": 7, "tokens.in-1_a": 2}, "require": {"seats": 1}});
    let answer = service.http.post("/v1/consume", body).await;
    assert_eq!(answer.status, 429);
    assert_eq!(
        limits(&answer),
        [
            member("api", 1000, LEFT),
            member("seats", 0, LEFT),
            member("tokens.in-1_a", 5, LEFT)
        ]
    );
    assert_eq!(
        policies(&answer),
        [
            member("api", 1000, MONTH),
            member("seats", 0, MONTH),
            member("tokens.in-1_a", 5, MONTH)
        ]
    );
}

#[tokio::test]
async fn an_unlimited_meter_has_no_header() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1", "meter": "storage"});
    let answer = service.http.post("/v1/consume", body).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.headers.contains_key("ratelimit"));
    assert!(!answer.headers.contains_key("ratelimit-policy"));
}

#[tokio::test]
async fn a_limit_beyond_what_a_structured_integer_holds_reads_as_the_largest_that_it_does() {
    let world = World::new().await;
    let service = world.instance().await;
    limit(
        &service,
        json!({"api": {"limit": 9_007_199_254_740_991_u64}}),
    )
    .await;
    let body = json!({"organizationId": "org_1"});
    let answer = service.http.post("/v1/consume", body).await;
    let largest = 999_999_999_999_999;
    assert_eq!(policies(&answer), [member("api", largest, MONTH)]);
    assert_eq!(limits(&answer), [member("api", largest, LEFT)]);
}

#[tokio::test]
async fn a_period_that_does_not_end_by_itself_has_no_window() {
    let world = World::new().await;
    let service = world.instance().await;
    let path = "/v1/organizations/org_1";
    let answer = service.http.put(path, json!({"resetMode": "manual"})).await;
    assert_eq!(answer.status, 200);
    let body = json!({"organizationId": "org_1"});
    let answer = service.http.post("/v1/consume", body).await;
    assert_eq!(answer.header("ratelimit-policy"), "\"api\";q=1000");
    assert_eq!(answer.header("ratelimit"), "\"api\";r=999");
}

#[tokio::test]
async fn a_minimal_response_has_headers_only() {
    let world = World::new().await;
    let service = world.instance().await;
    for path in ["/v1/track", "/v1/consume", "/v1/refund"] {
        let body = json!({"organizationId": "org_1"});
        let answer = post(&service, path, &[MINIMAL], Some(body)).await;
        assert_eq!(answer.status, 204, "{path}");
        assert_eq!(answer.text, "");
        assert_eq!(answer.header("preference-applied"), "return=minimal");
        assert_eq!(answer.header("content-type"), "");
        assert_eq!(policies(&answer).len(), 1);
        assert!(!answer.header("x-request-id").is_empty());
    }
    assert_eq!(service.current("org_1", "api").await, 1);
}

#[tokio::test]
async fn a_minimal_refusal_is_an_empty_429_with_retry_after() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1", "amount": 1000});
    assert_eq!(service.http.post("/v1/consume", body).await.status, 200);
    let body = json!({"organizationId": "org_1"});
    let headers = [MINIMAL, ("idempotency-key", "k")];
    let answer = post(&service, "/v1/consume", &headers, Some(body.clone())).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (429, ""));
    assert_eq!(answer.header("content-type"), "");
    assert_eq!(answer.header("preference-applied"), "return=minimal");
    assert_eq!(answer.header("retry-after"), LEFT.to_string());
    assert_eq!(limits(&answer), [member("api", 0, LEFT)]);

    let again = post(&service, "/v1/consume", &headers, Some(body)).await;
    assert_eq!((again.status.as_u16(), again.text.as_str()), (429, ""));
    assert_eq!(again.header("idempotent-replayed"), "true");
}

#[tokio::test]
async fn problems_other_than_a_refusal_keep_their_body() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1", "amount": 0});
    let answer = post(&service, "/v1/consume", &[MINIMAL], Some(body)).await;
    assert_eq!(answer.code(), "invalid_field");
    assert!(!answer.headers.contains_key("preference-applied"));
}

#[tokio::test]
async fn a_check_always_has_a_body() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1", "amount": 1001});
    let answer = post(&service, "/v1/check", &[MINIMAL], Some(body)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body["allowed"], false);
    assert!(!answer.headers.contains_key("preference-applied"));
}

#[tokio::test]
async fn a_preference_is_found_among_others_and_an_unknown_one_is_ignored() {
    let world = World::new().await;
    let service = world.instance().await;
    for (prefer, status) in [
        ("return=minimal", 204),
        ("Return = \"minimal\"; foo=bar", 204),
        ("respond-async, wait=10, return=minimal", 204),
        ("return=representation, return=minimal", 200),
        ("return=representation", 200),
        ("return", 200),
        ("minimal", 200),
    ] {
        let body = json!({"organizationId": "org_1"});
        let headers = [("prefer", prefer)];
        let answer = post(&service, "/v1/track", &headers, Some(body)).await;
        assert_eq!(answer.status, status, "{prefer}");
    }
}

#[tokio::test]
async fn the_fields_of_a_body_are_refused_in_the_query() {
    let world = World::new().await;
    let service = world.instance().await;
    let query = "organizationId=org_1&amount=5";
    for path in [
        "track",
        "consume",
        "check",
        "refund",
        "organizations/org_1/adjust",
    ] {
        for body in [None, Some(json!({"organizationId": "org_1"}))] {
            let answer = post(&service, &format!("/v1/{path}?{query}"), &[], body).await;
            assert_eq!(answer.status, 400, "{path}");
            assert_eq!(answer.code(), "malformed_request", "{path}");
            assert_eq!(
                answer.body["detail"],
                r#"this takes no query parameters; put "organizationId" in the JSON body"#
            );
        }
    }
    // This takes a query, without any field of its body.
    let path = "/v1/organizations/org_1/reset?meters=api";
    let answer = post(&service, path, &[], Some(json!({}))).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (400, "invalid_field")
    );
    assert_eq!(answer.body["errors"][0]["pointer"], "/meters");
    assert_eq!(
        service
            .http
            .get("/v1/organizations/org_1/usage")
            .await
            .status,
        404
    );
}

/// `nosniff` on every response, and `no-store` on every response that needed a credential.
#[tokio::test]
async fn no_response_is_sniffed_and_none_that_needs_a_credential_is_cached() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 1).await;
    service.flush().await;
    let tag = service.http.get("/v1/organizations/org_1").await;
    let tag = tag.header("etag").to_owned();
    let conditional = [("if-none-match", tag.as_str())];
    let not_modified = service
        .http
        .send(Method::GET, "/v1/organizations/org_1", &conditional, None)
        .await;
    assert_eq!(not_modified.status, 304);
    let mut responses = vec![not_modified];
    for path in [
        "/v1/organizations",
        "/v1/organizations/org_1",
        "/v1/organizations/org_2",
        "/v1/organizations/org_1/usage",
        "/v1/organizations/org_1/history",
        "/v1/organizations/org_1/limits",
        "/v1/events",
        "/v1/audit",
        "/v1/plans/free",
        "/v1/plans?cursor=%20",
        "/v1/api-keys",
        "/v1/webhooks",
        "/v1/verify",
        "/metrics",
        "/api/auth/usage-tracking/get-usage?organizationId=org_1",
    ] {
        responses.push(service.http.get(path).await);
    }
    for answer in &responses {
        assert_eq!(answer.header("cache-control"), "no-store", "{answer:?}");
    }
    let anonymous = service.http.with_key(None);
    for path in [
        "/v1/audit",
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/docs",
        "/nowhere",
    ] {
        responses.push(anonymous.get(path).await);
    }
    let tracked = json!({"organizationId": "org_1"});
    responses.push(service.http.post("/v1/track", tracked).await);
    for answer in &responses {
        assert_eq!(
            answer.header("x-content-type-options"),
            "nosniff",
            "{answer:?}"
        );
    }
}
