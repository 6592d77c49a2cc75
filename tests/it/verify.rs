//! Verification: it finds every inconsistency, and none that concurrent calls only seem to cause.

use serde_json::{Value, json};

use crate::support::{Instance, World, at_once, instant, key_of};

const MARCH: &str = "2031-03-01T00:00:00Z";

async fn verify(service: &Instance, query: &str) -> Value {
    let answer = service.http.get(&format!("/v1/verify{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body
}

/// The kinds of the mismatches, in order.
fn mismatches(found: &Value) -> Vec<&str> {
    let rows = found["data"].as_array().unwrap();
    rows.iter()
        .map(|it| it["mismatch"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verification_finds_no_difference_under_concurrent_calls_resets_changes_and_flushes() {
    let world = World::new().await;
    let service = world.instance().await;
    for hour in 0..3 {
        at_once(24, |task| {
            let (http, flusher) = (service.http.clone(), service.app.flusher.clone());
            async move {
                let organization = format!("org_{}", task % 3);
                for round in 0..8 {
                    let path = format!("/v1/organizations/{organization}");
                    match (task / 3) % 8 {
                        0 => {
                            flusher.flush_all().await.unwrap();
                        }
                        1 => {
                            let answer = http.get("/v1/verify").await;
                            assert_eq!(answer.body["data"], json!([]), "{}", answer.text);
                        }
                        2 if round % 4 == 0 => {
                            http.post(&format!("{path}/reset"), json!({})).await;
                        }
                        3 if round % 4 == 0 => {
                            let limits = json!({"api": {"limit": 10 + round}});
                            http.patch(&format!("{path}/limits"), limits).await;
                        }
                        4 => {
                            let body = json!({"organizationId": organization, "amount": 2});
                            http.post("/v1/refund", body).await;
                        }
                        _ => {
                            let meters = json!({"api": 3, "tokens": 100 + round});
                            let body = json!({"organizationId": organization, "meters": meters});
                            http.post("/v1/track", body).await;
                            let body = json!({"organizationId": organization, "amount": 5});
                            http.post("/v1/consume", body).await;
                        }
                    }
                }
            }
        })
        .await;
        let found = verify(&service, "").await;
        assert_eq!(mismatches(&found), [""; 0], "hour {hour}: {found:#}");
        world.clock.advance(chrono::Duration::minutes(59));
    }
    service.flush().await;
    let found = verify(&service, "").await;
    assert_eq!(
        (&found["data"], &found["organizations"]),
        (&json!([]), &json!(3))
    );
    assert!(found["counters"].as_u64().unwrap() >= 6, "{found}");
    // Nor in a new period, nor after a loss.
    world.move_to("2031-04-02T00:00:00Z");
    for _ in 0..2 {
        for organization in ["org_0", "org_1"] {
            service.count(organization, "api", 4).await;
        }
        assert_eq!(verify(&service, "").await["data"], json!([]));
        service.flush().await;
        assert_eq!(verify(&service, "").await["data"], json!([]));
        let _: String = world.redis_command(&["FLUSHALL"]).await;
        assert_eq!(verify(&service, "").await["data"], json!([]));
    }
}

#[tokio::test]
async fn a_count_that_is_not_stored_yet_is_no_difference() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    // The organization is not flushed yet, so that no list has it.
    let found = verify(&service, "?organizationId=org_1").await;
    assert_eq!(
        found,
        json!({"data": [], "organizations": 1, "counters": 1, "nextCursor": null})
    );
    service.flush().await;
    service.count("org_1", "api", 5).await;
    assert_eq!(verify(&service, "").await["data"], json!([]));
}

#[tokio::test]
async fn every_kind_of_difference_is_found_and_named() {
    let key = key_of("org_1", "api", MARCH);
    let hour = instant("2031-03-15T12:00:00Z").timestamp_millis();
    let field = format!("used@{hour}");
    let history =
        |part: &str| format!("update usage_history set {part} where organization_id = 'org_1'");
    let hours =
        |part: &str| format!("update usage_hourly set {part} where organization_id = 'org_1'");
    for (redis, sql, expected) in [
        ("used", String::new(), &["hours", "snapshot"][..]),
        ("denied", String::new(), &["hours", "snapshot"]),
        (&field, String::new(), &["hours"]),
        ("", history("used = used + 1"), &["storedHours", "snapshot"]),
        (
            "",
            history("refunded = refunded + 1"),
            &["storedHours", "snapshot"],
        ),
        ("", history("seq = seq + 1"), &["ahead"]),
        ("", history("epoch = epoch + 1"), &["ahead"]),
        ("", history("seq = seq - 1"), &["settled"]),
        ("", hours("used = used - 1"), &["storedHours"]),
        ("", "delete from usage_hourly".to_owned(), &["storedHours"]),
        ("", "delete from usage_history".to_owned(), &["settled"]),
    ] {
        let world = World::new().await;
        let service = world.instance().await;
        for organization in ["org_1", "org_2"] {
            service.count(organization, "api", 5).await;
        }
        service.flush().await;
        if !redis.is_empty() {
            world.add(&key, redis, 1).await;
        }
        if !sql.is_empty() {
            sqlx::query(sqlx::AssertSqlSafe(sql.clone()))
                .execute(&world.postgres().await)
                .await
                .unwrap();
        }
        let found = verify(&service, "?organizationId=org_1").await;
        assert_eq!(mismatches(&found), expected, "{redis:?} {sql}: {found:#}");
        for row in found["data"].as_array().unwrap() {
            assert_eq!(row["organizationId"], "org_1");
            assert_eq!(
                (&row["meter"], &row["periodStart"]),
                (&json!("api"), &json!(MARCH))
            );
        }
        let row = &found["data"][0];
        if row["mismatch"] != "ahead" && !sql.contains("seq") {
            assert_ne!(row["expected"], row["found"], "{found:#}");
        }
    }
}

#[tokio::test]
async fn all_organizations_are_compared_page_by_page() {
    let world = World::new().await;
    let service = world.instance().await;
    for number in 0..5 {
        service.count(&format!("org_{number}"), "api", 1).await;
    }
    service.flush().await;
    let key = key_of("org_4", "api", MARCH);
    world.add(&key, "used", 1).await;
    let (mut cursor, mut organizations, mut found) = (String::new(), Vec::new(), Vec::new());
    loop {
        let page = verify(&service, &format!("?pageSize=2{cursor}")).await;
        organizations.push(page["organizations"].as_u64().unwrap());
        found.extend(page["data"].as_array().unwrap().clone());
        let Some(next) = page["nextCursor"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(organizations, [2, 2, 1]);
    assert!(found.iter().all(|it| it["organizationId"] == "org_4") && !found.is_empty());
}

#[tokio::test]
async fn only_administrators_verify_and_only_known_organizations() {
    let mut world = World::new().await;
    let service = world.instance().await;
    let reader = service
        .http
        .with_key(Some(&world.key_with(&["read", "ingest"]).await));
    assert_eq!(reader.get("/v1/verify").await.status, 403);
    let answer = service.http.get("/v1/verify?organizationId=nobody").await;
    assert_eq!((answer.status.as_u16(), answer.code()), (404, "not_found"));
    assert_eq!(verify(&service, "").await["data"], json!([]));
    world.kill_redis().await;
    service.http.get("/v1/verify").await;
    let answer = service.http.get("/v1/verify").await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (503, "counter_store_unavailable")
    );
}
