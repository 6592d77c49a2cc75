//! Deletes organizations: current data at once, in one transaction, and old history later, in chunks.
//!
//! The row of an organization stays, empty, with the policy version of its deletion. Snapshots that an older policy
//! decided belong to a stale incarnation and are not stored, however late a flush is.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{FromRow, PgConnection};

use super::audit::{self, Actor};
use super::organizations::describe;
use super::pool::{Postgres, Result, Transaction, Uncommitted, execute};
use super::sources::{Sources, read};
use super::types::{BigInt, BindColumns as _};
use super::{api_keys, events};
use crate::domain::event::{self, Event};
use crate::domain::ids::{ApiKeyId, OrganizationId};

/// The maximum number of rows that one transaction erases.
const CHUNK: i64 = 5000;

/// The result of a deletion.
#[derive(Debug, Clone)]
pub struct Deleted {
    /// The sources of the organization's policy from now on.
    pub sources: Sources,
    /// The number of rows of history that were deleted.
    pub rows: u64,
    /// The revoked keys, which were bound to the organization.
    pub keys: Vec<ApiKeyId>,
}

/// Deletes an organization, up to the commit, unless `check` refuses its sources. Periods that ended, and slots that
/// began, before `reach` are left for [`erase_history`], due at `due_at`; no event can reach that far back.
pub async fn delete<E>(
    db: &Postgres,
    id: &OrganizationId,
    actor: &Actor,
    reach: DateTime<Utc>,
    due_at: DateTime<Utc>,
    now: DateTime<Utc>,
    check: impl FnOnce(&Sources) -> Result<(), E>,
) -> Result<Result<Uncommitted<Deleted>, E>> {
    let (mut tx, version) = db.begin_policy_change().await?;
    let before = read(&mut tx, id).await?;
    if let Err(refusal) = check(&before) {
        return Ok(Err(refusal));
    }
    let rows = delete_counts(&mut tx, id, reach).await?;
    clear(&mut tx, id, version).await?;
    schedule_erasure(&mut tx, id, version, reach, due_at).await?;
    let (was, action) = (
        describe(before.organization.as_ref()),
        "organization.delete",
    );
    audit::record(&mut tx, actor, action, Some(id), &was, &()).await?;
    let deletion = Event::OrganizationDeleted(event::Deletion {
        organization_id: id.clone(),
    });
    events::record(&mut tx, &[deletion], now).await?;
    let keys = api_keys::revoke_bound(&mut tx, id, actor).await?;
    // Read back, because the organization is on the default plan now.
    let sources = read(&mut tx, id).await?;
    Ok(Ok(Uncommitted {
        transaction: tx,
        version,
        outcome: Deleted {
            sources,
            rows,
            keys,
        },
    }))
}

/// Deletes the counts that a flush or a recovery could still write, and locks the organization; returns how many rows.
async fn delete_counts(
    tx: &mut Transaction,
    id: &OrganizationId,
    reach: DateTime<Utc>,
) -> Result<u64> {
    // Locks counts before the organization, as a flush does; then deletes counts that were stored in between.
    let mut rows = delete_reachable(tx, id, reach).await?;
    lock(tx, id).await?;
    rows += delete_reachable(tx, id, reach).await?;
    let slots = sqlx::query("delete from usage_hourly where organization_id = $1 and hour >= $2")
        .bind(id)
        .bind(reach)
        .execute(&mut **tx)
        .await?;
    Ok(rows + slots.rows_affected())
}

async fn delete_reachable(
    tx: &mut PgConnection,
    id: &OrganizationId,
    reach: DateTime<Utc>,
) -> Result<u64> {
    // Locked in key order, as by flushes and recoveries.
    let deleted = sqlx::query(
        "with reachable as (
             select meter, period_start from usage_history
             where organization_id = $1 and (period_end is null or period_end >= $2)
             order by meter, period_start
             for update
         )
         delete from usage_history using reachable
         where usage_history.organization_id = $1 and usage_history.meter = reachable.meter
             and usage_history.period_start = reachable.period_start",
    )
    .bind(id)
    .bind(reach)
    .execute(tx)
    .await?;
    Ok(deleted.rows_affected())
}

/// Waits for all transactions that have stored something of an organization, and blocks new ones.
async fn lock(tx: &mut PgConnection, id: &OrganizationId) -> Result<()> {
    let create = "insert into organizations (id) values ($1) on conflict do nothing";
    execute(&mut *tx, create, id).await?;
    let lock = "select from organizations where id = $1 for update";
    execute(&mut *tx, lock, id).await?;
    Ok(())
}

/// Deletes everything else of an organization, and empties its row.
async fn clear(tx: &mut PgConnection, id: &OrganizationId, version: u64) -> Result<()> {
    for table in [
        "delete from limits where organization_id = $1",
        "delete from temporary_limits where organization_id = $1",
        "delete from standings where organization_id = $1",
        "delete from resets where organization_id = $1",
        "delete from adjustments where organization_id = $1",
        "delete from pending_increments where organization_id = $1",
        "delete from attempts where scope = $1",
        // With their pending deliveries. The next incarnation may cross the same thresholds.
        "delete from events where organization_id = $1",
    ] {
        execute(&mut *tx, table, id).await?;
    }
    sqlx::query(
        "update organizations set
             plan_id = null, features = '{}', meters = '{}', reset_mode = null, reset_period = null, reset_day = null,
             reset_month = null, anchor = null, time_zone = null, metadata = '{}', timeline = null,
             version = $2, incarnation = $2, created_at = now(), updated_at = now(),
             deleted_at = now(), due_at = 'infinity'
         where id = $1",
    )
    .bind(id)
    .bind(BigInt(version))
    .execute(tx)
    .await?;
    Ok(())
}

