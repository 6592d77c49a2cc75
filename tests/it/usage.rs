//! Usage: exact before any flush, and the last snapshot while Redis is down.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{World, instant, row, shard};

/// Just below 80 % and 100 % of a limit of 100,000, and exactly at them.
#[tokio::test]
async fn a_percentage_is_rounded_down_so_that_nothing_looks_fuller_than_it_is() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .limits("org_1", json!({"api": {"limit": 100_000}}))
        .await;
    for (amount, percentage, state) in [
        (79_996, json!(79.99), "ok"),
        (4, json!(80.0), "warning"),
        (19_996, json!(99.99), "warning"),
        (4, json!(100.0), "exceeded"),
        (1, json!(100.0), "exceeded"),
    ] {
        service.count("org_1", "api", amount).await;
        assert_eq!(
            service.meter("org_1", "api").await["percentage"],
            percentage
        );
        service.flush().await;
        let listed = service.http.get("/v1/organizations").await.body["data"][0].clone();
        assert_eq!(
            (&listed["percentage"], &listed["state"]),
            (&percentage, &json!(state))
        );
    }
}

#[tokio::test]
async fn usage_is_exact_before_any_flush() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    here.count("org_1", "api", 250).await;
    let answer = there.http.get("/v1/organizations/org_1/usage").await;
    assert_eq!(
        answer.body,
        json!({"organizationId": "org_1", "planId": "free", "features": {}, "resetMode": "lazy",
               "resetPeriod": "monthly", "timeZone": "UTC", "exact": true, "snapshotAt": null,
               "meters": {"api": {"current": 250, "limit": 1000, "remaining": 750, "overage": 0, "percentage": 25.0,
                                  "enforcement": "hard", "periodStart": "2031-03-01T00:00:00Z",
                                  "resetDate": "2031-04-01T00:00:00Z", "denied": 0, "fallback": null,
                                  "label": null, "unit": null}}})
    );
}

#[tokio::test]
async fn calls_denied_in_the_period_are_told_and_not_those_that_were_only_checked() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 10}})).await;
    for (amount, denied) in [(10, 0), (5, 1), (1, 2), (7, 3)] {
        service.try_consume("org_1", "api", amount).await;
        assert_eq!(service.meter("org_1", "api").await["denied"], denied);
    }
    let check = json!({"organizationId": "org_1", "amount": 1});
    service.http.post("/v1/check", check).await;
    let retry = json!({"organizationId": "org_1", "amount": 2});
    for _ in 0..2 {
        let answer = service.http.post_once("/v1/consume", "k", retry.clone());
        assert_eq!(answer.await.status, 429);
    }
    assert_eq!(service.meter("org_1", "api").await["denied"], 4);
    service.flush().await;
    world.flush_redis().await;
    assert_eq!(service.meter("org_1", "api").await["denied"], 4);
    world.move_to("2031-04-01T00:00:00Z");
    assert_eq!(service.meter("org_1", "api").await["denied"], 0);
}

#[tokio::test]
async fn a_temporary_limit_says_what_follows_it_and_when() {
    let world = World::new().await;
    let service = world.instance().await;
    let until = "2031-03-20T00:00:00Z";
    let temporary = json!({"limit": 12000, "until": until});
    let limits = json!({"api": {"temporary": temporary}, "tokens": {"temporary": temporary}});
    service.limits("org_1", limits).await;
    let api = service.meter("org_1", "api").await;
    assert_eq!(
        (&api["limit"], &api["fallback"]),
        (&json!(12000), &json!({"at": until, "limit": 1000}))
    );
    let tokens = service.meter("org_1", "tokens").await;
    assert_eq!(tokens["fallback"], json!({"at": until, "limit": null}));
    world.move_to(until);
    let api = service.meter("org_1", "api").await;
    assert_eq!(
        (&api["limit"], &api["fallback"]),
        (&json!(1000), &Value::Null)
    );
}

