//! Limits and settings: atomic, and effective for the next request on every instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tallyman::domain::limit::{Limit, LimitOverride};
use tallyman::domain::organization::Organization;
use tallyman::domain::quantity::Count;
use tallyman::postgres::{Actor, Postgres, organizations};

use crate::support::{World, at_once};

#[tokio::test]
async fn a_new_limit_is_effective_for_the_next_request_on_every_instance() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    // Both instances have the policy cached.
    here.count("org_1", "api", 5).await;
    there.count("org_1", "api", 5).await;
    for (limit, status) in [(10, 429), (11, 200), (5, 429), (0, 429), (1000, 200)] {
        here.limits("org_1", json!({"api": {"limit": limit}})).await;
        let answer = there.try_consume("org_1", "api", 1).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["limit"]),
            (status, &json!(limit))
        );
        assert_eq!(there.meter("org_1", "api").await["limit"], limit);
    }
}

#[tokio::test]
async fn a_limit_on_a_meter_never_counted_is_known_to_every_instance_at_once() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    there.count("org_1", "api", 1).await;
    here.limits("org_1", json!({"tokens": {"limit": 0}})).await;
    assert_eq!(there.meter("org_1", "tokens").await["limit"], 0);
    assert_eq!(there.try_consume("org_1", "tokens", 1).await.status, 429);
}

#[tokio::test]
async fn a_limit_of_an_organization_never_counted_is_known_to_every_instance_at_once() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    here.settings("org_1", json!({})).await;
    assert_eq!(there.meter("org_1", "api").await["limit"], 1000);
    here.limits("org_1", json!({"api": {"limit": 7}})).await;
    assert_eq!(there.meter("org_1", "api").await["limit"], 7);
}

/// Every request sent after the response to the PATCH uses the new limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_granted_beyond_a_lowered_limit_once_the_patch_has_returned() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    instances[0]
        .limits("org_1", json!({"api": {"limit": 100_000}}))
        .await;
    for service in &instances {
        service.count("org_1", "api", 1).await;
    }
    let changed = Arc::new(AtomicBool::new(false));
    let results = at_once(17, |task| {
        let (http, changed) = (instances[task % 2].http.clone(), Arc::clone(&changed));
        async move {
            let mut granted = 0;
            if task == 16 {
                let path = "/v1/organizations/org_1/limits";
                let answer = http.patch(path, json!({"api": {"limit": 150}})).await;
                assert_eq!(answer.status, 200);
                changed.store(true, Ordering::SeqCst);
                return granted;
            }
            let mut refusals = 0;
            while refusals < 3 {
                let changed = changed.load(Ordering::SeqCst);
                let answer = http
                    .post("/v1/consume", json!({"organizationId": "org_1"}))
                    .await;
                if answer.status == 200 {
                    granted += 1;
                    let current = answer.body["current"].as_u64().unwrap();
                    assert!(!changed || current <= 150, "{current} was granted");
                } else {
                    assert_eq!(answer.status, 429);
                    refusals += 1;
                }
            }
            granted
        }
    })
    .await;
    let current = instances[1].current("org_1", "api").await;
    assert_eq!(current, 2 + results.iter().sum::<u64>());
    assert!(current >= 150);
}

#[tokio::test]
async fn null_removes_an_override_and_a_limit_of_null_is_unlimited() {
    let world = World::new().await;
    let service = world.instance().await;
    let limit = |answer: &Value| answer["limits"]["api"]["limit"].clone();
    let answer = service.limits("org_1", json!({"api": {"limit": 1}})).await;
    assert_eq!(limit(&answer), 1);
    let answer = service
        .limits("org_1", json!({"api": {"limit": null}}))
        .await;
    assert_eq!(limit(&answer), Value::Null);
    assert_eq!(service.try_consume("org_1", "api", 5000).await.status, 200);
    assert_eq!(service.meter("org_1", "api").await["limit"], Value::Null);
    let answer = service.limits("org_1", json!({"api": null})).await;
    assert_eq!(limit(&answer), 1000);
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 429);
    // Removing a missing override is no change.
    let answer = service.limits("org_1", json!({"tokens": null})).await;
    assert_eq!(answer["limits"].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn naming_one_part_of_a_limit_keeps_the_others() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .limits("org_1", json!({"api": {"limit": 10, "warnAt": [50]}}))
        .await;
    let answer = service
        .limits("org_1", json!({"api": {"enforcement": "soft"}}))
        .await;
    assert_eq!(
        answer["limits"]["api"],
        json!({"limit": 10, "enforcement": "soft", "warnAt": [50], "source": "organization"})
    );
    assert_eq!(service.try_consume("org_1", "api", 11).await.status, 200);
    let answer = service.limits("org_1", json!({"api": {"limit": 20}})).await;
    assert_eq!(
        answer["limits"]["api"],
        json!({"limit": 20, "enforcement": "soft", "warnAt": [50], "source": "organization"})
    );
    // The same with a limit that comes from the plan.
    let answer = service
        .limits("org_2", json!({"api": {"enforcement": "soft"}}))
        .await;
    assert_eq!(
        answer["limits"]["api"],
        json!({"limit": 1000, "enforcement": "soft", "warnAt": [80, 100], "source": "organization"})
    );
}

