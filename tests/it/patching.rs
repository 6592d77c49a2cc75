//! `PATCH /v1/organizations/{id}`: changes the named settings only, atomically.

use serde_json::{Value, json};

use crate::support::{Instance, World, lock_policy_changes, until_lock_wait};

const PATH: &str = "/v1/organizations/org_1";

async fn patch(service: &Instance, changes: Value) -> Value {
    let answer = service.http.patch(PATH, changes).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body
}

/// The effective settings of an organization, without their sources.
fn settings(mut organization: Value) -> Value {
    for name in ["organizationId", "limits", "version"] {
        organization.as_object_mut().unwrap().remove(name);
    }
    organization
}

#[tokio::test]
async fn a_patch_changes_only_the_named_settings_and_null_restores_the_default() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .settings(
            "org_1",
            json!({"planId": "free", "features": {"sso": true, "seats": 5}, "resetMode": "scheduled",
                   "resetPeriod": "yearly", "resetDay": 15, "resetMonth": 4, "timeZone": "Europe/Berlin",
                   "metadata": {"stripe": {"customer": "cus_1", "trial": true}, "note": "x"}}),
        )
        .await;
    service.limits("org_1", json!({"api": {"limit": 5}})).await;
    let before = service.http.get(PATH).await.body;
    let same = patch(&service, json!({})).await;
    assert_eq!(settings(same.clone()), settings(before.clone()));
    assert!(same["version"].as_u64() > before["version"].as_u64());

    let changes = json!({"resetMonth": null, "resetDay": 20, "features": {"seats": null, "support": "email"},
                         "metadata": {"stripe": {"trial": null}, "note": ["y"]}});
    let after = patch(&service, changes).await;
    let mut expected = before.clone();
    expected["resetMonth"] = Value::Null;
    expected["resetDay"] = json!(20);
    expected["features"] = json!({"sso": true, "support": "email"});
    expected["metadata"] = json!({"stripe": {"customer": "cus_1"}, "note": ["y"]});
    assert_eq!(settings(after.clone()), settings(expected));
    assert_eq!(after["limits"]["api"]["limit"], 5);
    assert_eq!(service.http.get(PATH).await.body, after);

    let all_null = json!({"planId": null, "features": null, "resetMode": null, "resetPeriod": null, "resetDay": null,
                         "resetMonth": null, "anchor": null, "timeZone": null, "metadata": null});
    let unset = patch(&service, all_null).await;
    let default = service.settings("org_2", json!({})).await;
    assert_eq!(settings(unset.clone()), settings(default));
    assert_eq!(unset["limits"]["api"]["limit"], 5);
}

#[tokio::test]
async fn a_patch_is_effective_for_the_next_request_on_every_instance() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    there.count("org_1", "api", 5).await;
    patch(&here, json!({"resetDay": 20})).await;
    let meter = there.meter("org_1", "api").await;
    assert_eq!(meter["resetDate"], "2031-03-20T00:00:00Z");
    assert_eq!(
        (&meter["periodStart"], &meter["current"]),
        (&json!("2031-03-01T00:00:00Z"), &json!(5))
    );
    let counted = there.try_consume("org_1", "api", 1).await;
    assert_eq!(counted.body["resetDate"], "2031-03-20T00:00:00Z");
}

/// A change of calendar has pinned the running period; a patch without calendar settings must not move it.
#[tokio::test]
async fn a_patch_without_calendar_settings_keeps_the_running_period() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    patch(&service, json!({"resetDay": 20})).await;
    let running = service.meter("org_1", "api").await;
    world.move_to("2031-03-16T00:00:00Z");
    patch(
        &service,
        json!({"features": {"sso": true}, "metadata": {"a": 1}}),
    )
    .await;
    assert_eq!(service.meter("org_1", "api").await, running);
}

