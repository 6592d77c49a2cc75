//! Redis Cluster: every organization is counted by the master of its shard, and nothing that was acknowledged is lost that
//! a replica had.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{StreamExt as _, stream};
use redis::{RedisError, RedisResult};
use serde_json::json;
use tallyman::config::Servers;
use tallyman_servers::{ClusterOptions, RedisCluster, key_slot};
use tempfile::TempDir;

use crate::support::{Answer, Instance, Load, LossyProxy, World, pause, shard, sharded};

/// Enough that each of three masters has some.
const ORGANIZATIONS: usize = 60;

/// A world whose instances use a cluster.
struct Clustered {
    world: World,
    cluster: RedisCluster,
    _dir: TempDir,
}

impl Clustered {
    async fn new(options: ClusterOptions) -> Self {
        Self::waiting_for(0, options).await
    }

    async fn without_replicas() -> Self {
        Self::new(ClusterOptions {
            replicas: 0,
            ..ClusterOptions::default()
        })
        .await
    }

    /// Whatever is acknowledged, so many replicas have.
    async fn waiting_for(replicas: u16, options: ClusterOptions) -> Self {
        let dir = TempDir::new().unwrap();
        let world = World::with(|config| {
            config.redis_wait_replicas = replicas;
            config.defaults.limits.clear();
        });
        let (world, cluster) = tokio::join!(world, RedisCluster::start(dir.path(), &options));
        Self {
            world,
            cluster: cluster.unwrap(),
            _dir: dir,
        }
    }

    async fn instance(&self) -> Instance {
        self.instance_at(self.cluster.url()).await
    }

    async fn instance_at(&self, redis_url: String) -> Instance {
        let servers = Servers {
            redis_url,
            ..self.world.servers()
        };
        self.world.instance_with(servers).await
    }

    /// An instance that acknowledges what so many replicas have.
    async fn instance_waiting_for(&mut self, replicas: u16) -> Instance {
        self.world.config.redis_wait_replicas = replicas;
        self.instance().await
    }

    /// Returns when a node is a master.
    async fn until_master(&self, node: usize) {
        let is_master = async || self.cluster.is_master(node).await.unwrap();
        until("the node is promoted", is_master).await;
    }

    /// The generation of an organization's shard; none before its first call.
    async fn generation_of(&self, organization: &str) -> Option<u64> {
        let master = self.master_of(organization).await;
        let key = sharded(organization, "gen");
        let command = ["HGET", &key, "number"];
        self.cluster.command(master, &command).await.unwrap()
    }

    /// An organization that another master counts.
    async fn organization_elsewhere(&self, organization: &str) -> String {
        let master = self.master_of(organization).await;
        for number in 0.. {
            let name = format!("other_{number}");
            if self.master_of(&name).await != master {
                return name;
            }
        }
        unreachable!("there are three masters")
    }

    /// The master that counts an organization.
    async fn master_of(&self, organization: &str) -> usize {
        let slot = key_slot(&sharded(organization, ""));
        self.cluster.master_of_slot(slot).await.unwrap()
    }
}

/// Returns when it is so.
async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        pause().await;
    }
}