#[tokio::test]
async fn a_change_of_limits_keeps_the_count() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 40).await;
    service.limits("org_1", json!({"api": {"limit": 50}})).await;
    assert_eq!(service.current("org_1", "api").await, 40);
    assert_eq!(
        service.try_consume("org_1", "api", 10).await.body["current"],
        50
    );
}

#[tokio::test]
async fn limits_of_an_unknown_organization_are_not_found() {
    let world = World::new().await;
    let service = world.instance().await;
    let patch = |id: &'static str| {
        let http = service.http.clone();
        async move {
            let path = format!("/v1/organizations/{id}/limits");
            http.patch(&path, json!({"api": {"limit": 1}})).await
        }
    };
    for (id, refusal) in [
        ("nobody", (404, "not_found")),
        ("not%20an%20id", (400, "invalid_field")),
        ("%ff", (400, "invalid_field")),
    ] {
        let answer = patch(id).await;
        assert_eq!((answer.status.as_u16(), answer.code()), refusal, "{id}");
    }
    assert_eq!(world.select("select id from organizations").await, [""; 0]);
    // A counted organization is known before any flush.
    world.move_to("2031-04-02T00:00:00Z");
    service.count("counted", "api", 1).await;
    assert_eq!(world.select("select id from organizations").await, [""; 0]);
    assert_eq!(patch("counted").await.status, 200);
}

#[tokio::test]
async fn an_invalid_limit_is_refused_by_name() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    for (changes, pointer) in [
        (json!({"api": {"limit": -1}}), "/api/limit"),
        (json!({"api": {"limit": 1_u64 << 53}}), "/api/limit"),
        (json!({"api": {"limit": "10"}}), "/api/limit"),
        (json!({"api": {"enforcement": "firm"}}), "/api/enforcement"),
        (json!({"api": {"warnAt": [80, 80]}}), "/api/warnAt"),
        (json!({"api": {"warnAt": [0]}}), "/api/warnAt/0"),
        (json!({"api": {"warnAt": [1001]}}), "/api/warnAt/0"),
        (
            json!({"api": {"warnAt": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}}),
            "/api/warnAt",
        ),
        (json!({"api": {"limits": 1}}), "/api/limits"),
    ] {
        let answer = service
            .http
            .patch("/v1/organizations/org_1/limits", changes.clone())
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{changes}"
        );
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{changes}");
    }
    let too_many: serde_json::Map<String, Value> = (0..33)
        .map(|number| (format!("m{number}"), json!({"limit": 1})))
        .collect();
    let answer = service
        .http
        .patch("/v1/organizations/org_1/limits", Value::Object(too_many))
        .await;
    assert_eq!(answer.status, 400);
    assert_eq!(service.meter("org_1", "api").await["limit"], 1000);
}

#[tokio::test]
async fn settings_are_returned_as_they_are_effective() {
    let world = World::new().await;
    let service = world.instance().await;
    let put = service
        .settings(
            "org_1",
            json!({"planId": "free", "features": {"sso": true, "seats": 5, "support": "email"}, "resetMode": "scheduled",
                   "resetPeriod": "monthly", "resetDay": 15, "timeZone": "Europe/Berlin",
                   "metadata": {"stripeCustomer": "cus_1"}}),
        )
        .await;
    let get = service.http.get("/v1/organizations/org_1").await;
    assert_eq!(get.body, put);
    let version = put["version"].clone();
    assert!(version.as_u64().unwrap() > 0);
    assert_eq!(
        put,
        json!({"organizationId": "org_1", "planId": "free",
               "features": {"sso": true, "seats": 5, "support": "email"}, "resetMode": "scheduled",
               "resetPeriod": "monthly", "resetDay": 15, "resetMonth": null, "anchor": null,
               "timeZone": "Europe/Berlin", "meters": {}, "metadata": {"stripeCustomer": "cus_1"},
               "limits": {"api": {"limit": 1000, "enforcement": "hard", "warnAt": [80, 100], "source": "default"}},
               "version": version})
    );
    // PUT replaces all settings, but not the limits.
    service.limits("org_1", json!({"api": {"limit": 5}})).await;
    let replaced = service.settings("org_1", json!({})).await;
    assert_eq!(
        (&replaced["features"], &replaced["metadata"]),
        (&json!({}), &json!({}))
    );
    assert_eq!(
        (&replaced["resetDay"], &replaced["timeZone"]),
        (&Value::Null, &json!("UTC"))
    );
    assert_eq!(replaced["limits"]["api"]["limit"], 5);
}

