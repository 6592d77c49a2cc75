//! `GET /v1/summary`: organizations, calls of all instances, lags and outages.

use chrono::{DateTime, Duration, Utc};
use serde_json::{Value, json};

use crate::support::{Instance, World, instant};

/// The summary, read after the previous one has expired.
async fn summary(world: &World, service: &Instance) -> Value {
    world.clock.advance(Duration::seconds(5));
    let answer = service.http.get("/v1/summary").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body
}

/// The minutes with calls.
fn called(summary: &Value) -> Vec<(DateTime<Utc>, u64)> {
    let minutes = summary["calls"].as_array().unwrap();
    assert_eq!(minutes.len(), 60);
    let minutes = minutes.iter().map(|it| {
        let start = instant(it["start"].as_str().unwrap());
        (start, it["calls"].as_u64().unwrap())
    });
    minutes.filter(|(_, calls)| *calls > 0).collect()
}

#[tokio::test]
async fn organizations_are_counted_by_plan_and_by_the_state_of_their_worst_meter() {
    let world = World::new().await;
    let service = world.instance().await;
    let plan = json!({"limits": {"api": {"limit": 1000, "enforcement": "soft"}}});
    assert_eq!(service.http.put("/v1/plans/pro", plan).await.status, 200);
    for organization in ["soft_1", "soft_2", "idle"] {
        service
            .settings(organization, json!({"planId": "pro"}))
            .await;
    }
    for (organization, amount) in [
        ("ok", 100),
        ("warning", 949),
        ("nearly", 950),
        ("full", 1000),
        ("soft_1", 1000),
        ("soft_2", 1001),
        ("gone", 1000),
    ] {
        service.count(organization, "api", amount).await;
    }
    // Above a soft limit and at a hard one.
    service
        .limits("soft_2", json!({"tokens": {"limit": 5}}))
        .await;
    service.flush().await;
    service.http.delete("/v1/organizations/gone").await;
    let read = summary(&world, &service).await;
    assert_eq!(
        read["organizations"],
        json!({
            "total": 7, "newThisWeek": 7, "byPlan": {"free": 4, "pro": 3},
            "byState": {"ok": 2, "warning": 1, "nearlyFull": 2, "exceededSoft": 1, "exceededHard": 1}
        })
    );

    service.count("soft_2", "tokens", 5).await;
    service.flush().await;
    sqlx::query("update organizations set created_at = now() - interval '8 days' where id = 'ok'")
        .execute(&world.postgres().await)
        .await
        .unwrap();
    let read = summary(&world, &service).await;
    assert_eq!(read["organizations"]["newThisWeek"], 6);
    assert_eq!(
        read["organizations"]["byState"],
        json!({"ok": 2, "warning": 1, "nearlyFull": 2, "exceededSoft": 0, "exceededHard": 2})
    );

    world.move_to("2031-04-01T00:00:00Z");
    let read = summary(&world, &service).await;
    assert_eq!(read["organizations"]["byState"]["ok"], 7);
    service.app.flusher.summaries.age_once().await.unwrap();
    let read = summary(&world, &service).await;
    assert_eq!(read["organizations"]["byState"]["ok"], 7);
}

#[tokio::test]
async fn calls_of_all_instances_add_up_by_minute_and_a_repeated_round_adds_nothing() {
    let world = World::new().await;
    let (one, two) = (world.instance().await, world.instance().await);
    let first = world.clock.now();
    for service in [&one, &one, &two] {
        service.count("org_1", "api", 5).await;
    }
    let items: Vec<Value> = (0..4)
        .map(|_| json!({"op": "track", "organizationId": "org_1"}))
        .collect();
    let batch = two.http.post("/v1/batch", json!({"items": items})).await;
    assert_eq!(batch.status, 200, "{}", batch.text);
    for service in [&one, &two, &two, &one] {
        service.app.activity.observe().await.unwrap();
    }
    world.clock.advance(Duration::minutes(1));
    let second = world.clock.now();
    one.try_consume("org_1", "api", 2000).await;
    one.app.activity.observe().await.unwrap();
    let read = summary(&world, &two).await;
    assert_eq!(called(&read), [(first, 7)]);
    assert_eq!(read["callsPerMinute"], 7);

    world.clock.advance(Duration::minutes(1));
    let read = summary(&world, &two).await;
    assert_eq!(called(&read), [(first, 7), (second, 1)]);
    assert_eq!(read["callsPerMinute"], 1);
    world.clock.advance(Duration::minutes(59));
    let read = summary(&world, &two).await;
    assert_eq!(called(&read), [(second, 1)]);
    one.count("org_1", "api", 1).await;
    one.app.activity.observe().await.unwrap();
    let kept = world.select("select minute::text from call_minutes").await;
    assert_eq!(kept.len(), 2);
}

