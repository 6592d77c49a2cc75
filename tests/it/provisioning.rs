//! Creating organizations with their limits in one step, and the scope that auth servers have for it.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};
use tallyman::domain::limit::{Limit, LimitOverride};
use tallyman::domain::organization::Organization;
use tallyman::domain::quantity::Count;
use tallyman::postgres::{Actor, Postgres, organizations};

use crate::support::{Answer, Http, World, at_once};

const PATH: &str = "/v1/organizations/org_1";
const ABSENT: (&str, &str) = ("if-none-match", "*");

async fn create(http: &Http, organization: &str, settings: Value) -> Answer {
    let path = format!("/v1/organizations/{organization}");
    http.send(Method::PUT, &path, &[ABSENT], Some(settings))
        .await
}

/// The limit and the source of each meter in a response.
fn limits(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let limits = answer.body["limits"].as_object().unwrap().iter();
    limits
        .map(|(meter, it)| (meter.clone(), json!([it["limit"], it["source"]])))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[tokio::test]
async fn a_put_replaces_the_limits_that_it_names_and_otherwise_keeps_them() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = &service.http;
    let body = json!({"resetDay": 3, "limits": {"api": {"limit": 20}, "tokens": {"limit": 5}, "mail": {}}});
    let put = http.put(PATH, body).await;
    let both = json!({"api": [20, "organization"], "tokens": [5, "organization"]});
    assert_eq!(limits(&put), both);
    assert_eq!(service.try_consume("org_1", "api", 21).await.status, 429);

    let put = http.put(PATH, json!({"resetDay": 4})).await;
    assert_eq!((&put.body["resetDay"], limits(&put)), (&json!(4), both));

    let until = "2031-03-20T00:00:00Z";
    let temporary = json!({"mail": {"temporary": {"limit": 7, "until": until}}});
    service.limits("org_1", temporary).await;
    let put = http
        .put(PATH, json!({"limits": {"api": {"enforcement": "soft"}}}))
        .await;
    let inherited = json!({"api": [1000, "organization"], "mail": [7, "temporary"]});
    assert_eq!(limits(&put), inherited);
    assert_eq!(put.body["limits"]["api"]["enforcement"], "soft");

    let put = http.put(PATH, json!({"limits": {}})).await;
    let removed = json!({"api": [1000, "default"], "mail": [7, "temporary"]});
    assert_eq!(limits(&put), removed);
    assert_eq!(service.count("org_1", "tokens", 100).await, 100);
}

#[tokio::test]
async fn limits_of_a_put_are_audited_and_notified_as_those_of_a_patch() {
    let world = World::new().await;
    let service = world.instance().await;
    let put = create(
        &service.http,
        "org_1",
        json!({"limits": {"api": {"limit": 20}}}),
    )
    .await;
    assert_eq!(put.status, 200, "{}", put.text);
    let audit = service.http.get("/v1/audit?organizationId=org_1").await;
    let entries = audit.body["data"].as_array().unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (&entries[0]["action"], &entries[0]["after"]["limits"]),
        (&json!("organization.put"), &json!({"api": {"limit": 20}}))
    );
    assert_eq!(entries[0]["after"]["settings"].get("limits"), None);
    let events = service.http.get("/v1/events?organizationId=org_1").await;
    let events = events.body["data"].as_array().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(
        (
            &events[0]["type"],
            &events[0]["data"]["limits"]["api"]["limit"]
        ),
        (&json!("limits.updated"), &json!(20))
    );
}