#[tokio::test]
async fn usage_that_is_not_exact_says_when_it_was_stored() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 3).await;
    service.flush().await;
    let stored = world.clock.now();
    world.clock.advance(chrono::Duration::minutes(5));
    world.kill_redis().await;
    let path = "/v1/organizations/org_1/usage";
    let usage = service.http.get(path).await.body;
    assert_eq!(usage["exact"], false);
    assert_eq!(instant(usage["snapshotAt"].as_str().unwrap()), stored);
    world.start_redis().await;
    let usage = service.http.get(path).await.body;
    assert_eq!(
        (&usage["exact"], &usage["snapshotAt"]),
        (&json!(true), &Value::Null)
    );
}

#[tokio::test]
async fn an_organization_without_counts_or_settings_is_not_found() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    for id in ["nobody", "org_1x"] {
        for path in ["", "/usage"] {
            let answer = service
                .http
                .get(&format!("/v1/organizations/{id}{path}"))
                .await;
            assert_eq!(
                (answer.status.as_u16(), answer.code()),
                (404, "not_found"),
                "{id}{path}"
            );
        }
    }
}

#[tokio::test]
async fn an_organization_that_was_only_configured_reads_as_zero() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .limits("org_1", json!({"tokens": {"limit": 5}}))
        .await;
    for meter in ["api", "tokens"] {
        assert_eq!(service.current("org_1", meter).await, 0);
    }
    assert_eq!(service.meter("org_1", "tokens").await["remaining"], 5);
}

#[tokio::test]
async fn a_meter_that_nobody_limits_appears_once_it_is_counted() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "storage.bytes", 7).await;
    let answer = service.http.get("/v1/organizations/org_1/usage").await;
    let meters = answer.body["meters"].as_object().unwrap();
    assert_eq!(meters.keys().collect::<Vec<_>>(), ["api", "storage.bytes"]);
    assert_eq!(meters["api"]["current"], 0);
    let meter = &meters["storage.bytes"];
    assert_eq!(
        (&meter["current"], &meter["limit"]),
        (&json!(7), &Value::Null)
    );
    // The meter stays listed after its period.
    world.move_to("2031-04-01T00:00:00Z");
    assert_eq!(service.current("org_1", "storage.bytes").await, 0);
}

#[tokio::test]
async fn a_percentage_is_null_where_there_is_nothing_to_divide_by() {
    let world = World::new().await;
    let service = world.instance().await;
    let limits = json!({"none": {"limit": null}, "zero": {"limit": 0}, "third": {"limit": 3}, "huge": {"limit": 9_007_199_254_740_991_u64}});
    service.limits("org_1", limits).await;
    for meter in ["none", "zero", "third", "huge"] {
        service.count("org_1", meter, 4).await;
    }
    for (meter, percentage) in [
        ("none", Value::Null),
        ("zero", Value::Null),
        ("third", json!(133.33)),
        ("huge", json!(0.0)),
        ("api", json!(0.0)),
    ] {
        assert_eq!(
            service.meter("org_1", meter).await["percentage"],
            percentage,
            "{meter}"
        );
    }
}

#[tokio::test]
async fn while_redis_is_down_the_last_snapshot_is_returned_as_inexact() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 40).await;
    service.flush().await;
    service.count("org_1", "api", 2).await;
    world.kill_redis().await;
    let path = "/v1/organizations/org_1/usage";
    let answer = service.http.get(path).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.body["exact"], false);
    let meter = &answer.body["meters"]["api"];
    assert_eq!(
        (&meter["current"], &meter["limit"]),
        (&json!(40), &json!(1000))
    );
    assert_eq!(
        service
            .http
            .get("/v1/organizations/nobody/usage")
            .await
            .status,
        404
    );
    // The snapshot of an ended period is not used for the running one.
    world.move_to("2031-04-01T00:00:00Z");
    let answer = service.http.get(path).await;
    assert_eq!(answer.body["meters"]["api"]["current"], 0);
    assert_eq!(
        answer.body["meters"]["api"]["periodStart"],
        "2031-04-01T00:00:00Z"
    );
}

