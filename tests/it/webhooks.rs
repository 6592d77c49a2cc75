//! Webhooks: every event reaches its subscribers at least once, signed, and no other URL.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::IntoResponse as _;
use chrono::{DateTime, Duration, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use tallyman::domain::webhook::DeliveryStatus;
use tallyman::jobs::webhooks::Report;
use tallyman::postgres::webhooks::{self, Attempt, Health};
use tokio_util::sync::CancellationToken;

use crate::support::{Instance, Receiver, World, instant};

/// A registered webhook and its secret.
struct Webhook {
    id: String,
    secret: String,
}

impl Webhook {
    fn path(&self, rest: &str) -> String {
        format!("/v1/webhooks/{}{rest}", self.id)
    }
}

async fn register(service: &Instance, request: Value) -> Webhook {
    let answer = service.http.post("/v1/webhooks", request).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    assert_eq!(answer.header("cache-control"), "no-store");
    let text = |name: &str| answer.body[name].as_str().unwrap().to_owned();
    Webhook {
        id: text("id"),
        secret: text("secret"),
    }
}

/// Changes a limit, which records an event.
async fn record_event(service: &Instance, organization: &str, limit: u64) {
    let limits = json!({"api": {"limit": limit}});
    service.limits(organization, limits).await;
}

async fn deliver(service: &Instance) -> (usize, usize) {
    let Report { succeeded, failed } = service.app.webhooks.deliver_once().await.unwrap();
    (succeeded, failed)
}

async fn get(service: &Instance, path: &str) -> Value {
    let answer = service.http.get(path).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body
}

async fn deliveries(service: &Instance, webhook: &Webhook) -> Vec<Value> {
    let page = get(service, &webhook.path("/deliveries")).await;
    page["data"].as_array().unwrap().clone()
}

fn time(value: &Value) -> DateTime<Utc> {
    instant(value.as_str().unwrap())
}

#[tokio::test]
async fn an_event_is_sent_to_every_subscribed_webhook_and_no_other() {
    let world = World::new().await;
    let service = world.instance().await;
    let requests = [
        (json!({}), 2),
        (json!({"events": ["limits.updated", "usage.warning"]}), 2),
        (json!({"organizationId": "org_1"}), 1),
        (json!({"events": ["usage.warning"]}), 0),
        (json!({"organizationId": "org_3"}), 0),
    ];
    let mut receivers = Vec::new();
    for (mut request, events) in requests {
        let receiver = Receiver::new().await;
        request["url"] = json!(receiver.url);
        register(&service, request).await;
        receivers.push((receiver, events));
    }
    record_event(&service, "org_1", 1).await;
    record_event(&service, "org_2", 2).await;
    assert_eq!(deliver(&service).await, (5, 0));
    assert_eq!(deliver(&service).await, (0, 0));
    for (receiver, events) in receivers {
        assert_eq!(receiver.received().len(), events, "{}", receiver.url);
    }
}

#[tokio::test]
async fn a_delivery_is_the_event_signed_with_the_secret_that_was_shown_once() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    let webhook = register(&service, json!({"url": receiver.url})).await;
    record_event(&service, "org_1", 10).await;
    deliver(&service).await;
    let event = get(&service, "/v1/events").await["data"][0].clone();
    let arrived = receiver.received().remove(0);
    assert_eq!(arrived.id(), event["id"]);
    assert_eq!(arrived.header("content-type"), "application/json");
    assert!(arrived.header("user-agent").starts_with("Tallyman/"));
    let seconds = world.clock.now().timestamp().to_string();
    assert_eq!(arrived.header("webhook-timestamp"), seconds);
    let expected =
        json!({"type": event["type"], "timestamp": event["timestamp"], "data": event["data"]});
    assert_eq!(arrived.body(), expected);
    assert_eq!(arrived.signed_by(&webhook.secret), 1);

    let other = register(&service, json!({"url": receiver.url})).await;
    assert_eq!(arrived.signed_by(&other.secret), 0);
    for path in [
        "/v1/webhooks".to_owned(),
        webhook.path(""),
        webhook.path("/deliveries"),
    ] {
        let text = service.http.get(&path).await.text;
        assert!(!text.contains("secret\""), "{text}");
        assert!(!text.contains(&webhook.secret["whsec_".len()..]), "{text}");
    }
    let audited = world
        .select("select before::text || after::text from audit_log")
        .await;
    assert!(
        audited.iter().all(|it| !it.contains("secret\"")),
        "{audited:?}"
    );
}