#[tokio::test]
async fn a_cluster_counts_changes_and_stores_the_organizations_of_every_master() {
    let clustered = Clustered::new(ClusterOptions::default()).await;
    let instance = clustered.instance().await;
    let names: Vec<String> = (0..ORGANIZATIONS).map(|it| format!("org_{it}")).collect();
    let mut masters = BTreeSet::new();
    for name in &names {
        masters.insert(clustered.master_of(name).await);
        assert_eq!(instance.count(name, "api", 2).await, 2);
    }
    assert_eq!(masters, BTreeSet::from([0, 1, 2]));
    let items: Vec<_> = names
        .iter()
        .map(|it| json!({"op": "track", "organizationId": it, "meter": "api", "amount": 3}))
        .collect();
    let answer = instance
        .http
        .post("/v1/batch", json!({"items": items}))
        .await;
    assert_eq!(answer.body["failed"], 0, "{}", answer.text);
    let flushed = instance.flush().await;
    assert_eq!(
        (flushed.stored, flushed.clean),
        (ORGANIZATIONS, ORGANIZATIONS)
    );
    instance.limits("org_1", json!({"api": {"limit": 6}})).await;
    let refused = instance.try_consume("org_1", "api", 2).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(instance.try_consume("org_1", "api", 1).await.status, 200);
    let path = "/v1/organizations/org_2";
    let reset = instance
        .http
        .post(&format!("{path}/reset"), json!({}))
        .await;
    assert_eq!(reset.status, 200, "{}", reset.text);
    assert_eq!(instance.count("org_2", "api", 1).await, 1);
    assert_eq!(instance.http.delete(path).await.status, 200);
    assert_eq!(instance.count("org_2", "api", 1).await, 1);
    instance.app.policies.sweep_once().await.unwrap();
    instance.app.garbage_collector.collect_once().await.unwrap();
    for name in names.iter().skip(3) {
        assert_eq!(instance.current(name, "api").await, 5, "{name}");
    }
}

#[tokio::test]
async fn a_killed_master_delays_its_shards_and_loses_nothing_that_its_replica_had() {
    for replicas in [0, 1] {
        let mut clustered = Clustered::waiting_for(replicas, ClusterOptions::default()).await;
        let instance = clustered.instance().await;
        let load = Load::start(&instance, ORGANIZATIONS);
        load.acknowledged(500).await;
        let master = clustered.master_of("org_1").await;
        clustered.cluster.kill(master).await;
        // Those of the other masters go on.
        load.acknowledged(200).await;
        clustered.cluster.wait_until_ok().await.unwrap();
        if replicas == 1 {
            // Otherwise what its shards count is never acknowledged.
            clustered.cluster.restart(master).await.unwrap();
            clustered.cluster.wait_until_ok().await.unwrap();
        }
        instance.until_counts("org_1").await;
        load.acknowledged(500).await;
        let tally = load.stop().await;
        let (lost, _) = tally.lost(&instance).await;
        tally.report(&format!("killed master, WAIT {replicas}"), lost);
        if replicas == 1 {
            assert_eq!(lost, 0, "{tally:?}");
        }
    }
}

/// Detaches a replica from its master for good, so that it has older and older data, which does not keep it from being
/// elected.
async fn detach(cluster: &RedisCluster, master: usize, replica: usize) {
    let () = cluster
        .command(replica, &["CONFIG", "SET", "masterauth", "wrong"])
        .await
        .unwrap();
    let _: u64 = cluster
        .command(master, &["CLIENT", "KILL", "TYPE", "replica"])
        .await
        .unwrap();
}

#[tokio::test]
async fn an_older_replica_that_is_promoted_is_other_data_and_lacks_nothing_that_was_waited_for() {
    for replicas in [0, 1] {
        let mut clustered = Clustered::waiting_for(
            replicas,
            ClusterOptions {
                extra: vec![
                    "--cluster-replica-validity-factor".to_owned(),
                    "0".to_owned(),
                ],
                ..ClusterOptions::default()
            },
        )
        .await;
        let instance = clustered.instance().await;
        let load = Load::start(&instance, ORGANIZATIONS);
        load.acknowledged(500).await;
        let master = clustered.master_of("org_1").await;
        let replica = clustered.cluster.replicas_of(master).await.unwrap()[0];
        detach(&clustered.cluster, master, replica).await;
        load.acknowledged(500).await;
        let mut before = BTreeMap::new();
        for organization in (0..ORGANIZATIONS).map(|it| format!("org_{it}")) {
            let generation = clustered.generation_of(&organization).await;
            before.insert(organization, generation);
        }
        clustered.cluster.kill(master).await;
        clustered.until_master(replica).await;
        // Nobody waits for replicas that it does not have.
        let tally = load.stop().await;
        let without = clustered.instance_waiting_for(0).await;
        let (lost, organizations) = tally.lost(&without).await;
        tally.report(&format!("older replica promoted, WAIT {replicas}"), lost);
        assert_eq!(lost > 0, replicas == 0, "{lost} lost");
        // Each loss was noticed.
        for organization in organizations {
            let generation = clustered.generation_of(&organization).await;
            assert_ne!(
                Some(&generation),
                before.get(&organization),
                "{organization}"
            );
        }
    }
}

