//! Interrupted changes: Redis is out of memory, or the process dies between the commit and the write to Redis.

use chrono::Duration;
use reqwest::Method;
use serde_json::{Value, json};
use tallyman::domain::schedule::Activity;
use tallyman::postgres::organizations::{self, Changed};
use tallyman::postgres::{Actor, Postgres, Uncommitted, deletions};
use tallyman::redis::Redis;

use crate::support::{Answer, Instance, World, instant, redis_settings};

/// Units counted in the old incarnation of each organization.
const OLD_COUNT: u64 = 512;

async fn set_maxmemory(world: &World, maxmemory: &str) {
    let set: String = world
        .redis_command(&["CONFIG", "SET", "maxmemory", maxmemory])
        .await;
    assert_eq!(set, "OK");
}

fn actor() -> Actor {
    Actor {
        name: "key:dead".to_owned(),
        request_id: String::new(),
    }
}

/// A process that fences and commits changes, and dies before it writes them to Redis.
struct DyingProcess {
    redis: Redis,
    postgres: Postgres,
}

impl DyingProcess {
    fn new(world: &World) -> Self {
        Self {
            redis: Redis::new(redis_settings(world), world.clock.clone(), world.metrics()).unwrap(),
            postgres: Postgres::new(&world.database_url, 1).unwrap(),
        }
    }

    async fn fence(&self, organization: &str, version: u64) {
        let connection = self.redis.connection().await.unwrap();
        let id = organization.parse().unwrap();
        connection.fence(&id, version).await.unwrap();
    }

    /// Deletes an organization up to, but without, the commit.
    async fn prepare(&self, world: &World, organization: &str) -> Uncommitted<deletions::Deleted> {
        let (id, now) = (organization.parse().unwrap(), world.clock.now());
        let late_bound = now - Duration::days(3);
        let check = |_: &_| Ok::<(), ()>(());
        let prepared =
            deletions::delete(&self.postgres, &id, &actor(), late_bound, now, now, check).await;
        let prepared = prepared.unwrap().unwrap();
        self.fence(organization, prepared.version).await;
        prepared
    }

    async fn delete(&self, world: &World, organization: &str) {
        let prepared = self.prepare(world, organization).await;
        prepared.commit().await.unwrap();
    }
}

/// The organizations with a fence.
async fn fences(world: &World) -> Vec<String> {
    let mut fences: Vec<String> = world.redis_command(&["HKEYS", "tm:{00}:fences"]).await;
    fences.sort();
    fences
}

async fn send(service: &Instance, method: Method, path: &str, body: Option<Value>) -> Answer {
    service.http.send(method, path, &[], body).await
}

/// Every kind of change of `org_1` that is written to Redis.
fn changes() -> Vec<(Method, &'static str, Option<Value>)> {
    let (put, patch, post) = (Method::PUT, Method::PATCH, Method::POST);
    let limits =
        json!({"tokens": {"limit": 5, "temporary": {"limit": 9, "until": "2031-03-20T00:00:00Z"}}});
    let plugin = json!({"organizationId": "org_1", "apiLimit": 700, "resetPeriod": "weekly"});
    let adjust = json!({"amount": -1, "reason": "a test"});
    vec![
        (
            patch.clone(),
            "/v1/organizations/org_1/limits",
            Some(limits),
        ),
        (
            patch,
            "/v1/organizations/org_1",
            Some(json!({"metadata": {"a": 1}})),
        ),
        (
            put,
            "/v1/organizations/org_1",
            Some(json!({"resetPeriod": "daily"})),
        ),
        (post.clone(), "/v1/organizations/org_1/adjust", Some(adjust)),
        (
            post.clone(),
            "/v1/organizations/org_1/reset",
            Some(json!({})),
        ),
        (
            post.clone(),
            "/api/auth/usage-tracking/reset",
            Some(json!({"organizationId": "org_1", "resetApi": true})),
        ),
        (post, "/api/auth/usage-tracking/update-limits", Some(plugin)),
        (Method::DELETE, "/v1/organizations/org_1", None),
    ]
}

