//! Regression tests for the defects of the plugin that this service replaces.

use serde_json::{Value, json};
use tallyman::clock::Clock;

use crate::support::{AUDIENCE, ISSUER, Issuer, Publishes, Signer, World, at_once};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_updates_are_not_lost_between_reading_and_writing_back() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    at_once(100, |task| {
        let http = instances[task % 2].http.clone();
        async move {
            let body = json!({"organizationId": "org_1", "amount": 3});
            assert_eq!(http.post("/v1/track", body).await.status, 200);
        }
    })
    .await;
    assert_eq!(instances[0].current("org_1", "api").await, 300);
}

/// The late writer's clock is still before the boundary, so that it writes to the old period.
#[tokio::test]
async fn a_late_write_does_not_undo_a_reset() {
    let world = World::new().await;
    let service = world.instance().await;
    let late = world.instance_at(Clock::manual(world.clock.now())).await;
    late.count("org_1", "api", 400).await;
    world.move_to("2031-04-01T00:00:00Z");
    service.count("org_1", "api", 1).await;
    assert_eq!(late.count("org_1", "api", 400).await, 800);
    service.flush().await;
    assert_eq!(service.current("org_1", "api").await, 1);
    assert_eq!(
        world
            .select("select used::text from usage_history order by period_start")
            .await,
        ["800", "1"]
    );
}

#[tokio::test]
async fn a_limit_of_zero_is_not_turned_into_the_default() {
    let world = World::new().await;
    let service = world.instance().await;
    let answer = service.limits("org_1", json!({"api": {"limit": 0}})).await;
    assert_eq!(answer["limits"]["api"]["limit"], 0);
    assert_eq!(service.meter("org_1", "api").await["limit"], 0);
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 429);
    // The zero survives a loss of Redis, when limits come from Postgres,
    let _: String = world.redis_command(&["FLUSHALL"]).await;
    let service = world.instance().await;
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 429);
    // and works as the default limit.
    let world = World::with(|config| {
        let limits = &mut config.defaults.limits;
        for limit in limits.values_mut() {
            limit.limit = Some(tallyman::domain::quantity::Count::ZERO);
        }
    })
    .await;
    let service = world.instance().await;
    assert_eq!(
        service.try_consume("org_1", "api", 1).await.body["limit"],
        0
    );
}

#[tokio::test]
async fn a_month_after_the_31st_of_january_is_the_28th_of_february_and_then_the_31st_of_march() {
    let world = World::new().await;
    world.move_to("2031-12-31T12:00:00Z");
    let service = world.instance().await;
    service
        .settings("org_1", json!({"anchor": "2031-01-31T00:00:00Z"}))
        .await;
    for (now, start, end) in [
        (
            "2032-01-31T00:00:00Z",
            "2032-01-31T00:00:00Z",
            "2032-02-29T00:00:00Z",
        ),
        (
            "2032-02-29T00:00:00Z",
            "2032-02-29T00:00:00Z",
            "2032-03-31T00:00:00Z",
        ),
        (
            "2033-02-28T00:00:00Z",
            "2033-02-28T00:00:00Z",
            "2033-03-31T00:00:00Z",
        ),
        (
            "2033-03-01T00:00:00Z",
            "2033-02-28T00:00:00Z",
            "2033-03-31T00:00:00Z",
        ),
        (
            "2033-03-31T00:00:00Z",
            "2033-03-31T00:00:00Z",
            "2033-04-30T00:00:00Z",
        ),
    ] {
        world.move_to(now);
        let answer = service.try_consume("org_1", "api", 1).await;
        assert_eq!(
            (&answer.body["periodStart"], &answer.body["resetDate"]),
            (&json!(start), &json!(end)),
            "{now}"
        );
    }
}

#[tokio::test]
async fn a_reset_is_due_by_the_calendar_and_not_by_the_time_of_the_last_call() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"resetPeriod": "daily"}))
        .await;
    for now in [
        "2031-03-16T23:59:00Z",
        "2031-03-17T00:01:00Z",
        "2031-03-19T17:00:00Z",
        "2031-03-20T00:00:00Z",
    ] {
        world.move_to(now);
        let answer = service.try_consume("org_1", "api", 1).await;
        // The first two calls are two minutes apart, on two days.
        assert_eq!(answer.body["current"], 1, "{now}");
        assert_eq!(
            answer.body["periodStart"],
            format!("{}T00:00:00Z", &now[..10])
        );
    }
}

#[tokio::test]
async fn midnight_is_the_organizations_and_never_the_servers() {
    // The time zone of this process does not matter.
    let world = World::new().await;
    let service = world.instance().await;
    for (organization, zone) in [
        ("utc", "UTC"),
        ("auckland", "Pacific/Auckland"),
        ("honolulu", "Pacific/Honolulu"),
    ] {
        let settings = json!({"resetPeriod": "daily", "timeZone": zone});
        service.settings(organization, settings).await;
    }
    world.move_to("2031-07-10T11:00:00Z");
    for (organization, start) in [
        ("utc", "2031-07-10T00:00:00Z"),
        ("auckland", "2031-07-09T12:00:00Z"),
        ("honolulu", "2031-07-10T10:00:00Z"),
    ] {
        let answer = service.try_consume(organization, "api", 1).await;
        assert_eq!(answer.body["periodStart"], start, "{organization}");
    }
}

