//! Garbage collection in Redis: what is removed, and what must stay.

use chrono::Duration;
use serde_json::json;
use tallyman::clock::Clock;
use tallyman::redis::{Collected, Redis};

use crate::support::{Instance, World, assert_stored, counter_key, instant, redis_settings, shard};

const PERIOD: &str = "2031-03-01T00:00:00Z";
/// After the period's end: 48 hours for late events, and a day of margin for wrong clocks.
const OUT_OF_REACH: &str = "2031-04-04T00:00:00Z";

impl Instance {
    async fn collect_garbage(&self) -> Collected {
        self.app.garbage_collector.collect_once().await.unwrap()
    }
}

const ONE_COUNTER: Collected = Collected {
    counters: 1,
    organizations: 0,
};

async fn exists(world: &World, organization: &str) -> bool {
    let key = counter_key(organization, instant(PERIOD));
    world.redis_command(&["EXISTS", &key]).await
}

#[tokio::test]
async fn only_a_stored_counter_is_collected_and_only_after_its_last_late_event() {
    let world = World::new().await;
    let service = world.instance().await;
    let flusher = &service.app.flusher;
    service.count("org_1", "api", 5).await;
    service.count("org_2", "api", 3).await;
    let mut settled = Vec::new();
    for organization in ["org_1", "org_2"] {
        let batch = flusher.read(&[shard(organization)]).await.unwrap();
        let stored = flusher.store(&batch).await.unwrap();
        settled.push((batch, stored));
    }
    // Redis does not know yet that the other counter is stored.
    let (batch, stored) = &settled[0];
    flusher.settle(batch, stored).await.unwrap();
    world.move_to(OUT_OF_REACH);
    assert_eq!(service.collect_garbage().await, Collected::default());
    world.clock.advance(Duration::milliseconds(1));
    assert_eq!(service.collect_garbage().await, ONE_COUNTER);
    assert!(!exists(&world, "org_1").await);
    assert!(exists(&world, "org_2").await);
    service.flush().await;
    assert_eq!(service.collect_garbage().await, ONE_COUNTER);
    assert_stored(&world, "org_1", 5).await;
    assert_stored(&world, "org_2", 3).await;
}

#[tokio::test]
async fn running_periods_and_periods_without_an_end_are_kept() {
    let world = World::new().await;
    let service = world.instance().await;
    service
        .settings("org_1", json!({"resetMode": "manual"}))
        .await;
    service.count("org_1", "api", 1).await;
    service.count("org_2", "api", 1).await;
    service.flush().await;
    assert_eq!(service.collect_garbage().await, Collected::default());
    world.move_to("2033-01-15T00:00:00Z");
    service.count("org_2", "api", 1).await;
    service.flush().await;
    assert_eq!(service.collect_garbage().await, ONE_COUNTER);
    assert_eq!(service.count("org_1", "api", 1).await, 2);
    assert_eq!(service.count("org_2", "api", 1).await, 2);
}

#[tokio::test]
async fn an_unreadable_counter_stays_and_does_not_block_the_others() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    service.count("org_2", "api", 3).await;
    service.flush().await;
    let unreadable = counter_key("org_2", instant(PERIOD));
    let () = world.redis_command(&["SET", &unreadable, "many"]).await;
    world.move_to("2031-04-05T00:00:00Z");
    assert_eq!(service.collect_garbage().await, ONE_COUNTER);
    assert!(!exists(&world, "org_1").await);
    assert!(exists(&world, "org_2").await);
}

/// A rollback of Redis leaves the old counter behind, and Postgres has a newer generation.
#[tokio::test]
async fn a_counter_of_an_older_generation_is_collected_as_well() {
    let mut world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    service.flush().await;
    let copy = world.copy_redis().await;
    world.restart_redis_from(&copy, &[&service]).await;
    world.move_to("2031-04-05T00:00:00Z");
    assert_eq!(service.collect_garbage().await, ONE_COUNTER);
    assert_stored(&world, "org_1", 5).await;
}

