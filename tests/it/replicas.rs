//! Masters with replicas: a promotion, and whatever a master lost while it was a replica, is noticed.

use std::net::TcpListener;

use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};
use tallyman::config::Servers;
use tallyman_servers::{RedisOptions, RedisSentinel, RedisServer, SentinelOptions};
use tempfile::TempDir;

use crate::support::{Instance, Load, World, pause};

/// A server that others can replicate, without a sentinel.
struct Replicable {
    server: RedisServer,
    port: String,
    _dir: TempDir,
}

impl Replicable {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        drop(listener);
        let dir = TempDir::new().unwrap();
        let extra = ["--port", &port, "--repl-diskless-sync-delay", "0"];
        let options = RedisOptions {
            append_only: false,
            extra: extra.map(str::to_owned).to_vec(),
        };
        let server = RedisServer::start(dir.path(), &options).await.unwrap();
        Self {
            server,
            port,
            _dir: dir,
        }
    }

    async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.server.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = cmd(words[0]);
        command.arg(&words[1..]);
        command
            .query_async(&mut self.connection().await)
            .await
            .unwrap()
    }

    /// Becomes a replica of another, with the data of that.
    async fn follow(&self, master: &Self) {
        let () = self
            .command(&["REPLICAOF", "127.0.0.1", &master.port])
            .await;
        loop {
            let info: String = self.command(&["INFO", "replication"]).await;
            if info.contains("master_link_status:up") {
                return;
            }
            pause().await;
        }
    }

    async fn promote(&self) {
        let () = self.command(&["REPLICAOF", "NO", "ONE"]).await;
    }

    async fn instance(&self, world: &World) -> Instance {
        let servers = Servers {
            redis_url: self.server.url(),
            ..world.servers()
        };
        world.instance_with(servers).await
    }

    /// Every key with its value.
    async fn dump(&self) -> Vec<(String, Vec<u8>)> {
        let mut connection = self.connection().await;
        let keys: Vec<String> = self.command(&["KEYS", "*"]).await;
        let mut dump = Vec::new();
        for key in keys {
            let value: Value = cmd("DUMP")
                .arg(&key)
                .query_async(&mut connection)
                .await
                .unwrap();
            if let Value::BulkString(value) = value {
                dump.push((key, value));
            }
        }
        dump
    }

    /// Goes back to older data, in one step.
    async fn restore(&self, dump: &[(String, Vec<u8>)]) {
        let mut transaction = redis::pipe();
        transaction.atomic().cmd("FLUSHALL");
        for (key, value) in dump {
            transaction
                .cmd("RESTORE")
                .arg(key)
                .arg(0)
                .arg(value.as_slice());
        }
        let mut connection = self.connection().await;
        let _: Value = transaction.query_async(&mut connection).await.unwrap();
    }
}

/// Counts units as soon as Redis is not just being replaced; returns the count.
async fn count(instance: &Instance, amount: u64) -> u64 {
    loop {
        let answer = instance.try_consume("org_1", "api", amount).await;
        match answer.status.as_u16() {
            200 => return answer.body["current"].as_u64().unwrap(),
            503 => pause().await,
            _ => panic!("{answer:?}"),
        }
    }
}

/// It keeps its process, its connections and its run id.
#[tokio::test]
async fn a_master_that_was_demoted_and_promoted_again_does_not_go_on_in_older_data() {
    let (world, master, replica) = tokio::join!(World::new(), Replicable::new(), Replicable::new());
    let instance = master.instance(&world).await;
    assert_eq!(count(&instance, 5).await, 5);
    replica.follow(&master).await;
    replica.promote().await;
    assert_eq!(count(&instance, 3).await, 8);
    instance.flush().await;
    master.follow(&replica).await;
    master.promote().await;
    assert_eq!(count(&instance, 1).await, 9);
}

/// Its identity is that of the newer data, so only the receipt tells.
#[tokio::test]
async fn a_server_that_lacks_what_it_acknowledged_is_noticed_by_the_next_call() {
    let (world, server) = tokio::join!(World::new(), Replicable::new());
    let instance = server.instance(&world).await;
    assert_eq!(instance.count("org_1", "api", 5).await, 5);
    let older = server.dump().await;
    assert_eq!(instance.count("org_1", "api", 3).await, 8);
    instance.flush().await;
    server.restore(&older).await;
    assert_eq!(instance.count("org_1", "api", 1).await, 9);
    let metrics = instance.app.state.ctx.metrics.to_text().unwrap();
    assert!(
        metrics.contains("tallyman_data_sets_rolled_back_total 256"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_replica_is_refused_until_it_is_promoted() {
    let (world, master, replica) = tokio::join!(World::new(), Replicable::new(), Replicable::new());
    replica.follow(&master).await;
    let instance = replica.instance(&world).await;
    let answer = instance.try_consume("org_1", "api", 1).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (503, "counter_store_unavailable")
    );
    replica.promote().await;
    instance.until_counts("org_1").await;
}

#[tokio::test]
async fn a_master_that_sentinels_replace_is_found_and_loses_nothing_that_was_waited_for() {
    for replicas in [0, 1] {
        let dir = TempDir::new().unwrap();
        let options = SentinelOptions {
            sentinel_password: replicas == 1,
            ..SentinelOptions::default()
        };
        let world = World::with(|config| {
            config.redis_wait_replicas = replicas;
            config.defaults.limits.clear();
        });
        let (world, sentinel) = tokio::join!(world, RedisSentinel::start(dir.path(), &options));
        let mut sentinel = sentinel.unwrap();
        let mut redis_url = sentinel.url();
        if options.sentinel_password {
            let (_, password) = redis_url.split_once("://:").unwrap();
            let (password, _) = password.split_once('@').unwrap();
            redis_url = format!("{redis_url}?sentinel_password={password}");
        }
        let servers = Servers {
            redis_url,
            ..world.servers()
        };
        let instance = world.instance_with(servers).await;
        let load = Load::start(&instance, 60);
        load.acknowledged(500).await;
        let master = sentinel.master().await.unwrap();
        sentinel.kill(master).await;
        sentinel.wait_until_ok().await.unwrap();
        assert_ne!(sentinel.master().await.unwrap(), master);
        instance.until_counts("org_1").await;
        load.acknowledged(500).await;
        let tally = load.stop().await;
        let (lost, _) = tally.lost(&instance).await;
        tally.report(
            &format!("Sentinel replaces a killed master, WAIT {replicas}"),
            lost,
        );
        assert!(replicas == 0 || lost == 0, "{lost} lost");
    }
}
