//! API keys: scopes, bindings, expiry and revocation.

use std::process::Stdio;

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::FromRow;
use tallyman::config::Servers;
use tokio::process::Command;

use crate::support::{Answer, Http, Instance, World, instant};

/// By then a revocation is effective on every instance.
const PROPAGATION: TimeDelta = TimeDelta::seconds(5);

/// Every endpoint that needs a key, with its scope.
fn endpoints() -> Vec<(Method, &'static str, Option<Value>, &'static str)> {
    let count = || Some(json!({"organizationId": "org_1"}));
    let key = || Some(json!({"name": "another", "scopes": ["read"]}));
    vec![
        (Method::POST, "/v1/track", count(), "ingest"),
        (Method::POST, "/v1/consume", count(), "ingest"),
        (Method::POST, "/v1/check", count(), "ingest"),
        (Method::POST, "/v1/refund", count(), "refund"),
        (Method::GET, "/v1/organizations/org_1/usage", None, "read"),
        (Method::GET, "/v1/organizations/org_1", None, "provision"),
        (
            Method::PUT,
            "/v1/organizations/org_1",
            Some(json!({})),
            "admin",
        ),
        (
            Method::PATCH,
            "/v1/organizations/org_1/limits",
            Some(json!({})),
            "admin",
        ),
        (Method::GET, "/v1/api-keys", None, "admin"),
        (Method::POST, "/v1/api-keys", key(), "admin"),
        (
            Method::DELETE,
            "/v1/api-keys/0123456789abcdef",
            None,
            "admin",
        ),
    ]
}

#[tokio::test]
async fn each_scope_opens_its_endpoints_and_no_others() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count_one("org_1").await;
    for scope in ["ingest", "refund", "read", "reset", "provision", "admin"] {
        let caller = service.caller(json!({"scopes": [scope]})).await;
        for (method, path, body, required) in endpoints() {
            let answer = caller.send(method.clone(), path, &[], body).await;
            let context = format!("{method} {path} with {scope}: {answer:?}");
            let included = scope == "provision" && ["ingest", "read"].contains(&required);
            if scope == required || included || scope == "admin" {
                // The revocation is of an unknown key, which only a permitted caller may learn.
                let done = answer.status.is_success() || answer.code() == "not_found";
                assert!(done, "{context}");
            } else {
                assert_eq!(
                    (answer.status.as_u16(), answer.code()),
                    (403, "forbidden"),
                    "{context}"
                );
            }
        }
    }
}

#[tokio::test]
async fn scopes_add_up() {
    let world = World::new().await;
    let service = world.instance().await;
    let caller = service.caller(json!({"scopes": ["read", "ingest"]})).await;
    for (path, body) in [("/v1/consume", 200), ("/v1/refund", 403)] {
        let answer = caller.post(path, json!({"organizationId": "org_1"})).await;
        assert_eq!(answer.status, body, "{path}");
    }
    let usage = caller.get("/v1/organizations/org_1/usage").await;
    assert_eq!(usage.status, 200);
}