#[tokio::test]
async fn a_failed_delivery_is_retried_for_a_day_with_backoff_and_one_id() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    receiver.answer(503);
    let webhook = register(&service, json!({"url": receiver.url})).await;
    record_event(&service, "org_1", 10).await;
    let mut pauses = Vec::new();
    for attempt in 1.. {
        assert_eq!(deliver(&service).await, (0, 1), "{attempt}");
        assert_eq!(deliver(&service).await, (0, 0), "{attempt}");
        let delivery = deliveries(&service, &webhook).await.remove(0);
        assert_eq!(
            (&delivery["attempts"], &delivery["responseStatus"]),
            (&json!(attempt), &json!(503))
        );
        assert_eq!(time(&delivery["lastAttemptAt"]), world.clock.now());
        if delivery["status"] == "failed" {
            assert_eq!(delivery["nextAttemptAt"], Value::Null);
            break;
        }
        assert_eq!(delivery["status"], "pending");
        let pause = time(&delivery["nextAttemptAt"]) - world.clock.now();
        pauses.push(pause);
        world.clock.advance(pause - Duration::milliseconds(1));
        assert_eq!(deliver(&service).await, (0, 0), "before the retry is due");
        world.clock.advance(Duration::milliseconds(1));
    }
    let backoff = [5, 30, 120, 600, 3600, 10_800, 28_800, 43_200].map(Duration::seconds);
    assert_eq!(pauses.len(), backoff.len());
    for (pause, expected) in pauses.into_iter().zip(backoff) {
        assert!(
            (expected * 9 / 10..=expected * 11 / 10).contains(&pause),
            "{pause}"
        );
    }
    let arrived = receiver.received();
    assert_eq!(arrived.len(), 9);
    assert!(
        arrived
            .iter()
            .all(|it| it.id() == arrived[0].id() && it.text == arrived[0].text)
    );
    assert!(arrived.iter().all(|it| it.signed_by(&webhook.secret) == 1));
}

