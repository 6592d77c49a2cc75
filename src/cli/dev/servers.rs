//! Private Redis and Postgres servers, for `tallyman dev` and for the tests.
//!
//! Each server belongs to one directory and keeps everything in it:
//!
//! ```text
//! redis/     redis.log       data and socket of Redis, and what it said since its last start
//! postgres/  postgres.log    the same of Postgres
//! ```
//!
//! The contract, whatever dies when:
//!
//! - They listen on unix sockets in directories of their owner only, never on a port.
//! - They end when we end, cleanly, even when we are killed; a terminal's Ctrl-C reaches only us.
//! - A start finds the data of the last one. It waits for a server that still stops, sweeps away
//!   what a killed one left, and begins again an initialisation that was cut short.
//! - What goes wrong is one line that says what to do or where to look.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::str::FromStr as _;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};
use xxhash_rust::xxh3::xxh3_64;

/// The superuser of a [`PostgresServer`], and the name of the database that it starts with.
const NAME: &str = "tallyman";

/// Where `scripts/setup` puts servers that no package manager could install, relative to the
/// working directory.
const DOWNLOADED: &str = ".tallyman/servers";

const POLL_INTERVAL: Duration = Duration::from_millis(20);
const PREDECESSOR_TIME_MAX: Duration = Duration::from_secs(30);
const START_TIME_MAX: Duration = Duration::from_mins(1);
const STOP_TIME_MAX: Duration = Duration::from_secs(30);

/// What fits into the address of a unix socket on every system that we know: 108 bytes on Linux,
/// 104 on others, with a zero.
const SOCKET_PATH_MAX: usize = 103;

const REDIS_SOCKET: &str = "redis.sock";
const POSTGRES_PORT: &str = "5432";
const POSTGRES_SOCKET: &str = ".s.PGSQL.5432";

/// What differs between the Redis of one user and of another.
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
    /// Starts the Redis of `dir`, which is created if missing, and returns when it answers.
    pub async fn start(dir: &Path, options: &RedisOptions) -> Result<Self> {
        let program = find_on_path(&["redis-server", "valkey-server"]).context(
            "neither redis-server nor valkey-server is installed; `scripts/setup` (part of `make dev`) installs one",
        )?;
        let dir = create(dir, 0o755)?;
        let (log, output) = Log::lock(&dir, "redis").await?;
        let data = create(&dir.join("redis"), 0o700)?;
        let socket_dir = SocketDir::new(&data, REDIS_SOCKET)?;
        let socket = socket_dir.path.join(REDIS_SOCKET);

        let mut command = watched(&program, "TERM");
        command
            .current_dir(&data)
            .args([
                "--port",
                "0",
                "--unixsocket",
                REDIS_SOCKET,
                "--unixsocketperm",
                "700",
            ])
            .args(["--daemonize", "no", "--save", ""])
            .args([
                "--appendonly",
                if options.append_only { "yes" } else { "no" },
            ])
            .args(&options.extra);
        let mut process = Process::spawn(command, log, output)?;
        process.ready(async || ping(&socket).await).await?;
        Ok(Self {
            process,
            socket,
            _socket_dir: socket_dir,
        })
    }

    /// The address of this server as the `redis` crate reads it.
    pub fn url(&self) -> String {
        format!(
            "redis+unix://{}?protocol=resp3",
            percent_encoded(&self.socket)
        )
    }

    /// The unix socket that this server listens on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process id, of the server itself.
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Waits until the server ends by itself, which it should not, and says what is known about it.
    pub async fn died(&mut self) -> anyhow::Error {
        self.process.died().await
    }

    /// Stops the server as SIGTERM does: what it acknowledged is on disk afterwards if it is
    /// append-only.
    pub async fn stop(self) {
        self.process.stop().await;
    }

    /// Kills the server as SIGKILL does, for tests of crashes.
    pub async fn kill(self) {
        self.process.kill().await;
    }
}

