//! `tallyman dev`: the service with private servers, without any configuration.
//!
//! Everything is kept in one data directory, locked by one instance at a time (`lock`): the data of the servers (see
//! [`tallyman_servers`]), the admin key (`admin-key`), created at the first start, and where the service runs (`service.json`). The service stops before the
//! servers, so that it can flush its last counts.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tallyman_servers::{PostgresOptions, PostgresServer, RedisOptions, RedisServer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::healthcheck;
use crate::app::{self, App};
use crate::clock::Clock;
use crate::config::{Config, Servers};
use crate::postgres::{Postgres, api_keys};

/// Options besides the settings of the service.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Directory of the data of the private servers and the admin key.
    #[arg(
        long,
        env = "TALLYMAN_DATA_DIR",
        value_name = "DIR",
        default_value = ".tallyman"
    )]
    pub data_dir: PathBuf,
}

/// The admin key, in the data directory.
const KEY_FILE: &str = "admin-key";

/// Where a running `tallyman dev` is reached; the file `service.json` in its data directory.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Running {
    /// URL of the service.
    pub(super) url: String,
    /// URL of the private Postgres.
    pub(super) database_url: String,
}

impl Running {
    const FILE: &str = "service.json";

    /// Reads it, and the admin key.
    pub(super) fn read(dir: &Path) -> Result<(Self, String)> {
        let read = |name: &str| {
            let path = dir.join(name);
            let hint = || format!("cannot read {}; is `tallyman dev` running?", path.display());
            fs::read_to_string(&path).with_context(hint)
        };
        let running = serde_json::from_str(&read(Self::FILE)?);
        let running = running.with_context(|| format!("{} is no service", Self::FILE))?;
        Ok((running, read(KEY_FILE)?.trim().to_owned()))
    }

    fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(Self::FILE);
        let text = serde_json::to_string(self)?;
        write_private(&path, &text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Serves with a private Redis and Postgres until SIGINT or SIGTERM.
pub async fn run(options: Options, config: Config) -> Result<()> {
    let stop = app::shutdown_signal();
    let dir = options.data_dir;
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let _lock = lock(&dir)?;
    // Before the servers start, because a taken port is the most frequent failure.
    let listener = bind(config.listen).await?;

    // Ctrl-C during the start: dropping the future stops servers that have started.
    let (mut redis, mut postgres) = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        servers = start_servers(&dir) => servers?,
    };
    let serving = serve(config, listener, &dir, &mut redis, &mut postgres, stop);
    let served = Box::pin(serving).await;
    tokio::join!(redis.stop(), postgres.stop());
    served
}

async fn start_servers(dir: &Path) -> Result<(RedisServer, PostgresServer)> {
    let redis = RedisOptions {
        append_only: true,
        ..RedisOptions::default()
    };
    let postgres = PostgresOptions { durable: true };
    tokio::try_join!(
        RedisServer::start(dir, &redis),
        PostgresServer::start(dir, &postgres)
    )
}

/// Serves until `stop`; fails if one of the servers ends.
async fn serve(
    config: Config,
    listener: TcpListener,
    dir: &Path,
    redis: &mut RedisServer,
    postgres: &mut PostgresServer,
    stop: CancellationToken,
) -> Result<()> {
    let database_url = postgres.url("tallyman");
    let database = Postgres::new(&database_url, 1).context("cannot use the private Postgres")?;
    database
        .migrate()
        .await
        .context("cannot migrate the private Postgres")?;
    let key = admin_key(&database, dir).await?;
    database.close().await;

    let address = listener
        .local_addr()
        .context("the listener has no address")?;
    let config = Config {
        // A developer receives webhooks on this machine.
        webhook_private_addresses: true,
        // No load balancer needs to notice a stop.
        drain: Duration::ZERO,
        ..config
    };
    let servers = Servers {
        redis_url: redis.url(),
        database_url: database_url.clone(),
    };
    let scheme = config.tls.scheme();
    let app = App::build(config, servers, Clock::System).await?;
    let running = Running {
        url: format!("{scheme}://{}", healthcheck::local(address)),
        database_url,
    };
    running.write(dir)?;
    announce(&running.url, dir, &key);

    let mut serving = pin!(app.serve(listener, stop.clone()));
    let death = tokio::select! {
        served = &mut serving => return served,
        death = redis.died() => death,
        death = postgres.died() => death,
    };
    stop.cancel();
    // Its error about the missing server would hide the cause.
    let _ = serving.await;
    Err(death)
}

/// Locks `dir` for this process until the returned file is closed.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let cannot = || format!("cannot lock {}", path.display());
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another `tallyman dev` is running on {}; stop it or choose another --data-dir",
                dir.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(cannot),
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("cannot listen on {address}: the port is taken; choose another with --listen")
        }
        Err(error) => bail!("cannot listen on {address}: {error}; choose another with --listen"),
    }
}

/// The key in `dir`, or a new one if it is missing or unknown to the database.
async fn admin_key(postgres: &Postgres, dir: &Path) -> Result<String> {
    let path = dir.join(KEY_FILE);
    match fs::read_to_string(&path) {
        Ok(key) if api_keys::verify(postgres, key.trim(), Clock::System.now()).await? => {
            return Ok(key.trim().to_owned());
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let key = api_keys::create_admin(postgres, "tallyman dev")
        .await
        .context("cannot create an admin key")?;
    write_private(&path, &key).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(key)
}

/// Writes a file that only its owner can read, atomically.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

#[expect(clippy::print_stdout, reason = "must be seen at every log level")]
fn announce(url: &str, dir: &Path, key: &str) {
    let key_file = dir.join(KEY_FILE);
    println!(
        r#"
  Tallyman counts at  {url}
  the dashboard is    {url}/dashboard
  with the admin key  {key}
  kept in             {}

  Try:  curl -sS {url}/v1/consume -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{{"organizationId":"org_123"}}'

  Ctrl-C stops it; the counts stay for the next time.
"#,
        key_file.display(),
    );
}
