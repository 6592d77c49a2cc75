//! A private Redis (or Valkey).

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::paths::{SocketDir, create_dir, find_redis, percent_encoded};
use crate::process::{Log, Process, STOP_TIME_MAX, watched};

const SOCKET: &str = "redis.sock";

/// How a [`RedisServer`] is configured.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// Whether writes survive a restart.
    pub append_only: bool,
    /// More arguments for `redis-server`, such as `["--appendfsync", "always"]`.
    pub extra: Vec<String>,
}

/// A running Redis (or Valkey) that ends with this process.
#[derive(Debug)]
pub struct RedisServer {
    process: Process,
    socket: PathBuf,
    _socket_dir: SocketDir,
}

impl RedisServer {
    /// Starts the Redis of `dir`, which is created if missing, and returns once it accepts commands.
    pub async fn start(dir: &Path, options: &RedisOptions) -> Result<Self> {
        let program = find_redis()?;
        let dir = create_dir(dir, 0o755)?;
        let log = Log::open(&dir, "redis").await?;
        let data = create_dir(&dir.join("redis"), 0o700)?;
        let socket_dir = SocketDir::new(&data, SOCKET)?;
        let socket = socket_dir.path().join(SOCKET);

        let append_only = if options.append_only { "yes" } else { "no" };
        let mut command = watched(&program, "TERM");
        command
            .current_dir(&data)
            .args(["--port", "0", "--unixsocket", SOCKET])
            .args(["--unixsocketperm", "700", "--daemonize", "no"])
            .args(["--save", "", "--appendonly", append_only])
            .args(&options.extra);
        let mut process = Process::spawn(command, log)?;
        process.ready(async || ping(&socket).await).await?;
        Ok(Self {
            process,
            socket,
            _socket_dir: socket_dir,
        })
    }

    /// The URL of this server, for the `redis` crate.
    pub fn url(&self) -> String {
        let socket = percent_encoded(&self.socket);
        format!("redis+unix://{socket}?protocol=resp3")
    }

    /// The unix socket that this server listens on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process id of the server.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until the server ends on its own, and returns the reason as an error.
    pub async fn died(&mut self) -> anyhow::Error {
        self.process.died().await
    }

    /// Stops the server with SIGTERM. If it is append-only, every acknowledged write is on disk
    /// afterwards.
    pub async fn stop(self) {
        self.process.stop(STOP_TIME_MAX).await;
    }

    /// Kills the server with SIGKILL, for tests of crashes.
    pub async fn kill(self) {
        self.process.kill().await;
    }
}

/// Checks that the server accepts commands. It replies with an error while it loads its data.
async fn ping(socket: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut reply = [0; 5];
    stream.read_exact(&mut reply).await?;
    if &reply != b"+PONG" {
        bail!("it does not reply to PING yet");
    }
    Ok(())
}
