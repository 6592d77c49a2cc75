//! The handle on the database, and how transactions that change policies begin.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgExecutor, PgPool};

pub(super) use super::error::{Error, Result};
use super::health::Database;
use super::types::BigInt;
use crate::domain::month::Month;
use crate::link::Link;
use crate::metrics::Metrics;

/// How long a caller waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a caller waits for policy changes that are being committed.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);

/// A transaction on a pooled connection.
pub(super) type Transaction = sqlx::Transaction<'static, sqlx::Postgres>;

/// The handle on the database; clones share one pool.
#[derive(Debug, Clone)]
pub struct Postgres {
    pool: PgPool,
    /// None where a command waits for the database instead.
    health: Option<Link<Database>>,
    /// Months whose partitions are known to exist, or to have been dropped.
    pub(super) partitions: Arc<Mutex<BTreeSet<Month>>>,
}

impl Postgres {
    /// A handle that connects at its first use.
    pub fn new(url: &str, connections_max: u32) -> Result<Self> {
        let options = options(url)?;
        Ok(Self {
            pool: pool(options, connections_max, Patience::default()),
            health: None,
            partitions: Arc::default(),
        })
    }

    /// Handles for requests and for jobs, whose statements fail at once while the database is down.
    pub fn watched(
        url: &str,
        requests: (u32, Patience),
        jobs: (u32, Patience),
        metrics: Metrics,
    ) -> Result<(Self, Self)> {
        let options = options(url)?;
        let health = Link::new(Database {
            options: options.clone(),
            metrics,
        });
        let handle = |(connections_max, patience)| Self {
            pool: pool(options.clone(), connections_max, patience),
            health: Some(health.clone()),
            partitions: Arc::default(),
        };
        Ok((handle(requests), handle(jobs)))
    }

    /// The pool, unless the database is down.
    pub(super) async fn pool(&self) -> Result<&PgPool> {
        if let Some(health) = &self.health
            && health.failure().is_some()
        {
            health.connection().await?;
        }
        Ok(&self.pool)
    }

    /// Applies pending migrations.
    pub async fn migrate(&self) -> Result<()> {
        sqlx::migrate!()
            .run(self.pool().await?)
            .await
            .map_err(|error| match error {
                sqlx::migrate::MigrateError::Execute(error) => error.into(),
                other => Error::corrupt_row(other),
            })
    }

    /// Checks that Postgres responds.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("select 1").execute(self.pool().await?).await?;
        Ok(())
    }

    /// Closes all connections once they are idle.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Draws a generation number that no data set of Redis has had; returns it with the time by the clock of Postgres.
    pub async fn draw_generation(&self) -> Result<(u64, DateTime<Utc>)> {
        let (BigInt(generation), now) =
            sqlx::query_as("select nextval('generation'), clock_timestamp()")
                .fetch_one(self.pool().await?)
                .await?;
        Ok((generation, now))
    }

    /// Begins a transaction that excludes all policy changes.
    pub(super) async fn begin_change(&self) -> Result<Transaction> {
        let mut transaction = self.pool().await?.begin().await?;
        // The lock's key is arbitrary, but the same in every instance.
        sqlx::query("select pg_advisory_xact_lock(7302814)")
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    /// Waits, at most [`SETTLED_WITHIN`], until no policy change is in progress, and begins a transaction that sees
    /// all of them.
    pub(super) async fn begin_settled(&self) -> Result<Transaction> {
        let mut transaction = self.pool().await?.begin().await?;
        sqlx::query("select set_config('lock_timeout', $1, true)")
            .bind(format!("{}ms", SETTLED_WITHIN.as_millis()))
            .execute(&mut *transaction)
            .await?;
        sqlx::query("select pg_advisory_xact_lock_shared(7302814)")
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    /// Begins a transaction that changes policies, and draws its policy version. These transactions are serialized,
    /// so that versions become visible in order.
    pub(super) async fn begin_policy_change(&self) -> Result<(Transaction, u64)> {
        let mut transaction = self.begin_change().await?;
        let BigInt(version) = sqlx::query_scalar("select nextval('policy_version')")
            .fetch_one(&mut *transaction)
            .await?;
        Ok((transaction, version))
    }
}

/// How long statements of a pool may wait and take; Postgres enforces it. Zero is without end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    /// For a lock.
    pub lock: Duration,
    /// For the whole statement.
    pub statement: Duration,
}

fn options(url: &str) -> Result<PgConnectOptions> {
    let options: PgConnectOptions = url.parse()?;
    Ok(options.application_name("tallyman"))
}

fn pool(options: PgConnectOptions, connections_max: u32, patience: Patience) -> PgPool {
    // JIT compilation takes longer than any statement here should. Only numbers are interpolated.
    let settings = format!(
        "set jit = off; set lock_timeout = {}; set statement_timeout = {}",
        patience.lock.as_millis(),
        patience.statement.as_millis()
    );
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| {
            let settings = AssertSqlSafe(settings.clone());
            Box::pin(async move {
                sqlx::raw_sql(settings).execute(connection).await?;
                Ok(())
            })
        })
        .connect_lazy_with(options)
}

/// A change that is written and not committed; rolled back when dropped.
#[derive(Debug)]
pub struct Uncommitted<T> {
    pub(super) transaction: Transaction,
    /// The policy version of the change.
    pub version: u64,
    /// The result of the change.
    pub outcome: T,
}

impl<T> Uncommitted<T> {
    /// Commits the change.
    pub async fn commit(self) -> Result<T> {
        self.transaction.commit().await?;
        Ok(self.outcome)
    }
}

/// Runs a statement with one parameter; returns the number of rows that it affected.
pub(super) async fn execute(
    executor: impl PgExecutor<'_>,
    sql: &'static str,
    parameter: impl for<'v> sqlx::Encode<'v, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
) -> Result<u64> {
    let done = sqlx::query(sql).bind(parameter).execute(executor).await?;
    Ok(done.rows_affected())
}