#[tokio::test]
async fn where_redis_is_full_no_change_is_committed() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", 5).await;
    service.flush().await;
    let entries = async || -> usize {
        let audit = service.http.get("/v1/audit?organizationId=org_1").await;
        audit.body["data"].as_array().unwrap().len()
    };
    set_maxmemory(&world, "1").await;
    for (method, path, body) in changes() {
        let answer = send(&service, method.clone(), path, body).await;
        assert_eq!(answer.status, 503, "{method} {path} {}", answer.text);
        assert_eq!(entries().await, 0, "{method} {path}");
    }
    set_maxmemory(&world, "0").await;
    assert_eq!(service.track("org_1", 1).await, 6);
    for (done, (method, path, body)) in changes().into_iter().enumerate() {
        let answer = send(&service, method.clone(), path, body).await;
        assert_eq!(answer.status, 200, "{method} {path} {}", answer.text);
        assert_eq!(entries().await, done + 1, "{method} {path}");
        assert_eq!(fences(&world).await, Vec::<String>::new());
    }
}

/// The trigger delays the commit until Redis is out of memory.
#[tokio::test]
async fn a_deletion_that_redis_missed_does_not_erase_later_counts() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", OLD_COUNT).await;
    service.app.policies.sweep_once().await.unwrap();
    let postgres = world.postgres().await;
    sqlx::raw_sql(
        "create function wait_here() returns trigger language plpgsql as
             $$ begin perform pg_advisory_xact_lock(1); return null; end $$;
         create constraint trigger wait_here after insert on audit_log
             deferrable initially deferred for each row execute function wait_here()",
    )
    .execute(&postgres)
    .await
    .unwrap();
    let mut lock = postgres.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(1)")
        .execute(&mut *lock)
        .await
        .unwrap();
    let http = service.http.clone();
    let deleting = tokio::spawn(async move { http.delete("/v1/organizations/org_1").await });
    crate::support::until_lock_wait(&postgres).await;
    set_maxmemory(&world, "1").await;
    lock.rollback().await.unwrap();
    let deleted = deleting.await.unwrap();
    assert_eq!(
        (deleted.status.as_u16(), deleted.code()),
        (503, "counter_store_unavailable")
    );
    // A retry does not succeed either.
    let repeated = service.http.delete("/v1/organizations/org_1").await;
    assert_eq!(repeated.status, 503);

    set_maxmemory(&world, "0").await;
    let repeated = service.http.delete("/v1/organizations/org_1").await;
    assert_eq!(repeated.status, 404);
    assert_eq!(service.track("org_1", 7).await, 7);
    service.app.policies.sweep_once().await.unwrap();
    service.flush().await;
    assert_eq!(service.current("org_1", "api").await, 7);
}

/// Every call that can detect the interrupted deletion, with its status in the new incarnation.
fn next_calls() -> Vec<(Method, &'static str, Option<Value>, u16)> {
    let (get, post) = (Method::GET, Method::POST);
    let call = || Some(json!({"organizationId": "ID", "amount": 7}));
    let batch = json!({"items": [{"op": "consume", "organizationId": "ID", "amount": 7}]});
    let adjust = json!({"amount": 7, "reason": "a test"});
    vec![
        (post.clone(), "/v1/track", call(), 200),
        (post.clone(), "/v1/consume", call(), 200),
        (post.clone(), "/v1/check", call(), 200),
        (post.clone(), "/v1/refund", call(), 200),
        (post.clone(), "/v1/batch", Some(batch), 200),
        (get.clone(), "/v1/organizations/ID", None, 404),
        (get.clone(), "/v1/organizations/ID/usage", None, 404),
        (get.clone(), "/v1/organizations/ID/limits", None, 404),
        (get.clone(), "/v1/organizations/ID/features/sso", None, 404),
        (get.clone(), "/v1/organizations/ID/history", None, 404),
        (Method::PUT, "/v1/organizations/ID", Some(json!({})), 200),
        (Method::PATCH, "/v1/organizations/ID", Some(json!({})), 404),
        (
            Method::PATCH,
            "/v1/organizations/ID/limits",
            Some(json!({})),
            404,
        ),
        (Method::DELETE, "/v1/organizations/ID", None, 404),
        (
            post.clone(),
            "/v1/organizations/ID/reset",
            Some(json!({})),
            404,
        ),
        (
            post.clone(),
            "/v1/organizations/ID/adjust",
            Some(adjust),
            404,
        ),
        (
            get.clone(),
            "/api/auth/usage-tracking/get-usage?organizationId=ID",
            None,
            404,
        ),
        (
            post.clone(),
            "/api/auth/usage-tracking/reset",
            Some(json!({"organizationId": "ID", "resetApi": true})),
            404,
        ),
        (
            post,
            "/api/auth/usage-tracking/update-limits",
            Some(json!({"organizationId": "ID", "apiLimit": 700})),
            200,
        ),
    ]
}

