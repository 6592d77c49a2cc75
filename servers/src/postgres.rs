//! A private Postgres.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, chown, symlink};
use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use crate::account::Account;
use crate::paths::{
    SocketDir, create_dir, find_postgres, ignore_missing, percent_encoded, unique_name,
};
use crate::process::{Log, Process, STOP_TIME_MAX, watched};

/// The superuser, and the name of the database that is created at the first start.
const NAME: &str = "tallyman";

const PORT: &str = "5432";
const SOCKET: &str = ".s.PGSQL.5432";

/// How a [`PostgresServer`] is configured.
#[derive(Debug, Clone, Copy)]
pub struct PostgresOptions {
    /// Whether commits survive a crash of the machine. Tests do without, and get more connections
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
    /// Starts the Postgres of `dir`, which is created if missing, and returns once the database
    /// `tallyman` accepts connections.
    pub async fn start(dir: &Path, options: &PostgresOptions) -> Result<Self> {
        let programs = find_postgres().context(
            "Postgres (initdb and postgres) is not installed; `scripts/setup` (part of `make dev`) installs it",
        )?;
        let dir = create_dir(dir, 0o755)?;
        let log = Log::open(&dir, "postgres").await?;
        let link = dir.join("postgres");
        if !link.exists() {
            initialize(&programs.join("initdb"), &dir, &log, options).await?;
        }
        let data = link
            .canonicalize()
            .with_context(|| format!("cannot open {}", link.display()))?;
        let socket_dir = SocketDir::new(&data, SOCKET)?;
        remove_stale_locks(&data)?;

        let mut command = watched(&programs.join("postgres"), "INT");
        // The socket directory is relative to the data directory; the port is part of the socket's
        // name.
        command
            .current_dir("/")
            .arg("-D")
            .arg(&data)
            .args(["-k", ".", "-p", PORT])
            .args(["-c", "listen_addresses=", "-c", "logging_collector=off"]);
        if !options.durable {
            command
                .args(["-c", "fsync=off", "-c", "synchronous_commit=off"])
                .args(["-c", "full_page_writes=off", "-c", "max_connections=400"]);
        }
        if let Some(owner) = Account::owner(&data)? {
            owner.run(&mut command);
        }

        let mut server = Self {
            process: Process::spawn(command, log)?,
            socket_dir,
        };
        let maintenance =
            PgConnectOptions::from_str(&server.url("postgres"))?.disable_statement_logging();
        let ready = async || create_database(&maintenance).await;
        server.process.ready(ready).await?;
        Ok(server)
    }

    /// The URL of one of this server's databases, for `sqlx`.
    pub fn url(&self, database: &str) -> String {
        let host = percent_encoded(self.socket_dir.path());
        let database = percent_encoded(Path::new(database));
        // Port and sslmode are explicit because libpq's variables (PGPORT, PGSSLMODE) would
        // override the defaults.
        format!("postgres:///{database}?host={host}&port={PORT}&user={NAME}&sslmode=disable")
    }

    /// Waits until the server ends on its own, and returns the reason as an error.
    pub async fn died(&mut self) -> anyhow::Error {
        self.process.died().await
    }

    /// Stops the server with SIGINT ("fast shutdown"): open transactions are rolled back.
    pub async fn stop(self) {
        self.process.stop(STOP_TIME_MAX).await;
    }

    /// Kills the server with SIGKILL, for tests of crashes; its sessions end by themselves.
    pub async fn kill(self) {
        self.process.kill().await;
    }
}

/// Removes the lock files of a server that was killed, which is certain because this process holds
/// the lock of the directory. With them, Postgres would refuse to start if another process has got
/// the recorded id, as is usual after the restart of a container.
fn remove_stale_locks(data: &Path) -> Result<()> {
    for stale in ["postmaster.pid".to_owned(), format!("{SOCKET}.lock")] {
        ignore_missing(fs::remove_file(data.join(&stale)))
            .with_context(|| format!("cannot remove a stale {stale}"))?;
    }
    Ok(())
}

/// Creates the database [`NAME`] if it is missing.
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

/// Creates the data directory `dir/postgres`: completely or not at all, whenever it is interrupted.
async fn initialize(
    initdb: &Path,
    dir: &Path,
    log: &Arc<Log>,
    options: &PostgresOptions,
) -> Result<()> {
    let link = dir.join("postgres");
    let account = Account::unprivileged()?;
    // Root's Postgres runs as another user, who may lack access to `dir`: a clone below /root, or
    // the result of `mktemp -d`. Then the data lives elsewhere and `dir/postgres` links to it.
    let home = match account {
        Some(account) if !account.can_reach(dir)? => Path::new("/var/tmp").join(unique_name(dir)),
        _ => link.clone(),
    };
    // Without a working link nothing here is in use: not the data of an earlier directory of the
    // same name, not a dangling link, not the remains of an interrupted initialization.
    let draft = home.with_extension("new");
    let cannot = || format!("cannot create {}", home.display());
    ignore_missing(fs::remove_file(&link)).with_context(cannot)?;
    ignore_missing(fs::remove_dir_all(&home)).with_context(cannot)?;
    ignore_missing(fs::remove_dir_all(&draft)).with_context(cannot)?;
    DirBuilder::new()
        .mode(0o700)
        .create(&draft)
        .with_context(cannot)?;

    let mut command = watched(initdb, "TERM");
    command
        .current_dir("/")
        .arg("-D")
        .arg(&draft)
        .args(["--username", NAME, "--auth=trust", "--encoding=UTF8"])
        .arg("--locale=C");
    if !options.durable {
        command.arg("--no-sync");
    }
    if let Some(account) = account {
        chown(&draft, Some(account.user), Some(account.group)).with_context(cannot)?;
        account.run(&mut command);
    }
    let status = Process::spawn(command, Arc::clone(log))?.ended().await?;
    if !status.success() {
        bail!("initdb failed: {}", log.last_line());
    }
    fs::rename(&draft, &home).with_context(cannot)?;
    if home != link {
        symlink(&home, &link).with_context(cannot)?;
    }
    Ok(())
}
