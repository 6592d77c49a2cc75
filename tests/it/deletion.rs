//! `DELETE /v1/organizations/{id}`: removes all data, no operation in flight restores any of it, and the next
//! call starts a new incarnation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::Duration;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tallyman::postgres::{self, Actor, Postgres, deletions, usage};
use tallyman::redis::RecoveryReply;

use crate::support::{
    Answer, Instance, SlowRestore, World, at_once, hours, instant, lock_policy_changes, row, rows,
    shard, until_lock_wait,
};

const PATH: &str = "/v1/organizations/org_1";
const PERIOD: &str = "2031-03-01T00:00:00Z";

/// Deletes `org_1`; returns the response body.
async fn delete(service: &Instance) -> Value {
    let answer = service.http.delete(PATH).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(
        (&answer.body["deleted"], &answer.body["organizationId"]),
        (&json!(true), &json!("org_1"))
    );
    answer.body
}

/// Gives `org_1` settings, limits, two meters, two periods, late events, an idempotency record and a refusal.
async fn populate(world: &World, service: &Instance) {
    let settings = json!({"resetPeriod": "daily", "timeZone": "Europe/Berlin", "features": {"sso": true},
                          "metadata": {"a": 1}});
    service.settings("org_1", settings).await;
    service.limits("org_1", json!({"api": {"limit": 20}})).await;
    service.track("org_1", 5).await;
    service.count("org_1", "tokens", 7).await;
    world.clock.advance(Duration::days(1));
    let body = json!({"organizationId": "org_1", "amount": 9});
    assert_eq!(
        service
            .http
            .post_once("/v1/consume", "order-1", body)
            .await
            .status,
        200
    );
    assert_eq!(service.try_consume("org_1", "api", 100).await.status, 429);
    let yesterday = world.clock.now() - Duration::hours(27);
    let late = json!({"organizationId": "org_1", "meter": "late", "timestamp": yesterday});
    assert_eq!(service.http.post("/v1/track", late).await.status, 200);
}

/// The number of an organization's rows in each table that has any.
async fn rows_by_table(postgres: &PgPool, organization: &str) -> Vec<(String, i64)> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.columns
         join information_schema.tables using (table_schema, table_name)
         where column_name = 'organization_id' and table_schema = 'public' and table_type = 'BASE TABLE'
             and table_name not like 'usage_hourly_%'
         order by table_name",
    )
    .fetch_all(postgres)
    .await
    .unwrap();
    assert!(tables.len() >= 6, "{tables:?}");
    let mut found = Vec::new();
    for table in tables {
        let count = format!("select count(*) from {table} where organization_id = $1");
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(count))
            .bind(organization)
            .fetch_one(postgres)
            .await
            .unwrap();
        if count > 0 {
            found.push((table, count));
        }
    }
    found
}

/// The organization's Redis keys without the shard, and `policy` if its policy is stored.
async fn keys(world: &World, organization: &str) -> Vec<String> {
    let keys: Vec<String> = world.redis_command(&["KEYS", "*"]).await;
    let names = keys
        .iter()
        .filter_map(|key| Some(key.split_once("}:")?.1.to_owned()));
    let mut names: Vec<String> = names
        .filter(|name| name.split(':').nth(1) == Some(organization))
        .collect();
    let known = world.hash_of(organization).await;
    names.extend(known.map(|_| "policy".to_owned()));
    names.sort();
    names
}

/// Asserts that `org_1` has the default policy and this count.
async fn assert_new_incarnation(service: &Instance, current: u64) {
    let usage = service.http.get(&format!("{PATH}/usage")).await;
    assert_eq!(usage.status, 200, "{}", usage.text);
    let (meters, features) = (&usage.body["meters"], &usage.body["features"]);
    assert_eq!(
        (meters.as_object().unwrap().len(), features),
        (1, &json!({}))
    );
    assert_eq!(
        (&meters["api"]["current"], &meters["api"]["limit"]),
        (&json!(current), &json!(1000))
    );
    assert_eq!(meters["api"]["periodStart"], PERIOD);
}

