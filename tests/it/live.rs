//! Live figures: server-sent events of an organization and of the service.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::support::{EVENT_TIMEOUT as TIMEOUT, Events, Http, Instance, Process, World};

/// Opens a stream of the API.
async fn open(http: &Http, path: &str) -> Events {
    let stream = Events::new(http.open(path).await);
    assert_eq!(stream.headers()["cache-control"], "no-store");
    assert_eq!(stream.headers()["x-accel-buffering"], "no");
    stream
}

/// A round of the reader, which runs every second in the executable.
async fn round(service: &Instance) {
    service.app.state.live.read_once().await;
}

fn meters(data: &Value, organization: &str) -> Value {
    data["organizations"][organization]["meters"].clone()
}

#[tokio::test]
async fn an_organization_streams_its_state_and_then_the_meters_that_change() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .limits("org_1", json!({"tokens": {"limit": 10}}))
        .await;
    service.count("org_1", "api", 5).await;
    let mut stream = open(&service.http, "/v1/organizations/org_1/live").await;
    let first = stream.event().await.unwrap();
    assert!(first.lines().any(|line| line == "retry: 2000"), "{first}");
    let data: Value = serde_json::from_str(first.split("data: ").nth(1).unwrap()).unwrap();
    let api =
        json!({"current": 5, "limit": 1000, "denied": 0, "resetDate": "2031-04-01T00:00:00Z"});
    let tokens =
        json!({"current": 0, "limit": 10, "denied": 0, "resetDate": "2031-04-01T00:00:00Z"});
    assert_eq!(data["at"], "2031-03-15T12:00:00Z");
    assert_eq!(data["organizations"]["org_1"]["exact"], true);
    assert_eq!(
        meters(&data, "org_1"),
        json!({"api": api, "tokens": tokens})
    );

    // Neither a round without a change nor the count of another organization is an event.
    round(&service).await;
    service.count("org_2", "api", 1).await;
    round(&service).await;
    service.count("org_1", "api", 2).await;
    service.count("org_1", "seats", 1).await;
    round(&service).await;
    let seats =
        json!({"current": 1, "limit": null, "denied": 0, "resetDate": "2031-04-01T00:00:00Z"});
    let mut counted = api.clone();
    counted["current"] = json!(7);
    let data = stream.data().await;
    assert_eq!(
        meters(&data, "org_1"),
        json!({"api": counted, "seats": seats})
    );
    assert_eq!(data["organizations"].as_object().unwrap().len(), 1);

    service.try_consume("org_1", "tokens", 11).await;
    service.limits("org_1", json!({"api": {"limit": 8}})).await;
    round(&service).await;
    let data = stream.data().await;
    assert_eq!(meters(&data, "org_1")["tokens"]["denied"], 1);
    assert_eq!(meters(&data, "org_1")["api"]["limit"], 8);
}

#[tokio::test]
async fn all_organizations_stream_the_summary_and_those_that_are_named() {
    let world = World::new().await;
    let service = world.instance().await;
    for organization in ["org_1", "org_2", "org_3"] {
        service.count(organization, "api", 1).await;
    }
    service.flush().await;
    let path = "/v1/live?organizationId=org_1&organizationId=org_2";
    let mut stream = open(&service.http, path).await;
    let first = stream.data().await;
    assert_eq!(first["organizations"].as_object().unwrap().len(), 2);
    assert_eq!(first["summary"]["organizations"]["total"], 3);
    assert_eq!(first["summary"]["callsPerMinute"], 0);

    service.count("org_2", "api", 1).await;
    service.count("org_3", "api", 1).await;
    round(&service).await;
    let data = stream.data().await;
    assert_eq!(meters(&data, "org_2")["api"]["current"], 2);
    assert_eq!(data["organizations"].as_object().unwrap().len(), 1);
    assert_eq!(data["summary"], Value::Null);

    service.app.activity.observe().await.unwrap();
    world.clock.advance(chrono::Duration::seconds(5));
    round(&service).await;
    // 3 calls before, and 2 since.
    assert_eq!(stream.data().await["summary"]["callsPerMinute"], 5);
    // Half of the calls of the last complete minute.
    world.clock.advance(chrono::Duration::seconds(85));
    round(&service).await;
    assert_eq!(stream.data().await["summary"]["callsPerMinute"], 2);
}