#[tokio::test]
async fn a_master_that_is_paused_and_replaced_does_not_go_on_with_what_it_had() {
    for replicas in [0, 1] {
        let mut clustered = Clustered::waiting_for(replicas, ClusterOptions::default()).await;
        let instance = clustered.instance().await;
        let load = Load::start(&instance, ORGANIZATIONS);
        load.acknowledged(300).await;
        let master = clustered.master_of("org_1").await;
        let replica = clustered.cluster.replicas_of(master).await.unwrap()[0];
        clustered.cluster.signal(master, "STOP").await.unwrap();
        clustered.until_master(replica).await;
        clustered.cluster.signal(master, "CONT").await.unwrap();
        clustered.cluster.wait_until_ok().await.unwrap();
        instance.until_counts("org_1").await;
        load.acknowledged(300).await;
        let tally = load.stop().await;
        let (lost, _) = tally.lost(&instance).await;
        tally.report(&format!("paused master replaced, WAIT {replicas}"), lost);
        assert!(replicas == 0 || lost == 0, "{lost} lost");
    }
}

#[tokio::test]
async fn slots_that_are_moved_under_load_take_their_counts_along() {
    let clustered = Clustered::without_replicas().await;
    let instance = clustered.instance().await;
    let load = Load::start(&instance, ORGANIZATIONS);
    load.acknowledged(300).await;
    let slots: BTreeSet<u16> = (0..ORGANIZATIONS)
        .map(|it| key_slot(&sharded(&format!("org_{it}"), "")))
        .collect();
    let used = slots.iter().copied().take(20);
    let unused = (0..u16::MAX).filter(|slot| !slots.contains(slot)).take(380);
    let moves = stream::iter(used.chain(unused)).map(async |slot| {
        let from = clustered.cluster.master_of_slot(slot).await.unwrap();
        let to = (from + 1) % 3;
        let moved = clustered.cluster.migrate_slot(slot, from, to);
        moved.await.unwrap();
    });
    moves.buffer_unordered(8).collect::<()>().await;
    load.acknowledged(300).await;
    let tally = load.stop().await;
    let (lost, _) = tally.lost(&instance).await;
    tally.report("400 slots moved", lost);
    assert_eq!((lost, tally.unknown()), (0, 0));
}

#[tokio::test]
async fn calls_wait_while_a_slot_is_between_two_masters() {
    let clustered = Clustered::without_replicas().await;
    let instance = clustered.instance().await;
    for meter in ["api", "storage"] {
        instance.count("org_1", meter, 2).await;
    }
    let cluster = &clustered.cluster;
    let slot = key_slot(&sharded("org_1", ""));
    let from = cluster.master_of_slot(slot).await.unwrap();
    let migration = cluster.begin_migration(slot, from, (from + 1) % 3).await;
    let migration = migration.unwrap();
    // Some of the keys of a call are here, the others there.
    assert!(cluster.move_keys(migration, 1).await.unwrap() > 0);
    let http = instance.http.clone();
    let call = tokio::spawn(async move {
        let body = json!({"organizationId": "org_1", "meter": "api"});
        http.post("/v1/consume", body).await
    });
    let answer = instance.try_consume("org_1", "storage", 1).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (503, "counter_store_unavailable")
    );
    assert_eq!(call.await.unwrap().status, 503);
    let http = instance.http.clone();
    let call = tokio::spawn(async move {
        let body = json!({"organizationId": "org_1", "meter": "api"});
        http.post("/v1/consume", body).await
    });
    while cluster.move_keys(migration, 100).await.unwrap() > 0 {}
    cluster.end_migration(migration).await.unwrap();
    let answer = call.await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.body["current"]),
        (200, &json!(3))
    );
}