#[tokio::test]
async fn every_trace_is_erased_but_the_audit_log_and_the_tombstone() {
    let world = World::new().await;
    let service = world.instance().await;
    populate(&world, &service).await;
    service.flush().await;
    service.app.flusher.summaries.walk_once().await.unwrap();
    service.track("org_1", 1).await;
    service.track("org_10", 4).await;
    service.flush().await;
    let (others, other_rows) = (
        keys(&world, "org_10").await,
        rows(&world.postgres().await).await,
    );
    let deleted = delete(&service).await;
    assert_eq!(
        (&deleted["background"], &deleted["apiKeysRevoked"]),
        (&json!(false), &json!(0))
    );
    assert_eq!(deleted["counters"], 4);
    assert!(deleted["historyRows"].as_u64() >= Some(8), "{deleted}");

    let postgres = world.postgres().await;
    assert_eq!(
        rows_by_table(&postgres, "org_1").await,
        [("audit_log".to_owned(), 3), ("events".to_owned(), 1)]
    );
    let tombstone = "select row(plan_id, features, reset_mode, reset_period, reset_day, reset_month, anchor, time_zone,
                                metadata, timeline, deleted_at is not null, incarnation = version)::text
                     from organizations where id = 'org_1'";
    assert_eq!(world.select(tombstone).await, ["(,{},,,,,,,{},,t,t)"]);
    // Redis keeps only the default policy.
    assert_eq!(keys(&world, "org_1").await, ["policy"]);
    assert_eq!(keys(&world, "org_10").await, others);
    let kept: Vec<_> = other_rows
        .into_iter()
        .filter(|row| row.organization_id == "org_10")
        .collect();
    assert_eq!(rows(&postgres).await, kept);

    for path in ["", "/usage", "/limits", "/features/sso", "/history"] {
        assert_eq!(
            service.http.get(&format!("{PATH}{path}")).await.status,
            404,
            "{path}"
        );
    }
    let list = service.http.get("/v1/organizations").await;
    assert_eq!(
        list.body["data"].as_array().unwrap().len(),
        1,
        "{}",
        list.text
    );
    let all = service
        .http
        .get("/v1/history?granularity=day&meter=api&fill=zero&from=2031-03-10T00:00:00Z")
        .await;
    assert!(!all.text.contains("\"org_1\""), "{}", all.text);
    assert_eq!(service.http.patch(PATH, json!({})).await.status, 404);
    assert_eq!(
        service
            .http
            .patch(&format!("{PATH}/limits"), json!({}))
            .await
            .status,
        404
    );
    assert_eq!(service.http.delete(PATH).await.status, 404);
    let check = service
        .http
        .post("/v1/check", json!({"organizationId": "org_1"}))
        .await;
    assert_eq!(
        (&check.body["current"], &check.body["limit"]),
        (&json!(0), &json!(1000))
    );
    assert_eq!(service.http.get(PATH).await.status, 404);
}

#[tokio::test]
async fn a_later_call_starts_at_zero_on_every_instance_whatever_it_had_cached() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    for round in 1..=3 {
        populate(&world, &here).await;
        there.track("org_1", 1).await;
        if round != 2 {
            there.flush().await;
        }
        delete(&here).await;
        // The other instance still has the old policy cached.
        assert_eq!(there.track("org_1", 3).await, 3, "round {round}");
        assert_eq!(here.track("org_1", 2).await, 5);
        assert_new_incarnation(&there, 5).await;
        here.flush().await;
        let stored = row(&world.postgres().await, "org_1").await;
        assert_eq!(
            (stored.used, stored.hours_used, stored.limit_units),
            (5, 5, Some(1000))
        );
        assert_eq!(here.http.get(PATH).await.status, 200);
        delete(&there).await;
    }
    let created = here.settings("org_1", json!({"resetDay": 7})).await;
    assert_eq!(
        (&created["resetDay"], &created["timeZone"]),
        (&json!(7), &json!("UTC"))
    );
    assert_eq!(there.track("org_1", 1).await, 1);
}

