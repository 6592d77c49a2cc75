//! Each problem type: status, code, content type and headers.

use reqwest::Method;
use serde_json::{Value, json};
use tallyman::config::Servers;

use crate::support::{Answer, Http, LossyProxy, World, key_of};

const USAGE: &str = "/v1/organizations/org_1/usage";

/// Asserts the members and headers that all problems have.
fn check(answer: &Answer, status: u16, code: &str) {
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (status, code),
        "{}",
        answer.text
    );
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.body["status"], status);
    assert_eq!(answer.body["type"], format!("urn:tallyman:problem:{code}"));
    for text in ["title", "detail"] {
        assert!(!answer.body[text].as_str().unwrap().is_empty(), "{text}");
    }
    assert!(!answer.header("x-request-id").is_empty());
}

/// The JSON pointer of the first invalid field.
fn pointer(answer: &Answer) -> &str {
    answer.body["errors"][0]["pointer"].as_str().unwrap()
}

async fn post_text(http: &Http, text: &str) -> Answer {
    http.post_raw("/v1/track", Some("application/json"), text)
        .await
}

#[tokio::test]
async fn a_body_that_is_not_json_is_a_malformed_request() {
    let world = World::new().await;
    let service = world.instance().await;
    for text in [
        "{",
        "organizationId=org_1",
        "{\"organizationId\": \"org_1\"} {}",
        "{\"organizationId\": \"org_1\",}",
        "\u{feff}{}",
    ] {
        let answer = post_text(&service.http, text).await;
        check(&answer, 400, "malformed_request");
        assert_eq!(answer.body["errors"], Value::Null, "{text}");
    }
}

#[tokio::test]
async fn a_wrong_field_is_named_by_its_pointer() {
    let world = World::new().await;
    let service = world.instance().await;
    for (path, body, at) in [
        ("/v1/track", json!({}), "/organizationId"),
        ("/v1/track", json!([]), ""),
        ("/v1/track", json!({"organizationId": 7}), "/organizationId"),
        (
            "/v1/track",
            json!({"organizationId": null}),
            "/organizationId",
        ),
        (
            "/v1/track",
            json!({"organizationId": ""}),
            "/organizationId",
        ),
        (
            "/v1/track",
            json!({"organizationId": "a b"}),
            "/organizationId",
        ),
        (
            "/v1/track",
            json!({"organizationId": "o".repeat(129)}),
            "/organizationId",
        ),
        (
            "/v1/track",
            json!({"organizationId": "org_1", "meter": "API"}),
            "/meter",
        ),
        (
            "/v1/track",
            json!({"organizationId": "org_1", "amount": 0}),
            "/amount",
        ),
        (
            "/v1/track",
            json!({"organizationId": "org_1", "amout": 5}),
            "/amout",
        ),
        (
            "/v1/track",
            json!({"organizationId": "org_1", "require": {"api": 1}}),
            "/require",
        ),
        (
            "/v1/consume",
            json!({"organizationId": "org_1", "meters": {}}),
            "/meters",
        ),
        (
            "/v1/consume",
            json!({"organizationId": "org_1", "meters": {"a/b": 1}}),
            "/meters/a~1b",
        ),
        (
            "/v1/consume",
            json!({"organizationId": "org_1", "meters": {"api": 1}, "meter": "api"}),
            "/meters",
        ),
        (
            "/v1/consume",
            json!({"organizationId": "org_1", "meters": {"api": 1}, "amount": 1}),
            "/meters",
        ),
        (
            "/v1/check",
            json!({"organizationId": "org_1", "require": {"api": 0}}),
            "/require/api",
        ),
    ] {
        let answer = service.http.post(path, body.clone()).await;
        check(&answer, 400, "invalid_field");
        assert_eq!(pointer(&answer), at, "{body}");
        assert!(
            !answer.body["errors"][0]["detail"]
                .as_str()
                .unwrap()
                .is_empty()
        );
    }
    let twice = r#"{"organizationId": "org_1", "amount": 1, "amount": 2}"#;
    check(&post_text(&service.http, twice).await, 400, "invalid_field");
    assert_eq!(service.http.get(USAGE).await.status, 404);
}

