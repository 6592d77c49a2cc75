//! Pooled connections to Redis: none is used unexamined, and a flush over them survives a replaced server.

use std::sync::Arc;

use tallyman::redis::{Redis, Settings};

use crate::support::{Forgetful, World, assert_stored, settings_of, shard, sharded};

/// A handle on Redis through a path that may lead to another server.
fn redis_through(path: &Forgetful, world: &World) -> Redis {
    let settings = Settings {
        url: path.servers(world).redis_url,
        ..settings_of(world)
    };
    Redis::new(settings, world.clock.clone(), world.metrics()).unwrap()
}

#[tokio::test]
async fn a_pooled_connection_to_another_process_replaces_the_fenced_one_first() {
    let (world, other) = (World::new().await, World::new().await);
    let path = Forgetful::new(&world);
    let redis = redis_through(&path, &world);
    let fenced = redis.connection().await.unwrap();
    path.lead_to(&other);
    let pooled = redis.pooled().await.unwrap();
    let run: Option<String> = other
        .redis_command(&["HGET", &sharded("org_1", "gen"), "run"])
        .await;
    let info: String = other.redis_command(&["INFO", "server"]).await;
    let run = run.expect("the data sets of the other process are identified");
    assert!(info.contains(&run), "{run} {info}");
    let replaced = redis.connection().await.unwrap();
    assert!(!Arc::ptr_eq(&fenced, &replaced));
    replaced.set_applied(7).await.unwrap();
    assert_eq!(pooled.applied().await.unwrap(), 7);
}

#[tokio::test]
async fn a_pooled_connection_is_not_reused_after_the_fenced_one_was_replaced() {
    let (world, other) = (World::new().await, World::new().await);
    let path = Forgetful::new(&world);
    let redis = redis_through(&path, &world);
    let fenced = redis.connection().await.unwrap();
    drop(redis.pooled().await.unwrap());
    path.lead_to(&other);
    path.lose_one_reply();
    fenced.applied().await.unwrap_err();
    let replaced = redis.connection().await.unwrap();
    replaced.set_applied(7).await.unwrap();
    let pooled = redis.pooled().await.unwrap();
    assert_eq!(pooled.applied().await.unwrap(), 7);
}

#[tokio::test]
async fn every_pooled_connection_is_examined() {
    let world = World::new().await;
    let redis = Redis::new(settings_of(&world), world.clock.clone(), world.metrics()).unwrap();
    redis.connection().await.unwrap();
    let () = world
        .redis_command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"])
        .await;
    let refused = redis.pooled().await.err().unwrap().to_string();
    assert!(refused.contains("noeviction"), "{refused}");
}

#[tokio::test]
async fn a_flush_settles_nothing_of_the_data_set_that_replaced_the_one_it_read() {
    let mut world = World::new().await;
    let instance = world.instance().await;
    let flusher = &instance.app.flusher;
    let before = world.copy_redis().await;
    for _ in 0..3 {
        instance.count("org_1", "api", 1).await;
    }
    let batch = flusher.read(&[shard("org_1")]).await.unwrap();
    world.restart_redis_from(&before, &[&instance]).await;
    for _ in 0..3 {
        instance.count("org_1", "api", 2).await;
    }
    let start = "2031-03-01T00:00:00Z";
    let counter = world.held_of("org_1", "api", start).await;
    // So that only the generation distinguishes them.
    let sequence = batch.snapshots[0].sequence.to_string();
    assert_eq!(counter["sequence"], sequence);
    let stored = flusher.store(&batch).await.unwrap();
    assert_eq!(stored, [false]);
    assert_eq!(flusher.settle(&batch, &stored).await.unwrap(), 0);
    // Not even if Postgres had stored it.
    assert_eq!(flusher.settle(&batch, &[true]).await.unwrap(), 0);
    assert_eq!(world.held_of("org_1", "api", start).await, counter);
    assert_eq!(instance.flush().await.clean, 1);
    assert_stored(&world, "org_1", 6).await;
}