#[tokio::test]
async fn without_a_valid_key_everything_is_401() {
    let world = World::new().await;
    let service = world.instance().await;
    let (id, key) = service.create(json!({"scopes": ["admin"]})).await;
    let wrong_secret = format!("tm_{id}_{}", "0".repeat(64));
    let unknown = format!("tm_0123456789abcdef_{}", key.rsplit('_').next().unwrap());
    let invalid = [
        Some(wrong_secret.as_str()),
        Some(unknown.as_str()),
        Some("tm_"),
        Some("nothing like a key"),
        Some(&key[..key.len() - 1]),
        None,
    ];
    for key in invalid {
        let caller = service.http.with_key(key);
        for (method, path, body, _) in endpoints() {
            // Slowly enough for another failed authentication.
            world.clock.advance(TimeDelta::seconds(6));
            let answer = caller.send(method, path, &[], body).await;
            assert_eq!(answer.status, 401, "{key:?} {path}");
            assert_eq!(answer.code(), "unauthenticated");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    let basic = [("authorization", "Basic dXNlcjpwYXNzd29yZA==")];
    let caller = service.http.with_key(None);
    let answer = caller.send(Method::GET, "/v1/api-keys", &basic, None).await;
    assert_eq!(answer.status, 401);
}

#[tokio::test]
async fn a_bound_key_accesses_its_own_organization_only() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count_one("org_1").await;
    service.count_one("org_2").await;
    let caller = service
        .caller(json!({"scopes": ["ingest", "read", "refund"], "organizationId": "org_1"}))
        .await;
    for path in ["/v1/track", "/v1/consume", "/v1/check", "/v1/refund"] {
        let own = caller.post(path, json!({"organizationId": "org_1"})).await;
        assert_eq!(own.status, 200, "{path}");
        // The response does not reveal whether the organization exists.
        for other in ["org_2", "org_3"] {
            let foreign = caller.post(path, json!({"organizationId": other})).await;
            assert_eq!(
                (foreign.status.as_u16(), foreign.code()),
                (403, "forbidden")
            );
        }
    }
    let own = caller.get("/v1/organizations/org_1/usage").await;
    assert_eq!(own.status, 200);
    for other in ["org_2", "org_3", "ORG_1", "%20"] {
        let path = format!("/v1/organizations/{other}/usage");
        let foreign = caller.get(&path).await;
        assert_eq!(
            (foreign.status.as_u16(), foreign.code()),
            (403, "forbidden"),
            "{path}"
        );
    }
    assert_eq!(service.current("org_2", "api").await, 1);
}

#[tokio::test]
async fn a_key_may_be_bound_to_an_organization_that_does_not_exist_yet() {
    let world = World::new().await;
    let service = world.instance().await;
    let caller = service
        .caller(json!({"scopes": ["ingest"], "organizationId": "org_new"}))
        .await;
    let answer = caller
        .post("/v1/track", json!({"organizationId": "org_new"}))
        .await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn an_invalid_key_request_is_refused_with_the_field_at_fault() {
    let world = World::new().await;
    let service = world.instance().await;
    let long = "x".repeat(101);
    let cases = [
        (json!({"name": "", "scopes": ["read"]}), "/name"),
        (json!({"name": "  ", "scopes": ["read"]}), "/name"),
        (json!({"name": "a\nb", "scopes": ["read"]}), "/name"),
        (json!({"name": long, "scopes": ["read"]}), "/name"),
        (json!({"name": "a", "scopes": []}), "/scopes"),
        (
            json!({"name": "a", "scopes": ["read", "write"]}),
            "/scopes/1",
        ),
        (
            json!({"name": "a", "scopes": ["admin"], "organizationId": "org_1"}),
            "/scopes",
        ),
        (
            json!({"name": "a", "scopes": ["ingest", "reset"], "organizationId": "org_1"}),
            "/scopes",
        ),
        (
            json!({"name": "a", "scopes": ["provision"], "organizationId": "org_1"}),
            "/scopes",
        ),
        (
            json!({"name": "a", "scopes": ["read"], "organizationId": "a b"}),
            "/organizationId",
        ),
        (
            json!({"name": "a", "scopes": ["read"], "expiresAt": "tomorrow"}),
            "/expiresAt",
        ),
        (
            json!({"name": "a", "scopes": ["read"], "expiresAt": "2031-03-15T12:00:00Z"}),
            "/expiresAt",
        ),
        (
            json!({"name": "a", "scopes": ["read"], "expiresAt": "+12031-01-01T00:00:00Z"}),
            "/expiresAt",
        ),
        (
            json!({"name": "a", "scopes": ["read"], "expires": null}),
            "/expires",
        ),
    ];
    for (body, pointer) in cases {
        let answer = service.http.post("/v1/api-keys", body.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_field"),
            "{body}"
        );
        assert_eq!(
            answer.body["errors"][0]["pointer"], pointer,
            "{body}: {}",
            answer.text
        );
    }
    assert_eq!(service.list("").await["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_secret_is_shown_once() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"name": "auth server", "scopes": ["read", "ingest", "read"], "organizationId": null,
                      "expiresAt": "2032-01-01T00:00:00Z"});
    let made = service.http.post("/v1/api-keys", body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.header("cache-control"), "no-store");
    let key = made.body["key"].as_str().unwrap().to_owned();
    let (id, secret) = key.strip_prefix("tm_").unwrap().split_once('_').unwrap();
    let mut shown = made.body.clone();
    shown.as_object_mut().unwrap().remove("key");
    assert_eq!(shown["id"], id);
    assert_eq!(shown["scopes"], json!(["ingest", "read"]));
    assert_eq!(shown["expiresAt"], "2032-01-01T00:00:00Z");
    assert_eq!(shown["lastUsedAt"], Value::Null);
    assert_eq!(shown["revokedAt"], Value::Null);

    let list = service.http.get("/v1/api-keys").await;
    assert_eq!(list.body["data"][0], shown);
    let (hash,): (String,) =
        sqlx::query_as("select encode(hash, 'hex') from api_keys where id = $1")
            .bind(id)
            .fetch_one(&world.postgres().await)
            .await
            .unwrap();
    let (audit,): (String,) =
        sqlx::query_as("select string_agg(audit_log::text, '') from audit_log")
            .fetch_one(&world.postgres().await)
            .await
            .unwrap();
    for text in [&list.text, &audit] {
        assert!(text.contains(id));
        assert!(!text.contains(secret) && !text.contains(&hash), "{text}");
    }
    service.sweep().await;
    let mirrored: String = world.redis_command(&["HGET", "tm:{00}:keys", id]).await;
    assert!(!mirrored.contains(secret));
}

#[tokio::test]
async fn a_repeated_creation_would_need_the_secret_so_an_idempotency_key_is_refused() {
    let world = World::new().await;
    let service = world.instance().await;
    let body = json!({"name": "a", "scopes": ["read"]});
    let answer = service.http.post_once("/v1/api-keys", "once", body).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (400, "malformed_request")
    );
}

#[tokio::test]
async fn keys_are_listed_page_by_page_newest_first() {
    let world = World::new().await;
    let service = world.instance().await;
    let mut made = Vec::new();
    for _ in 0..4 {
        made.push(service.create(json!({"scopes": ["read"]})).await.0);
    }
    made.reverse();
    let mut seen = Vec::new();
    let mut query = "?pageSize=2".to_owned();
    loop {
        let page = service.list(&query).await;
        let data = page["data"].as_array().unwrap();
        assert!(data.len() <= 2);
        seen.extend(
            data.iter()
                .map(|key| key["id"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["nextCursor"].as_str() else {
            break;
        };
        query = format!("?pageSize=2&cursor={cursor}");
    }
    assert_eq!(seen.len(), 5);
    assert_eq!(seen[..4], made);
    for bad in [
        "?pageSize=0",
        "?pageSize=1001",
        "?pageSize=x",
        "?pageSize=",
        "?cursor=x",
        "?pagesize=2",
    ] {
        let answer = service.http.get(&format!("/v1/api-keys{bad}")).await;
        assert_eq!(answer.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn an_expired_key_is_refused_from_that_instant_on() {
    let world = World::new().await;
    let service = world.instance().await;
    let expires = world.clock.now() + TimeDelta::seconds(1);
    let caller = service
        .caller(json!({"scopes": ["read"], "expiresAt": expires}))
        .await;
    service.count_one("org_1").await;
    let read = || caller.get("/v1/organizations/org_1/usage");
    world.clock.advance(TimeDelta::milliseconds(999));
    assert_eq!(read().await.status, 200);
    world.clock.advance(TimeDelta::milliseconds(1));
    assert_eq!(read().await.status, 401);
    assert_eq!(read().await.code(), "unauthenticated");
}

#[tokio::test]
async fn a_revoked_key_stops_on_every_instance_and_stays_listed() {
    let world = World::new().await;
    let (first, second) = (world.instance().await, world.instance().await);
    let (id, key) = first.create(json!({"scopes": ["ingest"]})).await;
    first.sweep().await;
    for instance in [&first, &second] {
        assert_eq!(instance.track_with(&key).await.status, 200);
    }
    for _ in 0..2 {
        let revoked = first.revoke(&id).await;
        assert_eq!((revoked.status.as_u16(), revoked.text.as_str()), (204, ""));
    }
    assert_eq!(first.track_with(&key).await.status, 401);
    world.clock.advance(PROPAGATION);
    assert_eq!(second.track_with(&key).await.status, 401);

    let listed = &first.list("").await["data"][0];
    assert_eq!(listed["id"], id.as_str());
    assert!(listed["revokedAt"].is_string());
    let unknown = first.revoke("0123456789abcdef").await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.code()),
        (404, "not_found")
    );
    assert_eq!(first.revoke("nonsense").await.status, 400);
}

#[tokio::test]
async fn a_revocation_that_redis_missed_wins_and_does_not_come_back() {
    let mut world = World::new().await;
    let (first, second) = (world.instance().await, world.instance().await);
    let (id, key) = first.create(json!({"scopes": ["read"]})).await;
    first.count_one("org_1").await;
    first.flush().await;
    first.sweep().await;
    for instance in [&first, &second] {
        assert_eq!(instance.read(&key).await.status, 200);
    }
    // Redis will restart with the key as it was before the revocation.
    let _: String = world.redis_command(&["SAVE"]).await;
    world.kill_redis().await;
    assert_eq!(first.revoke(&id).await.status, 204);
    world.clock.advance(PROPAGATION);
    assert_eq!(first.read(&key).await.status, 401);

    world.start_redis().await;
    let mirrored: String = world.redis_command(&["HGET", "tm:{00}:keys", &id]).await;
    assert!(mirrored.contains(r#""revoked":false"#), "{mirrored}");
    world.clock.advance(PROPAGATION);
    assert_eq!(
        first.read(&key).await.status,
        401,
        "an instance that has seen the revocation keeps it"
    );

    // The sweep of any instance repairs the mirror for all of them.
    assert_eq!(first.sweep().await, 1);
    world.clock.advance(PROPAGATION);
    for instance in [&second, &world.instance().await] {
        assert_eq!(instance.read(&key).await.status, 401);
    }
}

#[tokio::test]
async fn counting_authenticates_without_postgres_also_after_a_restart() {
    let world = World::new().await;
    let service = world.instance().await;
    let (_, good) = service.create(json!({"scopes": ["ingest"]})).await;
    let (id, revoked) = service.create(json!({"scopes": ["ingest"]})).await;
    assert_eq!(service.revoke(&id).await.status, 204);
    service.count_one("org_1").await;

    let cut_off = without_postgres(&world).await;
    assert_eq!(cut_off.track_with(&good).await.status, 200);
    assert_eq!(cut_off.track_with(&revoked).await.status, 401);
    world.clock.advance(PROPAGATION * 1000);
    assert_eq!(cut_off.track_with(&good).await.status, 200);
}

#[tokio::test]
async fn keys_that_cannot_be_looked_up_are_503_and_never_401() {
    let world = World::new().await;
    let cut_off = without_postgres(&world).await;
    let unknown = format!("tm_0123456789abcdef_{}", "0".repeat(64));
    for key in [&world.key, &unknown] {
        let answer = cut_off.track_with(key).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (503, "database_unavailable")
        );
        assert!(!answer.header("retry-after").is_empty());
    }
    // A malformed key is refused without a look-up.
    assert_eq!(cut_off.track_with("no key").await.status, 401);
}

#[tokio::test]
async fn the_key_mirror_is_rebuilt_in_a_wiped_redis() {
    let world = World::new().await;
    let service = world.instance().await;
    let (_, good) = service.create(json!({"scopes": ["ingest"]})).await;
    let (id, revoked) = service.create(json!({"scopes": ["ingest"]})).await;
    service.revoke(&id).await;
    service.count_one("org_1").await;
    let _: String = world.redis_command(&["FLUSHALL"]).await;
    world.clock.advance(PROPAGATION);
    for instance in [&service, &world.instance().await] {
        assert_eq!(instance.track_with(&good).await.status, 200);
        assert_eq!(instance.track_with(&revoked).await.status, 401);
    }
    // These two keys, and the admin key of the tests.
    assert_eq!(service.sweep().await, 3);
    assert_eq!(service.sweep().await, 0);
    let cut_off = without_postgres(&world).await;
    assert_eq!(cut_off.track_with(&good).await.status, 200);
    assert_eq!(cut_off.track_with(&revoked).await.status, 401);
}

/// A database restored from a backup or recreated has fewer keys than the mirror.
#[tokio::test]
async fn a_key_that_postgres_has_lost_is_not_accepted() {
    let world = World::new().await;
    let service = world.instance().await;
    let (id, lost) = service.create(json!({"scopes": ["ingest"]})).await;
    service.sweep().await;
    assert_eq!(service.track_with(&lost).await.status, 200);
    sqlx::query("delete from api_keys where id = $1")
        .bind(&id)
        .execute(&world.postgres().await)
        .await
        .unwrap();
    assert_eq!(service.sweep().await, 1);
    world.clock.advance(PROPAGATION);
    assert_eq!(service.track_with(&lost).await.status, 401);
    sqlx::query("delete from api_keys")
        .execute(&world.postgres().await)
        .await
        .unwrap();
    assert_eq!(service.sweep().await, 0);
    world.clock.advance(PROPAGATION);
    assert_eq!(service.http.get("/v1/api-keys").await.status, 401);
}

#[tokio::test]
async fn two_instances_that_sweep_at_once_lose_nothing() {
    let world = World::new().await;
    let (first, second) = (world.instance().await, world.instance().await);
    for _ in 0..20 {
        let (id, key) = first.create(json!({"scopes": ["ingest"]})).await;
        let (_, _, revoked) = tokio::join!(first.sweep(), second.sweep(), second.revoke(&id));
        assert_eq!(revoked.status, 204);
        let mirrored: String = world.redis_command(&["HGET", "tm:{00}:keys", &id]).await;
        assert!(mirrored.contains(r#""revoked":true"#), "{mirrored}");
        assert_eq!(second.track_with(&key).await.status, 401);
    }
}

#[tokio::test]
async fn the_minute_of_the_last_use_is_written_once() {
    let world = World::new().await;
    let (first, second) = (world.instance().await, world.instance().await);
    let (id, key) = first.create(json!({"scopes": ["ingest"]})).await;
    world.clock.advance(TimeDelta::seconds(42));
    first.track_with(&key).await;
    assert_eq!(
        last_used(&world, &id).await,
        None,
        "a request writes nothing"
    );
    first.store_uses().await;
    assert_eq!(
        last_used(&world, &id).await,
        Some(instant("2031-03-15T12:00:00Z"))
    );

    let version = row_version(&world, &id).await;
    world.clock.advance(TimeDelta::seconds(10));
    for instance in [&first, &second] {
        instance.track_with(&key).await;
        instance.store_uses().await;
    }
    assert_eq!(
        row_version(&world, &id).await,
        version,
        "the minute was already stored"
    );

    world.clock.advance(TimeDelta::seconds(60));
    second.track_with(&key).await;
    second.store_uses().await;
    assert_eq!(
        last_used(&world, &id).await,
        Some(instant("2031-03-15T12:01:00Z"))
    );
    // A refused request is no use.
    first.revoke(&id).await;
    world.clock.advance(TimeDelta::seconds(60));
    assert_eq!(first.track_with(&key).await.status, 401);
    first.store_uses().await;
    assert_eq!(
        last_used(&world, &id).await,
        Some(instant("2031-03-15T12:01:00Z"))
    );
}

#[tokio::test]
async fn creating_and_revoking_a_key_is_audited() {
    let world = World::new().await;
    let service = world.instance().await;
    let request = json!({"scopes": ["ingest"], "organizationId": "org_1"});
    let (id, _) = service.create(request).await;
    service.revoke(&id).await;
    service.revoke(&id).await;
    let rows: Vec<AuditRow> = sqlx::query_as(
        "select * from audit_log
         where after ->> 'id' = $1
         order by id",
    )
    .bind(&id)
    .fetch_all(&world.postgres().await)
    .await
    .unwrap();
    let [made, revoked] = &rows[..] else {
        panic!("{rows:?}")
    };
    let admin = world.key.split('_').nth(1).unwrap();
    for row in [made, revoked] {
        assert_eq!(row.actor, format!("key:{admin}"));
        assert_eq!(row.organization_id.as_deref(), Some("org_1"));
        assert!(row.request_id.as_ref().is_some_and(|id| !id.is_empty()));
    }
    assert_eq!(made.action, "api_key.create");
    assert_eq!(made.before, Value::Null);
    assert_eq!(made.after["scopes"], json!(["ingest"]));
    assert_eq!(revoked.action, "api_key.revoke");
    assert_eq!(revoked.before, made.after);
    assert!(revoked.after["revokedAt"].is_string());
}

#[derive(Debug, FromRow)]
struct AuditRow {
    actor: String,
    action: String,
    organization_id: Option<String>,
    before: Value,
    after: Value,
    request_id: Option<String>,
}

#[tokio::test]
async fn the_command_line_makes_lists_and_revokes_keys() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count_one("org_1").await;

    let (ok, key, _) = tallyman(
        &world,
        &["create", "--name", "first key", "--scope", "admin"],
    )
    .await;
    assert!(ok);
    let key = key.trim();
    let first = service.http.with_key(Some(key));
    assert_eq!(first.get("/v1/api-keys").await.status, 200);

    let (ok, made, _) = tallyman(
        &world,
        &[
            "create",
            "--name",
            "bound",
            "--scope",
            "ingest",
            "--scope",
            "read",
            "--organization",
            "org_1",
            "--expires",
            "2031-03-15T13:00:00+01:00",
            "--json",
        ],
    )
    .await;
    assert!(ok);
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!(made["organizationId"], "org_1");
    assert_eq!(made["scopes"], json!(["ingest", "read"]));
    assert_eq!(made["expiresAt"], "2031-03-15T12:00:00Z");

    let (_, json, _) = tallyman(&world, &["list", "--json"]).await;
    let listed: Value = serde_json::from_str(&json).unwrap();
    let names: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["bound", "first key", "tests"]);
    let (_, table, _) = tallyman(&world, &["list"]).await;
    assert_eq!(table.lines().count(), 4);
    let secret = key.rsplit('_').next().unwrap();
    assert!(!json.contains(secret) && !table.contains(secret));

    let id = listed[1]["id"].as_str().unwrap();
    assert!(tallyman(&world, &["revoke", id]).await.0);
    service.sweep().await;
    world.clock.advance(PROPAGATION);
    assert_eq!(first.get("/v1/api-keys").await.status, 401);
    assert_eq!(service.list("").await["data"][1]["id"], id);
}

#[tokio::test]
async fn the_command_line_refuses_what_the_api_refuses() {
    let world = World::new().await;
    let cases: [(&[&str], &str); 6] = [
        (&["create", "--name", "a"], "--scope"),
        (
            &["create", "--name", "a", "--scope", "write"],
            "must be ingest, refund",
        ),
        (
            &["create", "--name", " ", "--scope", "read"],
            "1 to 100 characters",
        ),
        (
            &[
                "create",
                "--name",
                "a",
                "--scope",
                "admin",
                "--organization",
                "org_1",
            ],
            "beyond one organization",
        ),
        (
            &[
                "create",
                "--name",
                "a",
                "--scope",
                "read",
                "--expires",
                "2020-01-01T00:00:00Z",
            ],
            "in the future",
        ),
        (&["revoke", "0123456789abcdef"], "there is no API key"),
    ];
    for (arguments, expected) in cases {
        let (ok, stdout, stderr) = tallyman(&world, arguments).await;
        assert!(!ok && stdout.is_empty(), "{arguments:?}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}

impl Instance {
    /// Creates a key, named by default; returns its id and the key.
    async fn create(&self, mut request: Value) -> (String, String) {
        let object = request.as_object_mut().unwrap();
        object
            .entry("name")
            .or_insert_with(|| json!("made by a test"));
        let made = self.http.post("/v1/api-keys", request).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let text = |field: &str| made.body[field].as_str().unwrap().to_owned();
        (text("id"), text("key"))
    }

    /// A client with a new key.
    async fn caller(&self, request: Value) -> Http {
        let (_, key) = self.create(request).await;
        self.http.with_key(Some(&key))
    }

    async fn revoke(&self, id: &str) -> Answer {
        let path = format!("/v1/api-keys/{id}");
        self.http.send(Method::DELETE, &path, &[], None).await
    }

    async fn list(&self, query: &str) -> Value {
        let answer = self.http.get(&format!("/v1/api-keys{query}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.body
    }

    /// Counts one unit as the administrator, which creates the organization.
    async fn count_one(&self, organization: &str) {
        let body = json!({"organizationId": organization});
        assert_eq!(self.http.post("/v1/track", body).await.status, 200);
    }

    async fn track_with(&self, key: &str) -> Answer {
        let caller = self.http.with_key(Some(key));
        caller
            .post("/v1/track", json!({"organizationId": "org_1"}))
            .await
    }

    async fn read(&self, key: &str) -> Answer {
        let caller = self.http.with_key(Some(key));
        caller.get("/v1/organizations/org_1/usage").await
    }

    async fn sweep(&self) -> usize {
        self.app.state.auth.sweep_once().await.unwrap()
    }

    async fn store_uses(&self) {
        self.app.state.auth.store_uses().await.unwrap();
    }
}

/// Write access to Redis must not be enough to create a key.
#[tokio::test]
async fn a_forged_key_record_in_redis_is_not_accepted() {
    let world = World::new().await;
    let service = world.instance().await;
    let (id, key) = service.create(json!({"scopes": ["ingest"]})).await;
    let (_, _) = service.create(json!({"scopes": ["admin"]})).await;
    service.sweep().await;
    let sealed: String = world.redis_command(&["HGET", "tm:{00}:keys", &id]).await;
    let (tag, record) = sealed.split_once(' ').unwrap();
    let secret = key.rsplit_once('_').unwrap().1;

    let forged_id = "00000000000000aa";
    let forged_key = format!("tm_{forged_id}_{secret}");
    let forged = record.replace(&id, forged_id).replace("ingest", "admin");
    let no_tag = "0".repeat(64);
    for text in [
        forged.clone(),
        format!("{tag} {forged}"),
        format!("{no_tag} {forged}"),
        // A valid record of another key.
        sealed.clone(),
    ] {
        let _: u64 = world
            .redis_command(&["HSET", "tm:{00}:keys", forged_id, &text])
            .await;
        world.clock.advance(PROPAGATION);
        let http = service.http.with_key(Some(&forged_key));
        assert_eq!(http.get("/v1/api-keys").await.status, 401, "{text}");
        assert_eq!(service.track_with(&forged_key).await.status, 401, "{text}");
    }

    // A changed record of an existing key grants nothing more.
    let escalated = format!("{tag} {}", record.replace("ingest", "admin"));
    let _: u64 = world
        .redis_command(&["HSET", "tm:{00}:keys", &id, &escalated])
        .await;
    world.clock.advance(PROPAGATION);
    let http = service.http.with_key(Some(&key));
    assert_eq!(http.get("/v1/api-keys").await.status, 403);
    assert_eq!(service.track_with(&key).await.status, 200);
}

#[tokio::test]
async fn an_older_key_record_does_not_revive_a_revoked_key() {
    let world = World::new().await;
    let (first, second) = (world.instance().await, world.instance().await);
    let (id, key) = first.create(json!({"scopes": ["ingest"]})).await;
    first.sweep().await;
    let older: String = world.redis_command(&["HGET", "tm:{00}:keys", &id]).await;
    assert_eq!(first.revoke(&id).await.status, 204);
    second.sweep().await;
    let _: u64 = world
        .redis_command(&["HSET", "tm:{00}:keys", &id, &older])
        .await;
    world.clock.advance(PROPAGATION);
    for instance in [&first, &second, &world.instance().await] {
        assert_eq!(instance.track_with(&key).await.status, 401);
    }
}

/// The mirror in Redis still has the key as active.
#[tokio::test]
async fn a_revocation_is_effective_everywhere_even_if_redis_accepts_no_writes() {
    let world = World::new().await;
    let (first, second) = (world.instance().await, world.instance().await);
    let (id, key) = first.create(json!({"scopes": ["read"]})).await;
    first.count_one("org_1").await;
    first.sweep().await;
    for instance in [&first, &second] {
        assert_eq!(instance.read(&key).await.status, 200);
    }
    let _: String = world
        .redis_command(&["CONFIG", "SET", "maxmemory", "1"])
        .await;
    assert_eq!(first.revoke(&id).await.status, 204);
    assert!(second.app.state.auth.sweep_once().await.is_err());
    for instance in [&first, &second] {
        assert_eq!(instance.read(&key).await.status, 401);
    }
}

/// It cannot verify who wrote the mirror: anyone with access to Redis could have.
#[tokio::test]
async fn until_postgres_is_reachable_a_mirrored_key_may_only_count() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count_one("org_1").await;
    service.sweep().await;
    let (servers, socket) = world.cuttable_postgres();
    socket.cut(&world.postgres().await).await;
    let cut_off = world.instance_with(servers).await;
    assert_eq!(cut_off.track_with(&world.key).await.status, 200);
    for path in ["/v1/organizations/org_1/usage", "/v1/verify", "/metrics"] {
        let answer = cut_off.http.get(path).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (503, "database_unavailable"),
            "{path}"
        );
    }
    socket.restore().await;
    assert_eq!(cut_off.http.get("/v1/verify").await.status, 200);
    cut_off.sweep().await;
    socket.cut(&world.postgres().await).await;
    world.clock.advance(PROPAGATION);
    assert_eq!(cut_off.http.get("/metrics").await.status, 200);
}

/// A mirror sealed with the secret of another database is ignored.
#[tokio::test]
async fn a_key_mirror_with_another_seal_is_rewritten() {
    let world = World::new().await;
    let service = world.instance().await;
    let (_, key) = service.create(json!({"scopes": ["ingest"]})).await;
    service.sweep().await;
    sqlx::query("update secrets set value = sha256(value)")
        .execute(&world.postgres().await)
        .await
        .unwrap();
    let other = world.instance().await;
    assert_eq!(other.track_with(&key).await.status, 200);
    assert_eq!(other.sweep().await, 2);
    assert_eq!(other.sweep().await, 0);
}

/// An instance that was started while Postgres was down and has never reached it.
async fn without_postgres(world: &World) -> Instance {
    let servers = Servers {
        database_url: "postgres://nobody@127.0.0.1:1/nowhere".to_owned(),
        ..world.servers()
    };
    world.instance_with(servers).await
}

async fn last_used(world: &World, id: &str) -> Option<DateTime<Utc>> {
    let (at,) = sqlx::query_as("select last_used_at from api_keys where id = $1")
        .bind(id)
        .fetch_one(&world.postgres().await)
        .await
        .unwrap();
    at
}

/// Changes with every write to the row.
async fn row_version(world: &World, id: &str) -> String {
    let (version,) = sqlx::query_as("select xmin::text from api_keys where id = $1")
        .bind(id)
        .fetch_one(&world.postgres().await)
        .await
        .unwrap();
    version
}

/// Runs `tallyman keys`; returns whether it succeeded, its standard output and its standard error.
async fn tallyman(world: &World, arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .arg("keys")
        .args(arguments)
        .env("TALLYMAN_DATABASE_URL", &world.database_url)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}