#[tokio::test]
async fn an_organization_that_only_redis_knows_is_deleted_as_well() {
    let world = World::new().await;
    let service = world.instance().await;
    world.move_to("2031-04-02T00:00:00Z");
    service.track("org_1", 5).await;
    assert_eq!(world.select("select id from organizations").await, [""; 0]);
    assert_eq!(delete(&service).await["counters"], 1);
    assert_eq!(service.http.delete(PATH).await.status, 404);
    assert_eq!(service.track("org_1", 2).await, 2);
    service.flush().await;
    assert_eq!(row(&world.postgres().await, "org_1").await.used, 2);
    delete(&service).await;
    assert_eq!(
        service.http.delete("/v1/organizations/nobody").await.status,
        404
    );
}

#[tokio::test]
async fn a_flush_that_read_before_the_deletion_revives_nothing() {
    let world = World::new().await;
    let (service, other) = (world.instance().await, world.instance().await);
    let flusher = &other.app.flusher;
    service.track("org_1", 5).await;
    let read = flusher.read(&[shard("org_1")]).await.unwrap();
    assert_eq!(read.snapshots.len(), 1);
    delete(&service).await;
    // The row existed before the deletion, and the flush must not recreate it.
    let stored = flusher.store(&read).await.unwrap();
    assert_eq!(stored, [false]);
    assert_eq!(flusher.settle(&read, &stored).await.unwrap(), 0);
    let postgres = world.postgres().await;
    assert_eq!(rows(&postgres).await, []);
    assert_eq!(
        rows_by_table(&postgres, "org_1").await,
        [("audit_log".to_owned(), 1), ("events".to_owned(), 1)]
    );
    assert_eq!(service.http.get(PATH).await.status, 404);

    // Nor does the flush change new counts, whether stored or not.
    assert_eq!(service.track("org_1", 2).await, 2);
    assert_eq!(flusher.store(&read).await.unwrap(), [false]);
    service.flush().await;
    assert_eq!(row(&postgres, "org_1").await.used, 2);
    let stored = flusher.store(&read).await.unwrap();
    assert_eq!(stored, [false]);
    flusher.settle(&read, &stored).await.unwrap();
    let stored = row(&postgres, "org_1").await;
    assert_eq!((stored.used, stored.hours_used), (2, 2));
    assert_eq!(service.track("org_1", 1).await, 3);
}

#[tokio::test]
async fn a_flush_that_stored_before_the_deletion_and_settles_after_it_is_harmless() {
    let world = World::new().await;
    let service = world.instance().await;
    let flusher = &service.app.flusher;
    service.track("org_1", 5).await;
    let read = flusher.read(&[shard("org_1")]).await.unwrap();
    let stored = flusher.store(&read).await.unwrap();
    assert_eq!(stored, [true]);
    delete(&service).await;
    assert_eq!(service.track("org_1", 2).await, 2);
    // The settlement finds the counter of the new incarnation, which has a lower sequence number.
    flusher.settle(&read, &stored).await.unwrap();
    assert_eq!(service.flush().await.stored, 1);
    assert_eq!(row(&world.postgres().await, "org_1").await.used, 2);
}

#[tokio::test]
async fn a_restore_in_flight_revives_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 5).await;
    service.limit("org_1", 30).await;
    service.flush().await;
    let slow = SlowRestore::new(&world).await;
    let stamp = slow.stamp().await;
    let restored = slow.move_in_postgres(&stamp).await.unwrap();
    assert_eq!(restored.snapshot.used.get(), 5);
    delete(&service).await;
    assert_eq!(
        slow.write_to_redis(&restored, stamp.version).await,
        RecoveryReply::Policy
    );
    let again = slow.move_in_postgres(&stamp).await;
    assert!(
        matches!(again, Err(postgres::Error::OlderPolicy)),
        "{again:?}"
    );
    assert_eq!(rows(&world.postgres().await).await, []);
    assert_eq!(service.http.get(PATH).await.status, 404);

    assert_eq!(service.track("org_1", 2).await, 2);
    assert_eq!(
        slow.write_to_redis(&restored, stamp.version).await,
        RecoveryReply::Policy
    );
    assert!(matches!(
        slow.move_in_postgres(&stamp).await,
        Err(postgres::Error::OlderPolicy)
    ));
    assert_new_incarnation(&service, 2).await;
}

