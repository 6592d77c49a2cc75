//! `GET /v1/session`: every key and JWT learns who it is, and nothing else.

use serde_json::{Value, json};

use crate::support::{AUDIENCE, ISSUER, Issuer, Publishes, Signer, World};

#[tokio::test]
async fn a_key_learns_its_name_scopes_organization_and_expiry() {
    let world = World::new().await;
    let service = world.instance().await;
    let request = json!({
        "name": "auth server", "scopes": ["refund", "ingest"], "organizationId": "org_1",
        "expiresAt": "2031-04-01T00:00:00Z"
    });
    let created = service.http.post("/v1/api-keys", request).await.body;
    let http = service.http.with_key(created["key"].as_str());
    let answer = http.get("/v1/session").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let id = created["id"].as_str().unwrap();
    assert_eq!(
        answer.body,
        json!({
            "type": "key", "id": id, "actor": format!("key:{id}"), "name": "auth server",
            "scopes": ["ingest", "refund"], "organizationId": "org_1", "expiresAt": "2031-04-01T00:00:00Z"
        })
    );
    let secret = created["key"].as_str().unwrap().split('_').next_back();
    assert!(!answer.text.contains(secret.unwrap()));
}

#[tokio::test]
async fn the_actor_is_the_name_in_the_audit_log() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    let session = service.http.get("/v1/session").await.body;
    assert_eq!(session["scopes"], json!(["admin"]));
    assert_eq!(
        (&session["organizationId"], &session["expiresAt"]),
        (&Value::Null, &Value::Null)
    );
    let path = format!("/v1/audit?actor={}", session["actor"].as_str().unwrap());
    let entries = service.http.get(&path).await;
    let entries = entries.body["data"].as_array().unwrap().clone();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["actorName"], session["name"]);
}

#[tokio::test]
async fn a_token_learns_its_user_organization_and_expiry() {
    let signer = Signer::eddsa("a");
    let issuer = Issuer::start(Publishes::Keys(vec![signer.jwk()])).await;
    let world = World::with(|config| config.jwt = issuer.config()).await;
    let service = world.instance().await;
    let token = signer.sign(&json!({
        "sub": "user_1", "iss": ISSUER, "aud": AUDIENCE, "organizationId": "org_1",
        "exp": world.clock.now().timestamp() + 600
    }));
    let answer = service.http.with_key(Some(&token)).get("/v1/session").await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let expiry = world.clock.now() + chrono::Duration::seconds(600);
    assert_eq!(
        answer.body,
        json!({
            "type": "user", "id": "user_1", "actor": "user:user_1", "name": null, "scopes": ["read"],
            "organizationId": "org_1", "expiresAt": expiry
        })
    );
}

#[tokio::test]
async fn no_key_a_wrong_one_and_a_revoked_one_are_refused() {
    let world = World::new().await;
    let service = world.instance().await;
    let request = json!({"name": "gone", "scopes": ["read"]});
    let created = service.http.post("/v1/api-keys", request).await.body;
    let path = format!("/v1/api-keys/{}", created["id"].as_str().unwrap());
    assert_eq!(service.http.delete(&path).await.status, 204);
    let forged = format!("tm_{}_{}", &world.key[3..19], "0".repeat(64));
    for key in [None, Some(forged.as_str()), created["key"].as_str()] {
        let answer = service.http.with_key(key).get("/v1/session").await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (401, "unauthenticated")
        );
    }
}