#[tokio::test]
async fn minutes_that_postgres_missed_are_stored_once_it_is_back() {
    let world = World::new().await;
    let service = world.instance().await;
    let away = world.clock.now();
    let postgres = world.postgres().await;
    sqlx::query("alter table call_minutes rename to away")
        .execute(&postgres)
        .await
        .unwrap();
    service.count("org_1", "api", 1).await;
    let activity = &service.app.activity;
    activity.observe().await.unwrap_err();
    world.clock.advance(Duration::minutes(1));
    service.count("org_1", "api", 1).await;
    activity.observe().await.unwrap_err();
    assert_eq!(activity.outages().postgres, Some(away));
    sqlx::query("alter table away rename to call_minutes")
        .execute(&postgres)
        .await
        .unwrap();
    activity.observe().await.unwrap();
    assert_eq!(activity.outages().postgres, None);
    world.clock.advance(Duration::minutes(1));
    let read = summary(&world, &service).await;
    assert_eq!(called(&read), [(away, 1), (away + Duration::minutes(1), 1)]);
}

#[tokio::test]
async fn lags_the_last_snapshot_and_an_outage_of_redis_are_told() {
    let mut world = World::new().await;
    let service = world.instance().await;
    let activity = service.app.activity.clone();
    let read = summary(&world, &service).await;
    assert_eq!(read["lastSnapshotAt"], Value::Null);
    for lag in ["flushLagSeconds", "webhookLagSeconds"] {
        assert_eq!(read[lag], 0.0, "{lag}");
    }
    let webhook = json!({"url": "http://127.0.0.1:9/"});
    service.http.post("/v1/webhooks", webhook).await;
    service.count("org_1", "api", 1000).await;
    let read = summary(&world, &service).await;
    assert_eq!(read["flushLagSeconds"], 5.0);
    service.flush().await;
    activity.observe().await.unwrap();
    let flushed = world.clock.now();
    let read = summary(&world, &service).await;
    assert_eq!(read["flushLagSeconds"], 0.0);
    assert_eq!(read["webhookLagSeconds"], 5.0);
    assert_eq!(instant(read["lastSnapshotAt"].as_str().unwrap()), flushed);
    assert_eq!(read["redisAwaySince"], Value::Null);

    world.kill_redis().await;
    let away = world.clock.now();
    for _ in 0..2 {
        activity.observe().await.unwrap();
        let read = summary(&world, &service).await;
        assert_eq!(instant(read["redisAwaySince"].as_str().unwrap()), away);
        assert_eq!(read["flushLagSeconds"], Value::Null);
    }
    world.start_redis().await;
    activity.observe().await.unwrap();
    let read = summary(&world, &service).await;
    assert_eq!(read["redisAwaySince"], Value::Null);
}

#[tokio::test]
async fn a_summary_is_cached_for_five_seconds_and_not_for_bound_keys() {
    let world = World::new().await;
    let service = world.instance().await;
    let total = |read: &Value| read["organizations"]["total"].clone();
    assert_eq!(total(&summary(&world, &service).await), 0);
    service.settings("org_1", json!({})).await;
    let cached = service.http.get("/v1/summary").await.body;
    assert_eq!(total(&cached), 0);
    assert_eq!(total(&summary(&world, &service).await), 1);

    let request = json!({"name": "bound", "scopes": ["read"], "organizationId": "org_1"});
    let key = service.http.post("/v1/api-keys", request).await.body;
    let bound = service.http.with_key(key["key"].as_str());
    assert_eq!(bound.get("/v1/summary").await.status, 403);
}