#[tokio::test]
async fn losing_redis_after_a_deletion_restores_nothing() {
    let world = World::new().await;
    let (service, other) = (world.instance().await, world.instance().await);
    populate(&world, &service).await;
    service.flush().await;
    delete(&service).await;
    world.flush_redis().await;
    assert_eq!(other.track("org_1", 2).await, 2);
    assert_new_incarnation(&service, 2).await;
    other.flush().await;
    world.flush_redis().await;
    assert_eq!(service.track("org_1", 1).await, 3);
}

/// Redis restarts from a snapshot made before the deletion.
#[tokio::test]
async fn a_rollback_of_redis_after_a_deletion_restores_nothing_with_or_without_a_sweep() {
    for sweeps in [false, true] {
        let mut world = World::new().await;
        let service = world.instance().await;
        populate(&world, &service).await;
        service.flush().await;
        service.track("org_1", 1).await;
        service.app.policies.sweep_once().await.unwrap();
        let copy = world.copy_redis().await;
        delete(&service).await;
        assert_eq!(service.track("org_1", 2).await, 2);
        service.flush().await;
        world.restart_redis_from(&copy, &[&service]).await;
        let restarted = world.instance().await;
        if sweeps {
            assert_eq!(
                restarted.app.policies.sweep_once().await.unwrap().applied,
                1
            );
            assert_new_incarnation(&restarted, 2).await;
        }
        assert_eq!(restarted.track("org_1", 1).await, 3, "{sweeps}");
        assert_eq!(service.track("org_1", 1).await, 4);
        service.app.policies.sweep_once().await.unwrap();
        assert_new_incarnation(&service, 4).await;
        restarted.flush().await;
        assert_eq!(row(&world.postgres().await, "org_1").await.used, 4);
    }
}

/// The deleting process dies right after the commit, before it writes to Redis.
#[tokio::test]
async fn an_older_copy_of_redis_brings_no_idempotency_record_of_a_deleted_organization_back() {
    let mut world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1", "amount": 7});
    let consume = || {
        service
            .http
            .post_once("/v1/consume", "order-1", body.clone())
    };
    let records = async |world: &World| {
        let keys = keys(world, "org_1").await;
        keys.iter().any(|key| key.starts_with("i:"))
    };
    consume().await;
    let copy = world.copy_redis().await;
    delete(&service).await;
    let eraser = &service.app.eraser;
    world.clock.advance(Duration::seconds(10));
    eraser.erase_once().await.unwrap();
    assert!(!records(&world).await);
    world.restart_redis_from(&copy, &[&service]).await;
    assert!(records(&world).await);
    // Any call finds that the data are others.
    service.track("org_2", 1).await;
    assert_eq!(eraser.erase_once().await.unwrap(), 1);
    assert!(!records(&world).await);
    assert_eq!(consume().await.body["current"], 7);
}

#[tokio::test]
async fn a_deletion_that_never_reached_redis_is_applied_by_the_next_sweep() {
    let world = World::new().await;
    let (service, other) = (world.instance().await, world.instance().await);
    populate(&world, &service).await;
    service.app.policies.sweep_once().await.unwrap();
    let store = Postgres::new(&world.database_url, 1).unwrap();
    let actor = Actor {
        name: "key:dead".to_owned(),
        request_id: String::new(),
    };
    let (id, now) = ("org_1".parse().unwrap(), world.clock.now());
    let late_bound = now - Duration::days(3);
    let prepared = deletions::delete(&store, &id, &actor, late_bound, now, now, |_| {
        Ok::<(), ()>(())
    })
    .await;
    prepared.unwrap().unwrap().commit().await.unwrap();
    // Until the sweep, Redis keeps counting in the old incarnation, and Postgres stores none of it.
    assert_eq!(service.track("org_1", 1).await, 10);
    service.flush().await;
    assert_eq!(rows(&world.postgres().await).await, []);
    assert_eq!(other.app.policies.sweep_once().await.unwrap().applied, 1);
    assert_eq!(service.track("org_1", 2).await, 2);
    assert_new_incarnation(&other, 2).await;
    assert_eq!(service.app.policies.sweep_once().await.unwrap().applied, 0);
    // The remaining keys are erased in the background.
    assert_eq!(keys(&world, "org_1").await.len(), 3);
    assert_eq!(other.app.eraser.erase_once().await.unwrap(), 1);
    assert_eq!(
        keys(&world, "org_1").await,
        [
            "policy",
            &format!("u:org_1:api:{}", instant(PERIOD).timestamp_millis())
        ]
    );
    assert_eq!(other.app.eraser.erase_once().await.unwrap(), 0);
    assert_eq!(service.track("org_1", 1).await, 3);
}