/// An instance with a wrong clock collects counters of running periods; they are restored from Postgres.
#[tokio::test]
async fn a_counter_collected_too_early_does_not_restart_at_zero() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    service.count("org_2", "api", 7).await;
    // So that the data set is older than the counter that starts at the reset.
    world.clock.advance(Duration::minutes(10));
    let reset = service
        .http
        .post("/v1/organizations/org_2/reset", json!({}))
        .await;
    assert_eq!(reset.status, 200, "{}", reset.text);
    service.count("org_2", "api", 3).await;
    service.flush().await;
    let ahead = Clock::manual(world.clock.now() + Duration::days(400));
    let collected = world.instance_at(ahead).await.collect_garbage().await;
    assert_eq!(collected.counters, 3);
    assert_eq!(service.count("org_1", "api", 1).await, 6);
    assert_eq!(service.count("org_2", "api", 1).await, 4);

    // The data set is older than the next period, so that its counters start without Postgres.
    world.move_to("2031-04-01T00:00:00Z");
    service.count("org_1", "api", 9).await;
    service.count("org_2", "api", 8).await;
    service.flush().await;
    let ahead = Clock::manual(world.clock.now() + Duration::days(400));
    let collected = world.instance_at(ahead).await.collect_garbage().await;
    assert_eq!(collected.counters, 5);
    assert_eq!(service.count("org_1", "api", 1).await, 10);
    assert_eq!(service.count("org_2", "api", 1).await, 9);
    // A counter that never existed starts at zero as usual.
    world.move_to("2032-06-01T00:00:00Z");
    assert_eq!(service.count("org_1", "api", 2).await, 2);
}

#[tokio::test]
async fn an_organization_without_counts_is_collected_an_hour_after_its_look_up() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    service.count("org_2", "api", 1).await;
    assert!(world.hash_of("org_1").await.is_some());
    world.clock.advance(Duration::minutes(59));
    assert_eq!(service.collect_garbage().await, Collected::default());
    world.clock.advance(Duration::minutes(2));
    let collected = service.collect_garbage().await;
    assert_eq!((collected.counters, collected.organizations), (0, 1));
    assert_eq!(world.hash_of("org_1").await, None);
    assert!(world.hash_of("org_2").await.is_some());
    // The next call looks it up again.
    assert_eq!(service.count("org_1", "api", 4).await, 4);
    world.clock.advance(Duration::days(1));
    assert_eq!(service.collect_garbage().await, Collected::default());
}

#[tokio::test]
async fn a_collected_organization_releases_its_shared_policy() {
    let world = World::new().await;
    let service = world.instance().await;
    service.settings("org_1", json!({})).await;
    service.limits("org_1", json!({"api": {"limit": 7}})).await;
    let policies = async || -> Vec<String> { world.redis_command(&["KEYS", "*:policies"]).await };
    assert_eq!(policies().await.len(), 1);
    world.clock.advance(Duration::minutes(61));
    assert_eq!(service.collect_garbage().await.organizations, 1);
    assert_eq!(policies().await, [""; 0]);
    service.count("org_1", "api", 7).await;
    let refused = service.try_consume("org_1", "api", 1).await;
    assert_eq!(refused.status, 429, "{}", refused.text);
}

#[tokio::test]
async fn one_instance_collects_for_all() {
    let world = World::new().await;
    let mut leases = Vec::new();
    for _ in 0..3 {
        let counters =
            Redis::new(redis_settings(&world), world.clock.clone(), world.metrics()).unwrap();
        let connection = counters.connection().await.unwrap();
        let [part] = connection.parts()[..] else {
            panic!("one server has all keys")
        };
        leases.push(connection.lease_gc(part, 60_000).await.unwrap());
    }
    assert_eq!(leases, [true, false, false]);
}
