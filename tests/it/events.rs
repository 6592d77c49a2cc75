//! Events: recorded in the transaction of their cause, and listed newest first.

use chrono::Duration;
use serde_json::{Value, json};

use crate::support::{Instance, World};

async fn list(service: &Instance, query: &str) -> Value {
    let answer = service.http.get(&format!("/v1/events{query}")).await;
    assert_eq!(answer.status, 200, "{query}: {}", answer.text);
    answer.body
}

/// Organization and new limit of the meter `api` of each event on a page.
fn summaries(page: &Value) -> Vec<(String, u64)> {
    let events = page["data"].as_array().unwrap().iter();
    events
        .map(|event| {
            let data = &event["data"];
            let organization = data["organizationId"].as_str().unwrap().to_owned();
            let limit = data["limits"]["api"]["limit"].as_u64().unwrap();
            (organization, limit)
        })
        .collect()
}

#[tokio::test]
async fn a_change_of_the_effective_limits_is_one_event_and_any_other_change_is_none() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    service
        .settings("org_1", json!({"features": {"sso": true}}))
        .await;
    assert_eq!(
        list(&service, "").await,
        json!({"data": [], "nextCursor": null})
    );
    service.limits("org_1", json!({"api": {"limit": 10}})).await;
    service.limits("org_1", json!({"api": {"limit": 10}})).await;
    let page = list(&service, "").await;
    let event = &page["data"][0];
    assert!(event["id"].as_str().unwrap().starts_with("evt_"));
    let limit =
        json!({"limit": 10, "enforcement": "hard", "warnAt": [80, 100], "source": "organization"});
    let previous =
        json!({"limit": 1000, "enforcement": "hard", "warnAt": [80, 100], "source": "default"});
    assert_eq!(
        (
            &page["data"].as_array().unwrap().len(),
            &event["type"],
            &event["timestamp"],
            &event["data"]
        ),
        (
            &1,
            &json!("limits.updated"),
            &json!("2031-03-15T12:00:00Z"),
            &json!({"organizationId": "org_1", "limits": {"api": limit}, "previousLimits": {"api": previous}})
        )
    );
}

#[tokio::test]
async fn a_refused_change_is_no_event() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    let too_many: serde_json::Map<String, Value> = (0..33)
        .map(|number| (format!("m{number}"), json!({"limit": 1})))
        .collect();
    let answer = service
        .http
        .patch("/v1/organizations/org_1/limits", too_many.into())
        .await;
    assert_eq!(answer.status, 400);
    assert_eq!(list(&service, "").await["data"], json!([]));
}

#[tokio::test]
async fn pages_go_from_the_newest_event_to_the_oldest_and_are_filtered() {
    let world = World::new().await;
    let service = world.instance().await;
    let organization_of = |limit: u64| ["even", "odd"][usize::from(limit % 2 == 1)];
    for limit in 1..=5 {
        let organization = organization_of(limit);
        service
            .limits(organization, json!({"api": {"limit": limit}}))
            .await;
        world.clock.advance(Duration::seconds(1));
    }
    let event = |limit: u64| (organization_of(limit).to_owned(), limit);
    let mut page = list(&service, "?pageSize=2").await;
    let mut all = summaries(&page);
    while let Some(cursor) = page["nextCursor"].as_str() {
        page = list(&service, &format!("?pageSize=2&cursor={cursor}")).await;
        assert!(summaries(&page).len() <= 2);
        all.extend(summaries(&page));
    }
    assert_eq!(all, [5, 4, 3, 2, 1].map(event));

    let time = |seconds: u32| format!("2031-03-15T12:00:0{seconds}Z");
    for (query, limits) in [
        ("?organizationId=even".to_owned(), vec![4, 2]),
        (
            "?type=limits.updated&organizationId=odd".to_owned(),
            vec![5, 3, 1],
        ),
        ("?type=usage.warning".to_owned(), vec![]),
        (format!("?from={}&to={}", time(1), time(3)), vec![3, 2]),
        (format!("?to={}", time(0)), vec![]),
        ("?from=2040-01-01T00:00:00Z".to_owned(), vec![]),
    ] {
        let events = summaries(&list(&service, &query).await);
        assert_eq!(
            events,
            limits.into_iter().map(event).collect::<Vec<_>>(),
            "{query}"
        );
    }
    for query in [
        "?type=usage",
        "?cursor=evt_1",
        "?from=yesterday",
        "?organization=even",
    ] {
        let answer = service.http.get(&format!("/v1/events{query}")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{query}"
        );
    }
}

#[tokio::test]
async fn a_key_that_is_bound_to_one_organization_reads_its_events_alone() {
    let world = World::new().await;
    let service = world.instance().await;
    for organization in ["org_1", "org_2"] {
        service
            .limits(organization, json!({"api": {"limit": 1}}))
            .await;
    }
    let request = json!({"name": "bound", "scopes": ["read"], "organizationId": "org_1"});
    let key = service.http.post("/v1/api-keys", request).await;
    let bound = service.http.with_key(key.body["key"].as_str());
    let own = bound.get("/v1/events?organizationId=org_1").await;
    assert_eq!(summaries(&own.body), [("org_1".to_owned(), 1)]);
    for query in ["", "?organizationId=org_2", "?type=limits.updated"] {
        assert_eq!(
            bound.get(&format!("/v1/events{query}")).await.status,
            403,
            "{query}"
        );
    }
}
