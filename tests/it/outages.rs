//! Outages: how long callers wait while Redis or Postgres is down, hangs or is locked.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;
use sqlx::PgPool;
use tallyman::config::Config;

use crate::support::{Instance, Process, World, lock_history};

/// Far more than an answer takes, and far less than one attempt after the other would.
const SOON: Duration = Duration::from_secs(2);

async fn assert_each_fails_at_once(service: &Instance, code: &str) {
    let started = Instant::now();
    // Of known organizations and of new ones.
    let calls = (0..100).map(|number| async move {
        service
            .try_consume(&format!("org_{number}"), "api", 1)
            .await
    });
    let answers = join_all(calls).await;
    for answer in &answers {
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (503, code),
            "{}",
            answer.text
        );
        assert_eq!(answer.header("retry-after"), "1");
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[tokio::test]
async fn while_redis_hangs_every_call_fails_at_once_and_afterwards_counting_goes_on() {
    let world = World::new().await;
    let service = world.instance().await;
    for number in 0..10 {
        assert_eq!(
            service
                .try_consume(&format!("org_{number}"), "api", 1)
                .await
                .status,
            200
        );
    }
    world.signal_redis("STOP");
    service.until_observed("redis", false).await;
    assert_each_fails_at_once(&service, "counter_store_unavailable").await;
    // What needs only Postgres works.
    let history = service.http.get("/v1/history").await;
    assert_eq!(history.status, 200, "{}", history.text);
    let ready = service.http.get("/readyz").await;
    assert_eq!(ready.body["checks"]["redis"], "away", "{}", ready.text);
    world.signal_redis("CONT");
    service.until_observed("redis", true).await;
    let answer = service.try_consume("org_0", "api", 1).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["current"]),
        (200, &json!(2))
    );
}

#[tokio::test]
async fn while_both_servers_are_down_every_call_fails_at_once() {
    let mut world = World::new().await;
    let (servers, socket) = world.cuttable_postgres();
    let service = world.instance_with(servers).await;
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 200);
    service.until_observed("postgres", true).await;
    socket.cut(&world.postgres().await).await;
    world.kill_redis().await;
    service.until_observed("redis", false).await;
    service.until_observed("postgres", false).await;
    assert_each_fails_at_once(&service, "counter_store_unavailable").await;
    // Redis is empty: a new data set needs a number from Postgres.
    world.start_redis().await;
    service.until_observed("redis", true).await;
    assert_each_fails_at_once(&service, "database_unavailable").await;
    socket.restore().await;
    service.until_observed("postgres", true).await;
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 200);
}

#[tokio::test]
async fn an_instance_that_starts_while_redis_refuses_writes_counts_once_it_does_not() {
    let world = World::new().await;
    let set = async |name: &str, value: &str| {
        let () = world.redis_command(&["CONFIG", "SET", name, value]).await;
    };
    for (name, refusing, usual) in [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")] {
        set(name, refusing).await;
        // It has to load its scripts, in transactions.
        let () = world.redis_command(&["SCRIPT", "FLUSH"]).await;
        let service = world.instance().await;
        let answer = service.try_consume(name, "api", 1).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (503, "counter_store_unavailable"),
            "{name}: {}",
            answer.text
        );
        set(name, usual).await;
        service.until_observed("redis", true).await;
        let answer = service.try_consume(name, "api", 1).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text);
    }
}

#[tokio::test]
async fn while_postgres_hangs_known_organizations_are_counted_and_the_rest_fails_at_once() {
    let world = World::new().await;
    let (servers, socket) = world.cuttable_postgres();
    let service = world.instance_with(servers).await;
    assert_eq!(service.try_consume("org_0", "api", 1).await.status, 200);
    service.app.state.auth.sweep_once().await.unwrap();
    service.until_observed("postgres", true).await;
    let frozen = socket.freeze(&world.postgres().await).await;
    service.until_observed("postgres", false).await;
    let started = Instant::now();
    for count in 2..100 {
        let answer = service.try_consume("org_0", "api", 1).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["current"]),
            (200, &json!(count))
        );
    }
    let new = service.try_consume("org_new", "api", 1).await;
    assert_eq!(
        (new.status.as_u16(), new.code()),
        (503, "database_unavailable")
    );
    let history = service.http.get("/v1/history").await;
    assert_eq!(
        (history.status.as_u16(), history.code()),
        (503, "database_unavailable")
    );
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    frozen.thaw().await;
    service.until_observed("postgres", true).await;
    assert_eq!(service.try_consume("org_new", "api", 1).await.status, 200);
}

