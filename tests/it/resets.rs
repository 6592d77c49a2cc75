//! Explicit resets: the closed period, the new one, and no call lost or doubled between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use chrono::Duration;
use serde_json::{Value, json};

use crate::support::{Answer, BEGINNING, Instance, World, at_once, commit_reset, instant, rows};

const MONTH: &str = "2031-03-01T00:00:00Z";
const NEXT_MONTH: &str = "2031-04-01T00:00:00Z";

impl Instance {
    async fn reset(&self, organization: &str, body: Value) -> Answer {
        let path = format!("/v1/organizations/{organization}/reset");
        let answer = self.http.post(&path, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer
    }

    /// The organization's periods in its history, oldest first.
    async fn periods(&self, organization: &str) -> Vec<Value> {
        let path = format!("/v1/organizations/{organization}/history?granularity=period");
        let answer = self.http.get(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.body["data"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn a_reset_closes_the_running_period_into_history_and_starts_a_new_one_at_zero() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 501).await;
    let path = "/v1/organizations/org_1/reset";
    let body = json!({"reason": "goodwill"});
    let answer = instance.http.post(path, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(
        answer.body,
        json!({"organizationId": "org_1", "meters": {"api": {
            "previousCount": 501, "previousPeriodStart": MONTH,
            "periodStart": BEGINNING, "resetDate": NEXT_MONTH
        }}})
    );
    let meter = instance.meter("org_1", "api").await;
    assert_eq!(meter["current"], 0);
    assert_eq!(meter["periodStart"], BEGINNING);
    assert_eq!(meter["resetDate"], NEXT_MONTH);

    assert_eq!(instance.count("org_1", "api", 2).await, 2);
    instance.flush().await;
    let periods = instance.periods("org_1").await;
    assert_eq!(periods.len(), 2, "{periods:?}");
    for (field, closed, running) in [
        ("start", json!(MONTH), json!(BEGINNING)),
        ("end", json!(BEGINNING), json!(NEXT_MONTH)),
        ("used", json!(501), json!(2)),
        ("limit", json!(1000), json!(1000)),
        ("planId", json!("free"), json!("free")),
        ("resetType", json!("manual"), Value::Null),
        ("open", json!(false), json!(true)),
        ("final", json!(true), json!(false)),
    ] {
        assert_eq!(periods[0][field], closed, "{field}");
        assert_eq!(periods[1][field], running, "{field}");
    }
    let audited = world
        .select("select action || ' ' || before::text || ' ' || after::text from audit_log where organization_id = 'org_1'")
        .await;
    assert_eq!(
        audited,
        [
            r#"organization.reset {"meters": {"api": {"periodStart": "2031-03-01T00:00:00Z"}}} {"meters": {"api": {"periodStart": "2031-03-15T12:00:00Z"}}, "reason": "goodwill"}"#
        ]
    );
}

#[tokio::test]
async fn a_reset_is_one_event_with_the_count_of_the_period_that_it_ended() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 501).await;
    instance.flush().await;
    instance.count("org_1", "api", 1).await;
    instance.reset("org_1", json!({})).await;
    instance.flush().await;
    world.flush_redis().await;
    instance.count("org_1", "api", 1).await;
    instance.flush().await;
    let events = world
        .select("select data::text from events where type = 'usage.reset'")
        .await;
    let events: Vec<Value> = events
        .iter()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect();
    assert_eq!(
        events,
        [json!({
            "organizationId": "org_1", "meter": "api", "resetType": "manual", "previousCount": 502,
            "periodStart": BEGINNING, "resetDate": NEXT_MONTH
        })]
    );
}

#[tokio::test]
async fn the_calendar_continues_after_a_reset_as_if_there_had_been_none() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    instance.reset("org_1", json!({})).await;
    world.move_to(NEXT_MONTH);
    assert_eq!(instance.count("org_1", "api", 3).await, 3);
    let meter = instance.meter("org_1", "api").await;
    assert_eq!(meter["periodStart"], NEXT_MONTH);
    assert_eq!(meter["resetDate"], "2031-05-01T00:00:00Z");
}

#[tokio::test]
async fn a_reset_of_some_meters_does_not_change_the_others() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    instance.count("org_1", "tokens", 70).await;
    let answer = instance.reset("org_1", json!({"meters": ["tokens"]})).await;
    assert_eq!(answer.body["meters"]["tokens"]["previousCount"], 70);
    assert_eq!(answer.body["meters"]["api"], Value::Null);
    let body = json!({"organizationId": "org_1", "meters": {"api": 1, "tokens": 1}});
    let answer = instance.http.post("/v1/consume", body).await;
    assert_eq!(answer.body["meters"]["api"]["current"], 6);
    assert_eq!(answer.body["meters"]["api"]["periodStart"], MONTH);
    assert_eq!(answer.body["meters"]["tokens"]["current"], 1);
    assert_eq!(answer.body["meters"]["tokens"]["periodStart"], BEGINNING);
}