#[tokio::test]
async fn the_next_call_finishes_a_deletion_whose_process_died() {
    let world = World::new().await;
    let (service, other) = (world.instance().await, world.instance().await);
    let process = DyingProcess::new(&world);
    for (number, (method, path, body, status)) in next_calls().into_iter().enumerate() {
        let id = format!("org_{number}");
        // Both instances have the organization cached.
        service.track(&id, OLD_COUNT - 1).await;
        other.track(&id, 1).await;
        if number % 2 == 0 {
            service.flush().await;
        }
        process.delete(&world, &id).await;
        let body =
            body.map(|body| serde_json::from_str(&body.to_string().replace("ID", &id)).unwrap());
        let path = path.replace("ID", &id);
        let answer = send(&service, method.clone(), &path, body.clone()).await;
        assert_eq!(answer.status, status, "{method} {path} {}", answer.text);
        assert!(
            !answer.text.contains("51"),
            "{method} {path} {}",
            answer.text
        );
        let counted: u64 = match path.as_str() {
            "/v1/track" | "/v1/consume" | "/v1/batch" => 7,
            _ => 0,
        };
        assert_eq!(other.track(&id, 5).await, counted + 5, "{method} {path}");
        service.app.policies.sweep_once().await.unwrap();
        service.flush().await;
        assert_eq!(other.current(&id, "api").await, counted + 5, "{path}");
        assert_eq!(fences(&world).await, Vec::<String>::new(), "{path}");
    }
}

#[tokio::test]
async fn a_sweep_finishes_interrupted_changes_of_idle_organizations() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", OLD_COUNT).await;
    DyingProcess::new(&world).delete(&world, "org_1").await;
    service.app.policies.sweep_once().await.unwrap();
    assert_eq!(fences(&world).await, Vec::<String>::new());
    assert_eq!(service.track("org_1", 7).await, 7);
}

#[tokio::test]
async fn a_change_that_was_never_committed_removes_nothing() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", OLD_COUNT).await;
    let process = DyingProcess::new(&world);
    drop(process.prepare(&world, "org_1").await);
    assert_eq!(fences(&world).await, ["org_1"]);
    assert_eq!(service.track("org_1", 7).await, OLD_COUNT + 7);
    assert_eq!(fences(&world).await, Vec::<String>::new());
}

