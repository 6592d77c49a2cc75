//! How meters are shown: labels and units of a plan and of an organization.

use serde_json::{Value, json};

use crate::support::World;

#[tokio::test]
async fn a_meter_is_shown_as_its_organization_says_or_else_its_plan() {
    let world = World::new().await;
    let (one, two) = (world.instance().await, world.instance().await);
    let plan =
        json!({"meters": {"api": {"label": "API", "unit": "calls"}, "tokens": {"unit": "tokens"}}});
    let put = one.http.put("/v1/plans/pro", plan.clone()).await;
    assert_eq!(put.body["meters"], plan["meters"], "{}", put.text);
    let read = one.http.get("/v1/plans/pro").await.body;
    assert_eq!(read["meters"], plan["meters"]);

    let own = json!({"api": {"label": "Robots’ calls"}, "exports": {"unit": "files"}});
    let settings = json!({"planId": "pro", "meters": own});
    let effective = json!({
        "api": {"label": "Robots’ calls", "unit": "calls"}, "exports": {"unit": "files"}, "tokens": {"unit": "tokens"}
    });
    let organization = one.settings("org_1", settings).await;
    assert_eq!(organization["meters"], effective);
    for meter in ["api", "tokens", "other"] {
        two.count("org_1", meter, 1).await;
    }
    let limits = two.http.get("/v1/organizations/org_1/limits").await.body;
    assert_eq!(limits["meters"], effective);
    for (meter, label, unit) in [
        ("api", json!("Robots’ calls"), json!("calls")),
        ("tokens", Value::Null, json!("tokens")),
        ("other", Value::Null, Value::Null),
    ] {
        let usage = two.meter("org_1", meter).await;
        assert_eq!(
            (&usage["label"], &usage["unit"]),
            (&label, &unit),
            "{meter}"
        );
    }
}

#[tokio::test]
async fn a_patch_merges_by_meter_and_a_deletion_forgets() {
    let world = World::new().await;
    let service = world.instance().await;
    let own = json!({"api": {"label": "Calls"}, "tokens": {"unit": "tokens"}});
    service.settings("org_1", json!({"meters": own})).await;
    let path = "/v1/organizations/org_1";
    for (patch, meters) in [
        (json!({}), own.clone()),
        (
            json!({"meters": {"api": {"unit": "calls"}, "tokens": null}}),
            json!({"api": {"unit": "calls"}}),
        ),
        (json!({"meters": null}), json!({})),
    ] {
        let patched = service.http.patch(path, patch.clone()).await;
        assert_eq!(patched.body["meters"], meters, "{patch}");
    }
    service.settings("org_1", json!({"meters": own})).await;
    service.http.delete(path).await;
    let again = service.settings("org_1", json!({})).await;
    assert_eq!(again["meters"], json!({}));
}

#[tokio::test]
async fn labels_and_units_are_checked_and_a_refusal_names_the_field() {
    let world = World::new().await;
    let service = world.instance().await;
    let too_many: serde_json::Map<String, Value> = (0..33)
        .map(|meter| (format!("m{meter}"), json!({"unit": "calls"})))
        .collect();
    for (meters, pointer) in [
        (json!({"api": {"label": ""}}), "/meters/api/label"),
        (
            json!({"api": {"label": "x".repeat(101)}}),
            "/meters/api/label",
        ),
        (json!({"api": {"unit": "u".repeat(31)}}), "/meters/api/unit"),
        (json!({"api": {"unit": "a\nb"}}), "/meters/api/unit"),
        (json!({"api": {"unit": null}}), "/meters/api/unit"),
        (json!({"no meter": {}}), "/meters"),
        (json!({"api": {"name": "Calls"}}), "/meters/api/name"),
        (Value::Object(too_many), "/meters"),
    ] {
        for path in ["/v1/plans/pro", "/v1/organizations/org_1"] {
            let refused = service.http.put(path, json!({"meters": meters})).await;
            assert_eq!(refused.status, 400, "{path}: {}", refused.text);
            let named = refused.body["errors"][0]["pointer"]
                .as_str()
                .unwrap_or_default();
            assert!(named.starts_with(pointer), "{}", refused.text);
        }
    }
}
