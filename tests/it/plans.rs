//! Plans: shared by organizations, effective on every instance without writes to organizations, and never deleted while used.

use futures::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use tallyman::domain::quantity::Count;

use crate::support::{Answer, Instance, World, at_once};

async fn put(service: &Instance, id: &str, plan: Value) -> Value {
    let answer = service.http.put(&format!("/v1/plans/{id}"), plan).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body
}

async fn get(service: &Instance, id: &str) -> Answer {
    service.http.get(&format!("/v1/plans/{id}")).await
}

async fn delete(service: &Instance, id: &str) -> Answer {
    let path = format!("/v1/plans/{id}");
    service.http.send(Method::DELETE, &path, &[], None).await
}

async fn limits(service: &Instance, organization: &str) -> Value {
    let path = format!("/v1/organizations/{organization}/limits");
    let answer = service.http.get(&path).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body["limits"].clone()
}

async fn feature(service: &Instance, name: &str) -> (Value, Value) {
    let path = format!("/v1/organizations/org_1/features/{name}");
    let answer = service.http.get(&path).await;
    (answer.body["value"].clone(), answer.body["source"].clone())
}

/// Lets an instance load changed plans; asserts that the sweep applied no change of an organization.
async fn load_plans(service: &Instance) {
    assert_eq!(service.app.policies.sweep_once().await.unwrap().applied, 0);
}

fn api(limit: u64) -> Value {
    json!({"limits": {"api": {"limit": limit}}})
}

/// The audit log's entries of plans, oldest first.
async fn audit(world: &World) -> Vec<Value> {
    let rows = world
        .select(
            "select jsonb_build_object('actor', actor, 'action', action, 'before', before, 'after', after,
                                       'request', request_id)::text
             from audit_log where action like 'plan.%' order by id",
        )
        .await;
    rows.iter()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect()
}

#[tokio::test]
async fn a_plan_is_returned_as_it_was_put() {
    let world = World::new().await;
    let service = world.instance().await;
    let settings = json!({
        "name": "Pro",
        "limits": {"api": {"limit": 10000, "enforcement": "soft", "warnAt": [50]}, "tokens": {"limit": null}},
        "features": {"sso": true, "seats": 5, "support": "email"},
        "meters": {"api": {"unit": "calls"}},
    });
    let plan = put(&service, "pro", settings.clone()).await;
    let mut expected = settings;
    expected["id"] = json!("pro");
    expected["version"] = plan["version"].clone();
    assert_eq!(plan, expected);
    assert_eq!(get(&service, "pro").await.body, plan);
    // PUT replaces the whole plan, and the name defaults to the id.
    let replaced = put(&service, "pro", json!({})).await;
    assert_eq!(
        (
            &replaced["name"],
            &replaced["limits"],
            &replaced["features"]
        ),
        (&json!("pro"), &json!({}), &json!({}))
    );
    assert!(replaced["version"].as_u64() > plan["version"].as_u64());
    assert_eq!(get(&service, "team").await.status, 404);
    assert_eq!(get(&service, "not%20an%20id").await.status, 400);
}

