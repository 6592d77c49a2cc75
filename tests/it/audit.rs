//! `GET /v1/audit`: every change with its actor, before and after; entries are append-only.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Instance, Receiver, World, instant};

/// All entries that a query finds, over all pages.
async fn entries(service: &Instance, query: &str) -> Vec<Value> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/audit?pageSize=2&{query}{cursor}");
        let answer = service.http.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let page = answer.body["data"].as_array().unwrap();
        assert!(page.len() <= 2);
        found.extend(page.iter().cloned());
        match answer.body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return found,
        }
    }
}

fn column(entries: &[Value], name: &str) -> Vec<String> {
    let text = |entry: &Value| entry[name].as_str().unwrap_or_default().to_owned();
    entries.iter().map(text).collect()
}

#[tokio::test]
async fn every_change_is_audited_with_actor_time_action_before_and_after() {
    let world = World::new().await;
    let service = world.instance().await;
    let path = "/v1/organizations/org_1";
    service.settings("org_1", json!({"resetDay": 3})).await;
    let headers = [("x-request-id", "ticket-77")];
    let changes = json!({"resetDay": 4, "metadata": {"a": 1}});
    let answer = service
        .http
        .send(Method::PATCH, path, &headers, Some(changes))
        .await;
    assert_eq!(answer.status, 200);
    service.limits("org_1", json!({"api": {"limit": 5}})).await;
    let request = json!({"name": "bound", "scopes": ["read"], "organizationId": "org_1"});
    let key = service.http.post("/v1/api-keys", request).await.body;
    let id = key["id"].as_str().unwrap();
    let revoked = service
        .http
        .send(Method::DELETE, &format!("/v1/api-keys/{id}"), &[], None)
        .await;
    assert_eq!(revoked.status, 204);

    let found = entries(&service, "organizationId=org_1").await;
    assert_eq!(
        column(&found, "action"),
        [
            "api_key.revoke",
            "api_key.create",
            "limits.patch",
            "organization.patch",
            "organization.put"
        ]
    );
    let by = format!("key:{}", &world.key[3..19]);
    for entry in &found {
        assert_eq!(
            (&entry["actor"], &entry["organizationId"]),
            (&json!(by), &json!("org_1"))
        );
        assert!(!entry["requestId"].as_str().unwrap().is_empty());
        assert!(entry["at"].as_str().unwrap().ends_with('Z'));
    }
    assert!(found.iter().all(|entry| entry["actorName"] == "tests"));
    let [revoke, create, limits, patched, put] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(patched["requestId"], "ticket-77");
    assert_eq!(
        (&put["before"], &put["after"]["settings"]["resetDay"]),
        (&Value::Null, &json!(3))
    );
    assert_eq!(patched["before"], put["after"]);
    let settings = &patched["after"]["settings"];
    assert_eq!(
        (&settings["resetDay"], &settings["metadata"]),
        (&json!(4), &json!({"a": 1}))
    );
    assert_eq!(limits["before"], patched["after"]);
    assert_eq!(limits["after"]["limits"], json!({"api": {"limit": 5}}));
    assert_eq!(
        (&create["before"], &create["after"]["name"]),
        (&Value::Null, &json!("bound"))
    );
    assert_eq!(revoke["before"], create["after"]);
    assert!(revoke["after"]["revokedAt"].is_string());
    let secret = key["key"].as_str().unwrap().split('_').next_back().unwrap();
    assert!(!json!(found).to_string().contains(secret));

    // Two more entries belong to no organization: the published defaults and the tests' key.
    let all = entries(&service, "").await;
    assert_eq!(all.len(), found.len() + 2);
    let first = all
        .iter()
        .find(|it| it["action"] == "defaults.publish")
        .unwrap();
    assert_eq!(
        (&first["actor"], &first["organizationId"]),
        (&json!("system"), &Value::Null)
    );
    assert_eq!(first["actorName"], Value::Null);
    assert_eq!(first["after"]["planId"], "free");
}