#[tokio::test]
async fn invalid_settings_are_refused_by_name_and_change_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    for (settings, pointer) in [
        (json!({"planId": "gold"}), "/planId"),
        (json!({"planId": "no spaces"}), "/planId"),
        (json!({"resetDay": 32}), "/resetDay"),
        (json!({"resetDay": 300}), "/resetDay"),
        (json!({"resetDay": -1}), "/resetDay"),
        (json!({"resetPeriod": "weekly", "resetDay": 7}), "/resetDay"),
        (json!({"resetPeriod": "daily", "resetDay": 1}), "/resetDay"),
        (json!({"resetMonth": 1}), "/resetMonth"),
        (
            json!({"resetPeriod": "yearly", "resetMonth": 13}),
            "/resetMonth",
        ),
        (
            json!({"anchor": "2031-01-31T00:00:00Z", "resetDay": 1}),
            "/anchor",
        ),
        (json!({"anchor": "yesterday"}), "/anchor"),
        (json!({"timeZone": "Mars/Olympus_Mons"}), "/timeZone"),
        (json!({"resetMode": "eager"}), "/resetMode"),
        (json!({"resetPeriod": "fortnightly"}), "/resetPeriod"),
        (json!({"resetperiod": "daily"}), "/resetperiod"),
        (json!({"features": {"sso": null}}), "/features/sso"),
    ] {
        let answer = service
            .http
            .put("/v1/organizations/org_1", settings.clone())
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{settings}"
        );
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{settings}");
    }
    assert_eq!(
        service.http.get("/v1/organizations/org_1").await.status,
        404
    );
}

/// `jsonb` cannot store U+0000.
#[tokio::test]
async fn text_that_cannot_be_stored_is_refused_and_not_a_failure() {
    let world = World::new().await;
    let service = world.instance().await;
    for settings in [
        json!({"metadata": {"name": "a\u{0}b"}}),
        json!({"metadata": {"list": [{"a\u{0}": 1}]}}),
        json!({"features": {"support": "\u{0}"}}),
        json!({"features": {"\u{0}": true}}),
    ] {
        let answer = service
            .http
            .put("/v1/organizations/org_1", settings.clone())
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{settings}"
        );
    }
    let unusual = json!({"metadata": {"name": "\u{1}\u{fffd}\u{10ffff}🦀"}});
    let stored = service.settings("org_1", unusual.clone()).await;
    assert_eq!(stored["metadata"], unusual["metadata"]);
}

/// `jsonb` writes numbers without exponents, up to 309 digits.
#[tokio::test]
async fn numbers_of_any_size_are_returned_unchanged() {
    let world = World::new().await;
    let service = world.instance().await;
    for number in [
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE,
        0.1 + 0.2,
        1e22,
        8.5e-7,
    ] {
        let settings = json!({"metadata": {"n": number}, "features": {"n": number}});
        for _ in 0..2 {
            let stored = service.settings("org_1", settings.clone()).await;
            assert_eq!(stored["metadata"]["n"].as_f64(), Some(number));
        }
        let read = service.http.get("/v1/organizations/org_1").await;
        assert_eq!(
            read.body["metadata"]["n"].as_f64(),
            Some(number),
            "{}",
            read.text
        );
        let path = "/v1/organizations/org_1/features/n";
        let feature = service.http.get(path).await;
        assert_eq!(
            feature.body["value"].as_f64(),
            Some(number),
            "{}",
            feature.text
        );
        service.count("org_1", "api", 1).await;
    }
}

#[tokio::test]
async fn changing_the_calendar_keeps_the_start_and_the_count_and_moves_the_end() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    here.count("org_1", "api", 10).await;
    there.count("org_1", "api", 10).await;
    for (settings, end) in [
        (
            json!({"resetPeriod": "daily"}),
            json!("2031-03-16T00:00:00Z"),
        ),
        (
            json!({"resetPeriod": "yearly"}),
            json!("2032-01-01T00:00:00Z"),
        ),
        (json!({"resetMode": "manual"}), Value::Null),
        (
            json!({"resetDay": 20, "timeZone": "Asia/Tokyo"}),
            json!("2031-03-19T15:00:00Z"),
        ),
        (
            json!({"resetPeriod": "weekly"}),
            json!("2031-03-17T00:00:00Z"),
        ),
    ] {
        here.settings("org_1", settings.clone()).await;
        let answer = there.try_consume("org_1", "api", 1).await;
        assert_eq!(
            answer.body["periodStart"], "2031-03-01T00:00:00Z",
            "{settings}"
        );
        assert_eq!(answer.body["resetDate"], end, "{settings}");
    }
    assert_eq!(there.current("org_1", "api").await, 25);
    // The other instance ends the period in time, without a notification.
    world.move_to("2031-03-17T00:00:00Z");
    let answer = there.try_consume("org_1", "api", 1).await;
    assert_eq!(answer.body["current"], 1);
    assert_eq!(answer.body["periodStart"], "2031-03-17T00:00:00Z");
    assert_eq!(answer.body["resetDate"], "2031-03-24T00:00:00Z");
}

