//! Effective limits and features of an organization, with their sources.

use serde_json::{Value, json};

use crate::support::{Instance, World};

async fn put(service: &Instance, settings: Value) {
    let answer = service.http.put("/v1/organizations/org_1", settings).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

async fn limits(service: &Instance) -> Value {
    let answer = service.http.get("/v1/organizations/org_1/limits").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body["limits"].clone()
}

async fn feature(service: &Instance, name: &str) -> Value {
    let path = format!("/v1/organizations/org_1/features/{name}");
    let answer = service.http.get(&path).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body
}

#[tokio::test]
async fn limits_show_whether_they_are_the_organizations_own_or_inherited() {
    let world = World::new().await;
    let service = world.instance().await;
    put(&service, json!({})).await;
    let default =
        json!({"limit": 1000, "enforcement": "hard", "warnAt": [80, 100], "source": "default"});
    assert_eq!(limits(&service).await, json!({"api": default}));

    let changes = json!({"api": {"enforcement": "soft"}, "tokens": {"limit": null, "warnAt": []}});
    let path = "/v1/organizations/org_1/limits";
    let patched = service.http.patch(path, changes).await;
    let own = json!({
        "api": {"limit": 1000, "enforcement": "soft", "warnAt": [80, 100], "source": "organization"},
        "tokens": {"limit": null, "enforcement": "hard", "warnAt": [], "source": "organization"},
    });
    assert_eq!(limits(&service).await, own);
    assert_eq!(patched.body["limits"], own);

    let removed = json!({"api": null, "tokens": null});
    assert_eq!(service.http.patch(path, removed).await.status, 200);
    assert_eq!(limits(&service).await, json!({"api": default}));
}

#[tokio::test]
async fn another_instance_shows_a_change_at_once_without_an_announcement() {
    let world = World::new().await;
    let (one, other) = (world.instance().await, world.instance().await);
    put(&one, json!({"features": {"sso": true}})).await;
    let body = json!({"organizationId": "org_1"});
    assert_eq!(other.http.post("/v1/track", body).await.status, 200);
    assert_eq!(limits(&other).await["api"]["limit"], 1000);
    assert_eq!(feature(&other, "sso").await["enabled"], true);

    let changes = json!({"api": {"limit": 5}});
    let path = "/v1/organizations/org_1/limits";
    assert_eq!(one.http.patch(path, changes).await.status, 200);
    put(&one, json!({"features": {"sso": false}})).await;
    assert_eq!(limits(&other).await["api"]["limit"], 5);
    assert_eq!(feature(&other, "sso").await["enabled"], false);
}

#[tokio::test]
async fn a_feature_is_returned_with_its_value_and_is_off_by_default() {
    let world = World::new().await;
    let service = world.instance().await;
    let features = json!({"sso": true, "beta": false, "seats": 5, "projects": 0, "support": "email", "region": ""});
    put(&service, json!({ "features": features })).await;
    for (name, enabled, value) in [
        ("sso", true, json!(true)),
        ("beta", false, json!(false)),
        ("seats", true, json!(5)),
        ("projects", false, json!(0)),
        ("support", true, json!("email")),
        ("region", false, json!("")),
    ] {
        let expected =
            json!({"feature": name, "enabled": enabled, "value": value, "source": "organization"});
        assert_eq!(feature(&service, name).await, expected);
    }
    let unknown = json!({"feature": "a b", "enabled": false, "value": null, "source": "default"});
    assert_eq!(feature(&service, "a%20b").await, unknown);
}

#[tokio::test]
async fn an_organization_that_was_only_counted_has_the_defaults_before_any_flush() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"organizationId": "org_1"});
    assert_eq!(service.http.post("/v1/track", body).await.status, 200);
    assert_eq!(limits(&service).await["api"]["source"], "default");
    assert_eq!(feature(&service, "sso").await["enabled"], false);
}

#[tokio::test]
async fn an_unknown_organization_has_neither_limits_nor_features() {
    let world = World::new().await;
    let service = world.instance().await;
    for path in ["limits", "features/sso"] {
        let answer = service
            .http
            .get(&format!("/v1/organizations/org_1/{path}"))
            .await;
        assert_eq!((answer.status.as_u16(), answer.code()), (404, "not_found"));
    }
}

#[tokio::test]
async fn limits_and_features_are_readable_while_redis_is_down() {
    let mut world = World::new().await;
    let service = world.instance().await;
    put(&service, json!({"features": {"sso": true}})).await;
    world.kill_redis().await;
    assert_eq!(limits(&service).await["api"]["limit"], 1000);
    assert_eq!(feature(&service, "sso").await["enabled"], true);
}