#[tokio::test]
async fn plans_are_listed_by_id_in_pages_and_the_default_plan_is_among_them() {
    let world = World::new().await;
    let service = world.instance().await;
    for id in ["team", "pro", "basic"] {
        put(&service, id, json!({})).await;
    }
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = service
            .http
            .get(&format!("/v1/plans?pageSize=3{cursor}"))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let page = answer.body["data"].as_array().unwrap().clone();
        ids.extend(page.into_iter().map(|plan| plan["id"].clone()));
        let Some(next) = answer.body["nextCursor"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(ids, ["basic", "free", "pro", "team"]);
}

#[tokio::test]
async fn each_part_of_a_limit_and_each_feature_comes_from_the_nearest_level_that_sets_it() {
    let world = World::new().await;
    let service = world.instance().await;
    let plan = json!({
        "limits": {"api": {"limit": 50, "enforcement": "soft"}, "tokens": {"limit": 7}},
        "features": {"sso": true, "seats": 5},
    });
    put(&service, "pro", plan).await;
    let settings = json!({"planId": "pro", "features": {"seats": 9}});
    service.settings("org_1", settings).await;
    let own = json!({"api": {"warnAt": [60]}, "storage": {"limit": 3}});
    service.limits("org_1", own).await;
    assert_eq!(
        limits(&service, "org_1").await,
        json!({
            "api": {"limit": 50, "enforcement": "soft", "warnAt": [60], "source": "organization"},
            "storage": {"limit": 3, "enforcement": "hard", "warnAt": [80, 100], "source": "organization"},
            "tokens": {"limit": 7, "enforcement": "hard", "warnAt": [80, 100], "source": "plan"},
        })
    );
    let sources = [
        ("sso", json!(true), "plan"),
        ("seats", json!(9), "organization"),
        ("beta", Value::Null, "default"),
    ];
    for (name, value, source) in sources {
        let found = feature(&service, name).await;
        assert_eq!(found, (value, json!(source)), "{name}");
    }
    let usage = service.http.get("/v1/organizations/org_1/usage").await;
    assert_eq!(usage.body["features"], json!({"sso": true, "seats": 9}));
    assert_eq!(usage.body["planId"], "pro");
}

/// The settings limit `api` to 1000 units, hard.
#[tokio::test]
async fn a_stored_plan_of_the_default_plans_id_lies_over_the_settings() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({"planId": "free"})).await;
    service.count("org_2", "api", 1).await;
    let plan = json!({"limits": {"api": {"enforcement": "soft"}}, "features": {"sso": true}});
    put(&service, "free", plan).await;
    for organization in ["org_1", "org_2", "never_seen"] {
        let answer = service.try_consume(organization, "api", 1001).await;
        assert_eq!(answer.status, 200, "{organization}");
        assert_eq!(answer.body["limit"], 1000, "{organization}");
    }
    assert_eq!(limits(&service, "org_2").await["api"]["source"], "plan");
    assert_eq!(feature(&service, "sso").await, (json!(true), json!("plan")));
    // New settings are effective where the plan sets nothing.
    for limit in world.config.defaults.limits.values_mut() {
        limit.limit = Count::try_from(2000).ok();
    }
    let updated = world.instance().await;
    assert_eq!(
        updated.try_consume("org_1", "api", 1).await.body["limit"],
        2000
    );
    put(&updated, "free", json!({})).await;
    assert_eq!(updated.try_consume("org_1", "api", 1000).await.status, 429);
}

#[tokio::test]
async fn an_edited_plan_is_effective_for_the_next_request_here_and_after_one_sweep_elsewhere() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    put(&here, "pro", api(10)).await;
    for organization in ["counted", "own", "idle"] {
        here.settings(organization, json!({"planId": "pro"})).await;
    }
    here.limits("own", json!({"api": {"limit": 20}})).await;
    for service in [&here, &there] {
        service.count("counted", "api", 5).await;
        service.count("own", "api", 5).await;
    }
    assert_eq!(there.try_consume("counted", "api", 1).await.status, 429);
    there.app.policies.sweep_once().await.unwrap();

    put(&here, "pro", api(11)).await;
    assert_eq!(
        here.try_consume("counted", "api", 1).await.body["current"],
        11
    );
    // The running counter has adopted the new limit, which also decides calls of the other instance.
    let refused = there.try_consume("counted", "api", 1).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["limit"]),
        (429, &json!(11))
    );
    assert_eq!(here.try_consume("own", "api", 10).await.body["limit"], 20);

    put(&here, "pro", api(5)).await;
    load_plans(&there).await;
    for organization in ["counted", "idle"] {
        let refused = there.try_consume(organization, "api", 6).await;
        assert_eq!(refused.status, 429);
        assert_eq!(refused.body["limit"], 5, "{organization}");
    }
    assert_eq!(there.current("counted", "api").await, 11);
    assert_eq!(there.meter("own", "api").await["limit"], 20);
}

#[tokio::test]
async fn an_edited_plan_is_announced_to_the_other_instances() {
    let world = World::new().await;
    let service = world.instance().await;
    let client = redis::Client::open(world.servers().redis_url).unwrap();
    let mut subscription = client.get_async_pubsub().await.unwrap();
    subscription.subscribe("tm:policies").await.unwrap();
    let plan = put(&service, "pro", api(10)).await;
    let message = subscription.on_message().next().await.unwrap();
    let payload: String = message.get_payload().unwrap();
    assert_eq!(payload, format!("plan:pro:{}", plan["version"]));
}

