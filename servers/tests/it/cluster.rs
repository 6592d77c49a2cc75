//! A cluster forms, fails over, and moves slots.

use redis::RedisResult;
use tallyman_servers::{ClusterOptions, RedisCluster, SLOTS, key_slot};
use tempfile::TempDir;

use crate::in_workspace;

const KEY: &str = "{a7}:0";

#[tokio::test]
async fn a_cluster_has_its_slots_and_replicas_in_order_and_requires_its_password() {
    let (cluster, _dir) = cluster().await;
    for (slot, master) in [(0, 0), (SLOTS / 2, 1), (SLOTS - 1, 2)] {
        assert_eq!(cluster.master_of_slot(slot).await.unwrap(), master);
    }
    for master in 0..3 {
        assert!(cluster.is_master(master).await.unwrap());
        assert!(!cluster.is_master(master + 3).await.unwrap());
        let replicas = cluster.replicas_of(master).await.unwrap();
        assert_eq!(replicas, [master + 3]);
    }
    let ports = cluster.nodes().into_iter().map(|node| node.port);
    let addresses: Vec<String> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
    let expected = format!("@{}?cluster=true", addresses.join(","));
    assert!(cluster.url().ends_with(&expected), "{}", cluster.url());

    let url = format!("redis://{}", addresses[0]);
    let stranger = redis::Client::open(url).unwrap();
    let mut stranger = stranger.get_multiplexed_async_connection().await.unwrap();
    let reply: RedisResult<()> = redis::cmd("PING").query_async(&mut stranger).await;
    assert_eq!(reply.unwrap_err().code(), Some("NOAUTH"));
}

#[tokio::test]
async fn a_killed_master_is_replaced_and_comes_back_as_a_replica() {
    let (mut cluster, _dir) = cluster().await;
    let master = cluster.master_of_slot(key_slot(KEY)).await.unwrap();
    let [replica] = cluster.replicas_of(master).await.unwrap()[..] else {
        panic!("it has another number of replicas");
    };
    let port = cluster.nodes()[master].port;
    cluster.kill(master).await;
    assert_eq!(cluster.nodes()[master].pid, None);

    cluster.wait_until_ok().await.unwrap();
    let new = cluster.master_of_slot(key_slot(KEY)).await.unwrap();
    assert_eq!(new, replica);
    let () = cluster.command(new, &["SET", KEY, "1"]).await.unwrap();

    cluster.restart(master).await.unwrap();
    cluster.wait_until_ok().await.unwrap();
    assert_eq!(cluster.nodes()[master].port, port);
    assert!(!cluster.is_master(master).await.unwrap());
    assert_eq!(cluster.replicas_of(new).await.unwrap(), [master]);
}

#[tokio::test]
async fn a_paused_master_is_replaced_and_follows_when_it_continues() {
    let (mut cluster, _dir) = cluster().await;
    cluster.signal(0, "STOP").await.unwrap();
    cluster.wait_until_ok().await.unwrap();
    assert_eq!(cluster.master_of_slot(0).await.unwrap(), 3);
    cluster.signal(0, "CONT").await.unwrap();
    cluster.wait_until_ok().await.unwrap();
    assert_eq!(cluster.replicas_of(3).await.unwrap(), [0]);
}

#[tokio::test]
async fn a_slot_moves_with_its_keys() {
    let (cluster, _dir) = cluster().await;
    let slot = key_slot(KEY);
    let from = cluster.master_of_slot(slot).await.unwrap();
    let to = (from + 1) % 3;
    // More than one batch of a migration.
    let mut pipeline = redis::pipe();
    for number in 0..250 {
        pipeline.set(format!("{{a7}}:{number}"), number).ignore();
    }
    let mut connection = cluster.connection(from).await.unwrap();
    let () = pipeline.query_async(&mut connection).await.unwrap();

    cluster.migrate_slot(slot, from, to).await.unwrap();
    cluster.wait_until_ok().await.unwrap();
    assert_eq!(cluster.master_of_slot(slot).await.unwrap(), to);
    let value: u32 = cluster.command(to, &["GET", "{a7}:249"]).await.unwrap();
    assert_eq!(value, 249);
    let count = ["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()];
    let count: u32 = cluster.command(to, &count).await.unwrap();
    assert_eq!(count, 250);
    for other in [from, 3 - from - to] {
        assert_eq!(refusal(&cluster, other, &["GET", KEY]).await, "MOVED");
    }
}

#[tokio::test]
async fn a_migration_that_stops_half_way_redirects_and_can_be_ended() {
    let (cluster, _dir) = cluster().await;
    let slot = key_slot(KEY);
    let from = cluster.master_of_slot(slot).await.unwrap();
    let to = (from + 1) % 3;
    let (one, other) = ("{a7}:1", "{a7}:2");
    let both = ["MSET", one, "1", other, "2"];
    let () = cluster.command(from, &both).await.unwrap();

    let migration = cluster.begin_migration(slot, from, to).await.unwrap();
    assert_eq!(refusal(&cluster, from, &["GET", KEY]).await, "ASK");
    let moved = cluster.move_these_keys(migration, &[one]).await;
    moved.unwrap();
    assert_eq!(refusal(&cluster, from, &["GET", one]).await, "ASK");
    let both = ["MGET", one, other];
    assert_eq!(refusal(&cluster, from, &both).await, "TRYAGAIN");
    assert!(cluster.end_migration(migration).await.is_err());

    assert_eq!(cluster.move_keys(migration, 1).await.unwrap(), 1);
    assert_eq!(cluster.move_keys(migration, 1).await.unwrap(), 0);
    cluster.end_migration(migration).await.unwrap();
    let values: Vec<u32> = cluster.command(to, &both).await.unwrap();
    assert_eq!(values, [1, 2]);
}

async fn cluster() -> (RedisCluster, TempDir) {
    let dir = TempDir::new().unwrap();
    in_workspace();
    let options = ClusterOptions::default();
    let cluster = RedisCluster::start(dir.path(), &options).await.unwrap();
    (cluster, dir)
}

/// The code of the error that a node replies.
async fn refusal(cluster: &RedisCluster, node: usize, words: &[&str]) -> String {
    let reply: RedisResult<redis::Value> = cluster.command(node, words).await;
    let error = reply.unwrap_err();
    error.code().expect("a reply").to_owned()
}
