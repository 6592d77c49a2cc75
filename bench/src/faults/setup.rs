//! What faults happen to: a private Redis, a private Postgres, and two instances of the service.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use redis::{AsyncConnectionConfig, FromRedisValue};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tallyman_servers::{
    Log, PostgresOptions, PostgresServer, Process, RedisOptions, RedisServer, watched,
};
use tokio::time::timeout;

use super::proxy::RedisLink;
use crate::http::Target;
use crate::stage::{free_address, signal, tallyman};

/// How long an instance serves after SIGTERM, and may take to answer and to flush.
const DRAIN: u64 = 1;
const SHUTDOWN: u64 = 5;
const STOP_TIME_MAX: Duration = Duration::from_secs(DRAIN + 2 * SHUTDOWN + 2);

/// Few enough to use them all up.
const FEW_CONNECTIONS: &str = "alter system set max_connections = 48";

/// How long the tool itself waits for a server.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Both servers and both instances, each of which may be down.
pub(super) struct Setup {
    dir: PathBuf,
    logs: PathBuf,
    service: PathBuf,
    redis: RefCell<Option<RedisServer>>,
    redis_url: String,
    pub(super) link: RedisLink,
    postgres: RefCell<Option<PostgresServer>>,
    postgres_url: String,
    pub(super) instances: [Instance; 2],
}

/// One instance of the service.
pub(super) struct Instance {
    name: &'static str,
    address: SocketAddr,
    pub(super) target: Target,
    process: RefCell<Option<Process>>,
    starts: Cell<u32>,
}

impl Setup {
    /// Starts both servers in `dir`, and creates a key. `service` is the executable, whose instances log to `logs`.
    pub(super) async fn new(dir: &Path, logs: &Path, service: PathBuf) -> Result<Self> {
        let (redis_options, options) = (redis_options(), PostgresOptions { durable: true });
        let (redis, postgres) = tokio::try_join!(
            RedisServer::start(dir, &redis_options),
            PostgresServer::start(dir, &options)
        )?;
        let postgres_url = postgres.url("tallyman");
        let mut connection = PgConnection::connect(&postgres_url).await?;
        sqlx::raw_sql(FEW_CONNECTIONS)
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        postgres.stop().await;
        let postgres = PostgresServer::start(dir, &options).await?;
        tallyman(&service, &postgres_url, &["migrate"]).await?;
        let create = ["keys", "create", "--name", "faults", "--scope", "admin"];
        let key = tallyman(&service, &postgres_url, &create).await?;
        let instance = |name| {
            let address = free_address()?;
            anyhow::Ok(Instance {
                name,
                address,
                target: Target::new(&format!("http://{address}"), &key)?,
                process: RefCell::new(None),
                starts: Cell::new(0),
            })
        };
        Ok(Self {
            dir: dir.to_owned(),
            logs: logs.to_owned(),
            service,
            redis_url: redis.url(),
            link: RedisLink::new(dir, redis.socket())?,
            redis: RefCell::new(Some(redis)),
            postgres: RefCell::new(Some(postgres)),
            postgres_url,
            instances: [instance("a")?, instance("b")?],
        })
    }

    /// Starts an instance whose clock differs from the machine's by so many seconds.
    pub(super) async fn start_instance(&self, which: usize, offset: i64) -> Result<()> {
        let instance = &self.instances[which];
        let mut command = watched(&self.service, "TERM");
        command
            .args(["serve", "--listen", &instance.address.to_string()])
            .env("TALLYMAN_REDIS_URL", self.link.url())
            .env("TALLYMAN_DATABASE_URL", &self.postgres_url)
            .env("TALLYMAN_WORKERS", "1")
            .env("TALLYMAN_DRAIN_SECONDS", DRAIN.to_string())
            .env("TALLYMAN_SHUTDOWN_SECONDS", SHUTDOWN.to_string())
            .env("TALLYMAN_CLOCK_OFFSET_SECONDS", offset.to_string());
        let start = instance.starts.get() + 1;
        instance.starts.set(start);
        // A log for each start.
        let dir = self.logs.join(format!("{}{start}", instance.name));
        std::fs::create_dir(&dir)?;
        let mut process = Process::spawn(command, Log::open(&dir, "serve").await?)?;
        let ready = process.ready(async || instance.target.ready().await).await;
        instance.process.replace(Some(process));
        ready
    }