#[tokio::test]
async fn an_idle_organization_shows_its_current_plan() {
    let mut world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    put(&here, "pro", api(10)).await;
    here.settings("org_1", json!({"planId": "pro"})).await;
    here.count("org_1", "api", 5).await;
    there.meter("org_1", "api").await;
    here.flush().await;
    there.app.policies.sweep_once().await.unwrap();
    let plan = json!({"limits": {"api": {"limit": 4}}, "features": {"sso": true}});
    put(&here, "pro", plan).await;
    load_plans(&there).await;
    for service in [&here, &there] {
        let meter = service.meter("org_1", "api").await;
        let found = (&meter["current"], &meter["limit"], &meter["overage"]);
        assert_eq!(found, (&json!(5), &json!(4), &json!(1)));
        assert_eq!(limits(service, "org_1").await["api"]["limit"], 4);
        assert_eq!(feature(service, "sso").await.0, true);
    }
    let listed = here.http.get("/v1/organizations?planId=pro").await;
    assert_eq!(listed.body["data"][0]["organizationId"], "org_1");
    world.kill_redis().await;
    assert_eq!(here.meter("org_1", "api").await["limit"], 4);
    assert_eq!(limits(&here, "org_1").await["api"]["limit"], 4);
}

#[tokio::test]
async fn lists_warn_at_the_plans_threshold_unless_the_organization_has_its_own() {
    let world = World::new().await;
    let service = world.instance().await;
    let plan = json!({"limits": {"api": {"limit": 100, "warnAt": [50]}}});
    put(&service, "pro", plan).await;
    for organization in ["org_1", "org_2", "org_3"] {
        let settings = json!({"planId": "pro"});
        service.settings(organization, settings).await;
    }
    service
        .limits("org_2", json!({"api": {"warnAt": [90]}}))
        .await;
    service.limits("org_3", json!({"api": {"limit": 60}})).await;
    for organization in ["org_1", "org_2", "org_3", "org_4"] {
        service.count(organization, "api", 50).await;
    }
    service.flush().await;
    let listed = service.http.get("/v1/organizations").await;
    let states = listed.body["data"].as_array().unwrap().clone();
    let states: Vec<&str> = states
        .iter()
        .map(|it| it["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["warning", "ok", "warning", "ok"]);
}

#[tokio::test]
async fn editing_a_plan_of_a_hundred_thousand_organizations_writes_to_none_of_them() {
    let world = World::new().await;
    let service = world.instance().await;
    put(&service, "pro", api(10)).await;
    let postgres = world.postgres().await;
    let insert = "with created as (
             insert into organizations (id, plan_id, version)
             select 'org_' || n, 'pro', nextval('policy_version') from generate_series(1, 100000) as n
             returning id, plan_id
         )
         insert into standings (organization_id, plan_id) select id, plan_id from created";
    sqlx::query(insert).execute(&postgres).await.unwrap();
    service.count("org_77", "api", 9).await;
    let rows =
        "select md5(string_agg(it::text || it.xmin, ',' order by id)) from organizations as it";
    let before = world.select(rows).await;
    put(&service, "pro", api(9)).await;
    assert_eq!(world.select(rows).await, before);
    assert_eq!(
        service.try_consume("org_77", "api", 1).await.body["limit"],
        9
    );
    assert_eq!(
        service.try_consume("org_99999", "api", 10).await.status,
        429
    );
    let refused = delete(&service, "pro").await;
    assert_eq!((refused.status.as_u16(), refused.code()), (409, "conflict"));
    assert_eq!(
        refused.body["detail"],
        "100000 organizations are on this plan"
    );
}

#[tokio::test]
async fn a_plan_is_deleted_only_if_no_organization_is_on_it() {
    let world = World::new().await;
    let service = world.instance().await;
    put(&service, "pro", json!({})).await;
    service.settings("org_1", json!({"planId": "pro"})).await;
    let refused = delete(&service, "pro").await;
    assert_eq!((refused.status.as_u16(), refused.code()), (409, "conflict"));
    assert_eq!(refused.body["detail"], "1 organization is on this plan");
    service.settings("org_1", json!({})).await;
    assert_eq!(delete(&service, "pro").await.status, 204);
    assert_eq!(delete(&service, "pro").await.status, 404);
    assert_eq!(get(&service, "pro").await.status, 404);
    // Organizations without a plan are on the default plan.
    assert_eq!(delete(&service, "free").await.status, 409);
}

#[tokio::test]
async fn a_deleted_organization_is_on_no_plan_and_comes_back_on_the_default_one() {
    let world = World::new().await;
    let service = world.instance().await;
    put(&service, "pro", api(10)).await;
    service.settings("org_1", json!({"planId": "pro"})).await;
    let temporary = json!({"api": {"temporary": {"limit": 12, "until": "2031-03-16T00:00:00Z"}}});
    service.limits("org_1", temporary).await;
    service.count("org_1", "api", 5).await;
    let path = "/v1/organizations/org_1";
    let deleted = service.http.send(Method::DELETE, path, &[], None).await;
    assert!(deleted.status.is_success(), "{}", deleted.text);
    assert_eq!(delete(&service, "pro").await.status, 204);
    let answer = service.try_consume("org_1", "api", 1).await;
    assert_eq!(
        (&answer.body["current"], &answer.body["limit"]),
        (&json!(1), &json!(1000))
    );
}

#[tokio::test]
async fn an_organization_moves_to_existing_plans_only() {
    let world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    here.count("org_1", "api", 5).await;
    there.count("org_1", "api", 5).await;
    let path = "/v1/organizations/org_1";
    let refused = here
        .http
        .put(path, json!({"planId": "pro", "resetDay": 3}))
        .await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (400, "invalid_field")
    );
    assert_eq!(refused.body["errors"][0]["pointer"], "/planId");
    assert_eq!(here.http.get(path).await.body["resetDay"], Value::Null);
    // The count and the organization's own limits stay.
    put(
        &here,
        "pro",
        json!({"limits": {"api": {"limit": 10}, "tokens": {"limit": 3}}}),
    )
    .await;
    here.limits("org_1", json!({"tokens": {"limit": 4}})).await;
    let moved = here.settings("org_1", json!({"planId": "pro"})).await;
    assert_eq!(
        (&moved["planId"], &moved["limits"]["api"]["limit"]),
        (&json!("pro"), &json!(10))
    );
    let refused = there.try_consume("org_1", "api", 1).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["current"]),
        (429, &json!(10))
    );
    assert_eq!(there.meter("org_1", "tokens").await["limit"], 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_deletion_and_concurrent_moves_onto_the_plan_only_one_kind_succeeds() {
    let world = World::new().await;
    let service = world.instance().await;
    for round in 0..5 {
        let plan = format!("plan_{round}");
        put(&service, &plan, json!({})).await;
        let statuses = at_once(6, |task| {
            let (http, plan) = (service.http.clone(), plan.clone());
            async move {
                if task == 3 {
                    let path = format!("/v1/plans/{plan}");
                    return http.send(Method::DELETE, &path, &[], None).await.status;
                }
                let path = format!("/v1/organizations/org_{round}_{task}");
                http.put(&path, json!({"planId": plan})).await.status
            }
        })
        .await;
        let deleted = statuses[3] == 204;
        assert!(deleted || statuses[3] == 409, "{statuses:?}");
        for (task, status) in statuses.iter().enumerate().filter(|(task, _)| *task != 3) {
            assert!([200, 400].contains(&status.as_u16()), "{task} {status}");
            assert!(!(deleted && *status == 200), "{statuses:?}");
        }
        assert_eq!(get(&service, &plan).await.status == 404, deleted);
    }
}

#[tokio::test]
async fn a_plan_changed_meanwhile_is_not_overwritten() {
    let world = World::new().await;
    let service = world.instance().await;
    let send = |method: Method, name: &'static str, tag: String| {
        let http = service.http.clone();
        async move {
            let body = (method == Method::PUT).then(|| api(1));
            let headers = [(name, tag.as_str())];
            http.send(method, "/v1/plans/pro", &headers, body).await
        }
    };
    let missing = send(Method::PUT, "if-match", "*".to_owned()).await;
    assert_eq!(
        (missing.status.as_u16(), missing.code()),
        (412, "precondition_failed")
    );
    let made = send(Method::PUT, "if-none-match", "*".to_owned()).await;
    assert_eq!(made.status, 200);
    let tag = made.header("etag").to_owned();
    assert_eq!(tag, format!("\"{}\"", made.body["version"]));
    assert_eq!(get(&service, "pro").await.header("etag"), tag);
    assert_eq!(
        send(Method::PUT, "if-none-match", "*".to_owned())
            .await
            .status,
        412
    );
    put(&service, "pro", api(2)).await;
    for method in [Method::PUT, Method::DELETE] {
        assert_eq!(send(method, "if-match", tag.clone()).await.status, 412);
    }
    assert_eq!(get(&service, "pro").await.body["limits"]["api"]["limit"], 2);
    let tag = get(&service, "pro").await.header("etag").to_owned();
    assert_eq!(
        send(Method::GET, "if-none-match", tag.clone()).await.status,
        304
    );
    assert_eq!(send(Method::DELETE, "if-match", tag).await.status, 204);
}

