//! A private Redis (or Valkey) whose master is replaced by Sentinel, for tests of failovers.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult};

use crate::node::{
    Node, NodeInfo, NodeOptions, authority, data_configuration, random_password, start_all,
};
use crate::paths::find_redis;
use crate::ports::Port;
use crate::wait::until;

/// What the sentinels call the master.
const NAME: &str = "tallyman";

const SENTINELS: usize = 3;

/// How often sentinels talk and connect, in milliseconds, and how long they do nothing after a pause of their own
/// (`tilt`). With the defaults a group takes seconds to form; and after a failover the sentinels wait a second before they
/// connect to the new master, so that a short `down-after-milliseconds` passes and they replace it at once.
///
/// Five times the first must be more than a second: an older INFO of a replica excludes it from a failover, and while
/// the master is down sentinels ask for one each second, whatever the third says.
const PERIODS: [&str; 8] = [
    "ping-period",
    "400",
    "publish-period",
    "200",
    "info-period",
    "500",
    "tilt-period",
    "500",
];

/// How a [`RedisSentinel`] is configured.
#[derive(Debug, Clone)]
pub struct SentinelOptions {
    /// How many replicas the master has.
    pub replicas: usize,
    /// `down-after-milliseconds`: a master that does not reply for so long is replaced. Below a second, a busy machine
    /// causes failovers of its own.
    pub down_after: Duration,
    /// `failover-timeout`: a failover that has failed is repeated after twice this time.
    pub failover_timeout: Duration,
    /// Whether sentinels require the password as well.
    pub sentinel_password: bool,
    /// More arguments for the `redis-server` of the master and its replicas.
    pub extra: Vec<String>,
}

impl Default for SentinelOptions {
    /// Two replicas, a fast failover, and sentinels without a password.
    fn default() -> Self {
        Self {
            replicas: 2,
            down_after: Duration::from_secs(1),
            failover_timeout: Duration::from_secs(2),
            sentinel_password: false,
            extra: Vec::new(),
        }
    }
}

/// A running master with replicas and three sentinels, all of which end with this process. The master and the replicas
/// keep no data when they are killed.
///
/// Index 0 is initially the master, the replicas follow, and the sentinels come last.
#[derive(Debug)]
pub struct RedisSentinel {
    nodes: Vec<Node>,
    /// How many of the nodes are no sentinels.
    data: usize,
    password: String,
}

impl RedisSentinel {
    /// Starts an empty master in `dir`, which is created if missing, and returns once a failover would succeed.
    pub async fn start(dir: &Path, options: &SentinelOptions) -> Result<Self> {
        let mut group = Self::create(dir, options)?;
        // One after the other, because a replica that finds no master waits a second before it tries again, and a
        // sentinel that finds a master without replicas asks it late for new ones.
        let data = group.data;
        start_all(&mut group.nodes[..1]).await?;
        start_all(&mut group.nodes[1..data]).await?;
        until("connecting the replicas", async || {
            group.check_data(0).await
        })
        .await?;
        start_all(&mut group.nodes[data..]).await?;
        for sentinel in group.sentinel_nodes() {
            hasten(sentinel).await?;
        }
        group.wait_until_ok().await?;
        Ok(group)
    }

    /// Everything before the processes.
    fn create(dir: &Path, options: &SentinelOptions) -> Result<Self> {
        let program = find_redis()?;
        let password = random_password()?;
        let data = 1 + options.replicas;
        let mut nodes: Vec<Node> = Vec::new();
        for index in 0..data + SENTINELS {
            let port = Port::reserve()?;
            let master = nodes.first().map(Node::port);
            let is_sentinel = index >= data;
            let configuration = match master {
                None => data_configuration(&password),
                Some(master) if is_sentinel => sentinel_configuration(&password, master, options),
                Some(master) => {
                    data_configuration(&password) + &format!("replicaof 127.0.0.1 {master}\n")
                }
            };
            let (name, arguments) = if is_sentinel {
                let name = format!("sentinel-{}", index - data);
                (name, vec!["--sentinel".to_owned()])
            } else {
                (format!("node-{index}"), options.extra.clone())
            };
            let has_password = !is_sentinel || options.sentinel_password;
            nodes.push(Node::create(NodeOptions {
                port,
                bus: None,
                program: &program,
                dir: &dir.join(name),
                password: has_password.then_some(password.as_str()),
                configuration: &configuration,
                arguments,
            })?);
        }
        Ok(Self {
            nodes,
            data,
            password,
        })
    }

    /// The URL of the sentinels, with the password of the master and the replicas, and the name of the master as its
    /// path: `redis+sentinel://:<password>@127.0.0.1:<port>,127.0.0.1:<port>,127.0.0.1:<port>/tallyman`.
    pub fn url(&self) -> String {
        let authority = authority(&self.password, self.sentinel_nodes());
        format!("redis+sentinel://{authority}/{NAME}")
    }