/// What differs between the Postgres of one user and of another.
#[derive(Debug, Clone, Copy)]
pub struct PostgresOptions {
    /// Whether commits survive a crash of the machine. Tests do without, and take many connections
    /// instead.
    pub durable: bool,
}

/// A running Postgres that ends with this process.
#[derive(Debug)]
pub struct PostgresServer {
    process: Process,
    socket_dir: SocketDir,
}

impl PostgresServer {
    /// Starts the Postgres of `dir`, which is created if missing, and returns when the database
    /// `tallyman` can be used.
    pub async fn start(dir: &Path, options: &PostgresOptions) -> Result<Self> {
        let programs = find_postgres().context(
            "Postgres (initdb and postgres) is not installed; `scripts/setup` (part of `make dev`) installs it",
        )?;
        let dir = create(dir, 0o755)?;
        let (log, output) = Log::lock(&dir, "postgres").await?;
        let connection = dir.join("postgres");
        if !connection.exists() {
            initialise(&programs.join("initdb"), &dir, &log, &output, options).await?;
        }
        let data = connection
            .canonicalize()
            .with_context(|| format!("cannot open {}", connection.display()))?;
        let socket_dir = SocketDir::new(&data, POSTGRES_SOCKET)?;
        // We hold the lock, so these are of a server that was killed. Left alone, they would stop
        // the new one if another process has its id by now, which is usual after the restart of a
        // container.
        for leftover in [
            "postmaster.pid".to_owned(),
            format!("{POSTGRES_SOCKET}.lock"),
        ] {
            ignore_missing(fs::remove_file(data.join(&leftover)))
                .with_context(|| format!("cannot remove a stale {leftover}"))?;
        }

        let mut command = watched(&programs.join("postgres"), "INT");
        // The socket directory is relative to the data directory; the port is part of the socket's
        // name.
        command
            .current_dir("/")
            .arg("-D")
            .arg(&data)
            .args(["-k", ".", "-p", POSTGRES_PORT]);
        let mut settings = vec!["listen_addresses=", "logging_collector=off"];
        if !options.durable {
            settings.extend([
                "fsync=off",
                "synchronous_commit=off",
                "full_page_writes=off",
                "max_connections=400",
            ]);
        }
        for setting in settings {
            command.args(["-c", setting]);
        }
        if let Some(owner) = Account::owning(&data)? {
            owner.run(&mut command);
        }

        let process = Process::spawn(command, log, output)?;
        let mut server = Self {
            process,
            socket_dir,
        };
        let maintenance =
            PgConnectOptions::from_str(&server.url("postgres"))?.disable_statement_logging();
        server
            .process
            .ready(async || create_database(&maintenance).await)
            .await?;
        Ok(server)
    }

    /// The address of one of this server's databases as `sqlx` reads it.
    pub fn url(&self, database: &str) -> String {
        let host = percent_encoded(&self.socket_dir.path);
        let database = percent_encoded(Path::new(database));
        // The port and sslmode are defaults that variables of libpq (PGPORT, PGSSLMODE) would
        // change.
        format!(
            "postgres:///{database}?host={host}&port={POSTGRES_PORT}&user={NAME}&sslmode=disable"
        )
    }

    /// Waits until the server ends by itself, which it should not, and says what is known about it.
    pub async fn died(&mut self) -> anyhow::Error {
        self.process.died().await
    }

    /// Stops the server as SIGINT does ("fast shutdown"): open transactions are rolled back.
    pub async fn stop(self) {
        self.process.stop().await;
    }
}

/// Says PING, and whether the server can take commands now. While it loads its data it answers with
/// an error.
async fn ping(socket: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut reply = [0; 5];
    stream.read_exact(&mut reply).await?;
    if &reply != b"+PONG" {
        bail!("it does not answer PING yet");
    }
    Ok(())
}