/// Without a sweep, a call that looks the policy up detects the deletion and erases the old counters.
#[tokio::test]
async fn a_deletion_that_never_reached_redis_is_applied_by_the_next_policy_look_up() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 20}})).await;
    service.track("org_1", 5).await;
    let store = Postgres::new(&world.database_url, 1).unwrap();
    let actor = Actor {
        name: "key:dead".to_owned(),
        request_id: String::new(),
    };
    let (id, now) = ("org_1".parse().unwrap(), world.clock.now());
    let late_bound = now - Duration::days(3);
    let prepared = deletions::delete(&store, &id, &actor, late_bound, now, now, |_| {
        Ok::<(), ()>(())
    })
    .await;
    prepared.unwrap().unwrap().commit().await.unwrap();
    // A meter without a counter needs one, and Redis creates none in the old incarnation.
    assert_eq!(service.count("org_1", "storage", 1).await, 1);
    assert_eq!(service.track("org_1", 2).await, 2);
    assert_eq!(service.meter("org_1", "api").await["limit"], 1000);
}

#[tokio::test]
async fn a_deletion_whose_redis_dies_before_the_commit_does_not_happen() {
    let mut world = World::new().await;
    let (service, other) = (world.instance().await, world.instance().await);
    populate(&world, &service).await;
    service.flush().await;
    service.app.policies.sweep_once().await.unwrap();
    world.copy_redis().await;
    let postgres = world.postgres().await;
    let lock = lock_policy_changes(&postgres).await;
    let http = service.http.clone();
    let deleting = tokio::spawn(async move { http.delete(PATH).await });
    until_lock_wait(&postgres).await;
    world.kill_redis().await;
    lock.rollback().await.unwrap();
    let answer = deleting.await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (503, "counter_store_unavailable")
    );
    world.start_redis().await;
    assert_eq!(other.app.policies.sweep_once().await.unwrap().applied, 0);
    assert_eq!(service.http.get(PATH).await.status, 200);
    assert_eq!(service.track("org_1", 2).await, 11);
    assert_eq!(service.http.delete(PATH).await.status, 200);
    assert_eq!(service.track("org_1", 2).await, 2);
    assert_new_incarnation(&other, 2).await;
}

#[tokio::test]
async fn without_redis_nothing_is_deleted() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 5).await;
    service.flush().await;
    world.kill_redis().await;
    let answer = service.http.delete(PATH).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (503, "counter_store_unavailable")
    );
    assert_eq!(row(&world.postgres().await, "org_1").await.used, 5);
}

#[tokio::test]
async fn long_history_is_erased_in_the_background_and_newer_rows_stay() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 5).await;
    service.flush().await;
    let store = Postgres::new(&world.database_url, 1).unwrap();
    let days = (0..120).map(|days| instant(PERIOD) - Duration::days(days));
    usage::ensure_partitions(&store, days).await.unwrap();
    let postgres = world.postgres().await;
    for statement in [
        "insert into usage_hourly
         select 'org_1', 'm' || meter, '2030-12-01Z', hour, 1, 0, 0
         from generate_series(1, 30) as meter,
              generate_series('2030-12-01Z'::timestamptz, '2031-03-01Z', '1 hour') as hour",
        "insert into usage_history
         select 'org_1', 'm' || meter, '2030-12-01Z', '2031-03-01Z', 2161, 0, 0, null, 'hard', 1, 1, 1, now()
         from generate_series(1, 30) as meter",
    ] {
        sqlx::query(statement).execute(&postgres).await.unwrap();
    }
    let deleted = delete(&service).await;
    assert_eq!(deleted["background"], true);
    assert_eq!(service.http.get(PATH).await.status, 404);
    assert_eq!(service.track("org_1", 2).await, 2);
    service.flush().await;
    // For its first seconds the erasure belongs to the instance that handled the request.
    let eraser = &service.app.eraser;
    assert_eq!(eraser.erase_once().await.unwrap(), 0);
    world.clock.advance(Duration::seconds(10));
    assert_eq!(eraser.erase_once().await.unwrap(), 1);
    assert_eq!(eraser.erase_once().await.unwrap(), 0);
    let stored = rows(&postgres).await;
    assert_eq!(
        (stored.len(), stored[0].used, stored[0].hours_used),
        (1, 2, 2)
    );
    assert_eq!(hours(&postgres, "org_1").await.len(), 1);
    let left: i64 = sqlx::query_scalar("select count(*) from erasures")
        .fetch_one(&postgres)
        .await
        .unwrap();
    assert_eq!(left, 0);
    assert_new_incarnation(&service, 2).await;
}