#[tokio::test]
async fn a_delivery_that_succeeds_after_retries_is_not_sent_again() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    receiver.answer(500);
    let webhook = register(&service, json!({"url": receiver.url})).await;
    record_event(&service, "org_1", 10).await;
    assert_eq!(deliver(&service).await, (0, 1));
    let failing = get(&service, &webhook.path("")).await;
    assert_eq!(time(&failing["failingSince"]), world.clock.now());
    let disabling = world.clock.now() + Duration::days(5);
    assert_eq!(time(&failing["willBeDisabledAt"]), disabling);
    assert_eq!(failing["lastSuccessAt"], Value::Null);
    receiver.answer(200);
    world.clock.advance(Duration::seconds(6));
    assert_eq!(deliver(&service).await, (1, 0));
    let healthy = get(&service, &webhook.path("")).await;
    assert_eq!(
        (&healthy["failingSince"], &healthy["willBeDisabledAt"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(time(&healthy["lastSuccessAt"]), world.clock.now());
    world.clock.advance(Duration::days(2));
    assert_eq!(deliver(&service).await, (0, 0));
    assert_eq!(
        deliveries(&service, &webhook).await[0]["status"],
        "succeeded"
    );
}

#[tokio::test]
async fn an_endpoint_that_answers_410_is_disabled_and_gets_nothing_until_it_is_enabled() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    receiver.answer(410);
    let webhook = register(&service, json!({"url": receiver.url})).await;
    record_event(&service, "org_1", 1).await;
    assert_eq!(deliver(&service).await, (0, 1));
    let shown = get(&service, &webhook.path("")).await;
    assert_eq!(
        (&shown["enabled"], &shown["disabledReason"]),
        (&json!(false), &json!("gone"))
    );
    assert_eq!(time(&shown["disabledAt"]), world.clock.now());
    assert_eq!(deliveries(&service, &webhook).await[0]["status"], "failed");

    record_event(&service, "org_1", 2).await;
    receiver.answer(200);
    world.clock.advance(Duration::days(1));
    assert_eq!(deliver(&service).await, (0, 0));
    let enabled = service
        .http
        .patch(&webhook.path(""), json!({"enabled": true}))
        .await;
    assert_eq!(enabled.body["disabledReason"], Value::Null);
    record_event(&service, "org_1", 3).await;
    assert_eq!(deliver(&service).await, (1, 0));
    assert_eq!(
        receiver.received().last().unwrap().body()["data"]["limits"]["api"]["limit"],
        3
    );
}

#[tokio::test]
async fn an_endpoint_that_fails_for_five_days_is_disabled_with_a_reason() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    receiver.answer(500);
    let webhook = register(&service, json!({"url": receiver.url})).await;
    let began = world.clock.now();
    for day in 0..6 {
        assert_eq!(
            get(&service, &webhook.path("")).await["enabled"],
            true,
            "{day}"
        );
        record_event(&service, "org_1", day).await;
        deliver(&service).await;
        world.clock.advance(Duration::days(1));
    }
    let shown = get(&service, &webhook.path("")).await;
    assert_eq!(
        (&shown["enabled"], &shown["disabledReason"]),
        (&json!(false), &json!("failing"))
    );
    assert_eq!(time(&shown["failingSince"]), began);
    assert_eq!(shown["willBeDisabledAt"], Value::Null);
    assert_eq!(deliver(&service).await, (0, 0));

    receiver.answer(200);
    let enabled = service
        .http
        .patch(&webhook.path(""), json!({"enabled": true}))
        .await;
    assert_eq!(enabled.body["failingSince"], Value::Null);
    // Pending deliveries are retried.
    let (succeeded, failed) = deliver(&service).await;
    assert!(succeeded > 0 && failed == 0);
}

#[tokio::test]
async fn pending_deliveries_of_a_disabled_webhook_stay_pending() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    let webhook = register(&service, json!({"url": receiver.url})).await;
    record_event(&service, "org_1", 1).await;
    let disabled = service
        .http
        .patch(&webhook.path(""), json!({"enabled": false}))
        .await;
    assert_eq!(disabled.body["disabledReason"], "asked");
    assert_eq!(deliver(&service).await, (0, 0));
    service
        .http
        .patch(&webhook.path(""), json!({"enabled": true}))
        .await;
    assert_eq!(deliver(&service).await, (1, 0));
}

#[tokio::test]
async fn one_slow_endpoint_delays_no_other() {
    let world = World::new().await;
    let service = world.instance().await;
    let (slow, fast) = (Receiver::new().await, Receiver::new().await);
    slow.hold(true);
    for receiver in [&slow, &fast] {
        register(&service, json!({"url": receiver.url})).await;
    }
    let stop = CancellationToken::new();
    let (webhooks, stopped) = (service.app.webhooks.clone(), stop.clone());
    let worker = tokio::spawn(async move { webhooks.run(stopped).await });
    for limit in 0..50 {
        record_event(&service, "org_1", limit).await;
    }
    fast.until(|all| all.len() == 50).await;
    let waiting = slow.until(|all| !all.is_empty()).await;
    assert!(waiting.len() <= 32);
    slow.hold(false);
    slow.until(|all| all.len() == 50).await;
    // A stop waits for deliveries in progress.
    stop.cancel();
    worker.await.unwrap();
    let unrecorded = world
        .select("select event_id from webhook_deliveries where status <> 'succeeded'")
        .await;
    assert_eq!(unrecorded, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_share_deliveries_without_sending_any_twice() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    let receiver = Receiver::new().await;
    register(&instances[0], json!({"url": receiver.url})).await;
    for limit in 0..70 {
        record_event(&instances[0], "org_1", limit).await;
    }
    let mut delivered = [0, 0];
    loop {
        let (here, there) = tokio::join!(deliver(&instances[0]), deliver(&instances[1]));
        delivered[0] += here.0;
        delivered[1] += there.0;
        if here.0 + there.0 == 0 {
            break;
        }
    }
    assert_eq!(delivered[0] + delivered[1], 70);
    assert!(delivered.iter().all(|it| *it > 0), "{delivered:?}");
    let mut ids: Vec<String> = receiver
        .received()
        .iter()
        .map(|it| it.id().to_owned())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), receiver.received().len()), (70, 70));
}

