//! `?dryRun=true`: says exactly what the change then does, and changes nothing.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Instance, Receiver, World};

const RESET: &str = "/v1/organizations/org_1/reset";

/// Everything that a change of an organization or a plan writes.
async fn stored(world: &World) -> Vec<String> {
    world
        .select(
            "select 'audit ' || count(*) from audit_log
             union all select organizations::text from organizations
             union all select plans::text from plans
             union all select resets::text from resets
             union all select events::text from events
             union all select webhook_deliveries::text from webhook_deliveries
             union all select usage_history::text from usage_history
             order by 1",
        )
        .await
}

async fn register(service: &Instance, body: Value) {
    let answer = service.http.post("/v1/webhooks", body).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
}

#[tokio::test]
async fn a_dry_run_of_a_reset_says_what_the_reset_then_does() {
    let world = World::new().await;
    let service = world.instance().await;
    let receiver = Receiver::new().await;
    let url = &receiver.url;
    for body in [
        json!({"url": url}),
        json!({"url": url, "events": ["usage.reset"], "organizationId": "org_1"}),
        json!({"url": url, "events": ["usage.warning"]}),
        json!({"url": url, "organizationId": "org_2"}),
    ] {
        register(&service, body).await;
    }
    service.count("org_1", "api", 501).await;
    service.count("org_1", "tokens", 7).await;
    service.flush().await;
    service.count("org_1", "api", 1).await;
    let before = stored(&world).await;

    let path = format!("{RESET}?dryRun=true");
    let tried = service.http.post(&path, json!({})).await;
    assert_eq!(tried.status, 200, "{}", tried.text);
    assert_eq!(
        tried.body["dryRun"],
        json!({"organizations": 1, "webhookDeliveries": 4})
    );
    assert_eq!(tried.body["meters"]["api"]["previousCount"], 502);
    assert_eq!(stored(&world).await, before);
    assert_eq!(service.meter("org_1", "api").await["current"], 502);

    let done = service.http.post(RESET, json!({})).await;
    assert_eq!(done.status, 200, "{}", done.text);
    assert_eq!(done.body["meters"], tried.body["meters"]);
    assert_eq!(done.body["dryRun"], Value::Null);
    service.flush().await;
    let deliveries = "select event_id from webhook_deliveries";
    assert_eq!(world.select(deliveries).await.len(), 4);
}

#[tokio::test]
async fn a_dry_run_of_a_reset_takes_meters_and_is_refused_where_the_reset_would_be() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 3).await;
    service.count("org_1", "tokens", 4).await;
    let path = format!("{RESET}?dryRun=true");
    let tried = service
        .http
        .post(&path, json!({"meters": ["tokens"]}))
        .await;
    let meters = tried.body["meters"].as_object().unwrap();
    assert_eq!(meters.keys().collect::<Vec<_>>(), ["tokens"]);
    assert_eq!(meters["tokens"]["previousCount"], 4);

    let unknown = "/v1/organizations/org_2/reset?dryRun=true";
    assert_eq!(service.http.post(unknown, json!({})).await.status, 404);
    for query in ["?dryRun=yes", "?dryrun=true", "?dryRun=true&dryRun=true"] {
        let answer = service
            .http
            .post(&format!("{RESET}{query}"), json!({}))
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field")
        );
    }
    let real = service
        .http
        .post(&format!("{RESET}?dryRun=false"), json!({}))
        .await;
    assert_eq!(real.status, 200, "{}", real.text);
    assert_eq!(service.meter("org_1", "tokens").await["current"], 0);
}

#[tokio::test]
async fn a_dry_run_of_a_plan_counts_the_organizations_that_it_would_reach() {
    let world = World::new().await;
    let service = world.instance().await;
    let plan = json!({"limits": {"api": {"limit": 10}}});
    let put = service.http.put("/v1/plans/pro", plan.clone()).await;
    for organization in ["org_1", "org_2"] {
        let settings = json!({"planId": "pro"});
        service.settings(organization, settings).await;
    }
    for organization in ["org_3", "org_4", "org_5"] {
        service.count(organization, "api", 1).await;
    }
    service.flush().await;
    service.http.delete("/v1/organizations/org_5").await;
    let before = stored(&world).await;

    let raised = json!({"limits": {"api": {"limit": 20}}});
    for (id, body, organizations) in [
        ("pro", &raised, 2),
        ("pro", &plan, 0),
        ("free", &raised, 2),
        ("new", &raised, 0),
    ] {
        let path = format!("/v1/plans/{id}?dryRun=true");
        let tried = service.http.put(&path, body.clone()).await;
        assert_eq!(tried.status, 200, "{}", tried.text);
        assert_eq!(
            tried.body["dryRun"],
            json!({"organizations": organizations, "webhookDeliveries": 0})
        );
        assert_eq!(tried.body["limits"], body["limits"]);
        assert!(!tried.headers.contains_key("etag"));
    }
    assert_eq!(stored(&world).await, before);

    let path = "/v1/plans/pro?dryRun=true";
    let stale = [("if-match", "\"1\"")];
    let answer = service
        .http
        .send(Method::PUT, path, &stale, Some(raised.clone()))
        .await;
    assert_eq!(answer.status, 412);
    let tag = put.header("etag").to_owned();
    let current = [("if-match", tag.as_str())];
    let answer = service
        .http
        .send(Method::PUT, path, &current, Some(raised))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.body["version"], put.body["version"]);
}
