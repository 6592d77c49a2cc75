//! One server of several: a Redis (or Valkey) on a loopback port, which tests kill and start again.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue, RedisResult};

use crate::paths::{create_dir, ignore_missing};
use crate::ports::Port;
use crate::process::{Log, Process, watched};

const CONFIGURATION: &str = "redis.conf";

/// Bounds what a test waits for a server that does not reply.
const REPLY_TIME_MAX: Duration = Duration::from_secs(30);

/// A server of a [`RedisCluster`](crate::RedisCluster) or [`RedisSentinel`](crate::RedisSentinel).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeInfo {
    /// What methods call it.
    pub index: usize,
    /// Its port on 127.0.0.1, the same after each start.
    pub port: u16,
    /// Its process; none while it is killed.
    pub pid: Option<u32>,
}

/// What a [`Node`] runs.
#[derive(Debug)]
pub(crate) struct NodeOptions<'a> {
    pub(crate) port: Port,
    /// For the other nodes of a cluster; none outside of one.
    pub(crate) bus: Option<Port>,
    pub(crate) program: &'a Path,
    /// The directory of the node alone. What an earlier one left is removed.
    pub(crate) dir: &'a Path,
    /// For clients; none if the node requires none.
    pub(crate) password: Option<&'a str>,
    /// Lines of its configuration file.
    pub(crate) configuration: &'a str,
    /// Arguments after the file.
    pub(crate) arguments: Vec<String>,
}

/// A server with a directory and a port of its own, which may be down.
#[derive(Debug)]
pub(crate) struct Node {
    program: PathBuf,
    dir: PathBuf,
    data: PathBuf,
    port: Port,
    bus: Option<Port>,
    url: String,
    arguments: Vec<String>,
    process: Option<Process>,
    paused: bool,
}

impl Node {
    /// Prepares a server that does not run yet.
    pub(crate) fn create(options: NodeOptions<'_>) -> Result<Self> {
        let dir = create_dir(options.dir, 0o755)?;
        ignore_missing(fs::remove_dir_all(dir.join("redis")))
            .with_context(|| format!("cannot empty {}", dir.display()))?;
        let data = create_dir(&dir.join("redis"), 0o700)?;
        write_configuration(&data.join(CONFIGURATION), &options)?;
        let credentials = options.password.map(|password| format!(":{password}@"));
        let url = format!(
            "redis://{}127.0.0.1:{}",
            credentials.unwrap_or_default(),
            options.port.number()
        );
        Ok(Self {
            program: options.program.to_owned(),
            dir,
            data,
            port: options.port,
            bus: options.bus,
            url,
            arguments: options.arguments,
            process: None,
            paused: false,
        })
    }

    /// Starts the process; `ready` waits for it.
    async fn spawn(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("the node on port {} runs already", self.port());
        }
        let log = Log::open(&self.dir, "redis").await?;
        // SIGKILL, because a paused process does not react to others.
        let mut command = watched(&self.program, "KILL");
        command
            .current_dir(&self.data)
            .arg(CONFIGURATION)
            .args(&self.arguments);
        self.process = Some(Process::spawn(command, log)?);
        self.paused = false;
        Ok(())
    }

    /// Waits until the server accepts commands.
    async fn ready(&mut self) -> Result<()> {
        let url = self.url.as_str();
        let process = self.process.as_mut().context("the node does not run")?;
        let ping = async || {
            let () = redis::cmd("PING")
                .query_async(&mut open(url).await?)
                .await?;
            Ok(())
        };
        process.ready(ping).await
    }

    /// Kills the server, which may be paused or down, and waits until it has ended.
    pub(crate) async fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill().await;
        }
    }

    /// Sends a signal such as `STOP`, after which the node is paused, or `CONT`.
    pub(crate) async fn signal(&mut self, signal: &str) -> Result<()> {
        let process = self.process.as_ref().context("the node does not run")?;
        process.signal(signal).await?;
        match signal {
            "STOP" => self.paused = true,
            "CONT" => self.paused = false,
            _ => {}
        }
        Ok(())
    }

    /// Whether it is expected to reply: neither killed nor paused.
    pub(crate) fn is_live(&self) -> bool {
        self.process.is_some() && !self.paused
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    pub(crate) fn bus(&self) -> Option<u16> {
        self.bus.as_ref().map(Port::number)
    }

    pub(crate) fn info(&self, index: usize) -> NodeInfo {
        NodeInfo {
            index,
            port: self.port(),
            pid: self.process.as_ref().map(Process::pid),
        }
    }

    /// A new connection.
    pub(crate) async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        open(&self.url).await
    }

    /// Executes one command on a new connection.
    pub(crate) async fn command<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let mut command = redis::Cmd::new();
        command.arg(words);
        command.query_async(&mut self.connection().await?).await
    }

    /// Executes a command whose reply is lines of the form `name:value`.
    pub(crate) async fn fields(&self, words: &[&str]) -> RedisResult<HashMap<String, String>> {
        let text: String = self.command(words).await?;
        let fields = text.lines().filter_map(|line| line.trim().split_once(':'));
        Ok(fields
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }
}

/// A password of which no other user of this machine knows, in digits that need no escaping anywhere.
pub(crate) fn random_password() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

/// In a file, because a command line can be read by every user, and because the server keeps there what Sentinel
/// changes.
fn write_configuration(path: &Path, options: &NodeOptions<'_>) -> Result<()> {
    let text = format!(
        "bind 127.0.0.1\nport {}\ndaemonize no\n{}",
        options.port.number(),
        options.configuration
    );
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

async fn open(url: &str) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(REPLY_TIME_MAX))
        .set_response_timeout(Some(REPLY_TIME_MAX));
    redis::Client::open(url)?
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

/// Starts these nodes, and returns once each accepts commands.
pub(crate) async fn start_all(nodes: &mut [Node]) -> Result<()> {
    for node in &mut *nodes {
        node.spawn().await?;
    }
    for node in nodes {
        node.ready().await?;
    }
    Ok(())
}

/// The configuration of every server that has data.
pub(crate) fn data_configuration(password: &str) -> String {
    format!(
        "requirepass {password}\nmasterauth {password}\nsave \"\"\nappendonly no\n\
         repl-diskless-sync yes\nrepl-diskless-sync-delay 0\n"
    )
}

/// A URL's authority that names all of these nodes.
pub(crate) fn authority(password: &str, nodes: &[Node]) -> String {
    let addresses: Vec<String> = nodes
        .iter()
        .map(|node| format!("127.0.0.1:{}", node.port()))
        .collect();
    format!(":{password}@{}", addresses.join(","))
}
