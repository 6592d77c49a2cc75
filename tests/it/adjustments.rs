//! Adjustments: each is applied exactly once, wherever a process dies or Redis loses data.

use chrono::Duration;
use serde_json::{Value, json};
use tallyman::postgres::adjustments::{self, AdjustmentRequest, Outcome, Pending};
use tallyman::postgres::{Actor, Postgres};
use tallyman::redis::{Correction, RecoveryReply, Redis, Shard};

use crate::support::{Answer, Instance, World, at_once, instant, redis_settings, row};

const PATH: &str = "/v1/organizations/org_1/adjust";
const MONTH: &str = "2031-03-01T00:00:00Z";
const NEXT_MONTH: &str = "2031-04-01T00:00:00Z";

impl Instance {
    async fn adjust(&self, amount: i64) -> Answer {
        let body = json!({"amount": amount, "reason": "goodwill"});
        let answer = self.http.post(PATH, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer
    }

    /// Runs the sweep once; returns how many adjustments it finished.
    async fn finish_adjustments(&self) -> usize {
        let admin = &self.app.state.admin;
        admin.finish_adjustments_once().await.unwrap()
    }

    async fn history_of(&self, granularity: &str) -> Vec<Value> {
        let path = format!("/v1/organizations/org_1/history?granularity={granularity}");
        let answer = self.http.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.body["data"].as_array().unwrap().clone()
    }
}

/// Actor, before and after of each adjustment in the audit log.
async fn audited(world: &World) -> Vec<String> {
    world
        .select(
            "select actor || ' ' || before::text || ' ' || after::text from audit_log
             where action = 'organization.adjust' order by id",
        )
        .await
}

/// Commits an adjustment as a process would that dies before it writes to Redis.
async fn commit(world: &World, amount: i64) -> Pending {
    let store = Postgres::new(&world.database_url, 1).unwrap();
    let (organization, meter) = ("org_1".parse().unwrap(), "api".parse().unwrap());
    let request = AdjustmentRequest {
        organization: &organization,
        meter: &meter,
        amount,
        reason: "goodwill",
        idempotency: None,
    };
    let actor = Actor {
        name: "tests".to_owned(),
        request_id: String::new(),
    };
    let now = world.clock.now();
    let outcome = adjustments::commit(&store, &request, &actor, now, |_| true).await;
    assert!(matches!(outcome, Ok(Outcome::Committed { .. })));
    let pending = adjustments::pending(&store, &organization).await.unwrap();
    pending.unwrap()
}

/// The same, and applies it to Redis: the process dies before it stores the result.
async fn commit_and_apply(world: &World, amount: i64) {
    let pending = commit(world, amount).await;
    let counters = Redis::new(redis_settings(world), world.clock.clone(), world.metrics()).unwrap();
    let connection = counters.connection().await.unwrap();
    let correction = Correction {
        id: pending.id,
        counter: &pending.counter,
        generation: connection
            .generation(Shard::of(&pending.counter.organization))
            .unwrap(),
        policy_version: 1 << 50,
        amount,
        hour: instant("2031-03-15T12:00:00Z"),
        percents: "",
    };
    let applied = connection.adjust(&correction, world.clock.now()).await;
    assert_eq!(applied.unwrap(), RecoveryReply::Ready);
}

#[tokio::test]
async fn units_are_added_and_subtracted() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 501).await;
    let answer = instance.adjust(-100).await;
    assert_eq!(
        answer.body,
        json!({
            "organizationId": "org_1", "meter": "api", "amount": -100, "applied": -100, "current": 401, "limit": 1000,
            "periodStart": MONTH, "resetDate": NEXT_MONTH
        })
    );
    assert_eq!(instance.adjust(7).await.body["current"], 408);
    assert_eq!(instance.count("org_1", "api", 1).await, 409);
    let audited = audited(&world).await;
    assert_eq!(audited.len(), 2, "{audited:?}");
    for part in [
        r#""current": 501"#,
        r#""current": 401"#,
        r#""reason": "goodwill""#,
        r#""applied": -100"#,
    ] {
        assert!(audited[0].contains(part), "{part} in {audited:?}");
    }
}

