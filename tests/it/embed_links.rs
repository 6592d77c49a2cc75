//! Embed links: a card with the usage of one organization, for who has the link, until it expires.

use reqwest::header::SET_COOKIE;
use serde_json::{Value, json};
use tallyman::config::Origins;

use crate::support::{Instance, World};

const LINKS: &str = "/v1/organizations/org_1/embed-links";

async fn world(origins: &str) -> World {
    let origins: Origins = origins.parse().unwrap();
    World::with(|config| config.embed_origins = origins).await
}

/// A service where `org_1` has used meters.
async fn used(world: &World) -> Instance {
    let service = world.instance().await;
    for (organization, meter, amount) in [
        ("org_1", "api", 1234),
        ("org_1", "exports", 5),
        ("org_2", "api", 77),
    ] {
        let call = json!({"organizationId": organization, "meter": meter, "amount": amount});
        let answer = service.http.post("/v1/track", call).await;
        assert!(answer.status.is_success(), "{}", answer.text);
    }
    service
}

async fn link(service: &Instance, body: Value) -> String {
    let created = service.http.post(LINKS, body).await;
    assert_eq!(created.status, 200, "{}", created.text);
    created.body["url"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_link_shows_the_named_meters_and_nothing_else_without_a_key() {
    let world = world("https://app.example.com, http://localhost:3000").await;
    let service = used(&world).await;
    let body = json!({"meters": ["api"], "theme": "dark"});
    let url = link(&service, body).await;
    let card = service.http.with_key(None).open(&url).await;
    assert_eq!(card.status(), 200);
    let policy = card.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.ends_with("frame-ancestors https://app.example.com http://localhost:3000"));
    assert_eq!(card.headers()["cache-control"], "no-store");
    assert!(card.headers().get(SET_COOKIE).is_none());
    let text = card.text().await.unwrap();
    assert!(text.contains("1,234") && text.contains("data-theme=\"dark\""));
    for absent in ["exports", "org_1", "org_2", "/dashboard\"", "<form"] {
        assert!(!text.contains(absent), "{absent}: {text}");
    }
    let all = link(&service, json!({})).await;
    let text = service.http.with_key(None).get(&all).await.text;
    assert!(text.contains("data-meter=\"exports\""), "{text}");
}

#[tokio::test]
async fn no_page_may_frame_the_card_unless_the_settings_allow_its_origin() {
    for (origins, ancestors) in [("", "frame-ancestors 'none'"), ("*", "frame-ancestors *")] {
        let world = world(origins).await;
        let service = used(&world).await;
        let url = link(&service, json!({})).await;
        let card = service.http.with_key(None).get(&url).await;
        assert!(card.header("content-security-policy").ends_with(ancestors));
    }
    for invalid in ["https://a.example;script-src *", "https://a.example/path"] {
        assert!(invalid.parse::<Origins>().is_err(), "{invalid}");
    }
}

#[tokio::test]
async fn a_link_ends_when_it_expires_and_cannot_be_changed() {
    let world = world("").await;
    let service = used(&world).await;
    let created = service.http.post(LINKS, json!({"expiresIn": 60})).await;
    let url = created.body["url"].as_str().unwrap();
    let anonymous = service.http.with_key(None);
    assert_eq!(anonymous.get(url).await.status, 200);
    let other = link(&service, json!({"meters": ["exports"]})).await;
    let (signature, _) = url.split_once('.').unwrap();
    let (_, payload) = other.split_once('.').unwrap();
    let forged = format!("{signature}.{payload}");
    assert_eq!(anonymous.get(&forged).await.status, 404);
    assert_eq!(anonymous.get("/embed/nothing").await.status, 404);
    world.clock.advance(chrono::Duration::seconds(60));
    let expired = anonymous.get(url).await;
    assert_eq!(expired.status, 404);
    assert!(expired.text.contains("expired") && !expired.text.contains("1,234"));
}

#[tokio::test]
async fn a_link_ends_with_the_key_that_created_it() {
    let world = world("").await;
    let service = used(&world).await;
    let request = json!({"name": "portal", "scopes": ["read"], "organizationId": "org_1"});
    let key = service.http.post("/v1/api-keys", request).await.body;
    let portal = service.http.with_key(key["key"].as_str());
    let url = portal.post(LINKS, json!({})).await.body["url"].clone();
    let url = url.as_str().unwrap();
    let anonymous = service.http.with_key(None);
    assert_eq!(anonymous.get(url).await.status, 200);
    let elsewhere = portal
        .post("/v1/organizations/org_2/embed-links", json!({}))
        .await;
    assert_eq!(elsewhere.status, 403);
    let path = format!("/v1/api-keys/{}", key["id"].as_str().unwrap());
    assert_eq!(service.http.delete(&path).await.status, 204);
    let card = anonymous.get(url).await;
    assert_eq!(card.status, 404, "{}", card.text);
}

#[tokio::test]
async fn an_invalid_request_names_its_field_and_an_unknown_organization_is_404() {
    let world = world("").await;
    let service = used(&world).await;
    for (body, pointer) in [
        (json!({"meters": []}), "/meters"),
        (json!({"expiresIn": 59}), "/expiresIn"),
        (json!({"expiresIn": 86_401}), "/expiresIn"),
        (json!({"theme": "pink"}), "/theme"),
    ] {
        let answer = service.http.post(LINKS, body).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert_eq!(answer.body["errors"][0]["pointer"], pointer);
    }
    let unknown = service
        .http
        .post("/v1/organizations/nobody/embed-links", json!({}))
        .await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test]
async fn the_card_shows_times_in_the_zone_of_the_organization() {
    let world = world("").await;
    let service = used(&world).await;
    let settings = json!({"resetMode": "scheduled", "timeZone": "Asia/Kolkata"});
    service.settings("org_1", settings).await;
    let url = link(&service, json!({"meters": ["api"]})).await;
    let card = service.http.with_key(None).get(&url).await;
    let midnight = "1 Apr 2031, 00:00 Asia/Kolkata";
    assert!(card.text.contains(midnight), "{}", card.text);
    assert!(!card.text.contains("UTC"), "{}", card.text);
}

#[tokio::test]
async fn the_card_says_that_counts_are_the_last_snapshots_while_redis_is_away() {
    let mut world = world("").await;
    let service = used(&world).await;
    service.flush().await;
    let url = link(&service, json!({"meters": ["api"]})).await;
    world.clock.advance(chrono::Duration::minutes(2));
    world.kill_redis().await;
    let card = service.http.with_key(None).get(&url).await;
    assert_eq!(card.status, 200, "{}", card.text);
    for shown in ["1,234", "as last stored", "2 min ago"] {
        assert!(card.text.contains(shown), "{shown}: {}", card.text);
    }
}
