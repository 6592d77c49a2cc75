//! The partitions of `usage_hourly`, one a month: created ahead, and dropped when they are older than their retention.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};

use crate::domain::month::Month;
use crate::postgres::pool::{Postgres, Result};

/// How long a drop waits for a lock, and so how long a flush waits behind it at most.
const DROP_PATIENCE: Duration = Duration::from_millis(100);

/// What the names of partitions begin with.
const PREFIX: &str = "usage_hourly_";

/// Creates the partitions of `usage_hourly` for the months of these instants, where they are missing and were not
/// dropped.
pub async fn ensure_partitions(
    db: &Postgres,
    instants: impl IntoIterator<Item = DateTime<Utc>>,
) -> Result<()> {
    let known = || {
        let known = db.partitions.lock();
        known.unwrap_or_else(PoisonError::into_inner)
    };
    let months: BTreeSet<Month> = instants.into_iter().map(Month::of).collect();
    let missing: Vec<Month> = months.difference(&known()).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut tx = db.pool().await?.begin().await?;
    // Concurrent creations of the same table would fail, and a drop must not come between.
    sqlx::query("select pg_advisory_xact_lock(7302817)")
        .execute(&mut *tx)
        .await?;
    let kept_since = kept_since(&mut *tx).await?;
    for month in &missing {
        if kept_since.is_some_and(|since| month.is_before(since)) {
            continue;
        }
        create(&mut tx, *month).await?;
    }
    tx.commit().await?;
    known().extend(missing);
    Ok(())
}

/// Creates the partition of a month, if it is missing. Attached, because `create table … partition of` would wait for every
/// query of the table, and flushes behind it.
async fn create(tx: &mut PgConnection, month: Month) -> Result<()> {
    if exists(&mut *tx, month).await? {
        return Ok(());
    }
    let (partition, next) = (partition(month), month.next());
    // Only numbers are interpolated.
    for statement in [
        format!(
            "create table {partition} (like usage_hourly including all) with (fillfactor = 70)"
        ),
        format!(
            "alter table usage_hourly attach partition {partition}
             for values from ('{month}-01 00:00:00Z') to ('{next}-01 00:00:00Z')"
        ),
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

async fn exists(tx: &mut PgConnection, month: Month) -> Result<bool> {
    Ok(sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(partition(month))
        .fetch_one(tx)
        .await?)
}

/// Since when slots are kept: those before were dropped. None if all are kept.
pub async fn hours_kept_since(db: &Postgres) -> Result<Option<DateTime<Utc>>> {
    kept_since(db.pool().await?).await
}

async fn kept_since(executor: impl PgExecutor<'_>) -> Result<Option<DateTime<Utc>>> {
    Ok(
        sqlx::query_scalar("select nullif(since, '-infinity') from kept_hours")
            .fetch_one(executor)
            .await?,
    )
}

/// Lists the months with a partition that end at `before` or earlier, oldest first.
pub async fn months_before(db: &Postgres, before: DateTime<Utc>) -> Result<Vec<Month>> {
    let names: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_inherits join pg_class on pg_class.oid = inhrelid
         where inhparent = 'usage_hourly'::regclass
         order by relname",
    )
    .fetch_all(db.pool().await?)
    .await?;
    // Other tables are not of this module.
    let months = names.iter().filter_map(|name| {
        let month = name.strip_prefix(PREFIX)?.replace('_', "-");
        month.parse::<Month>().ok()
    });
    Ok(months.filter(|month| month.is_before(before)).collect())
}

/// What became of a drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// The partition is dropped.
    Done,
    /// Another instance has dropped it.
    Gone,
    /// The partition is in use, or another instance creates or drops one.
    Busy,
}

/// Tries to drop the partition of a month.
///
/// From then on no slot of that month or an earlier one is stored, even by a flush that began before: a statement that
/// waited for the lock of this transaction sees what it has written.
pub async fn drop_month(db: &Postgres, month: Month) -> Result<Dropped> {
    match try_drop(db, month).await {
        Err(error) if error.is_lock_timeout() => Ok(Dropped::Busy),
        dropped => dropped,
    }
}

async fn try_drop(db: &Postgres, month: Month) -> Result<Dropped> {
    let mut tx = db.pool().await?.begin().await?;
    sqlx::query("select set_config('lock_timeout', $1, true)")
        .bind(format!("{}ms", DROP_PATIENCE.as_millis()))
        .execute(&mut *tx)
        .await?;
    let locked: bool = sqlx::query_scalar("select pg_try_advisory_xact_lock(7302817)")
        .fetch_one(&mut *tx)
        .await?;
    if !locked {
        return Ok(Dropped::Busy);
    }
    if !exists(&mut tx, month).await? {
        return Ok(Dropped::Gone);
    }
    sqlx::query("update kept_hours set since = greatest(since, $1)")
        .bind(month.next().start())
        .execute(&mut *tx)
        .await?;
    // Only numbers are interpolated.
    let drop = format!("drop table {}", partition(month));
    sqlx::query(AssertSqlSafe(drop)).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(Dropped::Done)
}

/// The name of a partition, such as `usage_hourly_2031_03`.
fn partition(month: Month) -> String {
    format!("{PREFIX}{}", month.to_string().replace('-', "_"))
}
