//! A private Redis Cluster (or Valkey's), for tests of failovers and moving slots.

mod formation;
mod migration;
mod topology;
mod view;

pub use self::migration::Migration;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult};

use crate::node::{
    Node, NodeInfo, NodeOptions, authority, data_configuration, random_password, start_all,
};
use crate::paths::find_redis;
use crate::ports::Port;

/// How a [`RedisCluster`] is configured.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many masters share the slots. At least three are needed for a failover, which most masters must agree to.
    pub masters: usize,
    /// How many replicas each master has.
    pub replicas: usize,
    /// `cluster-node-timeout`: a node that does not reply for so long has failed. A failover takes about a second more.
    pub node_timeout: Duration,
    /// `cluster-require-full-coverage`: whether all slots are refused while one of them has no master.
    pub require_full_coverage: bool,
    /// More arguments for `redis-server`, such as `["--min-replicas-to-write", "1"]`.
    pub extra: Vec<String>,
}

impl Default for ClusterOptions {
    /// Three masters with a replica each, which fail over fast.
    fn default() -> Self {
        Self {
            masters: 3,
            replicas: 1,
            node_timeout: Duration::from_millis(1500),
            require_full_coverage: true,
            extra: Vec::new(),
        }
    }
}

/// A running cluster that ends with this process. Its nodes keep nothing but their place in the cluster when they
/// are killed.
///
/// Initially the first nodes are the masters, with equal shares of the slots in this order, and node `m + n` replicates
/// node `n % m` where there are `m` masters. Replicas stay with their master: `cluster-allow-replica-migration` is off.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Node>,
    password: String,
}

impl RedisCluster {
    /// Starts a new, empty cluster in `dir`, which is created if missing, and returns once every node accepts commands
    /// and every replica is connected.
    pub async fn start(dir: &Path, options: &ClusterOptions) -> Result<Self> {
        if options.masters == 0 {
            bail!("a cluster needs a master");
        }
        let program = find_redis()?;
        let password = random_password()?;
        let mut nodes = Vec::new();
        for index in 0..options.masters * (1 + options.replicas) {
            let bus = Port::reserve()?;
            let configuration = configuration(&password, bus.number(), options);
            let options = NodeOptions {
                port: Port::reserve()?,
                bus: Some(bus),
                program: &program,
                dir: &dir.join(format!("node-{index}")),
                password: Some(&password),
                configuration: &configuration,
                arguments: options.extra.clone(),
            };
            nodes.push(Node::create(options)?);
        }
        start_all(&mut nodes).await?;
        formation::form(&nodes, options.masters).await?;
        let cluster = Self { nodes, password };
        cluster.wait_until_ok().await?;
        Ok(cluster)
    }

    /// The URL of all nodes: `redis://:<password>@127.0.0.1:<port>,127.0.0.1:<port>,…?cluster=true`.
    pub fn url(&self) -> String {
        let authority = authority(&self.password, &self.nodes);
        format!("redis://{authority}?cluster=true")
    }

    /// All nodes, also those that are down.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let nodes = self.nodes.iter().enumerate();
        nodes.map(|(index, node)| node.info(index)).collect()
    }

    /// Kills a node with SIGKILL, and returns once it has ended.
    pub async fn kill(&mut self, node: usize) {
        self.nodes[node].kill().await;
    }

    /// Starts a killed node again, on the same port and without data, and returns once it accepts commands. It takes its
    /// place in the cluster later: see [`RedisCluster::wait_until_ok`].
    pub async fn restart(&mut self, node: usize) -> Result<()> {
        start_all(&mut self.nodes[node..=node]).await
    }

    /// Sends a signal to a node, such as `STOP` and `CONT`. A stopped node is paused: this value does not ask it
    /// until it continues.
    pub async fn signal(&mut self, node: usize, signal: &str) -> Result<()> {
        self.nodes[node].signal(signal).await
    }

    /// A new connection to a node.
    pub async fn connection(&self, node: usize) -> RedisResult<MultiplexedConnection> {
        self.nodes[node].connection().await
    }

    /// Executes one command on a node, and follows no redirection.
    pub async fn command<T: FromRedisValue>(&self, node: usize, words: &[&str]) -> RedisResult<T> {
        self.nodes[node].command(words).await
    }
}

fn configuration(password: &str, bus: u16, options: &ClusterOptions) -> String {
    let full_coverage = if options.require_full_coverage {
        "yes"
    } else {
        "no"
    };
    format!(
        "{}cluster-enabled yes\ncluster-port {bus}\ncluster-announce-ip 127.0.0.1\n\
         cluster-node-timeout {}\ncluster-require-full-coverage {full_coverage}\n\
         cluster-allow-replica-migration no\n",
        data_configuration(password),
        options.node_timeout.as_millis(),
    )
}