#[tokio::test]
async fn only_a_key_with_access_may_watch() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    let ingest = world.key_with(&["ingest"]).await;
    let bound = json!({"name": "bound", "scopes": ["read"], "organizationId": "org_1"});
    let bound = service.http.post("/v1/api-keys", bound).await.body;
    let bound = bound["key"].as_str().unwrap();
    for (key, path, status) in [
        (world.key.as_str(), "/v1/organizations/org_9/live", 404),
        (&world.key, "/v1/live?organizationId=org_9", 404),
        (&world.key, "/v1/organizations/org_1/live?meter=api", 400),
        (&ingest, "/v1/organizations/org_1/live", 403),
        (&ingest, "/v1/live", 403),
        (bound, "/v1/live", 403),
        (bound, "/v1/live?organizationId=org_1", 403),
        (bound, "/v1/organizations/org_2/live", 403),
    ] {
        let answer = service.http.with_key(Some(key)).get(path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
    }
    let many: Vec<String> = (0..33).map(|n| format!("organizationId=org_{n}")).collect();
    let path = format!("/v1/live?{}", many.join("&"));
    let refused = service.http.get(&path).await;
    assert_eq!(refused.body["errors"][0]["pointer"], "/organizationId");
    let http = service.http.with_key(Some(bound));
    let mut own = open(&http, "/v1/organizations/org_1/live").await;
    assert_eq!(meters(&own.data().await, "org_1")["api"]["current"], 1);
}

#[tokio::test]
async fn a_stream_ends_when_its_key_is_revoked_or_its_organization_deleted() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    service.count("org_2", "api", 1).await;
    let created = json!({"name": "viewer", "scopes": ["read"]});
    let created = service.http.post("/v1/api-keys", created).await.body;
    let viewer = service.http.with_key(created["key"].as_str());
    let mut revoked = open(&viewer, "/v1/live").await;
    let mut deleted = open(&service.http, "/v1/organizations/org_1/live").await;
    let mut other = open(&service.http, "/v1/organizations/org_2/live").await;
    for stream in [&mut revoked, &mut deleted, &mut other] {
        stream.data().await;
    }
    let key = format!("/v1/api-keys/{}", created["id"].as_str().unwrap());
    let gone = service.http.send(Method::DELETE, &key, &[], None).await;
    assert_eq!(gone.status, 204, "{}", gone.text);
    let gone = service.http.delete("/v1/organizations/org_1").await;
    assert!(gone.status.is_success(), "{}", gone.text);
    service.count("org_2", "api", 1).await;
    round(&service).await;
    revoked.ends().await;
    deleted.ends().await;
    assert_eq!(meters(&other.data().await, "org_2")["api"]["current"], 2);
}

#[tokio::test]
async fn streams_are_bounded_and_a_closed_one_makes_room() {
    // Half of the connections.
    let world = World::with(|config| config.connections.max = 8).await;
    let service = world.instance().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(open(&service.http, "/v1/live").await);
    }
    let refused = service.http.get("/v1/live").await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (503, "overloaded")
    );
    assert_eq!(refused.header("retry-after"), "1");
    assert!(refused.text.contains("live streams"), "{}", refused.text);
    drop(streams.pop());
    let reopened = async {
        while service.http.open("/v1/live").await.status() != 200 {
            yield_now().await;
        }
    };
    timeout(TIMEOUT, reopened).await.expect("a place is freed");
}

