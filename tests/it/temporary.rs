//! Temporary limits: they override the others, end on time by themselves, and are audited once.

use chrono::Duration;
use serde_json::{Value, json};
use tallyman::domain::ids::METERS_MAX;

use crate::support::{Instance, World, row};

const UNTIL: &str = "2031-03-15T18:00:00Z";
const JUST_BEFORE: &str = "2031-03-15T17:59:59.999Z";

fn temporary(limit: u64) -> Value {
    json!({"api": {"temporary": {"limit": limit, "until": UNTIL}}})
}

async fn api(service: &Instance) -> Value {
    let answer = service.http.get("/v1/organizations/org_1/limits").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body["limits"]["api"].clone()
}

/// Actor, before and after of each recorded end of a temporary limit of `org_1`.
async fn ends(world: &World) -> Vec<Value> {
    let rows = world
        .select(
            "select jsonb_build_object('actor', actor, 'before', before->'temporary', 'after', after->'temporary')::text
             from audit_log where action = 'limits.end' and organization_id = 'org_1' order by id",
        )
        .await;
    rows.iter()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect()
}

#[tokio::test]
async fn a_temporary_limit_overrides_and_ends_on_time_on_every_instance_without_a_sweep() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    here.limits("org_1", json!({"api": {"limit": 10}})).await;
    here.count("org_1", "api", 5).await;
    there.count("org_1", "api", 5).await;
    here.limits("org_1", temporary(12)).await;
    assert_eq!(there.try_consume("org_1", "api", 1).await.body["limit"], 12);
    world.move_to(JUST_BEFORE);
    assert_eq!(
        here.try_consume("org_1", "api", 1).await.body["current"],
        12
    );
    assert_eq!(here.try_consume("org_1", "api", 1).await.body["limit"], 12);
    world.move_to(UNTIL);
    for service in [&there, &here] {
        let refused = service.try_consume("org_1", "api", 1).await;
        assert_eq!(refused.status, 429);
        assert_eq!(refused.body["limit"], 10);
        assert_eq!(service.meter("org_1", "api").await["limit"], 10);
    }
    assert_eq!(there.current("org_1", "api").await, 12);
    // A meter without counts shows the permanent limit as well.
    let meters = json!({"organizationId": "org_1", "meter": "tokens"});
    assert_eq!(there.http.post("/v1/consume", meters).await.status, 200);
    for service in [&here, &there] {
        service.app.policies.sweep_once().await.unwrap();
        assert_eq!(
            service.try_consume("org_1", "api", 1).await.body["limit"],
            10
        );
    }
}

/// `(limit, temporary limit, its end, used, requested, when a retry may succeed)`.
#[tokio::test]
async fn a_refusal_says_when_the_call_would_be_granted_whichever_limit_ends_first() {
    let world = World::new().await;
    let service = world.instance().await;
    let in_5_seconds = "2031-03-15T12:00:05Z";
    let next_day = "2031-03-16T00:00:00Z";
    let after_that = "2031-03-16T12:00:00Z";
    for (number, (permanent, temporary, until, used, requested, retry_at)) in [
        (10, 0, in_5_seconds, 0, 1, Some(in_5_seconds)),
        (10, 2, in_5_seconds, 2, 1, Some(in_5_seconds)),
        (10, 100, "2031-03-15T12:10:00Z", 90, 50, None),
        (10, 100, "2031-03-15T12:10:00Z", 95, 8, Some(next_day)),
        // The temporary limit outlives the period.
        (10, 100, after_that, 90, 50, Some(next_day)),
        (10, 4, after_that, 4, 4, Some(next_day)),
        (10, 4, after_that, 4, 5, Some(after_that)),
        (10, 4, in_5_seconds, 4, 11, None),
    ]
    .into_iter()
    .enumerate()
    {
        let organization = format!("org_{number}");
        service
            .settings(&organization, json!({"resetPeriod": "daily"}))
            .await;
        let overridden =
            json!({"api": {"limit": permanent, "temporary": {"limit": temporary, "until": until}}});
        service.limits(&organization, overridden).await;
        if used > 0 {
            service.count(&organization, "api", used).await;
        }
        let case = format!("{permanent}, {temporary} until {until}: {requested} on {used}");
        let seconds =
            retry_at.map(|at| (crate::support::instant(at) - world.clock.now()).num_seconds());
        let refused = service.try_consume(&organization, "api", requested).await;
        assert_eq!(refused.status, 429, "{case}");
        assert_eq!(refused.body["retryAt"], json!(retry_at), "{case}");
        let header = seconds.map(|it| it.to_string()).unwrap_or_default();
        assert_eq!(refused.header("retry-after"), header, "{case}");
        let body = json!({"organizationId": organization, "amount": requested});
        let check = service.http.post("/v1/check", body.clone()).await;
        assert_eq!(check.body["retryAt"], json!(retry_at), "{case}");
        let mut item = body;
        item["op"] = json!("consume");
        let batch = service
            .http
            .post("/v1/batch", json!({"items": [item.clone(), item]}))
            .await;
        for result in batch.body["results"].as_array().unwrap() {
            assert_eq!(result["retryAt"], json!(retry_at), "{case}");
        }
    }
}