    /// The master and the replicas, also those that are down.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        self.infos().take(self.data).collect()
    }

    /// The sentinels, also those that are down.
    pub fn sentinels(&self) -> Vec<NodeInfo> {
        self.infos().skip(self.data).collect()
    }

    /// Kills a server with SIGKILL, and returns once it has ended.
    pub async fn kill(&mut self, node: usize) {
        self.nodes[node].kill().await;
    }

    /// Starts a killed server again, on the same port, without data and with what Sentinel has configured, and returns
    /// once it accepts commands. See [`RedisSentinel::wait_until_ok`].
    pub async fn restart(&mut self, node: usize) -> Result<()> {
        start_all(&mut self.nodes[node..=node]).await?;
        if node >= self.data {
            hasten(&self.nodes[node]).await?;
        }
        Ok(())
    }

    /// Sends a signal to a server, such as `STOP` and `CONT`. A stopped one is paused: this value does not ask it until
    /// it continues.
    pub async fn signal(&mut self, node: usize, signal: &str) -> Result<()> {
        self.nodes[node].signal(signal).await
    }

    /// A new connection to a server.
    pub async fn connection(&self, node: usize) -> RedisResult<MultiplexedConnection> {
        self.nodes[node].connection().await
    }

    /// Executes one command on a server.
    pub async fn command<T: FromRedisValue>(&self, node: usize, words: &[&str]) -> RedisResult<T> {
        self.nodes[node].command(words).await
    }

    /// The master, as a live sentinel says. After a crash that is the dead node, until a replica takes its place.
    pub async fn master(&self) -> Result<usize> {
        let mut sentinels = self.sentinel_nodes().iter();
        let sentinel = sentinels.find(|node| node.is_live());
        master_of(sentinel.context("no sentinel is live")?, &self.nodes).await
    }

    /// Waits until all live sentinels agree on a live master and know of each other, and every live replica is connected
    /// to that master and could replace it.
    pub async fn wait_until_ok(&self) -> Result<()> {
        until("agreement of the sentinels", async || self.check().await).await
    }

    async fn check(&self) -> Result<()> {
        let master = self.master().await?;
        self.check_data(master).await?;
        for sentinel in self.sentinel_nodes() {
            if sentinel.is_live() {
                let other = master_of(sentinel, &self.nodes).await?;
                ensure!(other == master, "the sentinels disagree");
                self.check_sentinel(sentinel).await?;
            }
        }
        Ok(())
    }

    /// Checks that this is the master, and that the replicas follow it.
    async fn check_data(&self, master: usize) -> Result<()> {
        let master_port = self.nodes[master].port().to_string();
        ensure!(self.nodes[master].is_live(), "node {master} is not live");
        for (index, node) in self.nodes[..self.data].iter().enumerate() {
            if !node.is_live() {
                continue;
            }
            let state = node.fields(&["INFO", "replication"]).await?;
            let is = |name: &str, value: &str| state.get(name).is_some_and(|it| it == value);
            let ok = if index == master {
                is("role", "master")
            } else {
                is("master_port", &master_port) && is("master_link_status", "up")
            };
            ensure!(ok, "node {index} does not follow node {master}: {state:?}");
        }
        Ok(())
    }

    /// Checks that a sentinel knows all servers and could replace the master.
    async fn check_sentinel(&self, sentinel: &Node) -> Result<()> {
        let master: HashMap<String, String> =
            sentinel.command(&["SENTINEL", "MASTER", NAME]).await?;
        let is = |name: &str, value: usize| master.get(name) == Some(&value.to_string());
        let complete = is("num-other-sentinels", SENTINELS - 1) && is("num-slaves", self.data - 1);
        let healthy = master.get("flags").is_some_and(|flags| flags == "master");
        ensure!(complete && healthy, "a sentinel sees {master:?}");
        let replicas: Vec<HashMap<String, String>> =
            sentinel.command(&["SENTINEL", "REPLICAS", NAME]).await?;
        for replica in &replicas {
            let field = |name: &str| replica.get(name).map_or("", String::as_str);
            let mut nodes = self.nodes.iter().filter(|node| node.is_live());
            let live = nodes.any(|node| node.port().to_string() == field("port"));
            let eligible = field("flags") == "slave" && field("master-link-status") == "ok";
            ensure!(!live || eligible, "a sentinel sees {replica:?}");
        }
        Ok(())
    }

    fn sentinel_nodes(&self) -> &[Node] {
        &self.nodes[self.data..]
    }

    fn infos(&self) -> impl Iterator<Item = NodeInfo> {
        let nodes = self.nodes.iter().enumerate();
        nodes.map(|(index, node)| node.info(index))
    }
}

/// What a sentinel says is the master.
async fn master_of(sentinel: &Node, nodes: &[Node]) -> Result<usize> {
    let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME];
    let (_, port): (String, u16) = sentinel.command(&words).await?;
    let master = nodes.iter().position(|node| node.port() == port);
    master.with_context(|| format!("no node has the port {port}"))
}

/// Makes a sentinel that has started talk more often.
async fn hasten(sentinel: &Node) -> Result<()> {
    let words = [["SENTINEL", "DEBUG"].as_slice(), &PERIODS].concat();
    Ok(sentinel.command(&words).await?)
}

fn sentinel_configuration(password: &str, master: u16, options: &SentinelOptions) -> String {
    let quorum = SENTINELS / 2 + 1;
    let own_password = if options.sentinel_password {
        format!("requirepass {password}\n")
    } else {
        String::new()
    };
    format!(
        "{own_password}sentinel monitor {NAME} 127.0.0.1 {master} {quorum}\n\
         sentinel auth-pass {NAME} {password}\nsentinel down-after-milliseconds {NAME} {}\n\
         sentinel failover-timeout {NAME} {}\n",
        options.down_after.as_millis(),
        options.failover_timeout.as_millis(),
    )
}