#[tokio::test]
async fn a_second_reset_in_the_same_instant_starts_a_millisecond_later() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    instance.reset("org_1", json!({})).await;
    let answer = instance.reset("org_1", json!({})).await;
    let api = &answer.body["meters"]["api"];
    assert_eq!(api["previousCount"], 0);
    assert_eq!(api["previousPeriodStart"], BEGINNING);
    assert_eq!(api["periodStart"], "2031-03-15T12:00:00.001Z");
    // By the clock, this call is earlier than the start of its period.
    assert_eq!(instance.count("org_1", "api", 1).await, 1);
    let meter = instance.meter("org_1", "api").await;
    assert_eq!(meter["periodStart"], "2031-03-15T12:00:00.001Z");
}

#[tokio::test]
async fn in_manual_mode_a_period_runs_from_reset_to_reset() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance
        .settings("org_1", json!({"resetMode": "manual"}))
        .await;
    instance.count("org_1", "api", 5).await;
    world.clock.advance(Duration::days(200));
    assert_eq!(instance.count("org_1", "api", 1).await, 6);
    let reset_at = world.clock.now();
    let answer = instance.reset("org_1", json!({})).await;
    let api = &answer.body["meters"]["api"];
    assert_eq!(api["previousCount"], 6);
    assert_eq!(api["resetDate"], Value::Null);
    world.clock.advance(Duration::days(200));
    let meter = instance.meter("org_1", "api").await;
    assert_eq!(meter["current"], 0);
    assert_eq!(meter["periodStart"], json!(reset_at));
    assert_eq!(meter["resetDate"], Value::Null);
}

#[tokio::test]
async fn late_events_of_a_closed_period_count_in_the_running_one() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    world.clock.advance(Duration::hours(1));
    instance.reset("org_1", json!({})).await;
    world.clock.advance(Duration::hours(1));
    let late = json!({"organizationId": "org_1", "amount": 2, "timestamp": BEGINNING});
    let answer = instance.http.post("/v1/track", late).await;
    assert_eq!(answer.body["current"], 2, "{}", answer.text);
    assert_eq!(answer.body["periodStart"], "2031-03-15T13:00:00Z");
    instance.flush().await;
    let used: Vec<i64> = rows(&world.postgres().await)
        .await
        .iter()
        .map(|row| row.used)
        .collect();
    assert_eq!(used, [5, 2]);
}