#[tokio::test]
async fn an_array_of_an_objects_values_is_no_object() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    let limits = "/v1/organizations/org_1/limits";
    for (method, path, body, at) in [
        (
            Method::POST,
            "/v1/track",
            json!(["org_1", "api", 1, null, null, null]),
            "",
        ),
        (
            Method::POST,
            "/v1/api-keys",
            json!(["a", ["read"], null, null]),
            "",
        ),
        (
            Method::PATCH,
            limits,
            json!({"api": [5, "soft", null]}),
            "/api",
        ),
        (Method::PATCH, limits, json!([]), ""),
    ] {
        let answer = service.http.send(method, path, &[], Some(body)).await;
        check(&answer, 400, "invalid_field");
        assert_eq!(pointer(&answer), at, "{path}");
    }
}

#[tokio::test]
async fn an_unknown_query_parameter_is_refused() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = || Some(json!({"organizationId": "org_1"}));
    for (method, path, body) in [
        (Method::POST, "/v1/track?organizationId=org_1", body()),
        (Method::POST, "/v1/consume?dryRun=true", body()),
        (Method::POST, "/v1/check?x", body()),
        (
            Method::GET,
            "/v1/organizations/org_1/limits?meter=api",
            None,
        ),
        (Method::GET, "/v1/organizations/org_1?expand=plan", None),
        (Method::PUT, "/v1/organizations/org_1?x=1", Some(json!({}))),
        (
            Method::PATCH,
            "/v1/organizations/org_1/limits?x=1",
            Some(json!({})),
        ),
    ] {
        let answer = service.http.send(method, path, &[], body).await;
        check(&answer, 400, "malformed_request");
    }
    assert_eq!(service.http.get(USAGE).await.status, 404);
}

#[tokio::test]
async fn missing_credentials_are_401() {
    let world = World::new().await;
    let service = world.instance().await;
    let answer = service.http.with_key(None).get(USAGE).await;
    check(&answer, 401, "unauthenticated");
    assert_eq!(answer.header("www-authenticate"), "Bearer");
}

#[tokio::test]
async fn insufficient_credentials_are_403() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = service
        .http
        .with_key(Some(&world.key_with(&["read"]).await));
    let answer = http.put("/v1/organizations/org_1", json!({})).await;
    check(&answer, 403, "forbidden");
}

#[tokio::test]
async fn an_unknown_path_is_404_and_a_known_one_lists_its_methods() {
    let world = World::new().await;
    let service = world.instance().await;
    for path in [
        "/nothing",
        "/v1",
        "/v1/tracks",
        "/v1/track/",
        "/v1/organizations/nobody/usage",
    ] {
        check(&service.http.get(path).await, 404, "not_found");
    }
    for (method, path, allow) in [
        (Method::GET, "/v1/track", "POST"),
        (Method::DELETE, USAGE, "GET,HEAD"),
        (
            Method::POST,
            "/v1/organizations/org_1/limits",
            "GET,HEAD,PATCH",
        ),
    ] {
        let answer = service.http.send(method, path, &[], None).await;
        check(&answer, 405, "method_not_allowed");
        assert_eq!(answer.header("allow"), allow);
    }
}

#[tokio::test]
async fn a_body_may_be_64_kib_long_and_no_longer() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = r#"{"organizationId": "org_1"}"#;
    let padded = |length: usize| format!("{body}{}", " ".repeat(length - body.len()));
    let fits = post_text(&service.http, &padded(64 * 1024)).await;
    assert_eq!(fits.status, 200, "{}", fits.text);
    let answer = post_text(&service.http, &padded(64 * 1024 + 1)).await;
    check(&answer, 413, "payload_too_large");
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(detail.contains("at most 65536 bytes"), "{detail}");
}

#[tokio::test]
async fn a_body_must_be_declared_as_json() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = r#"{"organizationId": "org_1"}"#;
    for declared in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/jsonp"),
    ] {
        let answer = service.http.post_raw("/v1/track", declared, body).await;
        check(&answer, 415, "unsupported_media_type");
    }
    for declared in [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
    ] {
        let answer = service
            .http
            .post_raw("/v1/track", Some(declared), body)
            .await;
        assert_eq!(answer.status, 200, "{declared}");
    }
}