#[tokio::test]
async fn after_a_loss_of_redis_usage_shows_the_snapshot_and_never_zero() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 40).await;
    service.count("org_1", "tokens", 5).await;
    service.flush().await;
    let _: String = world.redis_command(&["FLUSHALL"]).await;
    let service = world.instance().await;
    assert_eq!(service.current("org_1", "api").await, 40);
    // Counting one meter restores the others.
    assert_eq!(service.count("org_1", "api", 1).await, 41);
    assert_eq!(service.current("org_1", "tokens").await, 5);
}

/// A rollback of Redis loses the meters that were first counted after the copy.
#[tokio::test]
async fn a_rollback_of_redis_hides_no_meter_that_postgres_knows() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 40).await;
    let _: String = world.redis_command(&["SAVE"]).await;
    assert!(world.redis.data().join("dump.rdb").exists());
    service.count("org_1", "api", 2).await;
    service.count("org_1", "tokens", 5).await;
    service.flush().await;
    world.kill_redis().await;
    world.start_redis().await;
    let service = world.instance().await;
    assert_eq!(service.current("org_1", "tokens").await, 5);
    assert_eq!(service.current("org_1", "api").await, 42);
}

#[tokio::test]
async fn an_organization_with_the_maximum_number_of_meters_can_be_read() {
    let world = World::new().await;
    let service = world.instance().await;
    for number in 0..32 {
        service.count("org_1", &format!("m{number}"), 1).await;
    }
    for month in ["2031-03-20T00:00:00Z", "2031-04-20T00:00:00Z"] {
        world.move_to(month);
        // The plan limits one more meter.
        assert_eq!(service.current("org_1", "api").await, 0);
    }
}

#[tokio::test]
async fn reading_changes_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    let before = world
        .snapshot_of("org_1", "api", "2031-03-01T00:00:00Z")
        .await;
    for _ in 0..3 {
        service.current("org_1", "api").await;
    }
    assert_eq!(
        world
            .snapshot_of("org_1", "api", "2031-03-01T00:00:00Z")
            .await,
        before
    );
}

#[tokio::test]
async fn readiness_names_the_server_that_is_down_and_stays_ready() {
    let mut world = World::new().await;
    let service = world.instance().await;
    world.kill_redis().await;
    let answer = service.http.send(Method::GET, "/readyz", &[], None).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        json!({
            "status": "degraded", "checks": {"redis": "away", "postgres": "ok"},
            "pending": {"increments": 0, "ageSeconds": 0}
        })
    );
    world.start_redis().await;
    let answer = service.http.get("/readyz").await;
    assert_eq!(answer.body["status"], "ready");
    service
        .app
        .state
        .draining
        .store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(service.http.get("/readyz").await.status, 503);
    assert_eq!(service.http.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_full_redis_is_read_and_flushed_and_counts_again_once_it_has_memory() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 70}})).await;
    service.track("org_1", 7).await;
    let () = world
        .redis_command(&["CONFIG", "SET", "maxmemory", "1"])
        .await;
    assert_eq!(service.current("org_1", "api").await, 7);
    // Bypasses the instance's cache: the policy as stored in Redis.
    let limits = service.http.get("/v1/organizations/org_1/limits").await;
    assert_eq!(limits.body["limits"]["api"]["limit"], 70, "{}", limits.text);
    let flusher = &service.app.flusher;
    let batch = flusher.read(&[shard("org_1")]).await.unwrap();
    assert_eq!(flusher.store(&batch).await.unwrap(), [true]);
    assert_eq!(row(&world.postgres().await, "org_1").await.used, 7);
    // Writes are refused as in an outage, also for an organization that is not cached.
    for organization in ["org_1", "org_2"] {
        assert_eq!(
            service.try_consume(organization, "api", 1).await.status,
            503
        );
    }
    let () = world
        .redis_command(&["CONFIG", "SET", "maxmemory", "0"])
        .await;
    assert_eq!(service.track("org_1", 1).await, 8);
    assert_eq!(service.track("org_2", 1).await, 1);
}