#[tokio::test]
async fn retry_after_is_correct_for_temporary_limits() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    here.limits("org_1", json!({"api": {"limit": 10}})).await;
    here.count("org_1", "api", 5).await;
    // The other instance has the previous policy cached.
    there.count("org_1", "api", 5).await;
    here.limits("org_1", temporary(2)).await;
    here.http
        .post(
            "/v1/refund",
            json!({"organizationId": "org_1", "amount": 8}),
        )
        .await;
    let refused = there.try_consume("org_1", "api", 8).await;
    assert_eq!(
        refused.header("ratelimit"),
        format!("\"api\";r=0;t={}", 6 * 3600)
    );
    assert_eq!(refused.body["retryAt"], UNTIL, "{}", refused.text);
    world.move_to(JUST_BEFORE);
    assert_eq!(there.try_consume("org_1", "api", 8).await.status, 429);
    world.move_to(UNTIL);
    assert_eq!(there.try_consume("org_1", "api", 8).await.status, 200);
}

#[tokio::test]
async fn a_temporary_limit_may_be_lower_or_unlimited_and_keeps_the_rest_of_the_limit() {
    let world = World::new().await;
    let service = world.instance().await;
    let own = json!({"api": {"enforcement": "soft", "warnAt": [50]}});
    service.limits("org_1", own).await;
    let permanent =
        json!({"limit": 1000, "enforcement": "soft", "warnAt": [50], "source": "organization"});
    assert_eq!(api(&service).await, permanent);
    for limit in [json!(3), json!(0), Value::Null] {
        let change = json!({"api": {"temporary": {"limit": limit, "until": UNTIL}}});
        let patched = service.limits("org_1", change).await;
        let overridden = json!({"limit": limit, "enforcement": "soft", "warnAt": [50], "source": "temporary", "until": UNTIL});
        assert_eq!(patched["limits"]["api"], overridden);
        assert_eq!(api(&service).await, overridden);
    }
    // The permanent limit can be changed while the temporary one is effective.
    let changed = service.limits("org_1", json!({"api": {"limit": 70}})).await;
    assert_eq!(changed["limits"]["api"]["limit"], Value::Null);
    world.move_to(UNTIL);
    assert_eq!(api(&service).await["limit"], 70);
    let settings = service.http.get("/v1/organizations/org_1").await;
    assert_eq!(settings.body["limits"]["api"]["source"], "organization");
}

#[tokio::test]
async fn null_ends_a_temporary_limit_early_and_so_does_removing_the_limit() {
    let world = World::new().await;
    let service = world.instance().await;
    for (end, limit) in [
        (json!({"api": {"temporary": null}}), 10),
        (json!({"api": null}), 1000),
    ] {
        service.limits("org_1", json!({"api": {"limit": 10}})).await;
        service.limits("org_1", temporary(12)).await;
        let ended = service.limits("org_1", end).await;
        assert_eq!(ended["limits"]["api"]["limit"], limit);
        assert_eq!(api(&service).await["limit"], limit);
    }
    // Removing a missing temporary limit is no change.
    let unchanged = service
        .limits("org_1", json!({"tokens": {"temporary": null}}))
        .await;
    assert_eq!(unchanged["limits"].as_object().unwrap().len(), 1);
    world.move_to(UNTIL);
    service.app.policies.sweep_once().await.unwrap();
    assert_eq!(ends(&world).await, [Value::Null; 0]);
}