#[tokio::test]
async fn a_quiet_stream_outlives_the_timeouts_of_connections() {
    let world = World::with(|config| {
        let short = Duration::from_millis(100);
        config.connections.idle = short;
        config.connections.body = short;
        config.connections.header = short;
    })
    .await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    let mut stream = open(&service.http, "/v1/organizations/org_1/live").await;
    stream.data().await;
    // Closed by the server after a timeout that began later.
    let address = service.http.base().strip_prefix("http://").unwrap();
    let mut idle = TcpStream::connect(address).await.unwrap();
    let read = timeout(TIMEOUT, idle.read(&mut [0])).await;
    assert_eq!(read.unwrap().unwrap(), 0);
    service.count("org_1", "api", 1).await;
    round(&service).await;
    assert_eq!(meters(&stream.data().await, "org_1")["api"]["current"], 2);
}

#[tokio::test]
async fn a_stop_ends_streams_and_does_not_wait_for_them() {
    let world = World::new().await;
    // Longer than the test runs.
    let variables = [("TALLYMAN_SHUTDOWN_SECONDS", "3600")];
    let service = Process::serve(&world, world.servers(), &variables).await;
    let body = json!({"organizationId": "org_1"});
    service.http.post("/v1/track", body.clone()).await;
    let mut stream = open(&service.http, "/v1/organizations/org_1/live").await;
    assert_eq!(meters(&stream.data().await, "org_1")["api"]["current"], 1);
    service.http.post("/v1/track", body).await;
    // The executable reads by itself.
    assert_eq!(meters(&stream.data().await, "org_1")["api"]["current"], 2);
    let (code, output) = service.stop().await;
    assert_eq!(code, Some(0), "{output:#?}");
    stream.ends().await;
}

#[tokio::test]
async fn the_streams_of_a_caller_are_bounded_and_leave_room_for_others() {
    let world = World::new().await;
    let service = world.instance().await;
    let path = "/v1/live";
    let mut streams = Vec::new();
    for _ in 0..32 {
        streams.push(open(&service.http, path).await);
    }
    let refused = service.http.get(path).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (503, "overloaded")
    );
    assert!(refused.text.contains("this caller"), "{}", refused.text);
    let other = world.key_with(&["read"]).await;
    let other = service.http.with_key(Some(&other));
    let _other = open(&other, path).await;
    drop(streams.pop());
    let reopened = async {
        while service.http.open(path).await.status() != 200 {
            yield_now().await;
        }
    };
    timeout(TIMEOUT, reopened).await.expect("a place is freed");
}

#[tokio::test]
async fn a_gauge_has_the_number_of_open_streams() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 1).await;
    let becomes = async |count: usize| {
        let line = format!("tallyman_live_streams {count}\n");
        let read = async {
            while !service.http.get("/metrics").await.text.contains(&line) {
                yield_now().await;
            }
        };
        timeout(TIMEOUT, read).await.expect("the gauge follows");
    };
    becomes(0).await;
    let one = open(&service.http, "/v1/live").await;
    let two = open(&service.http, "/v1/organizations/org_1/live").await;
    let unknown = service.http.get("/v1/organizations/nobody/live").await;
    assert_eq!(unknown.status, 404);
    becomes(2).await;
    drop(one);
    becomes(1).await;
    drop(two);
    becomes(0).await;
}

#[tokio::test]
async fn a_stream_without_redis_has_the_last_snapshots_and_ends_without_postgres_too() {
    let mut world = World::new().await;
    let (servers, socket) = world.cuttable_postgres();
    let service = world.instance_with(servers).await;
    service.count("org_1", "api", 5).await;
    service.flush().await;
    let mut stream = open(&service.http, "/v1/organizations/org_1/live").await;
    assert_eq!(stream.data().await["organizations"]["org_1"]["exact"], true);
    world.kill_redis().await;
    round(&service).await;
    let data = stream.data().await;
    assert_eq!(data["organizations"]["org_1"]["exact"], false);
    assert_eq!(meters(&data, "org_1")["api"]["current"], 5);
    socket.cut(&world.postgres().await).await;
    round(&service).await;
    stream.ends().await;
}