#[tokio::test]
async fn an_invalid_plan_is_refused_by_name() {
    let world = World::new().await;
    let service = world.instance().await;
    let too_many: serde_json::Map<String, Value> = (0..33)
        .map(|number| (format!("m{number}"), json!({"limit": 1})))
        .collect();
    for (plan, pointer) in [
        (json!({"name": ""}), "/name"),
        (json!({"name": "a\u{0}b"}), "/name"),
        (json!({"nmae": "Pro"}), "/nmae"),
        (json!({"limits": {"API": {}}}), "/limits"),
        (
            json!({"limits": {"api": {"limit": -1}}}),
            "/limits/api/limit",
        ),
        (json!({"limits": {"api": [1, "hard", []]}}), "/limits/api"),
        (json!({"limits": {"api": null}}), "/limits/api"),
        (
            json!({"limits": {"api": {"enforcement": "firm"}}}),
            "/limits/api/enforcement",
        ),
        (
            json!({"limits": {"api": {"warnAt": [100, 80]}}}),
            "/limits/api/warnAt",
        ),
        (
            json!({"limits": {"api": {"warnAt": [0]}}}),
            "/limits/api/warnAt",
        ),
        (
            json!({"limits": {"api": {"temporary": {"limit": 1, "until": "2040-01-01T00:00:00Z"}}}}),
            "/limits/api/temporary",
        ),
        (json!({ "limits": too_many }), "/limits"),
        (json!({"features": {"sso": null}}), "/features/sso"),
        (json!({"features": {"support": "\u{0}"}}), "/features"),
    ] {
        let answer = service.http.put("/v1/plans/pro", plan.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{plan}"
        );
        let at = answer.body["errors"][0]["pointer"].as_str().unwrap();
        assert!(at.starts_with(pointer), "{plan} {at}");
    }
    assert_eq!(get(&service, "pro").await.status, 404);
}