#[tokio::test]
async fn a_delivery_leased_by_a_dead_instance_is_sent_by_another_which_alone_records_the_result() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    let webhook = register(&service, json!({"url": receiver.url})).await;
    record_event(&service, "org_1", 1).await;
    let id = webhook.id.parse().unwrap();
    let store = &service.app.state.ctx.postgres;
    let lease = world.clock.now() + Duration::seconds(30);
    let taken = webhooks::claim(store, &id, world.clock.now(), lease, 10)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(taken.messages.len(), 1);
    assert_eq!(deliver(&service).await, (0, 0));
    world.clock.advance(Duration::seconds(30));
    assert_eq!(deliver(&service).await, (1, 0));

    let late = Attempt {
        id: taken.messages[0].id.clone(),
        status: DeliveryStatus::Failed,
        next_at: None,
        response_status: None,
        latency_ms: 0,
        response_body: None,
        error: Some("recorded after the lease".to_owned()),
    };
    let now = world.clock.now();
    webhooks::record(store, &id, lease, &[late], Health::Healthy, now)
        .await
        .unwrap();
    let delivery = deliveries(&service, &webhook).await.remove(0);
    assert_eq!(
        (&delivery["status"], &delivery["error"]),
        (&json!("succeeded"), &Value::Null)
    );
}

#[tokio::test]
async fn deliveries_show_the_response_and_the_time_of_the_next_attempt() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    let webhook = register(&service, json!({"url": receiver.url})).await;
    let long = "ü".repeat(600) + "\0";
    receiver.answer_by(move |_| (StatusCode::BAD_GATEWAY, "\0".to_owned() + &long).into_response());
    for limit in 1..=3 {
        record_event(&service, "org_1", limit).await;
        world.clock.advance(Duration::milliseconds(1));
    }
    deliver(&service).await;
    let all = deliveries(&service, &webhook).await;
    let delivery = &all[0];
    assert_eq!(
        (
            &delivery["type"],
            &delivery["status"],
            &delivery["responseStatus"],
            &delivery["error"]
        ),
        (
            &json!("limits.updated"),
            &json!("pending"),
            &json!(502),
            &Value::Null
        )
    );
    let body = delivery["responseBody"].as_str().unwrap();
    assert!(
        body.starts_with("\u{fffd}üü") && (1000..=1030).contains(&body.len()),
        "{body}"
    );
    assert!(delivery["latencyMs"].as_u64().unwrap() < 10_000);

    // No server listens on port 1.
    let gone = "http://127.0.0.1:1/";
    service
        .http
        .patch(&webhook.path(""), json!({"url": gone}))
        .await;
    world.clock.advance(Duration::seconds(6));
    deliver(&service).await;
    let delivery = &deliveries(&service, &webhook).await[0];
    assert_eq!(
        (&delivery["attempts"], &delivery["responseStatus"]),
        (&json!(2), &Value::Null)
    );
    assert!(
        delivery["error"].as_str().unwrap().contains("refused"),
        "{delivery}"
    );

    let ids: Vec<&Value> = all.iter().map(|it| &it["id"]).collect();
    let page = get(&service, &webhook.path("/deliveries?pageSize=2")).await;
    assert_eq!(
        [&page["data"][0]["id"], &page["data"][1]["id"]],
        [ids[0], ids[1]]
    );
    let cursor = page["nextCursor"].as_str().unwrap();
    let rest = get(
        &service,
        &webhook.path(&format!("/deliveries?pageSize=2&cursor={cursor}")),
    )
    .await;
    assert_eq!(
        (&rest["data"][0]["id"], &rest["nextCursor"]),
        (ids[2], &Value::Null)
    );
    let none = get(&service, &webhook.path("/deliveries?status=failed")).await;
    assert_eq!(none["data"], json!([]));
}

