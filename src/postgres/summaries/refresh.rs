//! Keeps usage summaries up to date.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::read::read;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::summary::UsageSummary;
use crate::postgres::pool::{Postgres, Result};
use crate::postgres::types::{BigInt, BindColumns as _};

/// The new summary of an organization.
struct Refreshed<'a> {
    organization: &'a OrganizationId,
    summary: UsageSummary,
    /// When its counts were last stored; none without a running period.
    stored_at: Option<DateTime<Utc>>,
}

/// Blanks at most `count` rows whose period is over; returns how many.
pub async fn age(db: &Postgres, now: DateTime<Utc>, count: u32) -> Result<u64> {
    let aged = sqlx::query(
        "update standings
         set state = 0, denies = false, fullness = 0, current = 0, period_end = '-infinity'
         where organization_id in (
             select organization_id from standings
             where period_end > '-infinity' and period_end <= $1
             order by period_end
             limit $2
             for update skip locked
         )",
    )
    .bind(now)
    .bind(i64::from(count))
    .execute(&db.pool)
    .await?;
    Ok(aged.rows_affected())
}

/// Computes the summaries of these organizations.
pub async fn refresh(
    db: &Postgres,
    organizations: &[OrganizationId],
    now: DateTime<Utc>,
) -> Result<()> {
    let mut tx = db.pool.begin().await?;
    // Locked before the snapshots are read, so that of two concurrent refreshes the later one reads newer snapshots.
    let ids: Vec<OrganizationId> = sqlx::query_scalar(
        "select organization_id from standings
         where organization_id = any($1)
         order by organization_id
         for no key update",
    )
    .bind(organizations)
    .fetch_all(&mut *tx)
    .await?;
    let mut summaries = read(&mut tx, &ids, now).await?;
    let mut stored = stored_at(&mut tx, &ids, now).await?;
    let refreshed: Vec<Refreshed<'_>> = ids
        .iter()
        .map(|id| Refreshed {
            organization: id,
            summary: summaries.remove(id).unwrap_or_default(),
            stored_at: stored.remove(id),
        })
        .collect();
    write(&mut tx, &refreshed).await?;
    tx.commit().await?;
    Ok(())
}

/// Reads when a count of a running period of these organizations was last stored.
async fn stored_at(
    tx: &mut PgConnection,
    organizations: &[OrganizationId],
    now: DateTime<Utc>,
) -> Result<HashMap<OrganizationId, DateTime<Utc>>> {
    let rows: Vec<(OrganizationId, DateTime<Utc>)> = sqlx::query_as(
        "select organization_id, max(stored_at) from usage_history
         where organization_id = any($1) and (period_end is null or period_end > $2)
         group by organization_id",
    )
    .bind(organizations)
    .bind(now)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Writes the summaries that have changed.
async fn write(tx: &mut PgConnection, refreshed: &[Refreshed<'_>]) -> Result<()> {
    let default_meter = MeterId::default();
    sqlx::query(
        "update standings
         set state = new.state, denies = new.denies, fullness = new.fullness, current = new.current,
             period_end = new.period_end, stored_at = coalesce(new.stored_at, standings.stored_at)
         from (select organization_id, state, denies, fullness, current, stored_at,
                      case when blank then '-infinity' else coalesce(period_end, 'infinity') end as period_end
               from unnest($1::text[], $2::smallint[], $3::bool[], $4::bigint[], $5::bigint[], $6::bool[],
                           $7::timestamptz[], $8::timestamptz[])
                    as new (organization_id, state, denies, fullness, current, blank, period_end, stored_at)) as new
         where standings.organization_id = new.organization_id
         and (standings.state, standings.denies, standings.fullness, standings.current, standings.period_end,
              standings.stored_at)
             is distinct from (new.state, new.denies, new.fullness, new.current, new.period_end,
                               coalesce(new.stored_at, standings.stored_at))",
    )
    .column(refreshed, |it| it.organization)
    .column(refreshed, |it| it.summary.state() as i16)
    .column(refreshed, |it| it.summary.denies())
    .column(refreshed, |it| BigInt(it.summary.fullness()))
    .column(refreshed, |it| it.summary.current(&default_meter))
    .column(refreshed, |it| it.summary.meters.is_empty())
    .column(refreshed, |it| it.summary.end())
    .column(refreshed, |it| it.stored_at)
    .execute(tx)
    .await?;
    Ok(())
}