#[tokio::test]
async fn invalid_limits_of_a_put_are_refused_by_name_and_change_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    let many: BTreeMap<String, Value> = (0..33)
        .map(|number| (format!("m{number}"), json!({"limit": 1})))
        .collect();
    for (limits, pointer) in [
        (json!(null), "/limits"),
        (json!([]), "/limits"),
        (json!({"API": {}}), "/limits/API"),
        (json!({"api": 20}), "/limits/api"),
        (json!({"api": null}), "/limits/api"),
        (json!({"api": {"limit": -1}}), "/limits/api/limit"),
        (
            json!({"api": {"enforcement": "none"}}),
            "/limits/api/enforcement",
        ),
        (json!({"api": {"warnAt": [100, 80]}}), "/limits/api/warnAt"),
        (
            json!({"api": {"temporary": {"limit": 1, "until": "2031-03-20T00:00:00Z"}}}),
            "/limits/api/temporary",
        ),
        (json!(many), "/limits"),
    ] {
        let body = json!({"resetDay": 3, "limits": limits});
        let answer = service.http.put(PATH, body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{pointer}: {}",
            answer.text
        );
        assert_eq!(
            answer.body["errors"][0]["pointer"], pointer,
            "{}",
            answer.text
        );
    }
    assert_eq!(service.http.get(PATH).await.status, 404);
}

/// Two processes create an organization and count at once, on two instances: one creates it, and both are limited.
#[tokio::test]
async fn concurrent_creations_never_grant_more_than_the_limit() {
    let world = World::new().await;
    let instances = [world.instance().await, world.instance().await];
    for round in 0..5 {
        let organization = format!("org_{round}");
        let results = at_once(2, |process| {
            let (http, organization) = (instances[process].http.clone(), organization.clone());
            async move {
                let limits = json!({"limits": {"api": {"limit": 20}}});
                let created = create(&http, &organization, limits).await.status.as_u16();
                let consumed = at_once(25, |_| {
                    let (http, organization) = (http.clone(), organization.clone());
                    async move {
                        let body = json!({"organizationId": organization});
                        http.post("/v1/consume", body).await.status.as_u16()
                    }
                });
                (created, consumed.await)
            }
        });
        let (mut created, consumed): (Vec<_>, Vec<_>) = results.await.into_iter().unzip();
        created.sort_unstable();
        assert_eq!(created, [200, 412], "round {round}");
        let consumed: Vec<u16> = consumed.into_iter().flatten().collect();
        let granted = consumed.iter().filter(|status| **status == 200).count();
        let denied = consumed.iter().filter(|status| **status == 429).count();
        assert_eq!((granted, denied), (20, 30), "round {round}");
    }
}

/// Another process has committed the creation and not written it to Redis yet.
#[tokio::test]
async fn once_a_creation_is_refused_the_limits_of_the_other_one_are_effective() {
    let world = World::new().await;
    let service = world.instance().await;
    // From now on the default policy is cached.
    let check = json!({"organizationId": "org_1"});
    assert_eq!(service.http.post("/v1/check", check).await.status, 200);
    let store = Postgres::new(&world.database_url, 1).unwrap();
    let limit = LimitOverride {
        limit: Some(Limit(Some(Count::try_from(20).unwrap()))),
        ..LimitOverride::default()
    };
    let created = Organization {
        limits: BTreeMap::from([("api".parse().unwrap(), limit)]),
        ..Organization::default()
    };
    let actor = Actor {
        name: "tests".to_owned(),
        request_id: String::new(),
    };
    organizations::change(
        &store,
        &"org_1".parse().unwrap(),
        &actor,
        "organization.put",
        world.clock.now(),
        |_| Ok::<_, ()>(created),
    )
    .await
    .unwrap()
    .unwrap();
    let refused = create(&service.http, "org_1", json!({})).await;
    assert_eq!(refused.code(), "precondition_failed");
    assert_eq!(service.try_consume("org_1", "api", 21).await.status, 429);
    assert_eq!(service.try_consume("org_1", "api", 20).await.status, 200);
}

