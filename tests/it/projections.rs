//! What is expected of meters: in the usage of an organization, and in the list of those that run out first.

use chrono::Duration;
use serde_json::{Value, json};

use crate::support::{Instance, World, instant};

/// The units of the eight days from the 15th on, at noon.
const USUAL: u64 = 100;

/// Counts the usual units of some organizations at noon of the 15th to the 22nd; ends at noon of the 23rd.
async fn count_eight_days(world: &World, service: &Instance, organizations: &[&str]) {
    for _ in 0..8 {
        for organization in organizations {
            service.count(organization, "api", USUAL).await;
        }
        service.flush().await;
        world.clock.advance(Duration::days(1));
    }
}

async fn projected(service: &Instance, organization: &str) -> Value {
    let path = format!("/v1/organizations/{organization}/usage?projected=true");
    let answer = service.http.get(&path).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body["meters"]["api"]["projected"].clone()
}

/// The organizations that run out, in order, read in pages of one.
async fn exhausted(service: &Instance, query: &str) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    for _ in 0..10 {
        let path = format!("/v1/organizations?{query}&pageSize=1{cursor}");
        let page = service.http.get(&path).await;
        assert_eq!(page.status, 200, "{}", page.text);
        for entry in page.body["data"].as_array().unwrap() {
            ids.push(entry["organizationId"].as_str().unwrap().to_owned());
        }
        match page.body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
    panic!("more pages than organizations: {ids:?}")
}

async fn first(service: &Instance) -> Value {
    let page = service.http.get("/v1/organizations?sort=exhausted").await;
    page.body["data"][0]["exhausted"].clone()
}

#[tokio::test]
async fn usage_says_what_the_period_will_end_with_and_when_a_meter_is_full() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .limits("org_1", json!({"api": {"limit": 1300}}))
        .await;
    count_eight_days(&world, &service, &["org_1"]).await;
    service.count("org_1", "api", 400).await;
    service.flush().await;
    // 400 units in 23 hours, and 1000 in 167; 204 hours are left.
    let expected = json!({
        "used": 1200 + 417 + 1077, "fullAt": "2031-03-23T17:45:00Z", "lastDay": 400, "usualDay": 100, "timesUsual": 4.0
    });
    assert_eq!(projected(&service, "org_1").await, expected);
    let plain = service.meter("org_1", "api").await;
    assert!(plain.get("projected").is_none(), "{plain}");

    // A correction is not use.
    let path = "/v1/organizations/org_1/adjust";
    let correction = json!({"amount": -50, "reason": "a test"});
    let answer = service.http.post_once(path, "k", correction).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    service.flush().await;
    assert_eq!(projected(&service, "org_1").await["lastDay"], 400);
}

#[tokio::test]
async fn after_a_temporary_limit_the_one_below_it_is_reached() {
    let world = World::new().await;
    let service = world.instance().await;
    let until = "2031-03-25T00:00:00Z";
    let limit = json!({"limit": 1300, "temporary": {"limit": 5000, "until": until}});
    service.limits("org_1", json!({"api": limit})).await;
    count_eight_days(&world, &service, &["org_1"]).await;
    service.count("org_1", "api", 400).await;
    service.flush().await;
    assert_eq!(projected(&service, "org_1").await["fullAt"], until);
    let higher = json!({"api": {"temporary": {"limit": null, "until": "2031-04-01T00:00:00Z"}}});
    service.limits("org_1", higher).await;
    assert_eq!(projected(&service, "org_1").await["fullAt"], Value::Null);
}

#[tokio::test]
async fn a_short_history_has_no_projection() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 10).await;
    service.flush().await;
    world.clock.advance(Duration::hours(5));
    assert_eq!(projected(&service, "org_1").await, Value::Null);
    world.clock.advance(Duration::hours(1));
    let projected = projected(&service, "org_1").await;
    assert_eq!(
        (
            &projected["lastDay"],
            &projected["usualDay"],
            &projected["timesUsual"]
        ),
        (&json!(10), &Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn organizations_that_run_out_are_listed_first_to_last_with_the_reason() {
    let world = World::new().await;
    let service = world.instance().await;
    for (organization, limit) in [
        ("fast", 1300),
        ("slow", 1000),
        ("calm", 9000),
        ("full", 500),
    ] {
        let limit = json!({"api": {"limit": limit}});
        service.limits(organization, limit).await;
    }
    service.count("other", "tokens", 5).await;
    count_eight_days(&world, &service, &["fast", "slow", "calm", "full"]).await;
    for (organization, amount) in [("fast", 400), ("slow", 100), ("calm", 100), ("full", 100)] {
        service.count(organization, "api", amount).await;
    }
    service.flush().await;
    for (query, found) in [
        ("sort=exhausted", vec!["fast", "slow"]),
        ("sort=-exhausted", vec!["slow", "fast"]),
        ("sort=exhausted&search=low", vec!["slow"]),
        ("sort=exhausted&state=warning", vec!["fast", "slow"]),
        ("sort=exhausted&state=ok", vec![]),
        ("sort=exhausted&minPercentage=91", vec!["fast"]),
    ] {
        assert_eq!(exhausted(&service, query).await, found, "{query}");
    }
    assert_eq!(
        first(&service).await,
        json!({"meter": "api", "fullAt": "2031-03-23T17:45:00Z", "lastDay": 400, "usualDay": 100, "timesUsual": 4.0})
    );

    service
        .limits("fast", json!({"api": {"limit": 9000}}))
        .await;
    service.flush().await;
    assert_eq!(exhausted(&service, "sort=exhausted").await, ["slow"]);
    assert_eq!(first(&service).await["fullAt"], "2031-03-24T11:00:00Z");

    // It was not used after all, and is expected to be full later.
    world.clock.advance(Duration::days(1));
    assert!(exhausted(&service, "sort=exhausted").await.is_empty());
    service.app.flusher.summaries.review_once().await.unwrap();
    service.flush().await;
    let full_at = first(&service).await["fullAt"].clone();
    assert!(instant(full_at.as_str().unwrap()) > world.clock.now());

    world.move_to("2031-04-01T00:00:00Z");
    assert!(exhausted(&service, "sort=exhausted").await.is_empty());
    service.app.flusher.summaries.age_once().await.unwrap();
    assert!(exhausted(&service, "sort=exhausted").await.is_empty());
}

#[tokio::test]
async fn while_postgres_is_away_usage_is_told_without_projections() {
    let world = World::new().await;
    let (servers, socket) = world.cuttable_postgres();
    let service = world.instance_with(servers).await;
    service.count("org_1", "api", 10).await;
    service.flush().await;
    world.clock.advance(Duration::hours(6));
    assert_ne!(projected(&service, "org_1").await, Value::Null);
    socket.cut(&world.postgres().await).await;
    assert_eq!(projected(&service, "org_1").await, Value::Null);
    socket.restore().await;
    assert_ne!(projected(&service, "org_1").await, Value::Null);
}