    /// Stops an instance with SIGTERM. False if it does not stop in time, or fails.
    pub(super) async fn stop_instance(&self, which: usize) -> Result<bool> {
        let process = self.instances[which].process.take();
        let process = process.context("the instance is not running")?;
        let status = process.stop(STOP_TIME_MAX).await;
        Ok(status.is_some_and(|status| status.success()))
    }

    /// Kills an instance.
    pub(super) async fn kill_instance(&self, which: usize) -> Result<()> {
        let process = self.instances[which].process.take();
        process.context("the instance is not running")?.kill().await;
        Ok(())
    }

    /// Kills Redis, or stops it with SIGTERM.
    pub(super) async fn end_redis(&self, kill: bool) -> Result<()> {
        let redis = self.redis.take().context("Redis is not running")?;
        if kill {
            redis.kill().await;
        } else {
            redis.stop().await;
        }
        Ok(())
    }

    /// Starts Redis with the data that it has.
    pub(super) async fn start_redis(&self) -> Result<()> {
        let redis = RedisServer::start(&self.dir, &redis_options()).await?;
        self.redis.replace(Some(redis));
        Ok(())
    }

    /// Where Redis has its data.
    pub(super) fn redis_data(&self) -> PathBuf {
        self.dir.join("redis/appendonlydir")
    }

    /// Kills Postgres, or stops it.
    pub(super) async fn end_postgres(&self, kill: bool) -> Result<()> {
        let postgres = self.postgres.take().context("Postgres is not running")?;
        if kill {
            postgres.kill().await;
        } else {
            postgres.stop().await;
        }
        Ok(())
    }

    /// Starts Postgres with the data that it has.
    pub(super) async fn start_postgres(&self) -> Result<()> {
        let postgres = PostgresServer::start(&self.dir, &PostgresOptions { durable: true }).await?;
        self.postgres.replace(Some(postgres));
        Ok(())
    }

    /// Stops everything.
    pub(super) async fn close(&self) {
        for which in 0..self.instances.len() {
            let _ = self.stop_instance(which).await;
        }
        let _ = tokio::join!(self.end_redis(false), self.end_postgres(false));
    }

    /// Sends a command to Redis itself.
    pub(super) async fn redis<T: FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let client = redis::Client::open(self.redis_url.as_str())?;
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        let reply = command.query_async(&mut connection).await;
        reply.with_context(|| format!("redis: {}", words.join(" ")))
    }

    /// Since when the oldest count waits to be stored, in milliseconds since 1970; none if none waits.
    pub(super) async fn unstored_since(&self) -> Result<Option<i64>> {
        let oldest = "local oldest
            for _, key in ipairs(redis.call('KEYS', 'tm:*:dirty')) do
                local since = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
                if since then oldest = math.min(oldest or since, since) end
            end
            return oldest";
        self.redis(&["EVAL", oldest, "0"]).await
    }

    /// A session of the tool's own, which may write.
    pub(super) async fn postgres(&self) -> Result<PgConnection> {
        let session = timeout(PATIENCE, PgConnection::connect(&self.postgres_url)).await;
        let mut session = session.context("Postgres hangs")??;
        sqlx::raw_sql("set default_transaction_read_only = off; set lock_timeout = '20s'")
            .execute(&mut session)
            .await?;
        Ok(session)
    }

    /// How to connect to Postgres.
    pub(super) fn postgres_options(&self) -> Result<PgConnectOptions> {
        Ok(self.postgres_url.parse()?)
    }

    /// Sends a signal to Redis.
    pub(super) fn signal_redis(&self, name: &str) -> Result<()> {
        let redis = self.redis.borrow();
        let pid = redis.as_ref().context("Redis is not running")?.pid();
        signal(&[pid], name)
    }
}

fn redis_options() -> RedisOptions {
    let extra = ["--auto-aof-rewrite-percentage", "0"];
    RedisOptions {
        append_only: true,
        extra: extra.map(str::to_owned).to_vec(),
    }
}
