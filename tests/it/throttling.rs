//! Failed authentications by address: made-up keys cost no look-ups, and lock out no key that exists.

use serde_json::json;
use tallyman::config::Servers;

use crate::support::{Instance, World, made_up_key};

const THROTTLED: &str = "too_many_failed_authentications";

/// The code of a call with this key; empty if it is counted.
async fn call(service: &Instance, key: &str) -> String {
    let caller = service.http.with_key(Some(key));
    let body = json!({"organizationId": "org_1"});
    let answer = caller.post("/v1/track", body).await;
    assert!(answer.code() != THROTTLED || !answer.header("retry-after").is_empty());
    answer.code().to_owned()
}

/// Calls with keys that do not exist until the address is throttled.
async fn fail_often(service: &Instance) {
    for number in 0..10 {
        assert_eq!(call(service, &made_up_key(number)).await, "unauthenticated");
    }
}

/// Look-ups of keys in Redis or Postgres, and refusals without one.
async fn look_ups_and_refusals(service: &Instance) -> [u64; 2] {
    let metrics = service.http.get("/metrics").await.text;
    [
        "tallyman_cache_misses_total{cache=\"keys\"} ",
        "tallyman_authentications_throttled_total ",
    ]
    .map(|sample| {
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(sample));
        value.unwrap_or_else(|| panic!("{sample}")).parse().unwrap()
    })
}

#[tokio::test]
async fn made_up_keys_are_refused_without_a_look_up_until_the_address_has_waited() {
    let world = World::new().await;
    let service = world.instance().await;
    fail_often(&service).await;
    let [look_ups, refusals] = look_ups_and_refusals(&service).await;
    assert_eq!(refusals, 0);
    for number in 100..150 {
        let caller = service.http.with_key(Some(&made_up_key(number)));
        let answer = caller.get("/v1/organizations").await;
        assert_eq!((answer.status.as_u16(), answer.code()), (401, THROTTLED));
        assert_eq!(answer.header("retry-after"), "6");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    assert_eq!(look_ups_and_refusals(&service).await, [look_ups, 50]);

    world.clock.advance(chrono::Duration::seconds(6));
    assert_eq!(call(&service, &made_up_key(200)).await, "unauthenticated");
    assert_eq!(call(&service, &made_up_key(201)).await, THROTTLED);
    world.clock.advance(chrono::Duration::minutes(1));
    fail_often(&service).await;
    assert_eq!(call(&service, &made_up_key(0)).await, THROTTLED);
}

#[tokio::test]
async fn a_key_that_exists_is_never_locked_out() {
    let world = World::new().await;
    let used = world.key_with(&["ingest"]).await;
    let unused = world.key_with(&["ingest"]).await;
    let service = world.instance().await;
    assert_eq!(call(&service, &used).await, "");
    fail_often(&service).await;
    assert_eq!(call(&service, &made_up_key(99)).await, THROTTLED);
    // Not in the cache, or no longer fresh there.
    assert_eq!(call(&service, &unused).await, "");
    world.clock.advance(chrono::Duration::seconds(3));
    assert_eq!(call(&service, &made_up_key(99)).await, THROTTLED);
    assert_eq!(call(&service, &used).await, "");

    // A new key is accepted after the next sweep of the instance.
    let new = world.key_with(&["ingest"]).await;
    assert_eq!(call(&service, &new).await, THROTTLED);
    service.app.state.auth.sweep_once().await.unwrap();
    assert_eq!(call(&service, &new).await, "");
}

#[tokio::test]
async fn a_wrong_secret_of_a_key_that_exists_counts_as_a_failure() {
    let world = World::new().await;
    let service = world.instance().await;
    let (id, _) = world.key.rsplit_once('_').unwrap();
    let wrong = format!("{id}_{}", "0".repeat(64));
    for _ in 0..10 {
        assert_eq!(call(&service, &wrong).await, "unauthenticated");
    }
    assert_eq!(call(&service, &wrong).await, THROTTLED);
    assert_eq!(call(&service, &made_up_key(1)).await, THROTTLED);
    assert_eq!(call(&service, &world.key).await, "");
}

#[tokio::test]
async fn an_instance_that_never_reached_postgres_refuses_no_key_without_a_look_up() {
    let world = World::new().await;
    let key = world.key_with(&["ingest"]).await;
    let informed = world.instance().await;
    informed.app.state.auth.sweep_once().await.unwrap();
    let servers = Servers {
        database_url: "postgres://nobody@127.0.0.1:1/none".to_owned(),
        ..world.servers()
    };
    let service = world.instance_with(servers).await;
    let (id, _) = world.key.rsplit_once('_').unwrap();
    let wrong = format!("{id}_{}", "0".repeat(64));
    for _ in 0..10 {
        assert_eq!(call(&service, &wrong).await, "unauthenticated");
    }
    assert_eq!(call(&service, &wrong).await, THROTTLED);
    // The key is accepted; the policy of the organization cannot be looked up.
    assert_eq!(call(&service, &key).await, "database_unavailable");
}