#[tokio::test]
async fn every_change_of_limits_is_audited_with_actor_before_and_after() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({"resetDay": 3})).await;
    let headers = [("x-request-id", "ticket-77")];
    let body = json!({"api": {"limit": 5}});
    let path = "/v1/organizations/org_1/limits";
    service
        .http
        .send(reqwest::Method::PATCH, path, &headers, Some(body))
        .await;
    // Refused changes leave no entry.
    let refused = service
        .http
        .put("/v1/organizations/org_1", json!({"planId": "gold"}))
        .await;
    assert_eq!(refused.status, 400);
    let rows = world
        .select(
            "select jsonb_build_object('actor', actor, 'action', action, 'organization', organization_id,
                                       'before', before, 'after', after, 'request', request_id)::text
             from audit_log where organization_id is not null order by id",
        )
        .await;
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect();
    let key = format!("key:{}", &world.key[3..19]);
    let [first, second] = rows.as_slice() else {
        panic!("{rows:?}");
    };
    assert_eq!(
        (&first["actor"], &first["action"]),
        (&json!(key), &json!("organization.put"))
    );
    assert_eq!(first["before"], Value::Null);
    assert_eq!(first["after"]["settings"]["resetDay"], 3);
    assert_eq!(
        (&second["action"], &second["organization"]),
        (&json!("limits.patch"), &json!("org_1"))
    );
    assert_eq!(
        (&second["before"]["limits"], &second["after"]["limits"]),
        (&json!({}), &json!({"api": {"limit": 5}}))
    );
    assert_eq!(second["request"], "ticket-77");
}

/// The process dies between the commit and the write to Redis.
#[tokio::test]
async fn a_change_that_never_reached_redis_is_applied_by_the_next_sweep() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 10).await;
    let store = Postgres::new(&world.database_url, 1).unwrap();
    let id = "org_1".parse().unwrap();
    let actor = Actor {
        name: "key:dead".to_owned(),
        request_id: String::new(),
    };
    let now = world.clock.now();
    let committed = organizations::change(&store, &id, &actor, "limits.patch", now, |before| {
        let mut after = before.organization.clone().unwrap_or_default();
        let own = LimitOverride {
            limit: Some(Limit(Count::try_from(10).ok())),
            ..LimitOverride::default()
        };
        after.limits.insert("api".parse().unwrap(), own);
        Ok::<Organization, ()>(after)
    });
    committed.await.unwrap().unwrap();
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 200);
    let other = world.instance().await;
    assert_eq!(other.app.policies.sweep_once().await.unwrap().applied, 1);
    for service in [&service, &other] {
        assert_eq!(service.try_consume("org_1", "api", 1).await.status, 429);
        assert_eq!(service.meter("org_1", "api").await["limit"], 10);
    }
    // A second sweep finds nothing to apply.
    assert_eq!(other.app.policies.sweep_once().await.unwrap().applied, 0);
    assert_eq!(service.app.policies.sweep_once().await.unwrap().applied, 0);
}

#[tokio::test]
async fn a_limit_survives_the_loss_of_redis() {
    let world = World::new().await;
    let service = world.instance().await;
    service.limits("org_1", json!({"api": {"limit": 3}})).await;
    let _: String = world.redis_command(&["FLUSHALL"]).await;
    let service = world.instance().await;
    assert_eq!(service.try_consume("org_1", "api", 4).await.status, 429);
    assert_eq!(service.try_consume("org_1", "api", 3).await.status, 200);
}

#[tokio::test]
async fn new_defaults_reach_organizations_that_override_nothing() {
    let mut world = World::new().await;
    world.instance().await.count("org_1", "api", 10).await;
    let own = json!({"api": {"limit": 500}});
    world.instance().await.limits("org_2", own).await;
    let defaults = &mut world.config.defaults;
    defaults
        .limits
        .values_mut()
        .for_each(|limit| limit.limit = Count::try_from(11).ok());
    let updated = world.instance().await;
    assert_eq!(
        updated.try_consume("org_1", "api", 1).await.body["limit"],
        11
    );
    assert_eq!(updated.try_consume("org_1", "api", 1).await.status, 429);
    assert_eq!(
        updated.try_consume("org_2", "api", 100).await.body["limit"],
        500
    );
}
