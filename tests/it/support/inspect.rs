//! A look behind the scenes: what Postgres and Redis hold, and how to take them away.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::PgPool;
use tallyman::config::Servers;
use tallyman::redis::Shard;
use tempfile::TempDir;

use super::{Held, Instance, World};

/// One row of `usage_history`, and what `usage_hourly` has of it.
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
    /// The sums of the hours; the flusher keeps them equal to the row's own at all times.
    pub hours_used: i64,
    pub hours_denied: i64,
}

/// Everything that Postgres holds of counts, in key order.
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

/// The only row of an organization's meter `api`; panics where there is none or another one.
pub async fn row(postgres: &PgPool, organization: &str) -> Row {
    let mut rows = rows(postgres).await;
    rows.retain(|row| row.organization_id == organization && row.meter == "api");
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

/// What `usage_hourly` has of an organization: start, used and denied.
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

/// Holds the lock that serializes changes of policies, so that a change stops right before it is made.
pub async fn hold_changes(postgres: &PgPool) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut held = postgres.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(7302814)")
        .execute(&mut *held)
        .await
        .unwrap();
    held
}

/// Returns once somebody waits for a lock in this database.
pub async fn until_waiting(postgres: &PgPool) {
    let waiting = "select exists (
        select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
    )";
    while !sqlx::query_scalar::<_, bool>(waiting)
        .fetch_one(postgres)
        .await
        .unwrap()
    {}
}

/// The shard that an organization's keys are in.
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

/// Asserts that Postgres holds so many units of the one counter of an organization, and of its hours.
pub async fn assert_stored(world: &World, organization: &str, used: i64) {
    let row = row(&world.postgres().await, organization).await;
    assert_eq!((row.used, row.hours_used), (used, used), "{row:?}");
}

impl World {
    /// What is held of a counter of the meter `api`; nothing where Redis has none.
    pub async fn counter(&self, organization: &str, start: DateTime<Utc>) -> Held {
        self.held(&counter_key(organization, start)).await
    }

    /// The hash that has what is known of an organization, if one has.
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

    /// Loses everything that Redis holds, while it runs.
    pub async fn flush_redis(&self) {
        let () = self.redis_command(&["FLUSHALL"]).await;
    }

    /// A copy of everything that Redis holds now.
    pub async fn copy_redis(&self) -> Vec<u8> {
        let () = self.redis_command(&["SAVE"]).await;
        std::fs::read(self.redis_data().join("dump.rdb")).unwrap()
    }

    /// Kills Redis and starts it with an earlier copy of its data. The instances notice it while
    /// Redis is away, as they do in an outage that lasts longer than a request.
    pub async fn restart_redis_from(&mut self, copy: &[u8], instances: &[&Instance]) {
        self.kill_redis().await;
        for instance in instances {
            let answer = instance.http.get("/readyz").await;
            assert_eq!(answer.body["checks"]["redis"], "away", "{answer:?}");
        }
        std::fs::write(self.redis_data().join("dump.rdb"), copy).unwrap();
        self.start_redis().await;
    }

    /// A way to Postgres that can be cut, and where it leads through.
    pub fn cuttable_postgres(&self) -> (Servers, Cable) {
        let Servers {
            redis_url,
            database_url,
        } = self.servers();
        let (before, rest) = database_url.split_once("host=").unwrap();
        let (host, after) = rest.split_once('&').unwrap();
        assert!(!host.contains('%'), "{host}");
        let dir = TempDir::new().unwrap();
        let cable = Cable {
            connection: dir.path().join("postgres"),
            target: host.into(),
            _dir: dir,
        };
        cable.mend();
        let database_url = format!("{before}host={}&{after}", cable.connection.display());
        let servers = Servers {
            redis_url,
            database_url,
        };
        (servers, cable)
    }
}

/// A way to Postgres: a connection to the directory of its socket.
pub struct Cable {
    connection: PathBuf,
    target: PathBuf,
    _dir: TempDir,
}

impl Cable {
    /// Makes Postgres unreachable: ends the connections of a world's instances and bars new ones.
    pub async fn cut(&self, postgres: &PgPool) {
        std::fs::remove_file(&self.connection).unwrap();
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'tallyman'",
        )
        .execute(postgres)
        .await
        .unwrap();
    }

    /// Makes it reachable again.
    pub fn mend(&self) {
        std::os::unix::fs::symlink(&self.target, &self.connection).unwrap();
    }
}

impl Instance {
    /// Counts units of the meter `api`, whatever the limit says; returns the count then.
    pub async fn track(&self, organization: &str, amount: u64) -> u64 {
        let body = json!({"organizationId": organization, "amount": amount});
        let answer = self.http.post("/v1/track", body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["current"].as_u64().unwrap()
    }

    /// Consumes units of the meter `api`; whether they were granted, and the count then.
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