#[tokio::test]
async fn a_delivery_is_sent_again_on_request() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    let webhook = register(&service, json!({"url": receiver.url})).await;
    record_event(&service, "org_1", 1).await;
    deliver(&service).await;
    let event = receiver.received()[0].id().to_owned();
    let path = webhook.path(&format!("/deliveries/{event}/redeliver"));
    let answer = service.http.send(Method::POST, &path, &[], None).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["status"]),
        (202, &json!("pending"))
    );
    assert_eq!(deliver(&service).await, (1, 0));
    let arrived = receiver.received();
    assert_eq!((arrived.len(), arrived[1].id()), (2, event.as_str()));
    let unknown = webhook.path("/deliveries/evt_01a207e5f2407000a3f0c2d9e8b7a695/redeliver");
    assert_eq!(
        service
            .http
            .send(Method::POST, &unknown, &[], None)
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn a_test_event_reaches_one_webhook_whatever_its_subscriptions() {
    let world = World::new().await;
    let service = world.instance().await;
    let (tested, other) = (Receiver::new().await, Receiver::new().await);
    let request =
        json!({"url": tested.url, "events": ["usage.warning"], "organizationId": "org_1"});
    let webhook = register(&service, request).await;
    register(&service, json!({"url": other.url})).await;
    let answer = service
        .http
        .send(Method::POST, &webhook.path("/test"), &[], None)
        .await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["type"]),
        (202, &json!("webhook.test"))
    );
    assert_eq!(deliver(&service).await, (1, 0));
    let arrived = &tested.received()[0];
    assert_eq!(arrived.body()["type"], "webhook.test");
    assert_eq!(arrived.body()["data"], json!({"webhookId": webhook.id}));
    assert_eq!(arrived.signed_by(&webhook.secret), 1);
    assert_eq!(other.received().len(), 0);
}

#[tokio::test]
async fn after_a_rotation_both_secrets_verify_for_a_day() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    let webhook = register(&service, json!({"url": receiver.url})).await;
    let path = webhook.path("/rotate-secret");
    let rotated = service.http.send(Method::POST, &path, &[], None).await;
    assert_eq!(
        (rotated.status.as_u16(), rotated.header("cache-control")),
        (200, "no-store")
    );
    let secret = rotated.body["secret"].as_str().unwrap();
    let until = time(&rotated.body["previousSecretUntil"]);
    assert_eq!(until - world.clock.now(), Duration::hours(24));
    for (later, old) in [(Duration::hours(23), 1), (Duration::hours(1), 0)] {
        world.clock.advance(later);
        service
            .http
            .send(Method::POST, &webhook.path("/test"), &[], None)
            .await;
        assert_eq!(deliver(&service).await, (1, 0));
        let arrived = receiver.received().pop().unwrap();
        assert_eq!(
            (
                arrived.signed_by(secret),
                arrived.signed_by(&webhook.secret)
            ),
            (1, old)
        );
    }
}

