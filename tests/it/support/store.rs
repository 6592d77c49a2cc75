//! The Redis of a world: a server of its own, or a cluster of three masters where `TALLYMAN_TEST_CLUSTER` is set.

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, Value};
use tallyman_servers::{ClusterOptions, RedisCluster, RedisOptions, RedisServer, key_slot};
use tempfile::TempDir;

use super::signal;

/// A server or a cluster.
pub enum TestRedis {
    Server {
        /// None while it is killed.
        server: Option<Box<RedisServer>>,
        url: String,
        dir: TempDir,
    },
    Cluster {
        cluster: Box<RedisCluster>,
        _dir: TempDir,
    },
}

impl TestRedis {
    pub async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        if std::env::var_os("TALLYMAN_TEST_CLUSTER").is_some() {
            let options = ClusterOptions {
                replicas: 0,
                ..ClusterOptions::default()
            };
            let cluster = RedisCluster::start(dir.path(), &options).await.unwrap();
            return Self::Cluster {
                cluster: Box::new(cluster),
                _dir: dir,
            };
        }
        let server = start_server(&dir).await;
        Self::Server {
            url: server.url(),
            server: Some(Box::new(server)),
            dir,
        }
    }

    pub fn url(&self) -> String {
        match self {
            Self::Server { url, .. } => url.clone(),
            Self::Cluster { cluster, .. } => cluster.url(),
        }
    }

    /// A connection to the server that has a key.
    pub async fn connection_for(&self, key: &str) -> MultiplexedConnection {
        // The default timeout of 500 ms is too short for `SAVE` on a busy machine.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_mins(1)))
            .set_response_timeout(Some(Duration::from_mins(1)));
        match self {
            Self::Server { url, .. } => redis::Client::open(url.as_str())
                .unwrap()
                .get_multiplexed_async_connection_with_config(&config)
                .await
                .unwrap(),
            Self::Cluster { cluster, .. } => {
                let master = cluster.master_of_slot(key_slot(key)).await.unwrap();
                cluster.connection(master).await.unwrap()
            }
        }
    }

    /// Executes a command: on every server where it has no key; several replies are one list, or the last one.
    pub async fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let key = match words[0] {
            "CLIENT" | "CONFIG" | "DBSIZE" | "FLUSHALL" | "INFO" | "KEYS" | "SAVE" | "SCRIPT" => {
                None
            }
            "EVAL" | "EVALSHA" => Some(words[3]),
            _ => Some(words[1]),
        };
        let (Self::Cluster { cluster, .. }, None) = (self, key) else {
            let mut connection = self.connection_for(key.unwrap_or_default()).await;
            return command.query_async(&mut connection).await.unwrap();
        };
        let mut replies = Vec::new();
        for node in 0..cluster.nodes().len() {
            let mut connection = cluster.connection(node).await.unwrap();
            replies.push(reply(&command, &mut connection).await);
        }
        let merged = replies.into_iter().reduce(|all, next| match (all, next) {
            (Value::Array(mut all), Value::Array(next)) => {
                all.extend(next);
                Value::Array(all)
            }
            (Value::Int(all), Value::Int(next)) => Value::Int(all + next),
            (_, next) => next,
        });
        T::from_redis_value(merged.unwrap()).unwrap()
    }

    /// Kills every server without saving.
    pub async fn kill(&mut self) {
        match self {
            Self::Server { server, .. } => server.take().expect("Redis is running").kill().await,
            Self::Cluster { cluster, .. } => {
                for node in 0..cluster.nodes().len() {
                    cluster.kill(node).await;
                }
            }
        }
    }

    /// Starts every server again with the data on its disk.
    pub async fn restart(&mut self) {
        match self {
            Self::Server { server, dir, .. } => *server = Some(Box::new(start_server(dir).await)),
            Self::Cluster { cluster, .. } => {
                for node in 0..cluster.nodes().len() {
                    cluster.restart(node).await.unwrap();
                }
                cluster.wait_until_ok().await.unwrap();
            }
        }
    }

    /// The directory of `dump.rdb`, which a server loads when it starts.
    pub fn data(&self) -> PathBuf {
        match self {
            Self::Server { dir, .. } => dir.path().join("redis"),
            Self::Cluster { .. } => panic!("a cluster has no data of its own"),
        }
    }

    /// The server, where it is one.
    pub fn server(&self) -> &RedisServer {
        match self {
            Self::Server { server, .. } => server.as_deref().expect("Redis is running"),
            Self::Cluster { .. } => panic!("a cluster is no server"),
        }
    }

    /// Sends a signal, such as `STOP`, to every server.
    pub fn signal(&self, name: &str) {
        match self {
            Self::Server { .. } => signal(self.server().pid(), name),
            Self::Cluster { cluster, .. } => {
                for pid in cluster.nodes().iter().filter_map(|node| node.pid) {
                    signal(pid, name);
                }
            }
        }
    }
}

async fn start_server(dir: &TempDir) -> RedisServer {
    let options = RedisOptions {
        append_only: false,
        extra: Vec::new(),
    };
    RedisServer::start(dir.path(), &options).await.unwrap()
}

async fn reply(command: &Cmd, connection: &mut MultiplexedConnection) -> Value {
    command.query_async(connection).await.unwrap()
}