#[tokio::test]
async fn deleting_something_in_use_is_a_conflict() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    let path = "/v1/plans/free";
    let answer = service.http.send(Method::DELETE, path, &[], None).await;
    check(&answer, 409, "conflict");
}

#[tokio::test]
async fn a_state_other_than_the_expected_one_fails_the_precondition() {
    let world = World::new().await;
    let service = world.instance().await;
    let headers = [("if-match", "\"1\"")];
    let send = |path, body| service.http.send(Method::PUT, path, &headers, body);
    let answer = send("/v1/plans/pro", Some(json!({}))).await;
    check(&answer, 412, "precondition_failed");
}

#[tokio::test]
async fn unprocessable_requests_name_their_reason() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = |amount: u64| json!({"organizationId": "org_1", "amount": amount});
    service.http.post_once("/v1/track", "k", body(1)).await;
    let reused = service.http.post_once("/v1/track", "k", body(2)).await;
    check(&reused, 422, "idempotency_key_reused");

    let key = key_of("org_1", "api", "2031-03-01T00:00:00Z");
    world.overwrite(&key, &[("used", "9007199254740991")]).await;
    let overflow = service.http.post("/v1/track", body(1)).await;
    check(&overflow, 422, "counter_overflow");

    let meters: serde_json::Map<_, _> = (0..31).map(|n| (format!("m{n}"), json!(1))).collect();
    let others = json!({"organizationId": "org_1", "meters": meters});
    assert_eq!(service.http.post("/v1/track", others).await.status, 200);
    let one_more = json!({"organizationId": "org_1", "meter": "m31"});
    check(
        &service.http.post("/v1/track", one_more).await,
        422,
        "too_many_meters",
    );
}

#[tokio::test]
async fn retry_after_is_sent_if_waiting_helps_and_reaches_the_new_period() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1000).await;
    let refused = service.try_consume("org_1", "api", 1).await;
    check(&refused, 429, "limit_exceeded");
    // Seconds until the first of April: 16 days and 12 hours.
    assert_eq!(refused.header("retry-after"), "1425600");
    assert_eq!(refused.body["resetDate"], "2031-04-01T00:00:00Z");

    // A fraction of a second is rounded up, so that no client retries too early.
    world.clock.advance(chrono::Duration::milliseconds(1));
    let refused = service.try_consume("org_1", "api", 1).await;
    assert_eq!(refused.header("retry-after"), "1425600");
    world.move_to("2031-03-31T23:59:59.999Z");
    let refused = service.try_consume("org_1", "api", 1).await;
    assert_eq!(refused.header("retry-after"), "1");
    world.clock.advance(chrono::Duration::seconds(1));
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 200);
}