#[tokio::test]
async fn webhooks_are_listed_changed_and_deleted() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    let mut ids = Vec::new();
    for number in 0..3 {
        let url = format!("{}/{number}", receiver.url);
        ids.insert(0, register(&service, json!({"url": url})).await.id);
        world.clock.advance(Duration::milliseconds(1));
    }
    let page = get(&service, "/v1/webhooks?pageSize=2").await;
    let cursor = page["nextCursor"].as_str().unwrap();
    let rest = get(&service, &format!("/v1/webhooks?cursor={cursor}")).await;
    assert_eq!(
        [
            &page["data"][0]["id"],
            &page["data"][1]["id"],
            &rest["data"][0]["id"]
        ],
        [&ids[0], &ids[1], &ids[2]].map(|id| id)
    );
    assert_eq!(rest["nextCursor"], Value::Null);

    let path = format!("/v1/webhooks/{}", ids[0]);
    let change = json!({"events": ["usage.warning", "limits.updated"], "organizationId": "org_1"});
    let changed = service.http.patch(&path, change).await.body;
    assert_eq!(
        changed["events"],
        json!(["usage.warning", "limits.updated"])
    );
    assert_eq!(changed["url"], format!("{}/2", receiver.url));
    let all = service
        .http
        .patch(&path, json!({"events": null, "organizationId": null}))
        .await
        .body;
    assert_eq!(
        (&all["events"], &all["organizationId"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(get(&service, &path).await, all);

    record_event(&service, "org_1", 1).await;
    assert_eq!(
        service
            .http
            .send(Method::DELETE, &path, &[], None)
            .await
            .status,
        204
    );
    for (method, rest) in [
        (Method::GET, ""),
        (Method::DELETE, ""),
        (Method::GET, "/deliveries"),
        (Method::POST, "/test"),
        (Method::POST, "/rotate-secret"),
    ] {
        let answer = service
            .http
            .send(method, &format!("{path}{rest}"), &[], None)
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (404, "not_found"),
            "{rest}"
        );
    }
    assert_eq!(service.http.patch(&path, json!({})).await.status, 404);
    assert_eq!(deliver(&service).await, (2, 0));
    let actions = world
        .select("select action from audit_log where action like 'webhook%' order by id")
        .await;
    let [create, change, delete] = ["webhook.create", "webhook.change", "webhook.delete"];
    assert_eq!(actions, [create, create, create, change, change, delete]);
}

#[tokio::test]
async fn an_invalid_webhook_is_refused_by_name() {
    let world = World::with(|config| config.webhook_private_addresses = false).await;
    let service = world.instance().await;
    let long = format!("https://example.com/{}", "x".repeat(2048));
    for (request, at) in [
        (json!({}), "/url"),
        (json!({"url": "https://example.com/\u{0}"}), "/url"),
        (json!({"url": "https://exa\nmple.com/"}), "/url"),
        (json!({"url": "example.com"}), "/url"),
        (json!({"url": "ftp://example.com/"}), "/url"),
        (json!({"url": "file:///etc/passwd"}), "/url"),
        (json!({"url": "https://"}), "/url"),
        (json!({"url": "https://user@example.com/"}), "/url"),
        (json!({"url": "https://:password@example.com/"}), "/url"),
        (json!({"url": long}), "/url"),
        (json!({"url": "https://1.1.1.1/", "events": []}), "/events"),
        (
            json!({"url": "https://1.1.1.1/", "events": ["usage"]}),
            "/events/0",
        ),
        (
            json!({"url": "https://1.1.1.1/", "events": ["webhook.test"]}),
            "/events",
        ),
        (
            json!({"url": "https://1.1.1.1/", "organizationId": "a b"}),
            "/organizationId",
        ),
        (
            json!({"url": "https://1.1.1.1/", "secret": "mine"}),
            "/secret",
        ),
    ] {
        let answer = service.http.post("/v1/webhooks", request.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{request}"
        );
        assert_eq!(answer.body["errors"][0]["pointer"], at, "{request}");
    }
    let answer = service
        .http
        .post_once("/v1/webhooks", "key", json!({"url": "https://1.1.1.1/"}))
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (400, "malformed_request")
    );
    assert_eq!(get(&service, "/v1/webhooks").await["data"], json!([]));
}