/// Creates the database [`NAME`] unless it is there.
async fn create_database(maintenance: &PgConnectOptions) -> Result<()> {
    let mut connection = maintenance.connect().await?;
    let exists: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(NAME)
            .fetch_one(&mut connection)
            .await?;
    if !exists {
        sqlx::query("create database tallyman")
            .execute(&mut connection)
            .await?;
    }
    connection.close().await?;
    Ok(())
}

/// Makes the data directory `dir/postgres`: a whole one or none, however we are interrupted.
async fn initialise(
    initdb: &Path,
    dir: &Path,
    log: &Log,
    output: &File,
    options: &PostgresOptions,
) -> Result<()> {
    let connection = dir.join("postgres");
    let account = Account::unprivileged()?;
    // Root's Postgres runs as another user, whom the way to `dir` may be barred: a clone below
    // /root, or in what mktemp -d made. Then the data is kept elsewhere and `dir/postgres` leads
    // there.
    let home = match account {
        Some(account) if !account.reaches(dir)? => Path::new("/var/tmp").join(unique_name(dir)),
        _ => connection.clone(),
    };
    // Without a working connection nothing here is in use: not the data of a directory that had our name
    // before, not a connection whose target was cleaned up, not what an interrupted initialisation left.
    let unfinished = home.with_extension("new");
    let cannot = || format!("cannot create {}", home.display());
    ignore_missing(fs::remove_file(&connection)).with_context(cannot)?;
    ignore_missing(fs::remove_dir_all(&home)).with_context(cannot)?;
    ignore_missing(fs::remove_dir_all(&unfinished)).with_context(cannot)?;
    DirBuilder::new()
        .mode(0o700)
        .create(&unfinished)
        .with_context(cannot)?;

    let mut command = watched(initdb, "TERM");
    command
        .current_dir("/")
        .arg("-D")
        .arg(&unfinished)
        .args(["--username", NAME, "--auth=trust", "--encoding=UTF8"])
        .arg("--locale=C");
    if !options.durable {
        command.arg("--no-sync");
    }
    if let Some(account) = account {
        std::os::unix::fs::chown(&unfinished, Some(account.user), Some(account.group))
            .with_context(cannot)?;
        account.run(&mut command);
    }
    let output = output.try_clone().with_context(cannot)?;
    let status = Process::spawn(command, log.clone(), output)?
        .ended()
        .await?;
    if !status.success() {
        bail!("initdb failed: {}", log.last_words());
    }
    fs::rename(&unfinished, &home).with_context(cannot)?;
    if home != connection {
        std::os::unix::fs::symlink(&home, &connection).with_context(cannot)?;
    }
    Ok(())
}

/// What `sh` runs in front of a server: it leaves a watcher behind and becomes the server, whose
/// process id is then that of our child. The watcher's standard input is a pipe whose other end
/// only we hold, and never write to, so it reads the end of it at the moment when we end, for
/// whatever reason; then it stops the server.
const WATCHED: &str = r#"
signal=$1; shift
exec 3<&0
( { read -r _ <&3; kill -s "$signal" $$ 2>/dev/null; } & )
exec "$@" </dev/null 3<&-
"#;

/// A command that runs `program` and sends it `signal` when we end or drop its [`Process`].
fn watched(program: &Path, signal: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", WATCHED, "sh", signal]).arg(program);
    // A group of its own: the terminal's Ctrl-C must not stop a server that we still have to flush
    // to.
    command.process_group(0).stdin(Stdio::piped());
    command
}

/// A server, or a program on its behalf, that does not outlive this value.
#[derive(Debug)]
struct Process {
    child: Child,
    pid: u32,
    /// The watcher's pipe.
    lifeline: ChildStdin,
    log: Log,
}