#[tokio::test]
async fn a_read_key_without_an_organization_reads_plans_and_changes_none() {
    let world = World::new().await;
    let service = world.instance().await;
    put(&service, "pro", json!({"name": "Pro"})).await;
    let key = world.key_with(&["read"]).await;
    let bound = json!({"name": "bound", "scopes": ["read"], "organizationId": "org_1"});
    let bound = service.http.post("/v1/api-keys", bound).await.body["key"].clone();
    let ingest = world.key_with(&["ingest"]).await;
    for (key, status) in [
        (key.as_str(), 200),
        (bound.as_str().unwrap(), 403),
        (&ingest, 403),
    ] {
        let http = service.http.with_key(Some(key));
        assert_eq!(http.get("/v1/plans").await.status, status);
        assert_eq!(http.get("/v1/plans/pro").await.status, status);
        assert_eq!(http.put("/v1/plans/pro", json!({})).await.status, 403);
        assert_eq!(http.delete("/v1/plans/pro").await.status, 403);
    }
}

#[tokio::test]
async fn every_change_of_a_plan_is_audited_and_an_equal_plan_is_no_change() {
    let world = World::new().await;
    let service = world.instance().await;
    let settings =
        json!({"name": "Pro", "limits": {"api": {"limit": null}}, "features": {"seats": 5}});
    let made = put(&service, "pro", settings.clone()).await;
    assert_eq!(put(&service, "pro", settings).await, made);
    put(&service, "pro", json!({"name": "Pro"})).await;
    assert_eq!(delete(&service, "pro").await.status, 204);
    let rows = audit(&world).await;
    let actions: Vec<&Value> = rows.iter().map(|row| &row["action"]).collect();
    assert_eq!(actions, ["plan.put", "plan.put", "plan.delete"]);
    let (full, bare) = (
        json!({"id": "pro", "name": "Pro", "limits": {"api": {"limit": null}}, "features": {"seats": 5}, "meters": {}}),
        json!({"id": "pro", "name": "Pro", "limits": {}, "features": {}, "meters": {}}),
    );
    let states = [(&Value::Null, &full), (&full, &bare), (&bare, &Value::Null)];
    for (row, (before, after)) in rows.iter().zip(states) {
        assert_eq!((&row["before"], &row["after"]), (before, after));
        assert_eq!(row["actor"], format!("key:{}", &world.key[3..19]));
        assert!(row["request"].is_string());
    }
}

