//! The handle on the database, and how transactions that change policies begin.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgExecutor, PgPool};

pub(super) use super::error::{Error, Result};
use super::types::BigInt;

/// How long a caller waits for policy changes that are being committed.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);

/// A transaction on a pooled connection.
pub(super) type Transaction = sqlx::Transaction<'static, sqlx::Postgres>;

/// The handle on the database; clones share one pool.
#[derive(Debug, Clone)]
pub struct Postgres {
    pub(super) pool: PgPool,
    /// Months, as (year, month), whose partitions are known to exist.
    pub(super) partitions: Arc<Mutex<BTreeSet<(i32, u32)>>>,
}

impl Postgres {
    /// A handle that connects at its first use.
    pub fn new(url: &str, connections_max: u32) -> Result<Self> {
        let options: PgConnectOptions = url.parse()?;
        let pool = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(Duration::from_secs(5))
            // JIT compilation takes longer than any statement here should.
            .after_connect(|connection, _| {
                Box::pin(async move {
                    sqlx::query("set jit = off").execute(connection).await?;
                    Ok(())
                })
            })
            .connect_lazy_with(options.application_name("tallyman"));
        Ok(Self {
            pool,
            partitions: Arc::default(),
        })
    }

    /// Applies pending migrations.
    pub async fn migrate(&self) -> Result<()> {
        sqlx::migrate!()
            .run(&self.pool)
            .await
            .map_err(|error| match error {
                sqlx::migrate::MigrateError::Execute(error) => error.into(),
                other => Error::corrupt_row(other),
            })
    }

    /// Checks that Postgres responds.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("select 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes all connections once they are idle.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Draws a generation number that no data set of Redis has had.
    pub async fn draw_generation(&self) -> Result<u64> {
        let BigInt(generation) = sqlx::query_scalar("select nextval('generation')")
            .fetch_one(&self.pool)
            .await?;
        Ok(generation)
    }

    /// Begins a transaction that excludes all policy changes.
    pub(super) async fn begin_change(&self) -> Result<Transaction> {
        let mut transaction = self.pool.begin().await?;
        // The lock's key is arbitrary, but the same in every instance.
        sqlx::query("select pg_advisory_xact_lock(7302814)")
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    /// Waits, at most [`SETTLED_WITHIN`], until no policy change is in progress, and begins a transaction that sees
    /// all of them.
    pub(super) async fn begin_settled(&self) -> Result<Transaction> {
        let mut transaction = self.pool.begin().await?;
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