#[tokio::test]
async fn a_provisioning_key_creates_organizations_counts_and_reads() {
    let world = World::new().await;
    let service = world.instance().await;
    let key = world.key_with(&["provision"]).await;
    let http = service.http.with_key(Some(&key));
    let settings = json!({"resetPeriod": "daily", "limits": {"api": {"limit": 2}}});
    assert_eq!(create(&http, "org_1", settings.clone()).await.status, 200);
    assert_eq!(create(&http, "org_1", settings).await.status, 412);
    let organization = http.get(PATH).await;
    assert_eq!(organization.body["resetPeriod"], "daily");
    let body = || json!({"organizationId": "org_1"});
    for (path, status) in [
        ("/v1/check", 200),
        ("/v1/consume", 200),
        ("/v1/track", 200),
        ("/v1/consume", 429),
    ] {
        assert_eq!(http.post(path, body()).await.status, status, "{path}");
    }
    let batch = json!({"items": [{"op": "track", "organizationId": "org_1"}]});
    assert_eq!(http.post("/v1/batch", batch).await.status, 200);
    for path in ["usage", "history", "limits", "features/sso"] {
        let answer = http.get(&format!("{PATH}/{path}")).await;
        assert_eq!(answer.status, 200, "{path}");
    }
    for path in [
        "/v1/events",
        "/api/auth/usage-tracking/get-usage?organizationId=org_1",
    ] {
        assert_eq!(http.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_provisioning_key_changes_nothing_that_exists() {
    let world = World::new().await;
    let service = world.instance().await;
    let before = service.settings("org_1", json!({"resetDay": 3})).await;
    let key = world.key_with(&["provision"]).await;
    let http = service.http.with_key(Some(&key));
    let settings = || Some(json!({"resetDay": 9, "limits": {"api": {"limit": null}}}));
    let tag = format!("\"{}\"", before["version"]);
    for condition in [
        None,
        Some(("if-match", "*")),
        Some(("if-match", tag.as_str())),
        Some(("if-none-match", "\"1\"")),
        Some(("if-none-match", "what")),
    ] {
        let headers: Vec<_> = condition.into_iter().collect();
        let answer = http.send(Method::PUT, PATH, &headers, settings()).await;
        assert_eq!(answer.code(), "forbidden", "{condition:?}");
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(
            detail.contains("provision and `If-None-Match: *`"),
            "{detail}"
        );
    }
    let key = json!({"name": "another", "scopes": ["read"]});
    let webhook = json!({"url": "https://example.com/"});
    let plugin = json!({"organizationId": "org_1", "apiLimit": 5});
    for (method, path, body) in [
        (Method::PATCH, PATH.to_owned(), json!({"resetDay": 9})),
        (
            Method::PATCH,
            format!("{PATH}/limits"),
            json!({"api": null}),
        ),
        (Method::POST, format!("{PATH}/reset"), json!({})),
        (
            Method::POST,
            format!("{PATH}/adjust"),
            json!({"amount": 1, "reason": "a"}),
        ),
        (
            Method::POST,
            "/v1/refund".to_owned(),
            json!({"organizationId": "org_1"}),
        ),
        (Method::POST, "/v1/reset-expired".to_owned(), json!({})),
        (Method::PUT, "/v1/plans/pro".to_owned(), json!({})),
        (Method::POST, "/v1/api-keys".to_owned(), key),
        (Method::POST, "/v1/webhooks".to_owned(), webhook),
        (
            Method::POST,
            "/api/auth/usage-tracking/update-limits".to_owned(),
            plugin,
        ),
        (
            Method::POST,
            "/api/auth/usage-tracking/reset".to_owned(),
            json!({"organizationId": "org_1", "resetApi": true}),
        ),
    ] {
        let answer = http.send(method, &path, &[], Some(body)).await;
        assert_eq!(answer.status, 403, "{path}: {}", answer.text);
    }
    for path in [PATH, "/v1/plans/free", "/v1/api-keys/0123456789abcdef"] {
        assert_eq!(http.delete(path).await.status, 403, "{path}");
    }
    for path in ["/v1/api-keys", "/v1/webhooks", "/v1/audit", "/v1/verify"] {
        assert_eq!(http.get(path).await.status, 403, "{path}");
    }
    assert_eq!(service.http.get(PATH).await.body, before);
}