/// Until the commit, the incarnation of a call is undecided.
#[tokio::test]
async fn a_call_waits_for_a_deletion_that_is_being_committed() {
    let world = World::new().await;
    let service = world.instance().await;
    service.track("org_1", OLD_COUNT).await;
    let prepared = DyingProcess::new(&world).prepare(&world, "org_1").await;
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let http = service.http.clone();
            let body = json!({"organizationId": "org_1", "amount": 1});
            tokio::spawn(async move { http.post("/v1/track", body).await })
        })
        .collect();
    // Other organizations are not blocked.
    assert_eq!(service.track("org_2", 3).await, 3);
    crate::support::until_lock_wait(&world.postgres().await).await;
    prepared.commit().await.unwrap();
    let mut counts = Vec::new();
    for call in calls {
        let answer = call.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text);
        counts.push(answer.body["current"].as_u64().unwrap());
    }
    counts.sort_unstable();
    assert_eq!(counts, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn without_postgres_a_fenced_organization_is_503_and_all_others_are_served() {
    let world = World::new().await;
    let (servers, socket) = world.cuttable_postgres();
    let service = world.instance_with(servers).await;
    service.track("org_1", OLD_COUNT).await;
    service.track("org_2", 1).await;
    DyingProcess::new(&world).delete(&world, "org_1").await;
    socket.cut(&world.postgres().await).await;
    let body = json!({"organizationId": "org_1"});
    let answer = service.http.post("/v1/track", body).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (503, "database_unavailable")
    );
    assert_eq!(service.track("org_2", 1).await, 2);
    socket.restore().await;
    assert_eq!(service.track("org_1", 7).await, 7);
}

/// The period that was running at the change continues; the old calendar would have started another one.
#[tokio::test]
async fn a_call_after_a_change_of_calendar_that_redis_missed_counts_in_the_new_period() {
    let world = World::with(|config| {
        config.defaults.calendar.reset_period = "hourly".parse().unwrap();
    })
    .await;
    let service = world.instance().await;
    world.move_to("2031-03-15T12:59:59Z");
    service.track("org_1", 5).await;
    let process = DyingProcess::new(&world);
    let (id, now) = ("org_1".parse().unwrap(), world.clock.now());
    let actor = actor();
    let prepared = organizations::prepare(&process.postgres, &id, &actor, "test", now, |before| {
        let mut after = before.organization.clone().unwrap_or_default();
        after.settings.reset_period = Some("daily".parse().unwrap());
        after.timeline = before
            .rescheduled(&after.settings, now, Activity::Running)
            .unwrap();
        Ok::<_, ()>(after)
    });
    let prepared: Uncommitted<Changed> = prepared.await.unwrap().unwrap();
    process.fence("org_1", prepared.version).await;
    prepared.commit().await.unwrap();

    world.move_to("2031-03-15T13:00:01Z");
    assert_eq!(service.track("org_1", 7).await, 12);
    let meter = service.meter("org_1", "api").await;
    assert_eq!(
        instant(meter["periodStart"].as_str().unwrap()),
        instant("2031-03-15T12:00:00Z")
    );
}

#[tokio::test]
async fn the_fence_of_a_later_change_outlives_the_end_of_an_earlier_one() {
    let world = World::new().await;
    let process = DyingProcess::new(&world);
    let connection = process.redis.connection().await.unwrap();
    let id = "org_1".parse().unwrap();
    process.fence("org_1", 64).await;
    process.fence("org_1", 128).await;
    connection.unfence(&id, 64).await.unwrap();
    assert_eq!(connection.fence_of(&id).await.unwrap(), Some(128));
    connection.unfence(&id, 128).await.unwrap();
    assert_eq!(fences(&world).await, Vec::<String>::new());
}

/// Flushes Redis' script cache continuously.
#[tokio::test]
async fn flushed_scripts_fail_no_call() {
    let world = World::new().await;
    let service = world.instance().await;
    let flushing = async {
        for _ in 0..1_000_000 {
            let () = world.redis_command(&["SCRIPT", "FLUSH"]).await;
        }
    };
    let calling = async {
        for number in 0..10 {
            let id = format!("org_{}", number % 5);
            service.track(&id, 1).await;
            for (method, path, body) in changes() {
                let answer = send(&service, method, &path.replace("org_1", &id), body).await;
                assert!(
                    [200, 404].contains(&answer.status.as_u16()),
                    "{}",
                    answer.text
                );
            }
            service.flush().await;
            service.app.policies.sweep_once().await.unwrap();
            service.app.state.auth.sweep_once().await.unwrap();
            service.app.garbage_collector.collect_once().await.unwrap();
        }
    };
    tokio::select! {
        () = flushing => panic!("the calls took too long"),
        () = calling => {}
    }
}
