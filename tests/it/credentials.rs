//! Authentication: a valid key for every call, and the scope `admin` for changes of limits.

use reqwest::Method;
use serde_json::json;

use crate::support::World;

#[tokio::test]
async fn only_a_valid_key_is_accepted() {
    let world = World::new().await;
    let service = world.instance().await;
    let (id, secret) = world
        .key
        .strip_prefix("tm_")
        .unwrap()
        .split_once('_')
        .unwrap();
    let wrong = [
        None,
        Some(String::new()),
        Some("tm_".to_owned()),
        Some(id.to_owned()),
        Some(format!("tm_{id}_{}", "0".repeat(64))),
        Some(format!("tm_{}_{secret}", "0".repeat(16))),
        Some(format!("tm_{id}_{}", &secret[..63])),
        Some(format!("tm_{id}_{secret}0")),
        Some(format!("TM_{id}_{secret}")),
    ];
    for key in wrong {
        let http = service.http.with_key(key.as_deref());
        for (method, path) in [
            (Method::POST, "/v1/track"),
            (Method::POST, "/v1/consume"),
            (Method::POST, "/v1/check"),
            (Method::GET, "/v1/organizations/org_1/usage"),
            (Method::GET, "/v1/organizations/org_1"),
            (Method::PUT, "/v1/organizations/org_1"),
            (Method::PATCH, "/v1/organizations/org_1/limits"),
        ] {
            let body = (method != Method::GET).then(|| json!({"organizationId": "org_1"}));
            // Slowly enough for another failed authentication.
            world.clock.advance(chrono::Duration::seconds(6));
            let answer = http.send(method.clone(), path, &[], body).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code()),
                (401, "unauthenticated"),
                "{key:?} {method} {path}"
            );
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
}

#[tokio::test]
async fn only_the_bearer_scheme_carries_a_key_in_any_case() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = service.http.with_key(None);
    for (authorization, status) in [
        (format!("Bearer {}", world.key), 200),
        (format!("bearer {}", world.key), 200),
        (format!("Basic {}", world.key), 401),
        (world.key.clone(), 401),
    ] {
        let headers = [("authorization", authorization.as_str())];
        let body = Some(json!({"organizationId": "org_1"}));
        let answer = http.send(Method::POST, "/v1/track", &headers, body).await;
        assert_eq!(answer.status, status, "{}", authorization.len());
    }
    // A session cookie is no credential.
    let cookie = format!("better-auth.session_token={}", world.key);
    let answer = http
        .send(
            Method::GET,
            "/v1/organizations/org_1/usage",
            &[("cookie", &cookie)],
            None,
        )
        .await;
    assert_eq!(answer.status, 401);
}

#[tokio::test]
async fn health_and_readiness_need_no_key() {
    let world = World::new().await;
    let service = world.instance().await;
    let http = service.http.with_key(None);
    assert_eq!(http.get("/healthz").await.status, 200);
    let ready = http.get("/readyz").await;
    assert_eq!(
        (ready.status.as_u16(), &ready.body["status"]),
        (200, &json!("ready"))
    );
}

#[tokio::test]
async fn a_key_without_the_scope_admin_changes_nothing_and_learns_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    for scopes in [
        &["ingest"][..],
        &["read", "reset"],
        &["ingest", "read", "refund", "reset"],
        &["provision", "refund", "reset"],
    ] {
        let http = service.http.with_key(Some(&world.key_with(scopes).await));
        // The response does not reveal whether the organization exists.
        for organization in ["org_1", "nobody"] {
            let path = format!("/v1/organizations/{organization}");
            let limits = json!({"api": {"limit": 1_000_000}});
            for answer in [
                http.put(&path, json!({"resetPeriod": "hourly"})).await,
                http.patch(&format!("{path}/limits"), limits).await,
            ] {
                assert_eq!(
                    (answer.status.as_u16(), answer.code()),
                    (403, "forbidden"),
                    "{scopes:?}"
                );
            }
        }
    }
    assert_eq!(service.meter("org_1", "api").await["limit"], 1000);
    assert_eq!(
        world
            .select("select count(*)::text from audit_log where organization_id is not null")
            .await,
        ["0"]
    );
}