#[tokio::test]
async fn a_setting_that_contradicts_the_others_is_refused_by_name_and_changes_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    let before = service
        .settings(
            "org_1",
            json!({"resetPeriod": "yearly", "resetDay": 15, "resetMonth": 4, "features": {"sso": true}}),
        )
        .await;
    for (changes, pointer) in [
        (json!({"resetPeriod": "monthly"}), "/resetMonth"),
        (
            json!({"resetPeriod": "weekly", "resetMonth": null}),
            "/resetDay",
        ),
        (json!({"anchor": "2031-01-31T00:00:00Z"}), "/anchor"),
        (json!({"resetDay": 32}), "/resetDay"),
        (json!({"resetDay": "15"}), "/resetDay"),
        (json!({"planId": "gold"}), "/planId"),
        (json!({"timeZone": "Mars/Olympus_Mons"}), "/timeZone"),
        (
            json!({"features": {"sso": false, "tags": []}}),
            "/features/tags",
        ),
        (json!({"features": []}), "/features"),
        (json!({"metadata": 7}), "/metadata"),
        (json!({"metadata": {"a": {"b": "\u{0}"}}}), "/metadata/a/b"),
        (json!({"resetday": null}), "/resetday"),
        (json!([]), ""),
        // A valid member is not applied when another one is invalid.
        (
            json!({"features": {"sso": false}, "metadata": {"a": 1}, "resetMonth": 13}),
            "/resetMonth",
        ),
    ] {
        let answer = service.http.patch(PATH, changes.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{changes}"
        );
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{changes}");
    }
    assert_eq!(service.http.get(PATH).await.body, before);
    let audited =
        world.select("select count(*)::text from audit_log where organization_id = 'org_1'");
    assert_eq!(audited.await, ["1"]);
}

#[tokio::test]
async fn patches_cannot_grow_a_collection_without_bound() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    let text = "x".repeat(40_000);
    for name in ["metadata", "features"] {
        patch(&service, json!({name: {"a": text}})).await;
    }
    for name in ["metadata", "features"] {
        let answer = service.http.patch(PATH, json!({name: {"b": text}})).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.body["errors"][0]["pointer"], format!("/{name}"));
    }
    patch(&service, json!({"metadata": {"a": null, "b": text}})).await;
}

#[tokio::test]
async fn an_unknown_organization_is_not_found() {
    let world = World::new().await;
    let service = world.instance().await;
    assert_eq!(service.http.patch(PATH, json!({})).await.status, 404);
    assert_eq!(world.select("select id from organizations").await, [""; 0]);
    // A counted organization is known before any flush.
    world.move_to("2031-04-02T00:00:00Z");
    service.count("org_1", "api", 1).await;
    patch(&service, json!({"resetDay": 20})).await;
}

/// Redis dies between the commit and the write, and restarts with its earlier data.
#[tokio::test]
async fn a_patch_whose_redis_dies_after_the_commit_is_applied_by_the_sweep() {
    let mut world = World::new().await;
    let (service, other) = (world.instance().await, world.instance().await);
    service.count("org_1", "api", 5).await;
    patch(&service, json!({"resetDay": 20})).await;
    service.app.policies.sweep_once().await.unwrap();
    world.copy_redis().await;
    let postgres = world.postgres().await;
    let lock = lock_policy_changes(&postgres).await;
    let http = service.http.clone();
    // The change has found Redis alive, and now waits for the lock.
    let limits = format!("{PATH}/limits");
    let change = json!({"api": {"limit": 600}});
    let patching = tokio::spawn(async move { http.patch(&limits, change).await });
    until_lock_wait(&postgres).await;
    world.kill_redis().await;
    lock.rollback().await.unwrap();
    let answer = patching.await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (503, "counter_store_unavailable")
    );
    world.start_redis().await;
    assert_eq!(other.app.policies.sweep_once().await.unwrap().applied, 1);
    for service in [&service, &other] {
        let meter = service.meter("org_1", "api").await;
        assert_eq!(
            (&meter["limit"], &meter["current"]),
            (&json!(600), &json!(5))
        );
        assert_eq!(service.try_consume("org_1", "api", 596).await.status, 429);
    }
}

/// The change may move calls to another counter, so that Redis must be available at the commit.
#[tokio::test]
async fn a_change_of_calendar_whose_redis_dies_before_the_commit_does_not_happen() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    service.flush().await;
    world.copy_redis().await;
    let postgres = world.postgres().await;
    let lock = lock_policy_changes(&postgres).await;
    let http = service.http.clone();
    let patching = tokio::spawn(async move { http.patch(PATH, json!({"resetDay": 25})).await });
    until_lock_wait(&postgres).await;
    world.kill_redis().await;
    lock.rollback().await.unwrap();
    assert_eq!(patching.await.unwrap().status, 503);
    world.start_redis().await;
    assert_eq!(service.app.policies.sweep_once().await.unwrap().applied, 0);
    let meter = service.meter("org_1", "api").await;
    assert_eq!(
        (&meter["resetDate"], &meter["current"]),
        (&json!("2031-04-01T00:00:00Z"), &json!(5))
    );
}
