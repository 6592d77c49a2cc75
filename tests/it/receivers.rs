//! The example receivers of `docs/webhooks.md` accept each signed event once, and nothing else. The one in TypeScript
//! uses the reference library of Standard Webhooks.

use reqwest::Method;
use serde_json::json;
use tallyman::clock::Clock;

use crate::support::{Example, Http, Instance, World};

async fn change_limit(service: &Instance, limit: u64) {
    service
        .limits("org_1", json!({"api": {"limit": limit}}))
        .await;
}

async fn deliver(service: &Instance) {
    let report = service.app.webhooks.deliver_once().await.unwrap();
    assert_eq!((report.succeeded, report.failed), (1, 0));
}

async fn check_receiver(language: &str) {
    let world = World::new().await;
    // The receivers check timestamps against the system clock.
    let service = world.instance_at(Clock::System).await;
    let request = json!({"url": "http://127.0.0.1:1/"});
    let webhook = service.http.post("/v1/webhooks", request).await.body;
    let path = format!("/v1/webhooks/{}", webhook["id"].as_str().unwrap());
    let mut receiver = Example::start(language, webhook["secret"].as_str().unwrap()).await;
    let target = json!({"url": receiver.url});
    assert_eq!(service.http.patch(&path, target).await.status, 200);

    change_limit(&service, 10).await;
    deliver(&service).await;
    let (kind, data) = receiver.event().await;
    assert_eq!(kind, "limits.updated");
    assert_eq!(
        (&data["organizationId"], &data["limits"]["api"]["limit"]),
        (&json!("org_1"), &json!(10))
    );

    // A redelivery is acknowledged and ignored; after a rotation both secrets are valid for a day.
    let events = service.http.get("/v1/events").await.body;
    let event = events["data"][0]["id"].as_str().unwrap();
    let again = format!("{path}/deliveries/{event}/redeliver");
    service.http.send(Method::POST, &again, &[], None).await;
    deliver(&service).await;
    let rotate = format!("{path}/rotate-secret");
    assert_eq!(
        service
            .http
            .send(Method::POST, &rotate, &[], None)
            .await
            .status,
        200
    );
    change_limit(&service, 11).await;
    deliver(&service).await;
    assert_eq!(receiver.event().await.1["limits"]["api"]["limit"], 11);

    let attacker = Http::new(receiver.url.trim_end_matches('/').to_owned(), "");
    let now = Clock::System.now().timestamp().to_string();
    let signature = format!("v1,{}", "A".repeat(43) + "=");
    for headers in [
        vec![],
        vec![
            ("webhook-id", event),
            ("webhook-timestamp", &now),
            ("webhook-signature", &signature),
        ],
        vec![
            ("webhook-id", event),
            ("webhook-timestamp", "1"),
            ("webhook-signature", &signature),
        ],
    ] {
        let answer = attacker
            .send(Method::POST, "/", &headers, Some(json!({})))
            .await;
        assert_eq!(answer.status, 401, "{headers:?}");
    }
}

#[tokio::test]
async fn the_receiver_in_typescript_takes_what_was_signed_once_and_nothing_else() {
    check_receiver("ts").await;
}

#[tokio::test]
async fn the_receiver_in_python_takes_what_was_signed_once_and_nothing_else() {
    check_receiver("python").await;
}