#[tokio::test]
async fn an_idempotency_key_means_nothing_after_the_deletion() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1", "amount": 7});
    let consume = || {
        service
            .http
            .post_once("/v1/consume", "order-1", body.clone())
    };
    assert_eq!(consume().await.body["current"], 7);
    let again = consume().await;
    assert_eq!(
        (&again.body["current"], again.header("idempotent-replayed")),
        (&json!(7), "true")
    );
    service.track("org_1", 1).await;
    delete(&service).await;
    service.track("org_1", 1).await;
    let after_deletion = consume().await;
    assert_eq!(
        (
            &after_deletion.body["current"],
            after_deletion.header("idempotent-replayed")
        ),
        (&json!(8), "")
    );
    // Records of the new incarnation are kept, even by an erasure that runs late.
    let postgres = world.postgres().await;
    let erasure = "insert into erasures select id, incarnation, '2031-01-01Z', '2031-01-01Z' from organizations";
    sqlx::query(erasure).execute(&postgres).await.unwrap();
    assert_eq!(service.app.eraser.erase_once().await.unwrap(), 1);
    assert_eq!(consume().await.header("idempotent-replayed"), "true");
    assert_eq!(service.current("org_1", "api").await, 8);
}

#[tokio::test]
async fn keys_bound_to_a_deleted_organization_are_revoked() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    let make = async |organization: Option<&str>| {
        let request = json!({"name": "k", "scopes": ["ingest"], "organizationId": organization});
        let made = service.http.post("/v1/api-keys", request).await;
        service
            .http
            .with_key(Some(made.body["key"].as_str().unwrap()))
    };
    let (bound, other, free) = (
        make(Some("org_1")).await,
        make(Some("org_2")).await,
        make(None).await,
    );
    let track = |organization: &str| json!({"organizationId": organization});
    assert_eq!(bound.post("/v1/track", track("org_1")).await.status, 200);
    assert_eq!(delete(&service).await["apiKeysRevoked"], 1);
    assert_eq!(bound.post("/v1/track", track("org_1")).await.status, 401);
    assert_eq!(other.post("/v1/track", track("org_2")).await.status, 200);
    assert_eq!(
        free.post("/v1/track", track("org_1")).await.body["current"],
        1
    );
    let audit = service.http.get("/v1/audit?organizationId=org_1").await;
    let actions: Vec<&str> = audit.body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        [
            "api_key.revoke",
            "organization.delete",
            "api_key.create",
            "organization.put"
        ]
    );
}

#[tokio::test]
async fn the_audit_log_records_what_was_deleted() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({"resetDay": 3})).await;
    service.limits("org_1", json!({"api": {"limit": 5}})).await;
    delete(&service).await;
    let audit = service
        .http
        .get("/v1/audit?action=organization.delete")
        .await;
    let [entry] = audit.body["data"].as_array().unwrap().as_slice() else {
        panic!("{}", audit.text)
    };
    assert_eq!(
        (&entry["organizationId"], &entry["after"]),
        (&json!("org_1"), &Value::Null)
    );
    assert_eq!(entry["before"]["settings"]["resetDay"], 3);
    assert_eq!(entry["before"]["limits"], json!({"api": {"limit": 5}}));
    // The next entry is a creation, not a change.
    service.settings("org_1", json!({})).await;
    let audit = service
        .http
        .get("/v1/audit?organizationId=org_1&pageSize=1")
        .await;
    assert_eq!(
        (
            &audit.body["data"][0]["action"],
            &audit.body["data"][0]["before"]
        ),
        (&json!("organization.put"), &Value::Null)
    );
}