#[tokio::test]
async fn an_invalid_temporary_limit_is_refused_by_name() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    for (temporary, pointer) in [
        (
            json!({"limit": 5, "until": "2031-03-15T12:00:00Z"}),
            "/api/temporary/until",
        ),
        (
            json!({"limit": 5, "until": "2031-03-15T11:59:59Z"}),
            "/api/temporary/until",
        ),
        (
            json!({"limit": 5, "until": "+10000-01-01T00:00:00Z"}),
            "/api/temporary/until",
        ),
        (
            json!({"limit": 5, "until": "tomorrow"}),
            "/api/temporary/until",
        ),
        (json!({"limit": 5}), "/api/temporary/until"),
        (json!({"until": UNTIL}), "/api/temporary/limit"),
        (json!({"limit": -1, "until": UNTIL}), "/api/temporary/limit"),
        (
            json!({"limit": 5, "until": UNTIL, "enforcement": "soft"}),
            "/api/temporary/enforcement",
        ),
        (json!([5, UNTIL]), "/api/temporary"),
    ] {
        let body = json!({"api": {"temporary": temporary}});
        let path = "/v1/organizations/org_1/limits";
        let answer = service.http.patch(path, body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{temporary}"
        );
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{temporary}");
    }
    assert_eq!(api(&service).await["source"], "default");
}

#[tokio::test]
async fn start_and_end_of_a_temporary_limit_are_audited_once_each() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    here.limits("org_1", temporary(12)).await;
    let set = world
        .select("select (after->'temporary')::text from audit_log where action = 'limits.patch'")
        .await;
    let set: Value = serde_json::from_str(&set[0]).unwrap();
    assert_eq!(set["api"]["limit"], 12);
    world.move_to(JUST_BEFORE);
    here.app.policies.sweep_once().await.unwrap();
    assert_eq!(ends(&world).await, [Value::Null; 0]);
    world.move_to(UNTIL);
    let (one, other) = tokio::join!(
        here.app.policies.sweep_once(),
        there.app.policies.sweep_once()
    );
    one.unwrap();
    other.unwrap();
    there.app.policies.sweep_once().await.unwrap();
    let expected = json!({"actor": "system", "before": set, "after": {}});
    assert_eq!(ends(&world).await, [expected]);
}

#[tokio::test]
async fn start_and_end_of_a_temporary_limit_are_events() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", temporary(12)).await;
    world.move_to(UNTIL);
    service.app.policies.sweep_once().await.unwrap();
    let events = service.http.get("/v1/events?type=limits.updated").await;
    let events = events.body["data"].as_array().unwrap().clone();
    let limits: Vec<&Value> = events
        .iter()
        .map(|event| &event["data"]["limits"]["api"]["limit"])
        .collect();
    assert_eq!(limits, [1000, 12]);
}

#[tokio::test]
async fn an_ended_temporary_limit_is_recorded_before_it_is_replaced() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", temporary(12)).await;
    world.move_to(UNTIL);
    let next = json!({"api": {"temporary": {"limit": 14, "until": "2031-03-16T00:00:00Z"}}});
    service.limits("org_1", next).await;
    assert_eq!(ends(&world).await.len(), 1);
    assert_eq!(
        service.try_consume("org_1", "api", 1).await.body["limit"],
        14
    );
}

#[tokio::test]
async fn an_idle_counter_is_stored_with_the_permanent_limit() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    here.limits("org_1", temporary(12)).await;
    here.count("org_1", "api", 5).await;
    here.flush().await;
    let postgres = world.postgres().await;
    assert_eq!(row(&postgres, "org_1").await.limit_units, Some(12));
    world.move_to(UNTIL);
    there.app.policies.sweep_once().await.unwrap();
    here.flush().await;
    assert_eq!(row(&postgres, "org_1").await.limit_units, Some(1000));
}