/// The policy has only the last reset; a counter itself records that it is closed.
#[tokio::test]
async fn late_events_find_a_period_closed_that_an_earlier_reset_has_closed() {
    for counted in [0, 5] {
        let mut world = World::new().await;
        let instance = world.instance().await;
        world.move_to("2031-03-31T20:00:00Z");
        if counted > 0 {
            instance.count("org_1", "api", counted).await;
        } else {
            instance.count("org_1", "tokens", 1).await;
        }
        world.move_to("2031-03-31T22:00:00Z");
        instance.reset("org_1", json!({"meters": ["api"]})).await;
        world.move_to("2031-04-01T02:00:00Z");
        instance.reset("org_1", json!({"meters": ["api"]})).await;
        let late = json!({"organizationId": "org_1", "timestamp": "2031-03-31T21:00:00Z"});
        let answer = instance.http.post("/v1/track", late.clone()).await;
        assert_eq!(answer.body["current"], 1, "{}", answer.text);
        assert_eq!(answer.body["periodStart"], "2031-04-01T02:00:00Z");
        // Also if the closed counter has been lost and is restored.
        instance.flush().await;
        world.kill_redis().await;
        world.start_redis().await;
        let answer = instance.http.post("/v1/track", late).await;
        assert_eq!(answer.body["current"], 2, "{}", answer.text);
        assert_eq!(answer.body["periodStart"], "2031-04-01T02:00:00Z");
    }
}

#[tokio::test]
async fn a_retried_reset_returns_the_first_response_and_resets_nothing() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 7).await;
    let path = "/v1/organizations/org_1/reset";
    let first = instance
        .http
        .post_once(path, "once", json!({"reason": "a"}))
        .await;
    world.clock.advance(Duration::minutes(1));
    instance.count("org_1", "api", 3).await;
    let again = instance
        .http
        .post_once(path, "once", json!({"reason": "a"}))
        .await;
    assert_eq!(again.status, 200, "{}", again.text);
    assert_eq!(again.body, first.body);
    assert_eq!(first.header("idempotent-replayed"), "");
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(instance.current("org_1", "api").await, 3);
    let other = instance
        .http
        .post_once(path, "once", json!({"reason": "b"}))
        .await;
    assert_eq!(other.code(), "idempotency_key_reused");
}

#[tokio::test]
async fn an_invalid_reset_is_refused_and_changes_nothing() {
    let world = World::new().await;
    let instance = world.instance().await;
    let path = "/v1/organizations/org_1/reset";
    let answer = instance.http.post(path, json!({})).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (404, "not_found"));
    instance.count("org_1", "api", 7).await;
    for (body, pointer) in [
        (json!({"meters": []}), "/meters"),
        (json!({"meters": ["API"]}), "/meters/0"),
        (json!({"meters": "api"}), "/meters"),
        (json!({"reason": ""}), "/reason"),
        (json!({"reason": "\u{0}"}), "/reason"),
        (json!({"reason": "x".repeat(501)}), "/reason"),
        (json!({"resetApi": true}), "/resetApi"),
    ] {
        let answer = instance.http.post(path, body).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert_eq!(answer.body["errors"][0]["pointer"], pointer);
    }
    let ingest = world.key_with(&["ingest", "refund", "read", "reset"]).await;
    let answer = instance
        .http
        .with_key(Some(&ingest))
        .post(path, json!({}))
        .await;
    assert_eq!(answer.code(), "forbidden");
    assert_eq!(instance.current("org_1", "api").await, 7);
}

#[tokio::test]
async fn a_soft_limit_is_in_history_as_it_was_when_the_period_was_closed() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 7).await;
    let soft = json!({"api": {"limit": 5, "enforcement": "soft"}});
    instance.limits("org_1", soft).await;
    instance.reset("org_1", json!({})).await;
    let changed = json!({"api": {"limit": 9, "enforcement": "hard"}});
    instance.limits("org_1", changed).await;
    instance.flush().await;
    let rows = rows(&world.postgres().await).await;
    assert_eq!(rows[0].limit_units, Some(5), "{rows:?}");
    assert_eq!(rows[0].enforcement, "soft", "{rows:?}");
}