#[tokio::test]
async fn an_adjustment_beyond_the_maximum_count_is_refused_and_applies_nothing() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    let near_maximum = (1_u64 << 53) - 11;
    let key = crate::support::key_of("org_1", "api", MONTH);
    let set_count = |used: u64| {
        let (world, key) = (&world, key.clone());
        async move { world.overwrite(&key, &[("used", &used.to_string())]).await }
    };
    set_count(near_maximum).await;
    let body = json!({"amount": 11, "reason": "carried over"});
    let refused = instance.http.post_once(PATH, "k", body.clone()).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (422, "counter_overflow")
    );
    assert!(audited(&world).await.is_empty());
    assert_eq!(instance.adjust(10).await.body["current"], near_maximum + 10);
    // The refusal left no idempotency record.
    set_count(1).await;
    let done = instance.http.post_once(PATH, "k", body.clone()).await;
    assert_eq!(
        (done.status.as_u16(), &done.body["current"]),
        (200, &json!(12))
    );

    // Calls raise the count after the adjustment was committed.
    let pending = commit(&world, 11).await;
    set_count(near_maximum).await;
    assert_eq!(instance.finish_adjustments().await, 1);
    let store = Postgres::new(&world.database_url, 1).unwrap();
    let finished = adjustments::finished(&store, pending.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((finished.applied, finished.used.get()), (0, near_maximum));
    assert_eq!(instance.current("org_1", "api").await, near_maximum);
}

/// The limit on meters applies to new adjustments, not to a retry.
#[tokio::test]
async fn a_retried_adjustment_is_answered_even_if_its_meter_no_longer_fits() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    let body = json!({"amount": -1, "reason": "goodwill"});
    let first = instance.http.post_once(PATH, "k", body.clone()).await;
    assert_eq!(first.status, 200, "{}", first.text);
    instance.flush().await;
    world.move_to("2031-04-02T00:00:00Z");
    world.flush_redis().await;
    for number in 0..32 {
        instance.count("org_1", &format!("m{number}"), 1).await;
    }
    let again = instance.http.post_once(PATH, "k", body).await;
    assert_eq!((again.status.as_u16(), &again.body), (200, &first.body));
    assert_eq!(again.header("idempotent-replayed"), "true");
    let body = json!({"amount": 1, "reason": "goodwill"});
    let fresh = instance.http.post_once(PATH, "l", body).await;
    assert_eq!(fresh.code(), "too_many_meters");
}

#[tokio::test]
async fn a_meter_that_was_never_counted_can_be_adjusted() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    let body = json!({"meter": "tokens", "amount": 3, "reason": "carried over"});
    let answer = instance.http.post(PATH, body).await;
    assert_eq!(answer.body["current"], 3, "{}", answer.text);
    assert_eq!(instance.count("org_1", "tokens", 1).await, 4);
    assert_eq!(instance.current("org_1", "api").await, 5);
}

#[tokio::test]
async fn a_subtraction_stops_at_zero() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    let answer = instance.adjust(-100).await;
    assert_eq!(answer.body["applied"], -5, "{}", answer.text);
    assert_eq!(answer.body["current"], 0);
    let answer = instance.adjust(-1).await;
    assert_eq!(answer.body["applied"], 0, "{}", answer.text);
    assert_eq!(audited(&world).await.len(), 2);
}

#[tokio::test]
async fn an_addition_may_exceed_the_limit() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 999).await;
    let answer = instance.adjust(500).await;
    assert_eq!(answer.body["current"], 1499, "{}", answer.text);
    assert_eq!(instance.try_consume("org_1", "api", 1).await.status, 429);
    instance.adjust(-500).await;
    assert_eq!(instance.try_consume("org_1", "api", 1).await.status, 200);
    instance.flush().await;
    let events = world
        .select("select type from events where type = 'usage.limit_exceeded'")
        .await;
    assert_eq!(events.len(), 1, "{events:?}");
}