/// The end has a newer version than any other change, so that running counters adopt it.
#[tokio::test]
async fn a_temporary_limit_ends_on_time_despite_other_changes() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    let plan = |limit: u64| json!({"limits": {"api": {"limit": limit}}});
    let put = |limit: u64| here.http.put("/v1/plans/pro", plan(limit));
    assert_eq!(put(10).await.status, 200);
    here.settings("org_1", json!({"planId": "pro"})).await;
    let both = json!({
        "api": {"temporary": {"limit": 20, "until": UNTIL}},
        "tokens": {"temporary": {"limit": 1, "until": "2031-03-15T15:00:00Z"}},
    });
    here.limits("org_1", both).await;
    for service in [&here, &there] {
        service.count("org_1", "api", 4).await;
        service.count("org_1", "tokens", 1).await;
    }
    world.move_to("2031-03-15T15:00:00Z");
    assert_eq!(there.try_consume("org_1", "tokens", 1).await.status, 200);
    assert_eq!(there.try_consume("org_1", "api", 1).await.body["limit"], 20);
    here.limits("org_1", json!({"storage": {"limit": 1}})).await;
    there.app.policies.sweep_once().await.unwrap();
    assert_eq!(put(9).await.status, 200);
    assert_eq!(there.app.policies.sweep_once().await.unwrap().applied, 0);
    assert_eq!(there.try_consume("org_1", "api", 1).await.body["limit"], 20);
    world.move_to(UNTIL);
    let refused = there.try_consume("org_1", "api", 1).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["limit"]),
        (429, &json!(9))
    );
    assert_eq!(
        here.try_consume("org_1", "api", 1).await.body["current"],
        10
    );
}

#[tokio::test]
async fn a_temporary_limit_ends_on_time_without_postgres_and_after_a_restart() {
    let world = World::new().await;
    let here = world.instance().await;
    here.limits("org_1", temporary(2000)).await;
    here.count("org_1", "api", 1500).await;
    let (servers, socket) = world.cuttable_postgres();
    let there = world.instance_with(servers.clone()).await;
    there.count("org_1", "api", 1).await;
    there.app.state.auth.sweep_once().await.unwrap();
    socket.cut(&world.postgres().await).await;
    world.move_to(UNTIL);
    assert_eq!(
        there.try_consume("org_1", "api", 1).await.body["limit"],
        1000
    );
    let restarted = world.instance_with(servers).await;
    let refused = restarted.try_consume("org_1", "api", 1).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["limit"]),
        (429, &json!(1000))
    );
}

#[tokio::test]
async fn an_end_recorded_while_redis_was_down_is_applied_afterwards() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", temporary(2000)).await;
    service.count("org_1", "api", 1500).await;
    service.flush().await;
    world.kill_redis().await;
    world.move_to(UNTIL);
    service.app.policies.sweep_once().await.unwrap_err();
    assert_eq!(ends(&world).await.len(), 1);
    world.start_redis().await;
    assert_eq!(service.app.policies.sweep_once().await.unwrap().applied, 1);
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 429);
    assert_eq!(service.current("org_1", "api").await, 1500);
    assert_eq!(ends(&world).await.len(), 1);
}

/// Drawn versions leave gaps: each end of a temporary limit takes the next version without drawing one.
#[tokio::test]
async fn versions_are_drawn_further_apart_than_an_organization_has_meters() {
    let world = World::new().await;
    let service = world.instance().await;
    let version = |answer: Value| answer["version"].as_u64().unwrap();
    let first = version(service.limits("org_1", temporary(12)).await);
    let next = version(service.settings("org_1", json!({})).await);
    assert!(next - first > METERS_MAX as u64);
    world.move_to(UNTIL);
    world.clock.advance(Duration::seconds(1));
    let ended = service.http.get("/v1/organizations/org_1").await.body;
    assert_eq!(version(ended), next + 1);
}
