//! `Idempotency-Key`: a retry gets the first response and counts nothing.

use chrono::Duration;
use serde_json::{Value, json};

use crate::support::{LossyProxy, World, at_once, sharded};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_key_from_fifty_tasks_counts_once_and_gets_one_response() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    let answers = at_once(50, |task| {
        let http = instances[task % 2].http.clone();
        async move {
            let body = json!({"organizationId": "org_1", "amount": 7});
            http.post_once("/v1/consume", "key-1", body).await
        }
    })
    .await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(answers.iter().all(|answer| answer.body == answers[0].body));
    let fresh = answers
        .iter()
        .filter(|answer| !answer.headers.contains_key("idempotent-replayed"))
        .count();
    let replayed = answers
        .iter()
        .filter(|answer| answer.header("idempotent-replayed") == "true")
        .count();
    assert_eq!((fresh, replayed), (1, 49));
    assert_eq!(instances[0].current("org_1", "api").await, 7);
}

#[tokio::test]
async fn the_same_key_with_another_payload_is_refused() {
    let world = World::new().await;
    let service = world.instance().await;
    let first = json!({"organizationId": "org_1", "amount": 2, "require": {"tokens": 1}});
    let post = |path, body| service.http.post_once(path, "k", body);
    assert_eq!(post("/v1/consume", first.clone()).await.status, 200);
    for (path, other) in [
        ("/v1/track", json!({"organizationId": "org_1", "amount": 2})),
        ("/v1/check", first.clone()),
        (
            "/v1/consume",
            json!({"organizationId": "org_1", "amount": 3, "require": {"tokens": 1}}),
        ),
        (
            "/v1/consume",
            json!({"organizationId": "org_1", "amount": 2, "require": {"tokens": 2}}),
        ),
        (
            "/v1/consume",
            json!({"organizationId": "org_1", "amount": 2}),
        ),
        (
            "/v1/consume",
            json!({"organizationId": "org_1", "amount": 2, "meter": "tokens"}),
        ),
    ] {
        let answer = post(path, other.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (422, "idempotency_key_reused"),
            "{path} {other}"
        );
    }
    assert_eq!(service.current("org_1", "api").await, 2);
    assert_eq!(
        post("/v1/consume", first)
            .await
            .header("idempotent-replayed"),
        "true"
    );
}

#[tokio::test]
async fn equal_payloads_in_another_spelling_are_the_same() {
    let world = World::new().await;
    let service = world.instance().await;
    let explicit = json!({"amount": 1, "meter": "api", "organizationId": "org_1"});
    let short = json!({"organizationId": "org_1"});
    let first = service.http.post_once("/v1/track", "k", explicit).await;
    let again = service.http.post_once("/v1/track", "k", short).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(first.body, again.body);
}

#[tokio::test]
async fn a_refusal_is_replayed_even_if_the_call_would_now_be_granted() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .limits(
            "org_1",
            json!({"api": {"limit": 5}, "tokens": {"limit": 0}}),
        )
        .await;
    let body = json!({"organizationId": "org_1", "meters": {"api": 6, "tokens": 1}});
    let post = |key| service.http.post_once("/v1/consume", key, body.clone());
    let first = post("k").await;
    assert_eq!(first.status, 429);
    assert_eq!(first.body["deniedBy"], json!(["api", "tokens"]));
    service
        .limits("org_1", json!({"api": {"limit": 100}, "tokens": null}))
        .await;
    let again = post("k").await;
    assert_eq!((again.status.as_u16(), &again.body), (429, &first.body));
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.header("retry-after"), first.header("retry-after"));
    let fresh = post("l").await;
    assert_eq!(
        (fresh.status.as_u16(), fresh.header("idempotent-replayed")),
        (200, "")
    );
    assert_eq!(service.current("org_1", "api").await, 6);
}

#[tokio::test]
async fn the_first_response_is_replayed_after_a_change_of_limit_and_period() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1", "amount": 600});
    let post = |service: &crate::support::Instance| {
        let (http, body) = (service.http.clone(), body.clone());
        async move { http.post_once("/v1/consume", "k", body).await }
    };
    let first = post(&service).await;
    service
        .limits(
            "org_1",
            json!({"api": {"limit": 10, "enforcement": "soft"}}),
        )
        .await;
    assert_eq!(post(&service).await.body, first.body);
    service
        .settings("org_1", json!({"resetPeriod": "daily"}))
        .await;
    world.move_to("2031-03-16T00:00:00Z");
    let other = world.instance().await;
    for service in [&service, &other] {
        let again = post(service).await;
        assert_eq!((again.status.as_u16(), &again.body), (200, &first.body));
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(service.current("org_1", "api").await, 0);
    }
}

#[tokio::test]
async fn a_key_belongs_to_its_organization() {
    let world = World::new().await;
    let service = world.instance().await;
    for organization in ["org_1", "org_2"] {
        let body = json!({"organizationId": organization});
        let answer = service.http.post_once("/v1/track", "k", body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("idempotent-replayed")),
            (200, "")
        );
        assert_eq!(service.current(organization, "api").await, 1);
    }
}

