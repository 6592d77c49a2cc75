//! Direct access to Postgres and Redis: reads what they store, and makes them unavailable.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::PgPool;
use tallyman::app::App;
use tallyman::config::Servers;
use tallyman::metrics::Metrics;
use tallyman::redis::Shard;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{CounterFields, Instance, World};

/// One row of `usage_history` with the sums of its `usage_hourly` rows.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Row {
    pub organization_id: String,
    pub meter: String,
    pub period_start: DateTime<Utc>,
    pub period_end: Option<DateTime<Utc>>,
    pub used: i64,
    pub denied: i64,
    pub limit_units: Option<i64>,
    pub enforcement: String,
    pub policy_version: i64,
    pub generation: i64,
    pub seq: i64,
    /// Sums over the hours; the flusher keeps them equal to `used` and `denied`.
    pub hours_used: i64,
    pub hours_denied: i64,
}

/// All rows of `usage_history`, in key order.
pub async fn rows(postgres: &PgPool) -> Vec<Row> {
    sqlx::query_as(
        "select organization_id, meter, period_start, period_end, used, denied, limit_units, enforcement,
                policy_version, epoch as generation, seq,
                (select coalesce(sum(used), 0)::bigint from usage_hourly as hourly
                 where (hourly.organization_id, hourly.meter, hourly.period_start)
                     = (history.organization_id, history.meter, history.period_start)) as hours_used,
                (select coalesce(sum(denied), 0)::bigint from usage_hourly as hourly
                 where (hourly.organization_id, hourly.meter, hourly.period_start)
                     = (history.organization_id, history.meter, history.period_start)) as hours_denied
         from usage_history as history
         order by organization_id, meter, period_start",
    )
    .fetch_all(postgres)
    .await
    .unwrap()
}

/// The only row of an organization's meter `api`; panics unless there is exactly one.
pub async fn row(postgres: &PgPool, organization: &str) -> Row {
    let mut rows = rows(postgres).await;
    rows.retain(|row| row.organization_id == organization && row.meter == "api");
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

/// `(hour, used, denied)` of each `usage_hourly` row of an organization.
pub async fn hours(postgres: &PgPool, organization: &str) -> Vec<(String, i64, i64)> {
    let hours: Vec<(DateTime<Utc>, i64, i64)> = sqlx::query_as(
        "select hour, used, denied from usage_hourly where organization_id = $1 order by hour",
    )
    .bind(organization)
    .fetch_all(postgres)
    .await
    .unwrap();
    hours
        .into_iter()
        .map(|(start, used, denied)| (start.format("%m-%dT%H:%M").to_string(), used, denied))
        .collect()
}

/// Takes the advisory lock that serializes policy changes, so that a change blocks right before its commit.
pub async fn lock_policy_changes(postgres: &PgPool) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut transaction = postgres.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(7302814)")
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction
}

/// Locks `usage_history`, so that nobody else may read or write it.
pub async fn lock_history(postgres: &PgPool) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut transaction = postgres.begin().await.unwrap();
    sqlx::query("lock table usage_history in access exclusive mode")
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction
}

/// Returns once a session in this database waits for a lock.
pub async fn until_lock_wait(postgres: &PgPool) {
    let waiting = "select exists (
        select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
    )";
    while !sqlx::query_scalar::<_, bool>(waiting)
        .fetch_one(postgres)
        .await
        .unwrap()
    {}
}

/// The shard of an organization's keys.
pub fn shard(organization: &str) -> Shard {
    Shard::of(&organization.parse().unwrap())
}

/// A key in the shard of an organization, such as `dirty`.
pub fn sharded(organization: &str, name: &str) -> String {
    format!("tm:{{{:02x}}}:{name}", shard(organization).index())
}

/// The key of a counter of the meter `api`.
pub fn counter_key(organization: &str, start: DateTime<Utc>) -> String {
    sharded(
        organization,
        &format!("u:{organization}:api:{}", start.timestamp_millis()),
    )
}

/// Asserts `used` in the organization's only history row and in the sum of its hours.
pub async fn assert_stored(world: &World, organization: &str, used: i64) {
    let row = row(&world.postgres().await, organization).await;
    assert_eq!((row.used, row.hours_used), (used, used), "{row:?}");
}