#[tokio::test]
async fn a_private_url_is_refused_on_registration_and_on_change() {
    let world = World::with(|config| config.webhook_private_addresses = false).await;
    let service = world.instance().await;
    let outside = register(&service, json!({"url": "https://1.1.1.1/hook"})).await;
    for url in [
        "http://127.0.0.1:7400/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.01/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://nowhere.localhost/",
        "http://0.0.0.0/",
        "http://10.1.2.3/",
        "http://172.20.0.1/",
        "http://192.168.0.1/",
        "http://100.64.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://224.0.0.1/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::127.0.0.1]/",
        "http://[2002:7f00:1::]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[fd00::1]/",
        "http://[fe80::1]/",
        "http://[ff02::1]/",
    ] {
        let answer = service.http.post("/v1/webhooks", json!({"url": url})).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{url}"
        );
        assert_eq!(answer.body["errors"][0]["pointer"], "/url", "{url}");
        let answer = service
            .http
            .patch(&outside.path(""), json!({"url": url}))
            .await;
        assert_eq!(answer.status, 400, "{url}");
    }
    assert_eq!(
        get(&service, &outside.path("")).await["url"],
        "https://1.1.1.1/hook"
    );
}

/// The URLs were allowed when they were registered, and their addresses are private now.
#[tokio::test]
async fn a_url_that_has_become_private_is_not_connected_to() {
    let mut world = World::new().await;
    let permissive = world.instance().await;
    let receiver = Receiver::new().await;
    let port = receiver.url.split([':', '/']).nth(4).unwrap().to_owned();
    let mut webhooks = BTreeMap::new();
    for host in ["127.0.0.1", "0x7f.1", "localhost", "[::ffff:127.0.0.1]"] {
        let url = format!("http://{host}:{port}/");
        webhooks.insert(host, register(&permissive, json!({"url": url})).await);
    }
    world.config.webhook_private_addresses = false;
    let strict = world.instance().await;
    record_event(&strict, "org_1", 1).await;
    assert_eq!(deliver(&strict).await, (0, 4));
    assert_eq!(receiver.received().len(), 0);
    for (host, webhook) in webhooks {
        let delivery = deliveries(&strict, &webhook).await.remove(0);
        let error = delivery["error"].as_str().unwrap();
        assert!(error.contains("not a public address"), "{host}: {error}");
        assert_eq!(delivery["responseStatus"], Value::Null);
    }
    // With the setting that allows private addresses, the deliveries succeed.
    world.clock.advance(Duration::seconds(6));
    assert_eq!(deliver(&permissive).await.1, 0);
    assert!(!receiver.received().is_empty());
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_is_not_followed() {
    let world = World::new().await;
    let service = world.instance().await;
    let (receiver, target) = (Receiver::new().await, Receiver::new().await);
    let location = target.url.clone();
    let redirects = AtomicUsize::new(0);
    receiver.answer_by(move |_| {
        let statuses = [
            StatusCode::FOUND,
            StatusCode::TEMPORARY_REDIRECT,
            StatusCode::PERMANENT_REDIRECT,
        ];
        let status = statuses[redirects.fetch_add(1, Ordering::SeqCst) % 3];
        (status, [(LOCATION, location.clone())]).into_response()
    });
    register(&service, json!({"url": receiver.url})).await;
    for limit in 1..=3 {
        record_event(&service, "org_1", limit).await;
    }
    assert_eq!(deliver(&service).await, (0, 3));
    assert_eq!((receiver.received().len(), target.received().len()), (3, 0));
}

/// Recording many deliveries waits for Postgres; requests use a separate pool.
#[tokio::test]
async fn deliveries_that_cannot_be_recorded_delay_no_request() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    for _ in 0..12 {
        register(&service, json!({"url": receiver.url})).await;
    }
    record_event(&service, "org_1", 1).await;
    let postgres = world.postgres().await;
    let mut lock = postgres.begin().await.unwrap();
    sqlx::query("lock table webhook_deliveries in exclusive mode")
        .execute(&mut *lock)
        .await
        .unwrap();
    let webhooks = service.app.webhooks.clone();
    let delivering = tokio::spawn(async move { webhooks.deliver_once().await });
    let waiting = "select count(*) from pg_stat_activity
                   where datname = current_database() and wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waiting)
        .fetch_one(&postgres)
        .await
        .unwrap()
        < 5
    {}
    for _ in 0..10 {
        assert_eq!(service.http.get("/v1/audit").await.status, 200);
    }
    lock.rollback().await.unwrap();
    delivering.await.unwrap().unwrap();
}