#[tokio::test]
async fn a_retried_adjustment_returns_the_first_response_and_adjusts_nothing() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 10).await;
    let body = json!({"amount": -4, "reason": "a"});
    let first = instance.http.post_once(PATH, "once", body.clone()).await;
    assert_eq!(first.status, 200, "{}", first.text);
    instance.count("org_1", "api", 1).await;
    instance
        .limits("org_1", json!({"api": {"limit": 50}}))
        .await;
    let again = instance.http.post_once(PATH, "once", body).await;
    assert_eq!(again.body, first.body);
    assert_eq!(first.header("idempotent-replayed"), "");
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(instance.current("org_1", "api").await, 7);
    for other in [
        json!({"amount": -5, "reason": "a"}),
        json!({"amount": -4, "reason": "b"}),
        json!({"amount": -4, "reason": "a", "meter": "tokens"}),
    ] {
        let other = instance.http.post_once(PATH, "once", other).await;
        assert_eq!(other.status, 422, "{}", other.text);
        assert_eq!(other.code(), "idempotency_key_reused");
    }
}

#[tokio::test]
async fn concurrent_adjustments_with_one_idempotency_key_adjust_once() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    instances[0].count("org_1", "api", 10).await;
    let answers = at_once(8, |call| {
        let http = instances[call % 2].http.clone();
        async move {
            let body = json!({"amount": 5, "reason": "a"});
            http.post_once(PATH, "once", body).await
        }
    })
    .await;
    for answer in &answers {
        assert_eq!(answer.body["current"], 15, "{}", answer.text);
    }
    assert_eq!(instances[0].current("org_1", "api").await, 15);
    assert_eq!(audited(&world).await.len(), 1);
}

#[tokio::test]
async fn an_invalid_adjustment_is_refused_and_changes_nothing() {
    let world = World::new().await;
    let instance = world.instance().await;
    let good = json!({"amount": 1, "reason": "a"});
    let answer = instance.http.post(PATH, good.clone()).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (404, "not_found"));
    instance.count("org_1", "api", 7).await;
    for (body, pointer) in [
        (json!({"amount": 0, "reason": "a"}), "/amount"),
        (
            json!({"amount": 1_000_000_000_001_i64, "reason": "a"}),
            "/amount",
        ),
        (
            json!({"amount": -1_000_000_000_001_i64, "reason": "a"}),
            "/amount",
        ),
        (json!({"amount": 1.5, "reason": "a"}), "/amount"),
        (json!({"amount": "1", "reason": "a"}), "/amount"),
        (json!({"amount": 1, "reason": ""}), "/reason"),
        (json!({"amount": 1, "reason": "\u{0}"}), "/reason"),
        (json!({"amount": 1, "reason": "x".repeat(501)}), "/reason"),
        (
            json!({"meter": "API", "amount": 1, "reason": "a"}),
            "/meter",
        ),
        (json!({"units": 1, "reason": "a"}), "/units"),
    ] {
        let answer = instance.http.post(PATH, body).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert_eq!(answer.body["errors"][0]["pointer"], pointer);
    }
    for (missing, named) in [
        (json!({"reason": "a"}), "amount"),
        (json!({"amount": 1}), "reason"),
    ] {
        let answer = instance.http.post(PATH, missing).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert!(answer.text.contains(named), "{}", answer.text);
    }
    let ingest = world.key_with(&["ingest", "refund", "read", "reset"]).await;
    let http = instance.http.with_key(Some(&ingest));
    assert_eq!(http.post(PATH, good).await.code(), "forbidden");
    assert_eq!(instance.current("org_1", "api").await, 7);
    assert_eq!(audited(&world).await.len(), 0);
}