#[tokio::test]
async fn a_deletion_may_be_conditional() {
    let world = World::new().await;
    let service = world.instance().await;
    let stale = service
        .http
        .put(PATH, json!({}))
        .await
        .header("etag")
        .to_owned();
    let present = service
        .http
        .put(PATH, json!({}))
        .await
        .header("etag")
        .to_owned();
    let send = async |value: &str| -> Answer {
        service
            .http
            .send(Method::DELETE, PATH, &[("if-match", value)], None)
            .await
    };
    assert_eq!(send(&stale).await.status, 412);
    assert_eq!(send("17").await.status, 400);
    assert_eq!(service.http.get(PATH).await.status, 200);
    assert_eq!(send(&present).await.status, 200);
    assert_eq!(send("*").await.status, 404);
    let if_match = [("if-match", present.as_str())];
    assert_eq!(
        service
            .http
            .send(Method::PUT, PATH, &if_match, Some(json!({})))
            .await
            .status,
        412
    );
    let create = [("if-none-match", "*")];
    let created = service
        .http
        .send(Method::PUT, PATH, &create, Some(json!({})))
        .await;
    assert_eq!(created.status, 200);
    // An ETag of the old incarnation never matches the new one.
    assert_eq!(send(&present).await.status, 412);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_concurrent_deletions_exactly_one_succeeds() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    for round in 0..3 {
        instances[round % 2].track("org_1", 5).await;
        let answers = at_once(6, |task| {
            let http = instances[task % 2].http.clone();
            async move { http.delete(PATH).await.status.as_u16() }
        })
        .await;
        let mut statuses = answers;
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 404, 404, 404, 404, 404]);
    }
}

/// Instances count, flush and read during repeated deletions. No call fails, reads after a deletion's response see
/// nothing from before its request, and in the end Redis and Postgres agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counting_continues_during_a_deletion() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    instances[0]
        .limits("org_1", json!({"api": {"limit": 1_000_000}}))
        .await;
    let begun = Arc::new(AtomicU64::new(0));
    at_once(8, |task| {
        let service = &instances[task % 2];
        let (http, flusher, begun) = (
            service.http.clone(),
            service.app.flusher.clone(),
            Arc::clone(&begun),
        );
        async move {
            for round in 0..30 {
                match task {
                    0 if round % 3 == 0 => {
                        let before = begun.load(Ordering::SeqCst);
                        let deleted = http.delete(PATH).await;
                        assert!(
                            [200, 404].contains(&deleted.status.as_u16()),
                            "{}",
                            deleted.text
                        );
                        // Only calls in flight when the deletion began may still be in the count.
                        let usage = http.get(&format!("{PATH}/usage")).await;
                        let current = usage.body["meters"]["api"]["current"].as_u64().unwrap_or(0);
                        let since = begun.load(Ordering::SeqCst) - before;
                        assert!(current <= since + 6, "{current} of {since}");
                    }
                    0 => {}
                    1 => {
                        flusher.flush_all().await.unwrap();
                    }
                    _ => {
                        begun.fetch_add(1, Ordering::SeqCst);
                        let answer = http
                            .post("/v1/track", json!({"organizationId": "org_1"}))
                            .await;
                        assert_eq!(answer.status, 200, "{}", answer.text);
                    }
                }
            }
        }
    })
    .await;
    let current = instances[1].track("org_1", 1).await;
    instances[0].flush().await;
    let stored = row(&world.postgres().await, "org_1").await;
    assert_eq!(
        (stored.used, stored.hours_used),
        (
            i64::try_from(current).unwrap(),
            i64::try_from(current).unwrap()
        )
    );
    assert_new_incarnation(&instances[0], current).await;
}