#[tokio::test]
async fn any_printable_key_works_and_no_two_are_confused() {
    let world = World::new().await;
    let service = world.instance().await;
    let longest = "x".repeat(255);
    let keys = [
        "k", "K", "k:1", "{k}", "}{", "a|b", "a b", "%00", "\"'\\", "*", "$1", "0", "~!", &longest,
    ];
    for (count, key) in (1..).zip(keys) {
        for replayed in ["", "true"] {
            let body = json!({"organizationId": "org_1"});
            let answer = service.http.post_once("/v1/track", key, body).await;
            assert_eq!(answer.status, 200, "{key}");
            assert_eq!(answer.header("idempotent-replayed"), replayed, "{key}");
            assert_eq!(answer.body["current"], count, "{key}");
        }
    }
}

#[tokio::test]
async fn an_invalid_idempotency_key_is_refused_and_counts_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    for key in [
        "x".repeat(256),
        String::new(),
        "tab\there".to_owned(),
        "grün".to_owned(),
    ] {
        let body = json!({"organizationId": "org_1"});
        let answer = service.http.post_once("/v1/track", &key, body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "malformed_request"),
            "{key:?}"
        );
    }
    let usage = service.http.get("/v1/organizations/org_1/usage").await;
    assert_eq!(usage.status, 404);
}

#[tokio::test]
async fn an_idempotency_record_expires_after_its_lifetime_and_not_before() {
    let world = World::with(|config| config.idempotency = std::time::Duration::from_mins(90)).await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1"});
    service.http.post_once("/v1/track", "k", body).await;
    let record = sharded("org_1", "i:org_1:k");
    let left: i64 = world.redis_command(&["PTTL", &record]).await;
    assert!((5_300_000..=5_400_000).contains(&left), "{left}");
}

#[tokio::test]
async fn a_call_on_several_meters_is_replayed_as_one() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1", "meters": {"api": 1, "tokens": 1200}, "require": {"storage": 3}});
    let first = service
        .http
        .post_once("/v1/consume", "k", body.clone())
        .await;
    let again = service.http.post_once("/v1/consume", "k", body).await;
    assert_eq!(first.body["meters"]["tokens"]["current"], 1200);
    assert_eq!(again.body, first.body);
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(service.current("org_1", "tokens").await, 1200);
}

#[tokio::test]
async fn failed_calls_leave_no_idempotency_record() {
    let world = World::new().await;
    let service = world.instance().await;
    for number in 0..32 {
        service.count("org_1", &format!("m{number}"), 1).await;
    }
    let body = json!({"organizationId": "org_1", "meter": "m32"});
    for _ in 0..2 {
        let refused = service.http.post_once("/v1/track", "k", body.clone()).await;
        assert_eq!(refused.code(), "too_many_meters");
        assert_eq!(refused.header("idempotent-replayed"), "");
    }
    // A failed call leaves its key unused.
    let other = json!({"organizationId": "org_1", "meter": "m0"});
    assert_eq!(
        service.http.post_once("/v1/track", "k", other).await.status,
        200
    );
}

