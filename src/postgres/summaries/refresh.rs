//! Keeps usage summaries up to date.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use super::read::read;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::projection::Paces;
use crate::domain::summary::UsageSummary;
use crate::postgres::pool::{Postgres, Result};
use crate::postgres::types::{BigInt, BindColumns as _};
use crate::postgres::usage;

/// How old paces may be: to compute them reads hundreds of rows an organization.
const PACES_LIFETIME: TimeDelta = TimeDelta::minutes(5);

/// A locked row.
#[derive(FromRow)]
struct Locked {
    organization_id: OrganizationId,
    #[sqlx(json)]
    paces: Paces,
    paces_at: Option<DateTime<Utc>>,
}

/// The new summary of an organization.
struct Refreshed {
    organization: OrganizationId,
    summary: UsageSummary,
    /// When its counts were last stored; none without a running period.
    stored_at: Option<DateTime<Utc>>,
    paces: Paces,
    paces_at: Option<DateTime<Utc>>,
    /// The meter that is expected to be full first, and when.
    exhausted: Option<(MeterId, DateTime<Utc>)>,
}

/// Blanks at most `count` rows whose period is over; returns how many.
pub async fn age(db: &Postgres, now: DateTime<Utc>, count: u32) -> Result<u64> {
    let aged = sqlx::query(
        "update standings
         set state = 0, denies = false, fullness = 0, current = 0, period_end = '-infinity',
             exhausted_at = null, exhausted_meter = null
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
    .execute(db.pool().await?)
    .await?;
    Ok(aged.rows_affected())
}

/// Computes the summaries of these organizations.
pub async fn refresh(
    db: &Postgres,
    organizations: &[OrganizationId],
    now: DateTime<Utc>,
) -> Result<()> {
    let mut tx = db.pool().await?.begin().await?;
    // Locked before the snapshots are read, so that of two concurrent refreshes the later one reads newer snapshots.
    let locked: Vec<Locked> = sqlx::query_as(
        "select organization_id, paces, paces_at from standings
         where organization_id = any($1)
         order by organization_id
         for no key update",
    )
    .bind(organizations)
    .fetch_all(&mut *tx)
    .await?;
    let ids: Vec<OrganizationId> = locked.iter().map(|it| it.organization_id.clone()).collect();
    let mut summaries = read(&mut tx, &ids, now).await?;
    let mut stored = stored_at(&mut tx, &ids, now).await?;
    let locked = with_paces(&mut tx, locked, now).await?;
    let refreshed = locked.into_iter().map(|row| {
        let summary = summaries.remove(&row.organization_id).unwrap_or_default();
        Refreshed {
            stored_at: stored.remove(&row.organization_id),
            exhausted: summary.exhausted(&row.paces, now),
            organization: row.organization_id,
            paces: row.paces,
            paces_at: row.paces_at,
            summary,
        }
    });
    let refreshed: Vec<Refreshed> = refreshed.collect();
    write(&mut tx, &refreshed).await?;
    tx.commit().await?;
    Ok(())
}

/// Computes paces that are missing or too old. A meter that was not used in the last 7 days has none, so that a row that
/// nobody uses does not change.
async fn with_paces(
    tx: &mut PgConnection,
    mut rows: Vec<Locked>,
    now: DateTime<Utc>,
) -> Result<Vec<Locked>> {
    let is_old = |it: &Locked| {
        let age = it.paces_at.map(|at| now - at);
        age.is_none_or(|age| !(TimeDelta::zero()..PACES_LIFETIME).contains(&age))
    };
    let old = rows.iter().filter(|row| is_old(row));
    let old: Vec<OrganizationId> = old.map(|row| row.organization_id.clone()).collect();
    let mut paces = usage::paces_of(tx, &old, now).await?;
    for row in rows.iter_mut().filter(|row| is_old(row)) {
        let mut new = paces.remove(&row.organization_id).unwrap_or_default();
        new.retain(|_, pace| pace.is_used());
        if new != row.paces {
            (row.paces, row.paces_at) = (new, Some(now));
        }
    }
    Ok(rows)
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
async fn write(tx: &mut PgConnection, refreshed: &[Refreshed]) -> Result<()> {
    let default_meter = MeterId::default();
    sqlx::query(
        "update standings
         set state = new.state, denies = new.denies, fullness = new.fullness, current = new.current,
             period_end = new.period_end, stored_at = coalesce(new.stored_at, standings.stored_at),
             paces = new.paces, paces_at = new.paces_at, exhausted_at = new.exhausted_at,
             exhausted_meter = new.exhausted_meter
         from (select organization_id, state, denies, fullness, current, stored_at, paces, paces_at, exhausted_at,
                      exhausted_meter,
                      case when blank then '-infinity' else coalesce(period_end, 'infinity') end as period_end
               from unnest($1::text[], $2::smallint[], $3::bool[], $4::bigint[], $5::bigint[], $6::bool[],
                           $7::timestamptz[], $8::timestamptz[], $9::jsonb[], $10::timestamptz[], $11::bigint[], $12::text[])
                    as new (organization_id, state, denies, fullness, current, blank, period_end, stored_at, paces, paces_at,
                            exhausted_at, exhausted_meter)) as new
         where standings.organization_id = new.organization_id
         and (standings.state, standings.denies, standings.fullness, standings.current, standings.period_end,
              standings.stored_at, standings.paces, standings.exhausted_at, standings.exhausted_meter)
             is distinct from (new.state, new.denies, new.fullness, new.current, new.period_end,
                               coalesce(new.stored_at, standings.stored_at), new.paces, new.exhausted_at,
                               new.exhausted_meter)",
    )
    .column(refreshed, |it| &it.organization)
    .column(refreshed, |it| it.summary.state() as i16)
    .column(refreshed, |it| it.summary.denies())
    .column(refreshed, |it| BigInt(it.summary.fullness()))
    .column(refreshed, |it| it.summary.current(&default_meter))
    .column(refreshed, |it| it.summary.meters.is_empty())
    .column(refreshed, |it| it.summary.end())
    .column(refreshed, |it| it.stored_at)
    .column(refreshed, |it| Json(&it.paces))
    .column(refreshed, |it| it.paces_at)
    .column(refreshed, |it| it.exhausted.as_ref().map(|(_, at)| at.timestamp()))
    .column(refreshed, |it| it.exhausted.as_ref().map(|(meter, _)| meter))
    .execute(tx)
    .await?;
    Ok(())
}

/// Lists at most `count` organizations that were expected to be full by now, and are to be looked at again.
pub async fn outlived(
    db: &Postgres,
    now: DateTime<Utc>,
    count: u32,
) -> Result<Vec<OrganizationId>> {
    Ok(sqlx::query_scalar(
        "select organization_id from standings
         where exhausted_at <= $1
         order by exhausted_at
         limit $2",
    )
    .bind(now.timestamp())
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}