/// A new period is a new counter; nothing is reset to zero.
#[tokio::test]
async fn no_counter_is_zeroed_before_its_history_is_written() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 777).await;
    world.move_to("2031-04-01T00:00:00Z");
    service.count("org_1", "api", 1).await;
    let march = world
        .snapshot_of("org_1", "api", "2031-03-01T00:00:00Z")
        .await;
    assert_eq!(march["used"], "777");
    world.move_to("2031-05-01T00:00:00Z");
    let collected = service.app.garbage_collector.collect_once().await.unwrap();
    assert_eq!(collected.counters, 0, "what is not stored is not collected");
    service.flush().await;
    assert_eq!(
        world
            .select("select used::text from usage_history order by period_start")
            .await,
        ["777", "1"]
    );
    let collected = service.app.garbage_collector.collect_once().await.unwrap();
    assert_eq!(collected.counters, 1);
}

#[tokio::test]
async fn usage_is_not_readable_without_a_credential() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    for path in [
        "/v1/organizations/org_1/usage",
        "/v1/organizations/org_1",
        "/api/auth/usage-tracking/get-usage?organizationId=org_1",
        "/api/auth/usage-tracking/get-usage-history?organizationId=org_1",
    ] {
        let answer = service.http.with_key(None).get(path).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.body["meters"], Value::Null);
        assert_eq!(answer.body["api"], Value::Null);
    }
}

#[tokio::test]
async fn no_user_resets_or_limits_an_organization_their_own_or_another() {
    let signer = Signer::eddsa("a");
    let issuer = Issuer::start(Publishes::Keys(vec![signer.jwk()])).await;
    let world = World::with(|config| config.jwt = issuer.config()).await;
    let service = world.instance().await;
    let token = signer.sign(&json!({
        "sub": "user_1", "iss": ISSUER, "aud": AUDIENCE, "organizationId": "org_1", "role": "owner",
        "exp": world.clock.now().timestamp() + 600
    }));
    let user = service.http.with_key(Some(&token));
    for organization in ["org_1", "org_2"] {
        service.count(organization, "api", 5).await;
        let body = json!({ "organizationId": organization });
        let limits = json!({"organizationId": organization, "apiLimit": 1_000_000});
        for answer in [
            user.post("/api/auth/usage-tracking/reset", body).await,
            user.post("/api/auth/usage-tracking/update-limits", limits)
                .await,
            user.post(
                &format!("/v1/organizations/{organization}/reset"),
                json!({}),
            )
            .await,
        ] {
            assert_eq!(answer.status, 403, "{}", answer.text);
        }
        assert_eq!(service.current(organization, "api").await, 5);
        assert_eq!(service.meter(organization, "api").await["limit"], 1000);
    }
}

/// The first calls of a new period run concurrently, and each finds the old period ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_open_one_period_and_none_is_reset_away() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    instances[0].count("org_1", "api", 777).await;
    world.move_to("2031-04-01T00:00:00Z");
    at_once(50, |task| {
        let http = instances[task % 2].http.clone();
        async move {
            let body = json!({"organizationId": "org_1"});
            assert_eq!(http.post("/v1/consume", body).await.status, 200);
        }
    })
    .await;
    instances[0].flush().await;
    assert_eq!(
        world
            .select("select used::text from usage_history order by period_start")
            .await,
        ["777", "50"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_resets_close_what_was_counted_once() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 777).await;
    world.clock.advance(chrono::Duration::seconds(1));
    at_once(8, |_| {
        let http = service.http.clone();
        async move {
            let body = json!({"organizationId": "org_1"});
            let reset = http.post("/api/auth/usage-tracking/reset", body).await;
            assert_eq!(reset.status, 200, "{}", reset.text);
        }
    })
    .await;
    service.flush().await;
    assert_eq!(service.current("org_1", "api").await, 0);
    let closed = "select used::text from usage_history where used > 0";
    assert_eq!(world.select(closed).await, ["777"]);
}

/// A key is looked up by its id, and the hash of its secret is compared in constant time.
#[tokio::test]
async fn secrets_are_compared_in_constant_time() {
    let source = [
        include_str!("../../src/postgres/api_keys/secret.rs"),
        include_str!("../../src/postgres/api_keys/mod.rs"),
    ]
    .concat();
    let compared = source.split("pub fn matches").nth(1).unwrap();
    assert!(compared.split('}').next().unwrap().contains("ct_eq"));
    assert!(!source.contains("hash == ") && !source.contains("secret == "));
}

#[tokio::test]
async fn not_every_key_may_raise_a_limit() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1000).await;
    let unprivileged = service
        .http
        .with_key(Some(&world.key_with(&["ingest", "read"]).await));
    let path = "/v1/organizations/org_1/limits";
    let answer = unprivileged
        .patch(path, json!({"api": {"limit": null}}))
        .await;
    assert_eq!(answer.status, 403);
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 429);
}

#[tokio::test]
async fn the_organizations_own_mode_is_not_ignored() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"resetMode": "manual"}))
        .await;
    service
        .settings("org_2", json!({"resetMode": "lazy"}))
        .await;
    for organization in ["org_1", "org_2"] {
        service.count(organization, "api", 5).await;
    }
    world.move_to("2031-04-01T00:00:00Z");
    assert_eq!(service.current("org_1", "api").await, 5);
    assert_eq!(service.current("org_2", "api").await, 0);
}