impl Process {
    /// Starts it, with `output` as its own: only the new process holds the lock from here on.
    fn spawn(mut command: Command, log: Log, output: File) -> Result<Self> {
        let cannot = || format!("cannot start {}", log.name);
        command
            .stdout(output.try_clone().with_context(cannot)?)
            .stderr(output);
        let mut child = command.spawn().with_context(cannot)?;
        let lifeline = child.stdin.take().with_context(cannot)?;
        let pid = child.id().with_context(cannot)?;
        Ok(Self {
            child,
            pid,
            lifeline,
            log,
        })
    }

    /// Waits until `probe` succeeds; an error if the process ends first or takes too long.
    async fn ready(&mut self, mut probe: impl AsyncFnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            let Err(error) = probe().await else {
                return Ok(());
            };
            if self.child.try_wait()?.is_some() {
                bail!(
                    "{} does not start: {}",
                    self.log.name,
                    self.log.last_words()
                );
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} is not ready after {START_TIME_MAX:?} ({error}): {}",
                    self.log.name,
                    self.log.last_words()
                );
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn ended(mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    async fn died(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => anyhow!(
                "{} ended ({status}): {}",
                self.log.name,
                self.log.last_words()
            ),
            Err(error) => anyhow!(error).context(format!("cannot watch {}", self.log.name)),
        }
    }

    async fn stop(self) {
        let Self {
            mut child,
            lifeline,
            log,
            ..
        } = self;
        drop(lifeline);
        if timeout(STOP_TIME_MAX, child.wait()).await.is_err() {
            tracing::warn!(server = log.name, "did not stop in time and is killed");
            let _ = child.kill().await;
        }
    }

    async fn kill(mut self) {
        // Fails only if it is dead already.
        let _ = self.child.kill().await;
    }
}

/// The log of a directory's server.
#[derive(Debug, Clone)]
struct Log {
    name: &'static str,
    path: PathBuf,
}

impl Log {
    /// Opens the log of `name` in `dir`, emptied and locked; waits for a server of before that
    /// still stops.
    ///
    /// The file is the lock of the directory too: the server and all its children inherit it as
    /// their output, so the lock lasts exactly as long as any of them, and there is no process id
    /// to guess from.
    async fn lock(dir: &Path, name: &'static str) -> Result<(Self, File)> {
        let path = dir.join(name).with_extension("log");
        let cannot = || format!("cannot open {}", path.display());
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(cannot)?;
        let deadline = Instant::now() + PREDECESSOR_TIME_MAX;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {}
                Err(TryLockError::WouldBlock) => {
                    bail!("another {name} still runs in {}", dir.display())
                }
                Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
            }
            sleep(POLL_INTERVAL).await;
        }
        file.set_len(0).with_context(cannot)?;
        Ok((Self { name, path }, file))
    }

    /// The line that most likely explains a failure, and where to find the others.
    fn last_words(&self) -> String {
        let text = fs::read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines = text
            .lines()
            .rev()
            .map(str::trim)
            .filter(|line| !line.is_empty());
        // Postgres goes on talking after the fatal line.
        let line = lines
            .clone()
            .find(|line| line.contains("FATAL: "))
            .or_else(|| lines.next())
            .unwrap_or("no word from it");
        format!("{line} (in {})", self.path.display())
    }
}

/// The user that root's Postgres runs as, because it refuses to run as root.
#[derive(Debug, Clone, Copy)]
struct Account {
    user: u32,
    group: u32,
}

impl Account {
    /// Whom to give a new data directory to; nobody else if we are not root.
    fn unprivileged() -> Result<Option<Self>> {
        if !we_are_root() {
            return Ok(None);
        }
        let accounts = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let account = |name| {
            let line = accounts
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            let mut fields = line.split(':').skip(1).map(str::parse);
            Some(Self {
                user: fields.next()?.ok()?,
                group: fields.next()?.ok()?,
            })
        };
        account("postgres")
            .or_else(|| account("nobody"))
            .map(Some)
            .context("Postgres refuses to run as root and there is no user `nobody`")
    }

