//! Private servers, and the processes that are measured with them: `tallyman serve` from the same
//! directory as this executable, and the no-op server.
//!
//! All processes end when the tool ends, for whatever reason.

use std::fs::{self, DirBuilder, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http_body_util::Full;
use sqlx::{Connection as _, PgConnection};
use tallyman_servers::{
    Log, PostgresOptions, PostgresServer, Process, RedisOptions, RedisServer, watched,
};
use tokio::process::Command;
use tokio::time::sleep;

use crate::http::{Connection, Target};

/// How long a process may take to end: it may have a million counters to flush.
const STOP_TIME_MAX: Duration = Duration::from_mins(5);

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Longer than any measurement, and the longest that the service accepts.
pub(crate) const NO_FLUSH: (&str, &str) = ("TALLYMAN_FLUSH_INTERVAL_MS", "3600000");

/// A directory for the data of one run.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Creates a directory of this name.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(name);
        DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A process keeps its log locked until it has ended.
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|it| it == "log")
                && let Ok(log) = File::open(entry.path())
            {
                let _ = log.lock();
            }
        }
        // May be a link to another place where Postgres could be kept.
        if let Ok(postgres) = self.0.join("postgres").canonicalize() {
            let _ = fs::remove_dir_all(postgres);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Both servers, and how to start a service that uses them.
#[derive(Debug)]
pub(crate) struct Stage {
    dir: PathBuf,
    redis: RedisServer,
    postgres: PostgresServer,
    key: String,
    workers: usize,
}

impl Stage {
    /// Starts both servers, as durable as in production. Services on this stage have this many `workers`.
    pub(crate) async fn open(scratch: &Scratch, workers: usize) -> Result<Self> {
        let dir = scratch.0.clone();
        let redis = RedisOptions {
            append_only: true,
            ..RedisOptions::default()
        };
        let (redis, postgres) = tokio::try_join!(
            RedisServer::start(&dir, &redis),
            PostgresServer::start(&dir, &PostgresOptions { durable: true })
        )?;
        let mut stage = Self {
            dir,
            redis,
            postgres,
            key: String::new(),
            workers,
        };
        let service = executable("tallyman")?;
        let url = stage.database_url();
        tallyman(&service, &url, &["migrate"]).await?;
        let create_key = ["keys", "create", "--name", "bench", "--scope", "admin"];
        stage.key = tallyman(&service, &url, &create_key).await?;
        Ok(stage)
    }

    /// Stops both servers.
    pub(crate) async fn close(self) {
        tokio::join!(self.redis.stop(), self.postgres.stop());
    }

    /// Starts the service, with these settings in addition to the usual ones.
    pub(crate) async fn serve(&self, settings: &[(&str, &str)]) -> Result<Service> {
        self.serve_as(&executable("tallyman")?, &[], settings).await
    }

    /// The same with the executable of any build, run by another program with these arguments if there are any.
    pub(crate) async fn serve_as(
        &self,
        program: &Path,
        wrapper: &[String],
        settings: &[(&str, &str)],
    ) -> Result<Service> {
        let mut command = match wrapper.split_first() {
            None => watched(program, "TERM"),
            Some((first, arguments)) => {
                let mut command = watched(Path::new(first), "TERM");
                command.args(arguments).arg(program);
                command
            }
        };
        command
            .arg("serve")
            .env("TALLYMAN_REDIS_URL", self.redis.url())
            .env("TALLYMAN_DATABASE_URL", self.database_url())
            .env("TALLYMAN_WORKERS", self.workers.to_string())
            // Nothing is denied, and a stop flushes everything.
            .env("TALLYMAN_DEFAULT_LIMIT", "1000000000000")
            .env("TALLYMAN_DRAIN_SECONDS", "0")
            .env(
                "TALLYMAN_SHUTDOWN_SECONDS",
                STOP_TIME_MAX.as_secs().to_string(),
            )
            .envs(settings.iter().copied());
        self.start("serve", command).await
    }

    /// Starts the no-op server, with as many threads as the service has.
    pub(crate) async fn serve_noop(&self) -> Result<Service> {
        let mut command = watched(&executable("bench")?, "TERM");
        command.args(["noop", "--workers", &self.workers.to_string()]);
        self.start("noop", command).await
    }

    async fn start(&self, name: &'static str, mut command: Command) -> Result<Service> {
        let listen = free_address()?;
        command.args(["--listen", &listen.to_string()]);
        let target = Target::new(&format!("http://{listen}"), &self.key)?;
        let log = Log::open(&self.dir, name).await?;
        let mut process = Process::spawn(command, Arc::clone(&log))?;
        process.ready(async || target.ready().await).await?;
        Ok(Service {
            target,
            process,
            log,
        })
    }

    fn database_url(&self) -> String {
        self.postgres.url("tallyman")
    }

    /// A connection of the tool's own.
    pub(crate) async fn postgres(&self) -> Result<PgConnection> {
        PgConnection::connect(&self.database_url())
            .await
            .context("cannot use the private Postgres")
    }

    /// The process of Redis.
    pub(crate) fn redis_pid(&self) -> u32 {
        self.redis.pid()
    }

    /// What Postgres has logged.
    pub(crate) fn postgres_log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    /// Bytes that Redis has allocated.
    pub(crate) async fn redis_memory(&self) -> Result<u64> {
        let memory = self.redis_info("memory").await?;
        memory.get("used_memory").context("INFO lacks used_memory")
    }

    /// Waits while Redis rewrites its append-only file. With a million counters that takes a core for
    /// several seconds, so a measurement would depend on when it started.
    pub(crate) async fn redis_has_rewritten(&self) -> Result<()> {
        loop {
            let persistence = self.redis_info("persistence").await?;
            let is_idle = |fact| persistence.get::<u8>(fact) == Some(0);
            if is_idle("aof_rewrite_scheduled") && is_idle("aof_rewrite_in_progress") {
                return Ok(());
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn redis_info(&self, section: &str) -> Result<redis::InfoDict> {
        let client = redis::Client::open(self.redis.url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut info = redis::cmd("INFO");
        Ok(info.arg(section).query_async(&mut connection).await?)
    }
}

/// A process that serves HTTP.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) target: Target,
    process: Process,
    log: Arc<Log>,
}

impl Service {
    /// Stops it with SIGTERM, and returns how long that took.
    pub(crate) async fn stop(self) -> Result<Duration> {
        let start = Instant::now();
        let status = self.process.stop(STOP_TIME_MAX).await;
        let status = status.context("a service does not stop")?;
        // The no-op server does not handle the signal, hence has no exit code.
        if !status.success() && status.code().is_some() {
            bail!("a service failed ({status}): {}", self.log.last_line());
        }
        Ok(start.elapsed())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The metrics as text.
    pub(crate) async fn metrics(&self) -> Result<String> {
        let request = self.target.request("GET", "/metrics")?;
        let request = request.map(|()| Full::default());
        let response = Connection::new(&self.target).send(request).await?;
        Ok(String::from_utf8(response.body.to_vec())?)
    }

    /// The resident memory, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    /// The most resident memory so far, in bytes.
    pub(crate) fn memory_max(&self) -> Result<u64> {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process.pid());
        let status = fs::read_to_string(path).context("there is no /proc")?;
        let line = status.lines().find_map(|it| it.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.with_context(|| format!("there is no {name}"))? * 1024)
    }
}

/// The processes of Postgres: the one that accepts connections, and all sessions.
pub(crate) async fn postgres_processes(postgres: &mut PgConnection) -> Result<Vec<u32>> {
    let sessions = "select pid from pg_stat_activity where pid <> pg_backend_pid()";
    let sessions: Vec<i32> = sqlx::query_scalar(sessions)
        .fetch_all(&mut *postgres)
        .await?;
    let first = "select split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int";
    let first: i32 = sqlx::query_scalar(first).fetch_one(postgres).await?;
    let all = [first].into_iter().chain(sessions);
    Ok(all.map(u32::try_from).collect::<Result<_, _>>()?)
}

/// Sends a signal to processes, some of which may have ended.
pub(crate) fn signal(processes: &[u32], name: &str) -> Result<()> {
    let pids = processes.iter().map(ToString::to_string);
    process::Command::new("kill")
        .arg(format!("-{name}"))
        .args(pids)
        .stderr(process::Stdio::null())
        .status()
        .context("cannot send signals")?;
    Ok(())
}

/// An executable of the same build as this one.
pub(crate) fn executable(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.is_file() {
        bail!("{} is missing; build it first", path.display());
    }
    Ok(path)
}

/// An unused port of this machine.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("there is no free port")?;
    Ok(listener.local_addr()?)
}

/// Runs a command that needs Postgres alone, and returns its output.
pub(crate) async fn tallyman(
    service: &Path,
    database_url: &str,
    arguments: &[&str],
) -> Result<String> {
    let output = Command::new(service)
        .args(arguments)
        .env("TALLYMAN_DATABASE_URL", database_url)
        .kill_on_drop(true)
        .output()
        .await?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("tallyman {}: {}", arguments.join(" "), error.trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