/// Runs while nobody else may read or write `usage_history`.
async fn locked<T>(postgres: &PgPool, work: impl Future<Output = T>) -> T {
    let lock = lock_history(postgres).await;
    let result = work.await;
    lock.rollback().await.unwrap();
    result
}

#[tokio::test]
async fn a_lock_in_postgres_delays_a_call_by_half_of_the_request_timeout_at_most() {
    let world =
        World::with(|config: &mut Config| config.request_timeout = Duration::from_secs(1)).await;
    let service = world.instance().await;
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 200);
    let postgres = world.postgres().await;
    locked(&postgres, async {
        let started = Instant::now();
        let service = &service;
        let calls = (0..12).map(|number| async move {
            service
                .try_consume(&format!("new_{number}"), "api", 1)
                .await
        });
        let answers = join_all(calls).await;
        for answer in &answers {
            let status = (answer.status.as_u16(), answer.code());
            assert!(
                [(503, "database_unavailable"), (504, "deadline_exceeded")].contains(&status),
                "{}",
                answer.text
            );
        }
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
        assert_eq!(service.try_consume("org_1", "api", 1).await.status, 200);
    })
    .await;
    assert_eq!(service.try_consume("new_1", "api", 1).await.status, 200);
}

#[tokio::test]
async fn a_request_is_answered_within_the_time_that_its_caller_asks_for() {
    let world =
        World::with(|config: &mut Config| config.request_timeout = Duration::from_mins(5)).await;
    let service = world.instance().await;
    assert_eq!(service.try_consume("org_1", "api", 1).await.status, 200);
    let postgres = world.postgres().await;
    let answer = locked(&postgres, async {
        let body = json!({"organizationId": "org_new"});
        let headers = [("prefer", "return=minimal, wait=1")];
        let method = reqwest::Method::POST;
        service
            .http
            .send(method, "/v1/consume", &headers, Some(body))
            .await
    })
    .await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (504, "deadline_exceeded"),
        "{}",
        answer.text
    );
    // A caller cannot ask for more, and nonsense is ignored.
    for prefer in ["wait=999999999", "wait=soon", "wait"] {
        let answer = service
            .http
            .send(
                reqwest::Method::GET,
                "/v1/history",
                &[("prefer", prefer)],
                None,
            )
            .await;
        assert_eq!(answer.status, 200, "{prefer}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_stop_first_tells_load_balancers_and_clients_and_serves_them_meanwhile() {
    let world = World::new().await;
    let drain = [("TALLYMAN_DRAIN_SECONDS", "3600")];
    let mut process = Process::serve(&world, world.servers(), &drain).await;
    let ready = process.http.get("/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text);
    assert!(!ready.headers.contains_key("connection"));
    process.terminate();
    process.line(|line| line.contains("draining")).await;
    let ready = process.http.get("/readyz").await;
    assert_eq!(
        (ready.status.as_u16(), ready.header("connection")),
        (503, "close")
    );
    assert_eq!(ready.body["status"], "draining");
    let body = json!({"organizationId": "org_1"});
    let counted = process.http.post("/v1/consume", body).await;
    assert_eq!(
        (counted.status.as_u16(), counted.header("connection")),
        (200, "close")
    );
    // The second signal ends it at once.
    assert_eq!(process.stop().await.0, Some(130));
}

#[tokio::test]
async fn servers_that_hang_do_not_stretch_a_stop_beyond_its_setting() {
    let world = World::new().await;
    let (servers, socket) = world.cuttable_postgres();
    let shutdown = [("TALLYMAN_SHUTDOWN_SECONDS", "1")];
    let process = Process::serve(&world, servers, &shutdown).await;
    let body = json!({"organizationId": "org_1"});
    assert_eq!(
        process.http.post("/v1/consume", body.clone()).await.status,
        200
    );
    world.signal_redis("STOP");
    let _frozen = socket.freeze(&world.postgres().await).await;
    let http = process.http.clone();
    let started = Instant::now();
    let (stopped, _) = tokio::join!(process.stop(), http.try_post("/v1/consume", body));
    world.signal_redis("CONT");
    assert_eq!(stopped.0, Some(0), "{:#?}", stopped.1);
    // A second each for the call, the flush and the connections; without these limits 20.
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}