async fn schedule_erasure(
    tx: &mut PgConnection,
    id: &OrganizationId,
    version: u64,
    hours_before: DateTime<Utc>,
    due_at: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "insert into erasures (organization_id, incarnation, hours_before, due_at) values ($1, $2, $3, $4)
         on conflict (organization_id) do update set
             incarnation = excluded.incarnation, hours_before = excluded.hours_before, due_at = excluded.due_at",
    )
    .bind(id)
    .bind(BigInt(version))
    .bind(hours_before)
    .bind(due_at)
    .execute(tx)
    .await?;
    Ok(())
}

/// Schedules the erasure of organizations that were deleted within `age`, for a Redis with older data may have brought
/// their keys back.
pub async fn schedule_again(db: &Postgres, age: TimeDelta, due_at: DateTime<Utc>) -> Result<()> {
    sqlx::query(
        "insert into erasures (organization_id, incarnation, hours_before, due_at)
         select id, incarnation, 'epoch', $2 from organizations
         where incarnation > 0 and created_at > now() - make_interval(secs => $1)
         on conflict do nothing",
    )
    .bind(age.as_seconds_f64())
    .bind(due_at)
    .execute(db.pool().await?)
    .await?;
    Ok(())
}

/// A deleted organization whose history may not be erased completely.
#[derive(Debug, Clone, FromRow)]
pub struct Erasure {
    /// The organization.
    #[sqlx(rename = "organization_id")]
    pub organization: OrganizationId,
    /// The policy version of the deletion.
    #[sqlx(try_from = "i64")]
    pub incarnation: u64,
    /// Slots before this instant belong to the stale incarnation.
    hours_before: DateTime<Utc>,
}

/// Leases at most `count` due erasures until `until`.
pub async fn lease(
    db: &Postgres,
    now: DateTime<Utc>,
    until: DateTime<Utc>,
    count: u32,
) -> Result<Vec<Erasure>> {
    Ok(sqlx::query_as(
        "update erasures set due_at = $2
         where organization_id in (
             select organization_id from erasures
             where due_at <= $1
             order by due_at
             limit $3
             for update skip locked
         )
         returning organization_id, incarnation, hours_before",
    )
    .bind(now)
    .bind(until)
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}

/// Extends the leases of erasures until `until`, unless their organizations were deleted again since.
pub async fn extend(db: &Postgres, erasures: &[Erasure], until: DateTime<Utc>) -> Result<()> {
    sqlx::query(
        "update erasures set due_at = $3
         from unnest($1::text[], $2::bigint[]) as leased (organization_id, incarnation)
         where erasures.organization_id = leased.organization_id and erasures.incarnation = leased.incarnation",
    )
    .column(erasures, |it| &it.organization)
    .column(erasures, |it| BigInt(it.incarnation))
    .bind(until)
    .execute(db.pool().await?)
    .await?;
    Ok(())
}

/// Finds the erasure of an organization, if it is not finished.
pub async fn erasure_of(db: &Postgres, id: &OrganizationId) -> Result<Option<Erasure>> {
    Ok(sqlx::query_as(
        "select organization_id, incarnation, hours_before from erasures where organization_id = $1",
    )
    .bind(id)
    .fetch_optional(db.pool().await?)
    .await?)
}

/// Erases a chunk of a stale incarnation's history; returns how many rows, 0 when all are erased.
pub async fn erase_history(db: &Postgres, erasure: &Erasure) -> Result<u64> {
    let slots = sqlx::query(
        "with chunk as (
             select hour, meter, period_start from usage_hourly
             where organization_id = $1 and hour < $2
             order by hour
             limit $3
         )
         delete from usage_hourly using chunk
         where usage_hourly.organization_id = $1 and usage_hourly.hour = chunk.hour
             and usage_hourly.meter = chunk.meter and usage_hourly.period_start = chunk.period_start",
    )
    .bind(&erasure.organization)
    .bind(erasure.hours_before)
    .bind(CHUNK)
    .execute(db.pool().await?)
    .await?;
    let periods = sqlx::query(
        "with chunk as (
             select meter, period_start from usage_history
             where organization_id = $1 and policy_version < $2
             order by meter, period_start
             limit $3
         )
         delete from usage_history using chunk
         where usage_history.organization_id = $1 and usage_history.meter = chunk.meter
             and usage_history.period_start = chunk.period_start and usage_history.policy_version < $2",
    )
    .bind(&erasure.organization)
    .bind(BigInt(erasure.incarnation))
    .bind(CHUNK)
    .execute(db.pool().await?)
    .await?;
    Ok(slots.rows_affected() + periods.rows_affected())
}

/// Marks an erasure finished, unless the organization was deleted again since.
pub async fn finish(db: &Postgres, erasure: &Erasure) -> Result<()> {
    sqlx::query("delete from erasures where organization_id = $1 and incarnation = $2")
        .bind(&erasure.organization)
        .bind(BigInt(erasure.incarnation))
        .execute(db.pool().await?)
        .await?;
    Ok(())
}