#[tokio::test]
async fn retry_after_is_not_sent_if_waiting_does_not_help() {
    let world = World::new().await;
    let service = world.instance().await;
    // More than the limit of a whole period.
    let refused = service.try_consume("org_1", "api", 1001).await;
    check(&refused, 429, "limit_exceeded");
    assert!(!refused.headers.contains_key("retry-after"));
    let require = json!({"organizationId": "org_1", "require": {"api": 1000}});
    let refused = service.http.post("/v1/consume", require).await;
    check(&refused, 429, "limit_exceeded");
    assert!(!refused.headers.contains_key("retry-after"));
    // The limit of one of the refusing meters is zero.
    service
        .limits("org_1", json!({"tokens": {"limit": 0}}))
        .await;
    service.count("org_1", "api", 1000).await;
    let both = json!({"organizationId": "org_1", "meters": {"api": 1, "tokens": 1}});
    let refused = service.http.post("/v1/consume", both).await;
    assert_eq!(refused.body["deniedBy"], json!(["api", "tokens"]));
    assert!(!refused.headers.contains_key("retry-after"));
    // The period does not end by itself.
    service
        .settings("org_1", json!({"resetMode": "manual"}))
        .await;
    let refused = service.try_consume("org_1", "api", 1).await;
    check(&refused, 429, "limit_exceeded");
    assert_eq!(refused.body["resetDate"], Value::Null);
    assert!(!refused.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn without_redis_nothing_is_counted_and_the_response_has_retry_after() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    world.kill_redis().await;
    // The instance has noticed the broken connection.
    assert_eq!(
        service.http.get("/readyz").await.body["checks"]["redis"],
        "away"
    );
    for path in ["/v1/refund", "/v1/consume", "/v1/check"] {
        let answer = service
            .http
            .post(path, json!({"organizationId": "org_1"}))
            .await;
        check(&answer, 503, "counter_store_unavailable");
        assert_eq!(answer.header("retry-after"), "1");
    }
    let limits = json!({"api": {"limit": 5}});
    let answer = service
        .http
        .patch("/v1/organizations/org_1/limits", limits)
        .await;
    check(&answer, 503, "counter_store_unavailable");
}

#[tokio::test]
async fn without_postgres_requests_that_need_it_are_503() {
    let world = World::new().await;
    world.instance().await.count("org_1", "api", 1).await;
    let servers = Servers {
        database_url: world.servers().database_url.replace("test_", "absent_"),
        ..world.servers()
    };
    let service = world.instance_with(servers).await;
    let never_seen = service.try_consume("org_2", "api", 1).await;
    check(&never_seen, 503, "database_unavailable");
    assert_eq!(never_seen.header("retry-after"), "1");
    let path = "/v1/organizations/org_1/limits";
    let answer = service.http.patch(path, json!({"api": {"limit": 5}})).await;
    check(&answer, 503, "database_unavailable");
}

#[tokio::test]
async fn a_reply_that_is_lost_with_the_data_set_is_an_unknown_outcome() {
    let world = World::new().await;
    let proxy = LossyProxy::new(&world).await;
    let service = world.instance_with(proxy.servers(&world)).await;
    service.count("org_1", "api", 1).await;
    proxy.lose_one_reply_and_close();
    let http = service.http.clone();
    let call = tokio::spawn(async move {
        let body = json!({"organizationId": "org_1"});
        http.post("/v1/consume", body).await
    });
    proxy.until_closed().await;
    world.flush_redis().await;
    proxy.open();
    let answer = call.await.unwrap();
    check(&answer, 504, "outcome_unknown");
    assert!(!answer.headers.contains_key("retry-after"));
}

/// The row has a generation that no Redis has, so that every retry fails.
#[tokio::test]
async fn a_call_that_exhausts_its_retries_is_overloaded() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    world
        .select("update usage_history set epoch = 999999 returning meter")
        .await;
    let key = key_of("org_1", "api", "2031-03-01T00:00:00Z");
    let _: u64 = world.redis_command(&["DEL", &key]).await;
    let answer = service.try_consume("org_1", "api", 1).await;
    check(&answer, 503, "overloaded");
    assert_eq!(answer.header("retry-after"), "1");
}

#[tokio::test]
async fn an_unexpected_failure_is_an_internal_error_without_details() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    let key = key_of("org_1", "api", "2031-03-01T00:00:00Z");
    let _: String = world.redis_command(&["SET", &key, "hunter2"]).await;
    let answer = service.try_consume("org_1", "api", 1).await;
    check(&answer, 500, "internal");
    for secret in ["hunter2", "WRONGTYPE", "MGET", "lua", "tm:{"] {
        assert!(!answer.text.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn every_response_has_a_request_id_the_clients_own_if_valid() {
    let world = World::new().await;
    let service = world.instance().await;
    let get = |path: &'static str, id: String| {
        let http = service.http.clone();
        async move {
            let headers = [("x-request-id", id.as_str())];
            let answer = http.send(Method::GET, path, &headers, None).await;
            answer.header("x-request-id").to_owned()
        }
    };
    for path in ["/healthz", USAGE, "/nowhere"] {
        for valid in ["7", "trace/1-2_3~", &"x".repeat(128)] {
            assert_eq!(get(path, valid.to_owned()).await, valid);
        }
        for invalid in ["", "two words", "grün", &"x".repeat(129)] {
            let generated = get(path, invalid.to_owned()).await;
            assert!(
                generated != invalid && uuid::Uuid::parse_str(&generated).is_ok(),
                "{invalid} became {generated}"
            );
        }
        let first = service.http.get(path).await;
        let second = service.http.get(path).await;
        assert!(uuid::Uuid::parse_str(first.header("x-request-id")).is_ok());
        assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    }
}