impl World {
    /// The fields of a counter of the meter `api`; empty if Redis has none.
    pub async fn counter(&self, organization: &str, start: DateTime<Utc>) -> CounterFields {
        self.snapshot(&counter_key(organization, start)).await
    }

    /// The hash with the policy of an organization, if there is one.
    pub async fn hash_of(&self, organization: &str) -> Option<String> {
        let hashes: Vec<String> = self
            .redis_command(&["KEYS", &sharded(organization, "o:*")])
            .await;
        for hash in hashes {
            let known: bool = self.redis_command(&["HEXISTS", &hash, organization]).await;
            if known {
                return Some(hash);
            }
        }
        None
    }

    /// Deletes all data in Redis while it runs.
    pub async fn flush_redis(&self) {
        let () = self.redis_command(&["FLUSHALL"]).await;
    }

    /// The content of `dump.rdb` after a `SAVE`.
    pub async fn copy_redis(&self) -> Vec<u8> {
        let () = self.redis_command(&["SAVE"]).await;
        std::fs::read(self.redis.data().join("dump.rdb")).unwrap()
    }

    /// Kills Redis and restarts it from an earlier copy of its data. The instances see the outage,
    /// as they would if it lasted longer than a request.
    pub async fn restart_redis_from(&mut self, copy: &[u8], instances: &[&Instance]) {
        self.kill_redis().await;
        for instance in instances {
            let answer = instance.http.get("/readyz").await;
            assert_eq!(answer.body["checks"]["redis"], "away", "{answer:?}");
        }
        std::fs::write(self.redis.data().join("dump.rdb"), copy).unwrap();
        self.start_redis().await;
    }

    /// Sends a signal, such as `STOP`, to Redis.
    pub fn signal_redis(&self, name: &str) {
        self.redis.signal(name);
    }

    /// Server addresses with Postgres behind a socket that can be cut, and that socket.
    pub fn cuttable_postgres(&self) -> (Servers, CuttableSocket) {
        let Servers {
            redis_url,
            database_url,
        } = self.servers();
        let (before, rest) = database_url.split_once("host=").unwrap();
        let (host, after) = rest.split_once('&').unwrap();
        assert!(!host.contains('%'), "{host}");
        let dir = TempDir::new().unwrap();
        let socket = CuttableSocket {
            link: dir.path().join("postgres"),
            target: host.into(),
            instances: self.instances.clone(),
            _dir: dir,
        };
        socket.link();
        let database_url = format!("{before}host={}&{after}", socket.link.display());
        let servers = Servers {
            redis_url,
            database_url,
        };
        (servers, socket)
    }
}

/// A symbolic link to the directory of Postgres' socket.
pub struct CuttableSocket {
    link: PathBuf,
    target: PathBuf,
    instances: Instances,
    _dir: TempDir,
}

impl CuttableSocket {
    /// Makes Postgres unreachable: removes the link and terminates the instances' sessions.
    pub async fn cut(&self, postgres: &PgPool) {
        std::fs::remove_file(&self.link).unwrap();
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'tallyman'",
        )
        .execute(postgres)
        .await
        .unwrap();
    }

    /// Makes Postgres reachable again, and waits until the instances have noticed.
    pub async fn restore(&self) {
        self.link();
        self.instances.until_up("postgres").await;
    }

    fn link(&self) {
        std::os::unix::fs::symlink(&self.target, &self.link).unwrap();
    }

    /// Lets Postgres hang: neither a session of the instances nor a new one gets a reply.
    pub async fn freeze(&self, postgres: &PgPool) -> Frozen<'_> {
        let silent = TempDir::new().unwrap();
        let listener = UnixListener::bind(silent.path().join(SOCKET)).unwrap();
        std::fs::remove_file(&self.link).unwrap();
        std::os::unix::fs::symlink(silent.path(), &self.link).unwrap();
        let sessions = "select pid from pg_stat_activity
                        where datname = current_database() and application_name = 'tallyman'";
        let sessions: Vec<i32> = sqlx::query_scalar(sessions)
            .fetch_all(postgres)
            .await
            .unwrap();
        let sessions: Vec<u32> = sessions
            .into_iter()
            .map(|pid| pid.try_into().unwrap())
            .collect();
        for session in &sessions {
            signal(*session, "STOP");
        }
        Frozen {
            socket: self,
            sessions,
            _listener: listener,
            _silent: silent,
        }
    }
}