    /// Who has to run the Postgres of this data directory; ourselves if we are not root.
    fn owning(data: &Path) -> Result<Option<Self>> {
        if !we_are_root() {
            return Ok(None);
        }
        let metadata =
            fs::metadata(data).with_context(|| format!("cannot open {}", data.display()))?;
        Ok(Some(Self {
            user: metadata.uid(),
            group: metadata.gid(),
        }))
    }

    fn reaches(self, dir: &Path) -> Result<bool> {
        for ancestor in dir.ancestors() {
            let metadata = fs::metadata(ancestor)
                .with_context(|| format!("cannot open {}", ancestor.display()))?;
            let search = match () {
                () if metadata.uid() == self.user => 0o100,
                () if metadata.gid() == self.group => 0o010,
                () => 0o001,
            };
            if metadata.mode() & search == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn run(self, command: &mut Command) {
        command.uid(self.user).gid(self.group);
    }
}

/// Whether this process is root's. Where there is no `/proc` it is some developer's laptop, and it
/// is not.
fn we_are_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// The first of these programs that is installed.
fn find_on_path(names: &[&str]) -> Option<PathBuf> {
    names.iter().find_map(|name| {
        program_dirs()
            .into_iter()
            .map(|dir| dir.join(name))
            .find(|program| program.is_file())
    })
}

/// The directory of an installed Postgres. Debian keeps its servers out of the PATH, one directory
/// a version.
fn find_postgres() -> Option<PathBuf> {
    let version = |dir: &Path| dir.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let packages = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut packages: Vec<PathBuf> = packages.map(|entry| entry.path().join("bin")).collect();
    packages.sort_by_key(|dir| std::cmp::Reverse(version(dir)));
    let whole = |dir: &PathBuf| dir.join("initdb").is_file() && dir.join("postgres").is_file();
    program_dirs().into_iter().chain(packages).find(whole)
}

/// Where programs are looked for, as absolute paths, since servers start in another directory.
fn program_dirs() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path)
        .filter(|dir| !dir.as_os_str().is_empty())
        .chain([PathBuf::from(DOWNLOADED)]);
    dirs.filter_map(|dir| std::path::absolute(dir).ok())
        .collect()
}

/// Creates `dir` if missing, and returns its one true path.
fn create(dir: &Path, mode: u32) -> Result<PathBuf> {
    let created = DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .and_then(|()| dir.canonicalize());
    created.with_context(|| format!("cannot create {}", dir.display()))
}

/// A way to a directory on which the address of a socket in it is short enough. A deep one is
/// reached through a connection, for as long as this value lives; the server does not need it, because it
/// names its socket relative to the directory.
#[derive(Debug)]
struct SocketDir {
    path: PathBuf,
    linked: bool,
}

impl SocketDir {
    fn new(dir: &Path, socket: &str) -> Result<Self> {
        if dir.join(socket).as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(Self {
                path: dir.to_owned(),
                linked: false,
            });
        }
        let connection = Path::new("/tmp").join(unique_name(dir));
        // Never follows a connection that somebody else has put here: then the second call fails.
        let linked = ignore_missing(fs::remove_file(&connection))
            .and_then(|()| std::os::unix::fs::symlink(dir, &connection));
        linked.with_context(|| format!("cannot create {}", connection.display()))?;
        Ok(Self {
            path: connection,
            linked: true,
        })
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        if self.linked {
            // A connection that stays does no harm, and the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A short name for a directory, the same at each start.
fn unique_name(dir: &Path) -> String {
    format!("tallyman-{:016x}", xxh3_64(dir.as_os_str().as_bytes()))
}

/// A path as it may stand in a URL.
fn percent_encoded(path: &Path) -> String {
    let encoded = |byte: &u8| match byte {
        b'/' | b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
            char::from(*byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    OsStr::as_bytes(path.as_os_str())
        .iter()
        .map(encoded)
        .collect()
}

fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