#[tokio::test]
async fn entries_are_found_by_organization_actor_action_and_time() {
    let world = World::new().await;
    let service = world.instance().await;
    let other = service
        .http
        .with_key(Some(&world.key_with(&["admin"]).await));
    for (http, organization) in [
        (&service.http, "org_1"),
        (&other, "org_2"),
        (&other, "org_1"),
    ] {
        let path = format!("/v1/organizations/{organization}");
        assert_eq!(http.put(&path, json!({})).await.status, 200);
        assert_eq!(http.patch(&path, json!({"resetDay": 2})).await.status, 200);
    }
    let all = entries(&service, "").await;
    let ids: BTreeSet<u64> = all.iter().map(|it| it["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), all.len());
    assert!(all.is_sorted_by_key(|it| std::cmp::Reverse(it["id"].as_u64())));
    let mine = format!("key:{}", &world.key[3..19]);
    let count = async |query: String| entries(&service, &query).await.len();
    assert_eq!(count("organizationId=org_1".to_owned()).await, 4);
    assert_eq!(count(format!("actor={mine}")).await, 2);
    assert_eq!(count("action=organization.put".to_owned()).await, 3);
    assert_eq!(
        count(format!(
            "organizationId=org_1&actor={mine}&action=organization.put"
        ))
        .await,
        1
    );
    assert_eq!(count("organizationId=nobody".to_owned()).await, 0);
    let times = column(&all, "at");
    for at in &times {
        let since = times.iter().filter(|it| instant(it) >= instant(at));
        let since = since.count();
        assert_eq!(count(format!("from={at}")).await, since);
        assert_eq!(count(format!("to={at}")).await, all.len() - since);
    }
}

#[tokio::test]
async fn only_administrators_read_the_audit_log_and_invalid_filters_are_refused_by_name() {
    let world = World::new().await;
    let service = world.instance().await;
    let reader = service
        .http
        .with_key(Some(&world.key_with(&["read"]).await));
    assert_eq!(reader.get("/v1/audit").await.status, 403);
    for (query, pointer) in [
        ("cursor=first", "/cursor"),
        ("cursor=18446744073709551615", "/cursor"),
        ("actor=%00", "/actor"),
        ("action=%00", "/action"),
        ("from=yesterday", "/from"),
        ("organizationId=a%20b", "/organizationId"),
        ("pageSize=0", "/pageSize"),
        ("user=7", "/user"),
    ] {
        let answer = service.http.get(&format!("/v1/audit?{query}")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{query}"
        );
        assert_eq!(answer.body["errors"][0]["pointer"], pointer);
    }
    let beyond = service
        .http
        .get("/v1/audit?cursor=9223372036854775807")
        .await;
    assert_eq!(
        (beyond.status.as_u16(), &beyond.body["data"]),
        (200, &json!([]))
    );
}

#[tokio::test]
async fn the_database_itself_refuses_to_change_or_remove_an_entry() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    let before = entries(&service, "").await;
    let postgres = world.postgres().await;
    for statement in [
        "update audit_log set actor = 'nobody'",
        "delete from audit_log",
        "delete from audit_log where id = 1",
        "truncate audit_log",
    ] {
        let error = sqlx::query(statement).execute(&postgres).await.unwrap_err();
        let code = error
            .as_database_error()
            .unwrap()
            .code()
            .unwrap()
            .into_owned();
        assert_eq!(code, "23001", "{statement}");
    }
    assert_eq!(entries(&service, "").await, before);
}

#[tokio::test]
async fn tests_redeliveries_and_deletions_of_webhooks_are_audited() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    let request = json!({"url": receiver.url, "organizationId": "org_1"});
    let webhook = service.http.post("/v1/webhooks", request).await;
    let path = format!("/v1/webhooks/{}", webhook.body["id"].as_str().unwrap());
    let post = async |path: &str| service.http.send(Method::POST, path, &[], None).await;
    let tested = post(&format!("{path}/test")).await;
    let delivery = tested.body["id"].as_str().unwrap();
    service.app.webhooks.deliver_once().await.unwrap();
    receiver.answer(410);
    let redelivery = format!("{path}/deliveries/{delivery}/redeliver");
    assert_eq!(post(&redelivery).await.status, 202);
    service.app.webhooks.deliver_once().await.unwrap();
    // A redelivery of an unknown event leaves no entry.
    let unknown = "evt_01a207e5f2407000a3f0c2d9e8b7a695";
    let nowhere = format!("{path}/deliveries/{unknown}/redeliver");
    assert_eq!(post(&nowhere).await.status, 404);

    let found = entries(&service, "organizationId=org_1").await;
    assert_eq!(
        column(&found, "action"),
        [
            "webhook.disable",
            "webhook.redeliver",
            "webhook.test",
            "webhook.create"
        ]
    );
    let [disabled, redelivered, test, _] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(disabled["actor"], "system");
    assert_eq!(
        (
            &disabled["before"]["enabled"],
            &disabled["after"]["disabledReason"]
        ),
        (&json!(true), &json!("gone"))
    );
    let which = json!({"webhookId": webhook.body["id"], "deliveryId": delivery});
    assert_eq!(
        (&redelivered["before"], &redelivered["after"]),
        (&json!({"status": "succeeded", "attempts": 1}), &which)
    );
    assert_eq!((&test["before"], &test["after"]), (&Value::Null, &which));
    for requested in [redelivered, test] {
        assert!(requested["actor"].as_str().unwrap().starts_with("key:"));
    }
}

#[tokio::test]
async fn ending_expired_periods_is_audited_once() {
    let world = World::new().await;
    let service = world.instance().await;
    for id in ["org_1", "org_2"] {
        service
            .settings(id, json!({"resetMode": "scheduled"}))
            .await;
        service.track(id, 5).await;
    }
    service.flush().await;
    service.app.periods.sweep_once().await.unwrap();
    world.move_to("2031-04-01T00:00:01Z");
    let key = world.key_with(&["reset"]).await;
    let http = service.http.with_key(Some(&key));
    for count in [2, 0] {
        let answer = http.post("/v1/reset-expired", json!({})).await;
        assert_eq!(answer.body["resetCount"], count);
    }
    let found = entries(&service, "action=organizations.reset_expired").await;
    assert_eq!(found.len(), 1);
    assert_eq!(
        (&found[0]["after"], &found[0]["actor"]),
        (
            &json!({"resetCount": 2, "organizations": ["org_1", "org_2"]}),
            &json!(format!("key:{}", &key[3..19]))
        )
    );
}