#[tokio::test]
async fn scripts_that_a_master_forgets_are_loaded_again() {
    let clustered = Clustered::without_replicas().await;
    let instance = clustered.instance().await;
    let load = Load::start(&instance, ORGANIZATIONS);
    for _ in 0..20 {
        load.acknowledged(20).await;
        for node in 0..3 {
            let () = clustered
                .cluster
                .command(node, &["SCRIPT", "FLUSH"])
                .await
                .unwrap();
        }
    }
    let tally = load.stop().await;
    assert_eq!(tally.lost(&instance).await.0, 0);
    assert_eq!((tally.refused, tally.unknown()), (0, 0));
}

#[tokio::test]
async fn connections_that_are_cut_again_and_again_lose_and_double_nothing() {
    for replicas in [0, 1] {
        let clustered = Clustered::waiting_for(replicas, ClusterOptions::default()).await;
        let instance = clustered.instance().await;
        let load = Load::start(&instance, ORGANIZATIONS);
        load.acknowledged(100).await;
        for round in 0..30 {
            let kill = ["CLIENT", "KILL", "TYPE", "normal"];
            let _: u64 = clustered.cluster.command(round % 3, &kill).await.unwrap();
            load.acknowledged(10).await;
        }
        let tally = load.stop().await;
        let (lost, _) = tally.lost(&instance).await;
        tally.report(&format!("connections cut, WAIT {replicas}"), lost);
        assert_eq!(lost, 0);
        // With a replica to wait for, an outcome may take longer than a call is repeated.
        assert!(replicas == 1 || tally.unknown() == 0, "{tally:?}");
    }
}

#[tokio::test]
async fn a_cluster_that_is_down_or_lacks_replicas_refuses_at_once_and_recovers() {
    let mut clustered = Clustered::new(ClusterOptions::default()).await;
    let instance = clustered.instance().await;
    instance.count("org_1", "api", 2).await;
    let master = clustered.master_of("org_1").await;
    let cluster = &mut clustered.cluster;
    let needed = ["CONFIG", "SET", "min-replicas-to-write", "1"];
    let () = cluster.command(master, &needed).await.unwrap();
    let replica = cluster.replicas_of(master).await.unwrap()[0];
    cluster.kill(replica).await;
    let refused = |answer: &Answer| {
        (answer.status.as_u16(), answer.code().to_owned())
            == (503, "counter_store_unavailable".to_owned())
    };
    instance.until_refused("org_1").await;
    let answer = instance.try_consume("org_1", "api", 1).await;
    assert!(refused(&answer), "{answer:?}");
    // Without its replica, the slots of a master have nobody: the cluster is down for all.
    cluster.kill(master).await;
    let other = clustered.organization_elsewhere("org_1").await;
    instance.until_refused(&other).await;
    let started = Instant::now();
    let answer = instance.try_consume(&other, "api", 1).await;
    assert!(refused(&answer), "{answer:?}");
    assert!(
        started.elapsed() < Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );
    let cluster = &mut clustered.cluster;
    cluster.restart(master).await.unwrap();
    cluster.restart(replica).await.unwrap();
    cluster.wait_until_ok().await.unwrap();
    instance.until_counts("org_1").await;
    instance.until_counts(&other).await;
}

#[tokio::test]
async fn one_master_that_loses_everything_is_restored_from_the_last_snapshots() {
    let clustered = Clustered::without_replicas().await;
    let instance = clustered.instance().await;
    for number in 0..ORGANIZATIONS {
        instance.count(&format!("org_{number}"), "api", 2).await;
    }
    instance.flush().await;
    let master = clustered.master_of("org_1").await;
    let cluster = &clustered.cluster;
    let () = cluster.command(master, &["FLUSHALL"]).await.unwrap();
    for number in 0..ORGANIZATIONS {
        let name = format!("org_{number}");
        assert_eq!(
            instance.count(&name, "api", 1).await,
            3,
            "{:?}",
            shard(&name)
        );
    }
}

