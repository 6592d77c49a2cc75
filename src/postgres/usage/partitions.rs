//! The partitions of `usage_hourly`, one a month.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use chrono::{DateTime, Datelike, Utc};
use sqlx::AssertSqlSafe;

use crate::postgres::pool::{Postgres, Result};

/// Creates the partitions of `usage_hourly` for the months of these instants, where they are missing.
pub async fn ensure_partitions(
    db: &Postgres,
    instants: impl IntoIterator<Item = DateTime<Utc>>,
) -> Result<()> {
    let known = || {
        let known = db.partitions.lock();
        known.unwrap_or_else(PoisonError::into_inner)
    };
    let months = instants.into_iter().map(|it| (it.year(), it.month()));
    let months: BTreeSet<(i32, u32)> = months.collect();
    let missing: Vec<(i32, u32)> = months.difference(&known()).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut tx = db.pool().await?.begin().await?;
    // Concurrent creations of the same table would fail.
    sqlx::query("select pg_advisory_xact_lock(7302817)")
        .execute(&mut *tx)
        .await?;
    for (year, month) in &missing {
        let (next_year, next_month) = if *month == 12 {
            (year + 1, 1)
        } else {
            (*year, month + 1)
        };
        // Only numbers are interpolated.
        sqlx::query(AssertSqlSafe(format!(
            "create table if not exists usage_hourly_{year:04}_{month:02} partition of usage_hourly
             for values from ('{year:04}-{month:02}-01 00:00:00Z') to ('{next_year:04}-{next_month:02}-01 00:00:00Z')
             with (fillfactor = 70)"
        )))
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    known().extend(missing);
    Ok(())
}