/// The event was counted in time; the response got lost, and the client retries much later.
#[tokio::test]
async fn a_retry_is_answered_even_if_its_event_is_now_too_old() {
    let world =
        World::with(|config| config.idempotency = std::time::Duration::from_hours(100)).await;
    let service = world.instance().await;
    let body = |amount: u64| json!({"organizationId": "org_1", "amount": amount, "timestamp": "2031-03-13T13:00:00Z"});
    let item = |amount: u64, key: &str| {
        let mut item = body(amount);
        item["op"] = json!("track");
        item["idempotencyKey"] = json!(key);
        item
    };
    let post = |key: &'static str, amount| service.http.post_once("/v1/track", key, body(amount));
    let first = post("a", 7).await;
    assert_eq!(first.status, 200, "{}", first.text);
    world.clock.advance(Duration::hours(2));
    let again = post("a", 7).await;
    assert_eq!((again.status.as_u16(), &again.body), (200, &first.body));
    assert_eq!(again.header("idempotent-replayed"), "true");
    let reused = post("a", 8).await;
    assert_eq!(reused.code(), "idempotency_key_reused");
    assert_eq!(post("b", 7).await.code(), "timestamp_out_of_range");

    let mut keyless = item(7, "");
    keyless.as_object_mut().unwrap().remove("idempotencyKey");
    let items = [
        item(7, "a"),
        keyless,
        item(8, "a"),
        item(7, "b"),
        json!({"op": "track", "organizationId": "org_1"}),
    ];
    let batch = service
        .http
        .post("/v1/batch", json!({"items": items}))
        .await
        .body;
    let results: Vec<(&Value, &Value)> = batch["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (&it["status"], &it["code"]))
        .collect();
    let unprocessable = json!(422);
    assert_eq!(
        results,
        [
            (&json!(200), &Value::Null),
            (&unprocessable, &json!("timestamp_out_of_range")),
            (&unprocessable, &json!("idempotency_key_reused")),
            (&unprocessable, &json!("timestamp_out_of_range")),
            (&json!(200), &Value::Null),
        ]
    );
    assert_eq!(batch["results"][0]["current"], 7);
    let summary =
        ["counted", "denied", "failed", "replayed"].map(|name| batch[name].as_u64().unwrap());
    assert_eq!(summary, [1, 0, 3, 1]);
    assert_eq!(service.current("org_1", "api").await, 8);
}

/// The first request with the key was counted.
#[tokio::test]
async fn reusing_a_key_does_not_claim_that_nothing_was_counted() {
    let world = World::new().await;
    let service = world.instance().await;
    let post = |amount: u64| {
        let body = json!({"organizationId": "org_1", "amount": amount});
        service.http.post_once("/v1/track", "k", body)
    };
    post(1).await;
    let detail = post(2).await.body["detail"].to_string();
    assert!(!detail.contains("nothing was counted"), "{detail}");
    assert!(detail.contains("this one was not executed"), "{detail}");
}

#[tokio::test]
async fn a_replayed_refusal_has_no_retry_after_for_an_ended_period() {
    let world =
        World::with(|config| config.idempotency = std::time::Duration::from_hours(100)).await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"resetPeriod": "hourly"}))
        .await;
    world.move_to("2031-04-02T09:10:00Z");
    service.count("org_1", "api", 1000).await;
    let consume = || {
        let body = json!({"organizationId": "org_1"});
        service.http.post_once("/v1/consume", "k", body)
    };
    let first = consume().await;
    assert_eq!(
        (first.status.as_u16(), first.header("retry-after")),
        (429, "3000")
    );
    assert_eq!(first.body["retryAt"], "2031-04-02T10:00:00Z");
    world.clock.advance(Duration::minutes(20));
    let again = consume().await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(
        (again.header("retry-after"), &again.body),
        ("1800", &first.body)
    );
    // The period has ended: a new key would be granted.
    for _ in 0..2 {
        world.clock.advance(Duration::minutes(30));
        let again = consume().await;
        assert_eq!(
            (again.status.as_u16(), again.header("idempotent-replayed")),
            (429, "true")
        );
        for header in ["retry-after", "ratelimit"] {
            assert!(!again.headers.contains_key(header), "{header}");
        }
        assert_eq!(again.body["retryAt"], Value::Null);
    }
}

/// The limit was raised or the meter reset, so that a new key would be granted.
#[tokio::test]
async fn a_replayed_refusal_has_no_retry_after_if_the_call_would_now_be_granted() {
    let world = World::new().await;
    let service = world.instance().await;
    for organization in ["raised", "reset"] {
        service.count(organization, "api", 1000).await;
        let consume = || {
            let body = json!({"organizationId": organization});
            service.http.post_once("/v1/consume", "k", body)
        };
        assert!(consume().await.headers.contains_key("retry-after"));
        if organization == "raised" {
            service
                .limits("raised", json!({"api": {"limit": 2000}}))
                .await;
        } else {
            let answer = service
                .http
                .post("/v1/organizations/reset/reset", json!({}))
                .await;
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
        let again = consume().await;
        assert_eq!(
            (again.status.as_u16(), again.header("idempotent-replayed")),
            (429, "true")
        );
        assert!(!again.headers.contains_key("retry-after"), "{organization}");
    }
}

#[tokio::test]
async fn after_an_unknown_outcome_a_retry_with_the_key_counts_once() {
    let world = World::new().await;
    let proxy = LossyProxy::new(&world).await;
    let service = world.instance_with(proxy.servers(&world)).await;
    service.count("org_1", "api", 1).await;
    proxy.lose_one_reply_and_close();
    let body = json!({"organizationId": "org_1", "amount": 5});
    let (http, first) = (service.http.clone(), body.clone());
    let call = tokio::spawn(async move { http.post_once("/v1/track", "k", first).await });
    proxy.until_closed().await;
    // Without the batch receipts the outcome is unknown; the idempotency record is kept.
    let receipts: Vec<String> = world.redis_command(&["KEYS", "tm:{00}:r:*"]).await;
    let mut delete = vec!["DEL"];
    delete.extend(receipts.iter().map(String::as_str));
    let _: u64 = world.redis_command(&delete).await;
    proxy.open();
    let lost = call.await.unwrap();
    assert_eq!(
        (lost.status.as_u16(), lost.code()),
        (504, "outcome_unknown")
    );
    let again = service.http.post_once("/v1/track", "k", body).await;
    assert_eq!(
        (again.status.as_u16(), &again.body["current"]),
        (200, &json!(6))
    );
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(service.current("org_1", "api").await, 6);
}