#[tokio::test]
async fn history_shows_adjustments_separately() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 10).await;
    instance.adjust(-3).await;
    world.clock.advance(Duration::hours(1));
    instance.adjust(5).await;
    instance.adjust(-1).await;
    let refund = json!({"organizationId": "org_1", "amount": 2});
    assert_eq!(instance.http.post("/v1/refund", refund).await.status, 200);
    instance.flush().await;
    let sums = |rows: Vec<Value>| -> Vec<(i64, i64, i64)> {
        let number = |row: &Value, field: &str| row[field].as_i64().unwrap();
        let sums = rows.iter().map(|row| {
            let (used, refunded) = (number(row, "used"), number(row, "refunded"));
            (used, refunded, number(row, "adjusted"))
        });
        sums.collect()
    };
    assert_eq!(
        sums(instance.history_of("hour").await),
        [(7, 0, -3), (2, 2, 4)]
    );
    assert_eq!(sums(instance.history_of("day").await), [(9, 2, 1)]);
    assert_eq!(sums(instance.history_of("period").await), [(9, 2, 1)]);
}

/// The process dies before or after it writes to Redis; a second sweep finds nothing to do.
#[tokio::test]
async fn an_interrupted_adjustment_is_finished_once_by_the_sweep() {
    for applied in [false, true] {
        let world = World::new().await;
        let instance = world.instance().await;
        instance.count("org_1", "api", 10).await;
        if applied {
            commit_and_apply(&world, -4).await;
        } else {
            commit(&world, -4).await;
        }
        instance.count("org_1", "api", 1).await;
        assert_eq!(instance.finish_adjustments().await, 1);
        assert_eq!(instance.finish_adjustments().await, 0);
        assert_eq!(instance.current("org_1", "api").await, 7);
        instance.flush().await;
        let stored = row(&world.postgres().await, "org_1").await;
        assert_eq!((stored.used, stored.hours_used), (7, 7));
        let audited = audited(&world).await;
        assert_eq!(audited.len(), 1, "{audited:?}");
        assert!(audited[0].starts_with("tests "), "{audited:?}");
    }
}

#[tokio::test]
async fn an_interrupted_adjustment_is_finished_once_by_the_next_call() {
    for applied in [false, true] {
        let world = World::new().await;
        let instance = world.instance().await;
        instance.count("org_1", "api", 10).await;
        if applied {
            commit_and_apply(&world, -4).await;
        } else {
            commit(&world, -4).await;
        }
        let answer = instance.adjust(1).await;
        assert_eq!(answer.body["current"], 7, "{}", answer.text);
        assert_eq!(instance.finish_adjustments().await, 0);
        assert_eq!(audited(&world).await.len(), 2);
    }
}

#[tokio::test]
async fn an_adjustment_that_redis_has_applied_is_finished_by_any_flush() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 10).await;
    commit_and_apply(&world, -4).await;
    instance.flush().await;
    assert_eq!(audited(&world).await.len(), 1);
    assert_eq!(instance.finish_adjustments().await, 0);
    assert_eq!(instance.current("org_1", "api").await, 6);
}

#[tokio::test]
async fn a_loss_of_redis_neither_loses_nor_doubles_an_adjustment() {
    for step in ["committed", "applied", "stored"] {
        let world = World::new().await;
        let instance = world.instance().await;
        instance.count("org_1", "api", 10).await;
        instance.flush().await;
        match step {
            "committed" => {
                commit(&world, -4).await;
            }
            "applied" => commit_and_apply(&world, -4).await,
            _ => {
                instance.adjust(-4).await;
            }
        }
        world.flush_redis().await;
        instance.finish_adjustments().await;
        assert_eq!(instance.current("org_1", "api").await, 6, "{step}");
        world.flush_redis().await;
        assert_eq!(instance.count("org_1", "api", 1).await, 7, "{step}");
        instance.adjust(2).await;
        assert_eq!(instance.count("org_1", "api", 1).await, 10, "{step}");
        instance.flush().await;
        let stored = row(&world.postgres().await, "org_1").await;
        assert_eq!((stored.used, stored.hours_used), (10, 10), "{step}");
        assert_eq!(audited(&world).await.len(), 2, "{step}");
    }
}