#[tokio::test]
async fn a_reply_that_is_lost_on_the_way_is_asked_for_again_of_the_same_master() {
    let clustered = Clustered::without_replicas().await;
    let cluster = &clustered.cluster;
    let master = clustered.master_of("org_1").await;
    let others = (0..3).filter(|it| *it != master);
    let announced = others.map(|node| LossyProxy::announced(cluster, node));
    let _others = join_all(announced).await;
    let proxy = LossyProxy::announced(cluster, master).await;
    let instance = clustered.instance_at(proxy.cluster_url(cluster)).await;
    assert_eq!(instance.count("org_1", "api", 1).await, 1);
    for round in 1..=20 {
        proxy.lose_one_reply();
        assert_eq!(instance.count("org_1", "api", 1).await, 2 * round);
        assert_eq!(instance.count("org_1", "api", 1).await, 2 * round + 1);
    }
}

#[tokio::test]
async fn load_through_proxies_that_lose_requests_and_replies_is_counted_exactly() {
    let clustered = Clustered::without_replicas().await;
    let cluster = &clustered.cluster;
    let proxies = (0..3).map(|node| LossyProxy::announced(cluster, node));
    let proxies = join_all(proxies).await;
    let instance = clustered.instance_at(proxies[0].cluster_url(cluster)).await;
    let load = Load::start(&instance, ORGANIZATIONS);
    load.acknowledged(100).await;
    for proxy in &proxies {
        proxy.lose_every(50);
    }
    load.acknowledged(500).await;
    for proxy in &proxies {
        proxy.lose_every(0);
    }
    let tally = load.stop().await;
    let (lost, _) = tally.lost(&instance).await;
    tally.report("replies and requests lost", lost);
    assert_eq!(lost, 0, "{tally:?}");
}

/// As behind the one address of a managed service: a replica takes the place of its master, and the address leads there,
/// while connections that are open stay with the old master.
#[tokio::test]
async fn a_master_that_redirects_to_its_own_address_is_connected_to_again() {
    let clustered = Clustered::new(ClusterOptions {
        masters: 1,
        ..ClusterOptions::default()
    })
    .await;
    let cluster = &clustered.cluster;
    let proxy = LossyProxy::announced(cluster, 0).await;
    proxy.announce(cluster, 1).await;
    let instance = clustered.instance_at(proxy.cluster_url(cluster)).await;
    let load = Load::start(&instance, ORGANIZATIONS);
    load.acknowledged(300).await;
    // The replica, too, connects to where its master says that it is.
    let (address, link_up) = (
        format!("127.0.0.1:{}@", proxy.port()),
        "master_link_status:up",
    );
    until("both nodes know the address", async || {
        let views = [0, 1].map(|node| cluster.command::<String>(node, &["CLUSTER", "NODES"]));
        let knows = |view: RedisResult<String>| {
            let view = view.unwrap();
            view.matches(&address).count() == 2 && !view.contains("disconnected")
        };
        let link: String = cluster.command(1, &["INFO", "replication"]).await.unwrap();
        join_all(views).await.into_iter().all(knows) && link.contains(link_up)
    })
    .await;
    proxy.connect_to_node(cluster, 1);
    let () = cluster.command(1, &["CLUSTER", "FAILOVER"]).await.unwrap();
    let key = sharded("org_1", "");
    until(
        "the old master redirects to the address of both",
        async || {
            let reply: RedisResult<()> = cluster.command(0, &["GET", &key]).await;
            let error = reply.err();
            let redirection = error.as_ref().and_then(RedisError::redirect_node);
            redirection.is_some_and(|(to, _)| address.starts_with(to))
        },
    )
    .await;
    load.acknowledged(300).await;
    let tally = load.stop().await;
    let (lost, _) = tally.lost(&instance).await;
    tally.report("redirected to the same address", lost);
    assert_eq!(lost, 0, "{tally:?}");
}