#[tokio::test]
async fn a_plan_edited_while_redis_is_down_is_effective_afterwards() {
    let mut world = World::new().await;
    let (here, there) = (world.instance().await, world.instance().await);
    put(&here, "pro", api(10)).await;
    here.settings("org_1", json!({"planId": "pro"})).await;
    there.count("org_1", "api", 5).await;
    let copy = world.copy_redis().await;
    world.kill_redis().await;
    put(&here, "pro", api(6)).await;
    // Redis restarts with the old policy and a counter under it.
    there.app.policies.sweep_once().await.unwrap_err();
    std::fs::write(world.redis.data().join("dump.rdb"), copy).unwrap();
    world.start_redis().await;
    let refused = there.try_consume("org_1", "api", 2).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["limit"]),
        (429, &json!(6))
    );
    assert_eq!(here.try_consume("org_1", "api", 1).await.body["current"], 6);
}

#[tokio::test]
async fn a_plan_survives_the_loss_of_redis() {
    let world = World::new().await;
    let service = world.instance().await;
    put(&service, "pro", api(3)).await;
    service.settings("org_1", json!({"planId": "pro"})).await;
    world.flush_redis().await;
    let service = world.instance().await;
    assert_eq!(service.try_consume("org_1", "api", 4).await.status, 429);
    assert_eq!(service.try_consume("org_1", "api", 3).await.status, 200);
}

#[tokio::test]
async fn without_postgres_the_cached_plan_still_grants_and_refuses() {
    let world = World::new().await;
    let (servers, socket) = world.cuttable_postgres();
    let (here, there) = (world.instance().await, world.instance_with(servers).await);
    put(&here, "pro", api(10)).await;
    here.settings("org_1", json!({"planId": "pro"})).await;
    there.count("org_1", "api", 5).await;
    there.app.policies.sweep_once().await.unwrap();
    put(&here, "pro", api(6)).await;
    load_plans(&there).await;
    socket.cut(&world.postgres().await).await;
    // The instance knows that the plan has a newer version, but cannot load it.
    assert_eq!(
        there.try_consume("org_1", "api", 5).await.body["current"],
        10
    );
    assert_eq!(there.try_consume("org_1", "api", 1).await.status, 429);
    socket.restore().await;
    world.clock.advance(chrono::Duration::seconds(1));
    assert_eq!(there.try_consume("org_1", "api", 1).await.body["limit"], 6);
}

#[tokio::test]
async fn an_instance_that_starts_later_knows_every_current_plan() {
    let world = World::new().await;
    let here = world.instance().await;
    put(&here, "pro", api(10)).await;
    here.settings("org_1", json!({"planId": "pro"})).await;
    here.count("org_1", "api", 5).await;
    here.app.policies.sweep_once().await.unwrap();
    put(&here, "pro", api(5)).await;
    let later = world.instance().await;
    assert_eq!(later.try_consume("org_1", "api", 1).await.status, 429);
}
