//! CORS: pages of the configured origins may call the API, and no others.

use reqwest::Method;
use serde_json::json;
use tallyman::config::Origins;

use crate::support::{Answer, Instance, World};

const OURS: &str = "https://app.example.com";

async fn world(origins: &str) -> World {
    let origins: Origins = origins.parse().unwrap();
    World::with(|config| config.cors_origins = origins).await
}

async fn preflight(service: &Instance, origin: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "authorization,content-type,idempotency-key",
        ),
    ];
    let anonymous = service.http.with_key(None);
    anonymous
        .send(Method::OPTIONS, "/v1/consume", &headers, None)
        .await
}

async fn consume(service: &Instance, origin: &str) -> Answer {
    let body = json!({"organizationId": "org_1"});
    let headers = [("origin", origin)];
    service
        .http
        .send(Method::POST, "/v1/consume", &headers, Some(body))
        .await
}

fn lists(answer: &Answer, header: &str) -> Vec<String> {
    let mut names: Vec<String> = answer
        .header(header)
        .split(',')
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_page_of_a_configured_origin_may_call_with_credentials_and_read_the_headers() {
    let world = world("https://app.example.com,http://localhost:3000").await;
    let service = world.instance().await;
    let permission = preflight(&service, OURS).await;
    assert_eq!(permission.status, 200);
    assert_eq!(permission.header("access-control-allow-origin"), OURS);
    assert_eq!(
        lists(&permission, "access-control-allow-methods"),
        ["delete", "get", "patch", "post", "put"]
    );
    let allowed = lists(&permission, "access-control-allow-headers");
    for name in ["authorization", "content-type", "idempotency-key", "prefer"] {
        assert!(allowed.iter().any(|it| it == name), "{name}");
    }
    let credentials = "access-control-allow-credentials";
    assert_eq!(permission.header(credentials), "true");
    assert!(!permission.header("x-request-id").is_empty());

    let answer = consume(&service, OURS).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), OURS);
    let exposed = lists(&answer, "access-control-expose-headers");
    for name in [
        "idempotent-replayed",
        "preference-applied",
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "x-request-id",
    ] {
        assert!(exposed.iter().any(|it| it == name), "{name}");
    }
    assert_eq!(answer.header(credentials), "true");
}

#[tokio::test]
async fn a_cookie_is_no_credential() {
    let world = world(OURS).await;
    let service = world.instance().await;
    let cookie = format!("session={0}; authorization=Bearer {0}", world.key);
    let headers = [("origin", OURS), ("cookie", cookie.as_str())];
    let answer = service
        .http
        .with_key(None)
        .send(Method::GET, "/v1/organizations/x/usage", &headers, None)
        .await;
    assert_eq!(answer.code(), "unauthenticated");
}

#[tokio::test]
async fn a_page_of_a_configured_origin_can_read_problems_too() {
    let world = world(OURS).await;
    let service = world.instance().await;
    let headers = [("origin", OURS)];
    let anonymous = service.http.with_key(None);
    let answer = anonymous
        .send(Method::GET, "/v1/organizations/x/usage", &headers, None)
        .await;
    assert_eq!(answer.code(), "unauthenticated");
    assert_eq!(answer.header("access-control-allow-origin"), OURS);
}

#[tokio::test]
async fn a_page_of_any_other_origin_gets_no_permission() {
    let world = world(OURS).await;
    let service = world.instance().await;
    for other in [
        "https://evil.example",
        "https://app.example.com.evil.example",
        "http://app.example.com",
        "null",
    ] {
        let permission = preflight(&service, other).await;
        assert_eq!(
            permission.header("access-control-allow-origin"),
            "",
            "{other}"
        );
        let answer = consume(&service, other).await;
        assert_eq!(answer.header("access-control-allow-origin"), "", "{other}");
    }
}

#[tokio::test]
async fn a_star_lets_every_origin_in_without_credentials() {
    let world = world("*").await;
    let service = world.instance().await;
    let answer = consume(&service, "https://anywhere.example").await;
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.header("access-control-allow-credentials"), "");
}

#[tokio::test]
async fn without_the_setting_no_origin_is_let_in() {
    let world = World::new().await;
    let service = world.instance().await;
    assert_eq!(preflight(&service, OURS).await.code(), "method_not_allowed");
    let answer = consume(&service, OURS).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
    assert_eq!(answer.header("vary"), "");
}