#[tokio::test]
async fn a_rollback_of_redis_neither_loses_nor_doubles_an_adjustment() {
    for stored in [false, true] {
        let mut world = World::new().await;
        let instance = world.instance().await;
        instance.count("org_1", "api", 10).await;
        instance.flush().await;
        let copy = world.copy_redis().await;
        if stored {
            instance.adjust(-4).await;
        } else {
            commit_and_apply(&world, -4).await;
        }
        world.restart_redis_from(&copy, &[&instance]).await;
        instance.finish_adjustments().await;
        assert_eq!(instance.count("org_1", "api", 1).await, 7);
        assert_eq!(audited(&world).await.len(), 1);
    }
}

#[tokio::test]
async fn without_redis_an_adjustment_is_a_503_and_not_committed() {
    let mut world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    instance.flush().await;
    world.kill_redis().await;
    let body = json!({"amount": 1, "reason": "a"});
    let answer = instance.http.post(PATH, body).await;
    assert_eq!(answer.code(), "counter_store_unavailable");
    let committed = world.select("select count(*)::text from adjustments").await;
    assert_eq!(committed, ["0"]);
}

#[tokio::test]
async fn an_adjustment_finished_long_after_its_period_counts_in_that_period() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 10).await;
    instance.flush().await;
    commit(&world, -4).await;
    world.flush_redis().await;
    world.clock.advance(Duration::days(90));
    assert_eq!(instance.finish_adjustments().await, 1);
    let stored = row(&world.postgres().await, "org_1").await;
    assert_eq!((stored.used, stored.hours_used), (6, 6));
    assert_eq!(instance.count("org_1", "api", 1).await, 1);
}

#[tokio::test]
async fn a_reset_waits_for_the_adjustment_of_what_it_closes() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 10).await;
    commit(&world, -4).await;
    world.clock.advance(Duration::hours(1));
    let path = "/v1/organizations/org_1/reset";
    let answer = instance.http.post(path, json!({})).await;
    assert_eq!(answer.body["meters"]["api"]["previousCount"], 6);
    assert_eq!(instance.adjust(2).await.body["current"], 2);
}

#[tokio::test]
async fn a_deletion_discards_a_pending_adjustment() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 10).await;
    instance.flush().await;
    commit(&world, 4).await;
    let deleted = instance.http.delete("/v1/organizations/org_1").await;
    assert_eq!(deleted.status, 200, "{}", deleted.text);
    assert_eq!(instance.count("org_1", "api", 1).await, 1);
    assert_eq!(instance.finish_adjustments().await, 0);
    assert_eq!(instance.adjust(2).await.body["current"], 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_is_exact_while_calls_count_and_flushes_run() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    instances[0]
        .limits("org_1", json!({"api": {"limit": 1_000_000}}))
        .await;
    instances[0].count("org_1", "api", 1000).await;
    let applied = at_once(12, |task| {
        let http = instances[task % 2].http.clone();
        let flusher = instances[task % 2].app.flusher.clone();
        async move {
            let mut sum = 0;
            for round in 0..10 {
                let answer = match task {
                    0 => {
                        flusher.flush_all().await.unwrap();
                        continue;
                    }
                    1..4 => {
                        let amount = if round % 2 == 0 { 7 } else { -3 };
                        let body = json!({"amount": amount, "reason": "a"});
                        let answer = http.post(PATH, body).await;
                        assert_eq!(answer.body["applied"], amount, "{}", answer.text);
                        sum += amount;
                        answer
                    }
                    _ => {
                        sum += 1;
                        let body = json!({"organizationId": "org_1"});
                        http.post("/v1/consume", body).await
                    }
                };
                assert_eq!(answer.status, 200, "{}", answer.text);
            }
            sum
        }
    })
    .await;
    let expected = 1000 + applied.iter().sum::<i64>();
    let current = instances[0].current("org_1", "api").await;
    assert_eq!(i64::try_from(current).unwrap(), expected);
    instances[0].flush().await;
    let stored = row(&world.postgres().await, "org_1").await;
    assert_eq!((stored.used, stored.hours_used), (expected, expected));
    assert_eq!(audited(&world).await.len(), 30);
}
