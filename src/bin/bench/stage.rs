//! Everything that a measurement needs, started here: the executable beside this one, with a Redis and
//! a Postgres of its own.
//!
//! `tallyman dev` brings the two servers, append-only and durable, and then does nothing; what is
//! measured are further processes that use them. All of them end when the tool ends, however that
//! happens, and their data with them.

use std::fs::{self, DirBuilder, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sqlx::{Connection as _, PgConnection};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};

use crate::http::{self, Target};

/// How long a process may take to start, or to end.
const PATIENCE: Duration = Duration::from_mins(5);

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Longer than any measurement, and the most that the service takes.
pub(crate) const NO_FLUSH: (&str, &str) = ("TALLYMAN_FLUSH_INTERVAL_MS", "3600000");

/// What `sh` runs in front of a process: it leaves a watcher behind, whose standard input is a pipe
/// that only we hold the other end of. When that ends, because we do, the process is told to end.
const WATCHED: &str = r#"
exec 3<&0
( { read -r _ <&3; kill -s TERM $$ 2>/dev/null; } & )
exec "$@" </dev/null 3<&-
"#;

/// A directory for the data of one run.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("tallyman-bench-{}", std::process::id()));
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        let text = path.to_str().unwrap_or_default();
        // It becomes part of URLs, and of the addresses of sockets.
        if text.is_empty() || text.len() > 70 || !text.chars().all(plain) {
            bail!(
                "{} is no place for sockets; set TMPDIR to a short path",
                path.display()
            );
        }
        DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whoever has the servers keeps this locked until they have ended.
        if let Ok(lock) = File::open(self.0.join("lock")) {
            let _ = lock.lock();
        }
        // It may be a link to where Postgres could be kept.
        if let Ok(postgres) = self.0.join("postgres").canonicalize() {
            let _ = fs::remove_dir_all(postgres);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The two servers, and how to start what uses them.
#[derive(Debug)]
pub(crate) struct Stage {
    dir: PathBuf,
    servers: Process,
    key: String,
    workers: usize,
}

impl Stage {
    /// Starts both servers. `workers` is how many threads whatever serves on this stage has.
    pub(crate) async fn open(scratch: &Scratch, workers: usize) -> Result<Self> {
        let dir = scratch.0.clone();
        let listen = free_address()?;
        let dev = executable("tallyman")?;
        let settings = [
            ("TALLYMAN_DATA_DIR", dir.display().to_string()),
            ("TALLYMAN_LISTEN", listen.to_string()),
            (NO_FLUSH.0, NO_FLUSH.1.to_owned()),
        ];
        let mut servers = Process::start("dev", &dev, &["dev"], &settings, &dir)?;
        servers.ready(&Target::at(listen, "")).await?;
        let key = fs::read_to_string(dir.join("admin-key")).context("there is no admin key")?;
        Ok(Self {
            servers,
            key: key.trim().to_owned(),
            workers,
            dir,
        })
    }

    /// Stops both servers.
    pub(crate) async fn close(self) -> Result<()> {
        self.servers.stop().await
    }

    /// Starts the service, with more settings than the usual ones.
    pub(crate) async fn serve(&self, settings: &[(&str, &str)]) -> Result<Service> {
        let usual = [
            ("TALLYMAN_REDIS_URL", self.redis_url()),
            ("TALLYMAN_DATABASE_URL", self.database_url()),
            ("TALLYMAN_WORKERS", self.workers.to_string()),
            // Nothing is refused, and a stop stores whatever is left to store.
            ("TALLYMAN_DEFAULT_LIMIT", "1000000000000".to_owned()),
            ("TALLYMAN_SHUTDOWN_SECONDS", PATIENCE.as_secs().to_string()),
        ];
        let settings = settings
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        let settings: Vec<_> = usual.into_iter().chain(settings).collect();
        self.start("serve", "tallyman", &["serve"], &settings).await
    }

    /// Starts the server that does nothing, with as many threads as the service has.
    pub(crate) async fn serve_noop(&self) -> Result<Service> {
        let workers = self.workers.to_string();
        self.start("noop", "bench", &["noop", "--workers", &workers], &[])
            .await
    }

    async fn start(
        &self,
        name: &'static str,
        program: &str,
        arguments: &[&str],
        settings: &[(&str, String)],
    ) -> Result<Service> {
        let listen = free_address()?;
        let address = listen.to_string();
        let arguments = [arguments, &["--listen", &address]].concat();
        let program = executable(program)?;
        let mut process = Process::start(name, &program, &arguments, settings, &self.dir)?;
        let target = Target::at(listen, &self.key);
        process.ready(&target).await?;
        Ok(Service { target, process })
    }

    fn redis_url(&self) -> String {
        let dir = self.dir.display();
        format!("redis+unix://{dir}/redis/redis.sock?protocol=resp3")
    }

    fn database_url(&self) -> String {
        let dir = self.dir.display();
        format!("postgres:///tallyman?host={dir}/postgres&port=5432&user=tallyman&sslmode=disable")
    }

    /// A connection of the tool's own.
    pub(crate) async fn postgres(&self) -> Result<PgConnection> {
        PgConnection::connect(&self.database_url())
            .await
            .context("cannot use the private Postgres")
    }

    /// Bytes that Redis has allocated.
    pub(crate) async fn redis_memory(&self) -> Result<u64> {
        let memory = self.redis_info("memory").await?;
        memory.get("used_memory").context("INFO lacks used_memory")
    }

    /// Waits while Redis rewrites its append-only file: for some seconds where there are a million counters, in which
    /// it takes a core, so that what is measured would depend on when it began.
    pub(crate) async fn redis_has_rewritten(&self) -> Result<()> {
        loop {
            let persistence = self.redis_info("persistence").await?;
            let under_way = ["aof_rewrite_scheduled", "aof_rewrite_in_progress"];
            if under_way
                .iter()
                .all(|fact| persistence.get::<u8>(fact) == Some(0))
            {
                return Ok(());
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn redis_info(&self, section: &str) -> Result<redis::InfoDict> {
        let client = redis::Client::open(self.redis_url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut info = redis::cmd("INFO");
        Ok(info.arg(section).query_async(&mut connection).await?)
    }
}

/// A process that answers HTTP.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) target: Target,
    process: Process,
}

impl Service {
    /// Stops it as SIGTERM does, and says how long that took.
    pub(crate) async fn stop(self) -> Result<Duration> {
        let begun = Instant::now();
        self.process.stop().await?;
        Ok(begun.elapsed())
    }

    /// The memory that it occupies now, bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process.pid);
        let status = fs::read_to_string(path).context("there is no /proc")?;
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.context("there is no VmRSS")? * 1024)
    }
}

#[derive(Debug)]
struct Process {
    name: &'static str,
    child: Child,
    pid: u32,
    /// The watcher's pipe.
    lifeline: ChildStdin,
    log: PathBuf,
}

impl Process {
    fn start(
        name: &'static str,
        program: &Path,
        arguments: &[&str],
        settings: &[(&str, String)],
        dir: &Path,
    ) -> Result<Self> {
        let log = dir.join(name).with_extension("out");
        let output = File::create(&log)?;
        let mut child = Command::new("/bin/sh")
            .args(["-c", WATCHED, "sh"])
            .arg(program)
            .args(arguments)
            .envs(settings.iter().map(|(name, value)| (*name, value)))
            // A group of its own: a terminal's Ctrl-C reaches only us, and we end in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let lifeline = child.stdin.take().context("no pipe to a new process")?;
        let pid = child.id().context("a new process has ended")?;
        Ok(Self {
            name,
            child,
            pid,
            lifeline,
            log,
        })
    }

    async fn ready(&mut self, target: &Target) -> Result<()> {
        let begun = Instant::now();
        while !http::is_ready(target).await {
            if self.child.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                let said = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("{} does not start:\n{}", self.name, said.trim());
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    async fn stop(mut self) -> Result<()> {
        drop(self.lifeline);
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .with_context(|| format!("{} does not stop", self.name))??;
        // The server that does nothing knows no better end than the signal.
        if !status.success() && status.code().is_some() {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            bail!("{} ended badly ({status}):\n{}", self.name, said.trim());
        }
        Ok(())
    }
}

/// An executable of the same build as this one.
fn executable(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.is_file() {
        bail!("{} is missing; build it first", path.display());
    }
    Ok(path)
}

/// A port of this machine that nobody uses.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("there is no free port")?;
    Ok(listener.local_addr()?)
}
