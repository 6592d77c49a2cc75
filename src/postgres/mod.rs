//! The only code that speaks SQL.
//!
//! Postgres holds the newest absolute snapshot of every count, and everything that people set. It is
//! not on the hot path: it is asked for what Redis does not know. Every statement is run by a test.

pub mod adjustments;
pub mod api_keys;
pub mod audit;
pub mod deletions;
mod error;
pub mod events;
pub mod history;
pub mod idempotency;
pub mod organizations;
pub mod periods;
pub mod plans;
pub mod resets;
pub mod summaries;
pub mod usage;
pub mod verification;
pub mod webhooks;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Transaction};

pub use audit::Actor;
pub use error::Error;

/// How long a call waits for a change of its organization that is being committed.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);

/// The handle on the database; clones share one pool.
#[derive(Debug, Clone)]
pub struct Postgres {
    pool: PgPool,
    /// Months, as (year, month), whose partitions are known to exist.
    partitions: Arc<Mutex<BTreeSet<(i32, u32)>>>,
}

impl Postgres {
    /// A handle that connects at its first use.
    pub fn new(url: &str, connections_max: u32) -> Result<Self, Error> {
        let options: PgConnectOptions = url.parse()?;
        let pool = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(Duration::from_secs(5))
            // No statement here is worth being compiled, which takes longer than each of them should.
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

    /// Brings the schema up to date.
    pub async fn migrate(&self) -> Result<(), Error> {
        sqlx::migrate!()
            .run(&self.pool)
            .await
            .map_err(|error| match error {
                sqlx::migrate::MigrateError::Execute(error) => error.into(),
                other => Error::Inconsistent(other.to_string()),
            })
    }

    /// Whether Postgres answers.
    pub async fn ping(&self) -> Result<(), Error> {
        sqlx::query("select 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes all connections, after what runs on them.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A number that no data set of Redis has had.
    pub async fn draw_generation(&self) -> Result<u64, Error> {
        let (number,): (i64,) = sqlx::query_as("select nextval('generation')")
            .fetch_one(&self.pool)
            .await?;
        Ok(number.unsigned_abs())
    }

    /// Begins a transaction that no change of a policy runs beside.
    async fn begin_change(&self) -> Result<Transaction<'static, sqlx::Postgres>, Error> {
        let mut transaction = self.pool.begin().await?;
        // The key of the lock is arbitrary; it only has to be the same in every instance.
        sqlx::query("select pg_advisory_xact_lock(7302814)")
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    /// Waits for every change of a policy that is being made, at most [`SETTLED_WITHIN`], and begins a transaction that
    /// sees what has become of it.
    async fn begin_settled(&self) -> Result<Transaction<'static, sqlx::Postgres>, Error> {
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

    /// Begins a transaction that changes policies, and draws its version. All such transactions are
    /// serialized, so that versions become visible in their order.
    async fn begin_policy_change(
        &self,
    ) -> Result<(Transaction<'static, sqlx::Postgres>, u64), Error> {
        let mut transaction = self.begin_change().await?;
        let (version,): (i64,) = sqlx::query_as("select nextval('policy_version')")
            .fetch_one(&mut *transaction)
            .await?;
        Ok((transaction, version.unsigned_abs()))
    }
}

/// A change that is made and not committed yet; dropped, it never happens.
#[derive(Debug)]
pub struct Uncommitted<T> {
    transaction: Transaction<'static, sqlx::Postgres>,
    /// The policy version that it has.
    pub version: u64,
    /// What comes of it.
    pub outcome: T,
}

impl<T> Uncommitted<T> {
    /// Commits it.
    pub async fn commit(self) -> Result<T, Error> {
        self.transaction.commit().await?;
        Ok(self.outcome)
    }
}

/// Counts, versions and generations are non-negative in SQL as everywhere.
fn unsigned(number: i64) -> u64 {
    number.unsigned_abs()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