/// Two instances consume while resets run: every granted unit is in exactly one period.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_counted_in_two_periods_or_in_none_while_resets_run() {
    const TASKS: usize = 16;
    const RESETS: usize = 12;
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    instances[0].count("org_1", "api", 1).await;
    let soft = json!({"api": {"limit": 1_000_000, "enforcement": "hard"}});
    instances[0].limits("org_1", soft).await;
    let granted = Arc::new(AtomicU64::new(1));
    let done = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..TASKS)
        .map(|task| {
            let http = instances[task % 2].http.clone();
            let (granted, done) = (Arc::clone(&granted), Arc::clone(&done));
            tokio::spawn(async move {
                while !done.load(Ordering::SeqCst) {
                    let body = json!({"organizationId": "org_1"});
                    let answer = http.post("/v1/consume", body).await;
                    assert_eq!(answer.status, 200, "{}", answer.text);
                    granted.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let mut closed = 0;
    for reset in 0..RESETS {
        world.clock.advance(Duration::seconds(1));
        let answer = instances[reset % 2].reset("org_1", json!({})).await;
        closed += answer.body["meters"]["api"]["previousCount"]
            .as_u64()
            .unwrap();
        instances[1].flush().await;
    }
    done.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    let running = instances[0].current("org_1", "api").await;
    let granted = granted.load(Ordering::SeqCst);
    assert_eq!(closed + running, granted);
    assert!(closed > 0);
    instances[0].flush().await;
    let rows = rows(&world.postgres().await).await;
    assert_eq!(rows.len(), RESETS + 1);
    let used: i64 = rows.iter().map(|row| row.used).sum();
    assert_eq!(u64::try_from(used).unwrap(), granted);
    for row in &rows {
        assert_eq!(row.used, row.hours_used, "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_resets_are_serialized() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    instances[0].count("org_1", "api", 9).await;
    let answers = at_once(8, |call| {
        let http = instances[call % 2].http.clone();
        async move { http.post("/v1/organizations/org_1/reset", json!({})).await }
    })
    .await;
    let mut resets: Vec<(String, String, u64)> = answers
        .iter()
        .map(|answer| {
            assert_eq!(answer.status, 200, "{}", answer.text);
            let api = &answer.body["meters"]["api"];
            let text = |field: &str| api[field].as_str().unwrap().to_owned();
            let count = api["previousCount"].as_u64().unwrap();
            (text("periodStart"), text("previousPeriodStart"), count)
        })
        .collect();
    resets.sort_by_key(|(start, ..)| instant(start));
    let mut start = MONTH.to_owned();
    for (at, (new_start, previous, count)) in resets.iter().enumerate() {
        assert_eq!(*previous, start);
        assert_eq!(*count, if at == 0 { 9 } else { 0 });
        start.clone_from(new_start);
    }
}

#[tokio::test]
async fn a_reset_that_only_postgres_knows_is_finished_by_the_sweep() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    instance.flush().await;
    instance.count("org_1", "api", 2).await;
    commit_reset(&world, "org_1", None).await;
    // No instance knows of it yet.
    assert_eq!(instance.count("org_1", "api", 1).await, 8);
    assert_eq!(
        instance.app.state.admin.finish_resets_once().await.unwrap(),
        1
    );
    assert_eq!(
        instance.app.state.admin.finish_resets_once().await.unwrap(),
        0
    );
    assert_eq!(instance.count("org_1", "api", 1).await, 1);
    let rows = rows(&world.postgres().await).await;
    assert_eq!(rows[0].used, 8);
}

#[tokio::test]
async fn a_reset_that_only_postgres_knows_is_finished_by_the_next_call() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    commit_reset(&world, "org_1", None).await;
    // The policy in Redis does not have the reset yet; the sweep adds it.
    let other = world.instance().await;
    other.app.policies.sweep_once().await.unwrap();
    assert_eq!(other.count("org_1", "api", 1).await, 1);
    // The first instance has the old policy cached, but finds its counter closed.
    assert_eq!(instance.count("org_1", "api", 1).await, 2);
    other.flush().await;
    let rows = rows(&world.postgres().await).await;
    assert_eq!(rows.iter().map(|row| row.used).collect::<Vec<_>>(), [5, 2]);
    assert_eq!(other.app.state.admin.finish_resets_once().await.unwrap(), 0);
}

#[tokio::test]
async fn a_reset_is_finished_even_if_redis_died_between_commit_and_close() {
    for survives in [false, true] {
        let mut world = World::new().await;
        let instance = world.instance().await;
        instance.count("org_1", "api", 5).await;
        instance.count("org_1", "tokens", 3).await;
        instance.flush().await;
        let copy = world.copy_redis().await;
        commit_reset(&world, "org_1", Some(&["api"])).await;
        if survives {
            world.restart_redis_from(&copy, &[&instance]).await;
        } else {
            world.kill_redis().await;
            world.start_redis().await;
        }
        // Every instance sweeps each second.
        instance.app.policies.sweep_once().await.unwrap();
        assert_eq!(instance.count("org_1", "api", 1).await, 1);
        assert_eq!(instance.count("org_1", "tokens", 1).await, 4);
        instance.flush().await;
        let periods = instance.periods("org_1").await;
        let summaries: Vec<_> = periods
            .iter()
            .map(|it| (it["used"].as_u64().unwrap(), it["resetType"].as_str()))
            .collect();
        assert_eq!(summaries, [(5, Some("manual")), (4, None), (1, None)]);
        assert_eq!(
            instance.app.state.admin.finish_resets_once().await.unwrap(),
            0
        );
    }
}

#[tokio::test]
async fn a_limit_changed_during_a_pending_reset_is_effective_for_the_next_request() {
    let world = World::new().await;
    let (instance, other) = (world.instance().await, world.instance().await);
    instance.count("org_1", "api", 5).await;
    other.count("org_1", "api", 5).await;
    commit_reset(&world, "org_1", None).await;
    instance.limits("org_1", json!({"api": {"limit": 0}})).await;
    let answer = other.try_consume("org_1", "api", 1).await;
    assert_eq!(answer.status, 429, "{}", answer.text);
    assert_eq!(answer.body["current"], 0);
}

#[tokio::test]
async fn a_reset_after_the_loss_of_redis_closes_what_was_stored() {
    let world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    instance.flush().await;
    world.flush_redis().await;
    let answer = instance.reset("org_1", json!({})).await;
    assert_eq!(answer.body["meters"]["api"]["previousCount"], 5);
    world.flush_redis().await;
    assert_eq!(instance.current("org_1", "api").await, 0);
    let rows = rows(&world.postgres().await).await;
    assert_eq!(rows.iter().map(|row| row.used).collect::<Vec<_>>(), [5, 0]);
}

#[tokio::test]
async fn an_instance_whose_clock_lags_counts_in_the_period_that_a_reset_started() {
    let world = World::new().await;
    let instance = world.instance().await;
    let slow_clock = tallyman::clock::Clock::manual(world.clock.now() - Duration::seconds(2));
    let lagging = world.instance_at(slow_clock).await;
    lagging.count("org_1", "api", 5).await;
    instance.reset("org_1", json!({})).await;
    assert_eq!(lagging.count("org_1", "api", 1).await, 1);
    assert_eq!(instance.count("org_1", "api", 1).await, 2);
    assert_eq!(lagging.current("org_1", "api").await, 2);
}

#[tokio::test]
async fn an_instance_whose_clock_lags_reads_the_period_that_a_reset_started_after_a_loss() {
    let world = World::new().await;
    let instance = world.instance().await;
    let slow_clock = tallyman::clock::Clock::manual(world.clock.now() - Duration::seconds(2));
    let lagging = world.instance_at(slow_clock).await;
    instance.count("org_1", "api", 5).await;
    instance.reset("org_1", json!({})).await;
    instance.count("org_1", "api", 7).await;
    instance.flush().await;
    world.flush_redis().await;
    assert_eq!(lagging.current("org_1", "api").await, 7);
}

#[tokio::test]
async fn without_redis_a_reset_is_a_503_and_not_committed() {
    let mut world = World::new().await;
    let instance = world.instance().await;
    instance.count("org_1", "api", 5).await;
    instance.flush().await;
    world.kill_redis().await;
    let answer = instance
        .http
        .post("/v1/organizations/org_1/reset", json!({}))
        .await;
    assert_eq!(answer.code(), "counter_store_unavailable");
    let resets = world.select("select count(*)::text from resets").await;
    assert_eq!(resets, ["0"]);
}