/// The name of Postgres' socket.
const SOCKET: &str = ".s.PGSQL.5432";

/// A Postgres that hangs; it resumes when this is dropped.
pub struct Frozen<'a> {
    socket: &'a CuttableSocket,
    sessions: Vec<u32>,
    /// Accepts connections, by its backlog, and never replies.
    _listener: UnixListener,
    _silent: TempDir,
}

impl Frozen<'_> {
    /// Lets Postgres resume, and waits until the instances have noticed.
    pub async fn thaw(self) {
        std::fs::remove_file(&self.socket.link).unwrap();
        self.socket.restore().await;
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        for session in &self.sessions {
            signal(*session, "CONT");
        }
    }
}

/// Sends a signal, such as `STOP`, to a process.
pub fn signal(pid: u32, name: &str) {
    let sent = std::process::Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status()
        .unwrap();
    assert!(sent.success(), "{name} to {pid}");
}

/// The instances of a world, each with the token that is cancelled when it is dropped.
#[derive(Clone, Default)]
pub struct Instances(Arc<Mutex<Vec<(Metrics, CancellationToken)>>>);

impl Instances {
    pub(super) fn add(&self, app: &App, stop: &CancellationToken) {
        let metrics = app.state.ctx.metrics.clone();
        self.0.lock().unwrap().push((metrics, stop.clone()));
    }

    /// Waits until the running instances have noticed that a server is up; for seconds at most, because one may be cut
    /// off from it by other means.
    pub(super) async fn until_up(&self, server: &str) {
        let instances = self.0.lock().unwrap().clone();
        for (metrics, stopped) in instances {
            if !stopped.is_cancelled() {
                let up = until_observed(&metrics, server, true);
                let _ = timeout(Duration::from_secs(5), up).await;
            }
        }
    }
}

async fn until_observed(metrics: &Metrics, server: &str, up: bool) {
    let wanted = format!("tallyman_server_up{{server=\"{server}\"}} {}", u8::from(up));
    while !metrics.to_text().unwrap().contains(&wanted) {
        sleep(Duration::from_millis(5)).await;
    }
}

impl Instance {
    /// Returns when a call of an organization is counted.
    pub async fn until_counts(&self, organization: &str) {
        self.until_status(organization, 200).await;
    }

    /// Returns when a call of an organization is refused with 503.
    pub async fn until_refused(&self, organization: &str) {
        self.until_status(organization, 503).await;
    }

    async fn until_status(&self, organization: &str, status: u16) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let body = json!({"organizationId": organization, "meter": "other"});
        loop {
            let answer = self.http.post("/v1/consume", body.clone()).await;
            if answer.status == status {
                return;
            }
            assert!(Instant::now() < deadline, "{answer:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until this instance has noticed that a server is down, or up again.
    pub async fn until_observed(&self, server: &str, up: bool) {
        let observed = until_observed(&self.app.state.ctx.metrics, server, up);
        let observed = timeout(Duration::from_mins(1), observed).await;
        observed.unwrap_or_else(|_| panic!("{server} is not observed"));
    }

    /// Tracks units of the meter `api`, regardless of the limit; returns the new count.
    pub async fn track(&self, organization: &str, amount: u64) -> u64 {
        let body = json!({"organizationId": organization, "amount": amount});
        let answer = self.http.post("/v1/track", body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["current"].as_u64().unwrap()
    }

    /// Consumes units of the meter `api`; returns whether they were granted, and the count.
    pub async fn consume(&self, organization: &str, amount: u64) -> (bool, u64) {
        let body = json!({"organizationId": organization, "amount": amount});
        let answer = self.http.post("/v1/consume", body).await;
        assert!([200, 429].contains(&answer.status.as_u16()), "{answer:?}");
        (
            answer.status == 200,
            answer.body["current"].as_u64().unwrap(),
        )
    }

    /// Sets the limit of the meter `api`.
    pub async fn limit(&self, organization: &str, limit: u64) {
        let path = format!("/v1/organizations/{organization}/limits");
        let answer = self
            .http
            .patch(&path, json!({"api": {"limit": limit}}))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}
