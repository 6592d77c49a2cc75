//! Pooled connections to Redis: each is examined before its use, and a flush over them survives a replaced server.

use std::sync::Arc;

use tallyman::redis::{Connection, Pooled, Redis, Settings};

use crate::support::{LossyProxy, World, assert_stored, redis_settings, shard, sharded};

/// Redis behind a proxy that may connect to another server.
fn redis_through(proxy: &LossyProxy, world: &World) -> Redis {
    let settings = Settings {
        url: proxy.servers(world).redis_url,
        ..redis_settings(world)
    };
    Redis::new(settings, world.clock.clone(), world.metrics()).unwrap()
}

/// Whether both lead to the same server.
async fn assert_leads_there(fenced: &Connection, pooled: &Pooled) {
    fenced.fence(&"org_1".parse().unwrap(), 7).await.unwrap();
    assert_eq!(pooled.fenced().await.unwrap(), ["org_1".parse().unwrap()]);
}

#[tokio::test]
async fn a_pooled_connection_to_another_process_replaces_the_fenced_one_first() {
    let (world, other) = (World::new().await, World::new().await);
    let proxy = LossyProxy::new(&world).await;
    let redis = redis_through(&proxy, &world);
    let fenced = redis.connection().await.unwrap();
    proxy.connect_to(&other);
    let pooled = redis.pooled().await.unwrap();
    let identity: Option<String> = other
        .redis_command(&["HGET", &sharded("org_1", "gen"), "identity"])
        .await;
    let info: String = other.redis_command(&["INFO", "server"]).await;
    let identity = identity.expect("the data sets of the other process are identified");
    let (run, _) = identity.split_once('/').unwrap();
    assert!(info.contains(run), "{run} {info}");
    let replaced = redis.connection().await.unwrap();
    assert!(!Arc::ptr_eq(&fenced, &replaced));
    assert_leads_there(&replaced, &pooled).await;
}

#[tokio::test]
async fn a_pooled_connection_is_not_reused_after_the_fenced_one_was_replaced() {
    let (world, other) = (World::new().await, World::new().await);
    let proxy = LossyProxy::new(&world).await;
    let redis = redis_through(&proxy, &world);
    let fenced = redis.connection().await.unwrap();
    drop(redis.pooled().await.unwrap());
    proxy.connect_to(&other);
    proxy.lose_one_reply();
    fenced.watermarks().await.unwrap_err();
    let replaced = redis.connection().await.unwrap();
    let pooled = redis.pooled().await.unwrap();
    assert_leads_there(&replaced, &pooled).await;
}

#[tokio::test]
async fn every_pooled_connection_is_examined() {
    let world = World::new().await;
    let redis = Redis::new(redis_settings(&world), world.clock.clone(), world.metrics()).unwrap();
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
    let counter = world.snapshot_of("org_1", "api", start).await;
    // The sequence numbers are equal, so that only the generation differs.
    let sequence = batch.snapshots[0].sequence.to_string();
    assert_eq!(counter["sequence"], sequence);
    let stored = flusher.store(&batch).await.unwrap();
    assert_eq!(stored, [false]);
    assert_eq!(flusher.settle(&batch, &stored).await.unwrap(), 0);
    // The generation also protects the counter if Postgres had stored the batch.
    assert_eq!(flusher.settle(&batch, &[true]).await.unwrap(), 0);
    assert_eq!(world.snapshot_of("org_1", "api", start).await, counter);
    assert_eq!(instance.flush().await.clean, 1);
    assert_stored(&world, "org_1", 6).await;
}
