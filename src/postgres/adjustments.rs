//! Corrections of counts: committed here first, applied in Redis, and finished with the snapshot that contains them.
//!
//! An adjustment is *pending* until that snapshot is stored; then its outcome, its row of the audit log and the
//! snapshot become visible at once. An organization has one pending adjustment at most, and none while a reset of the
//! meter is pending, so that ids reach a counter in their order and none reaches a counter that is closed.

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection};

use super::idempotency::{self, Attempt, Earlier};
use super::organizations::{self, Sources, corrupt_row, parse};
use super::{Actor, Error, Postgres, audit, resets, signed, unsigned, usage};
use crate::domain::counter::{AppliedAdjustment, CounterId, Snapshot};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::Period;
use crate::domain::quantity::Count;

/// What shall be corrected.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// Whose.
    pub organization: &'a OrganizationId,
    /// Of what.
    pub meter: &'a MeterId,
    /// Units to add, or below 0 to give back.
    pub amount: i64,
    /// Why.
    pub reason: &'a str,
    /// Makes a repetition harmless.
    pub attempt: Option<&'a Attempt>,
}

/// What came of a wish.
#[derive(Debug)]
pub enum Outcome {
    /// It is committed, now or, where it is a repetition, before.
    Committed {
        /// Names the adjustment.
        id: u64,
        /// Whether an earlier attempt has committed it.
        replayed: bool,
    },
    /// The organization was deleted meanwhile; nothing was done.
    Deleted,
    /// Something is pending that must be finished first; nothing was done.
    Unfinished,
    /// The idempotency key was used for another payload.
    KeyReused,
}

/// An adjustment that may not have reached its counter.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Names it; grows within an organization.
    pub id: u64,
    /// What it corrects.
    pub counter: CounterId,
    /// Units to add, or below 0 to give back.
    pub amount: i64,
    /// When it was committed.
    pub at: DateTime<Utc>,
}

/// An adjustment that is finished.
#[derive(Debug, Clone)]
pub struct Finished {
    /// What it has corrected.
    pub meter: MeterId,
    /// What was asked for.
    pub amount: i64,
    /// What the count has changed by.
    pub applied: i64,
    /// The count right afterwards.
    pub used: Count,
    /// The limit then; none when unlimited.
    pub limit: Option<Count>,
    /// The period that the count belongs to.
    pub period: Period,
}

/// Commits an adjustment of the period that runs at `now`, unless `exists` finds the organization gone.
pub async fn commit(
    postgres: &Postgres,
    wish: &Wish<'_>,
    actor: &Actor,
    now: DateTime<Utc>,
    exists: impl FnOnce(&Sources) -> bool,
) -> Result<Outcome, Error> {
    let id = wish.organization;
    let mut transaction = postgres.begin_change().await?;
    match idempotency::find(&mut transaction, wish.attempt).await? {
        Earlier::Nothing => {}
        Earlier::Other => return Ok(Outcome::KeyReused),
        Earlier::Answered(id) => return Ok(Outcome::Committed { id, replayed: true }),
    }
    let sources = organizations::read(&mut transaction, id).await?;
    let sources = sources.ok_or_else(organizations::no_defaults)?;
    if !exists(&sources) {
        return Ok(Outcome::Deleted);
    }
    if is_pending(&mut transaction, id).await?
        || resets::pending_in(&mut transaction, id)
            .await?
            .contains(wish.meter)
    {
        return Ok(Outcome::Unfinished);
    }
    usage::create_organizations(&mut transaction, std::iter::once(id)).await?;
    let period = sources.resolve(now).schedule.running(wish.meter, now);
    let (number,): (i64,) = sqlx::query_as(
        "insert into adjustments (organization_id, meter, period_start, at, amount, reason, actor, request_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         returning id",
    )
    .bind(id.as_str())
    .bind(wish.meter.as_str())
    .bind(period.start)
    .bind(now)
    .bind(wish.amount)
    .bind(wish.reason)
    .bind(&actor.name)
    .bind(&actor.request_id)
    .fetch_one(&mut *transaction)
    .await?;
    idempotency::note(&mut transaction, wish.attempt, &number, now).await?;
    transaction.commit().await?;
    Ok(Outcome::Committed {
        id: unsigned(number),
        replayed: false,
    })
}

/// The pending adjustment of an organization, if there is one.
pub async fn pending(
    postgres: &Postgres,
    organization: &OrganizationId,
) -> Result<Option<Pending>, Error> {
    let row: Option<PendingRow> = sqlx::query_as(
        "select id, meter, period_start, amount, at from adjustments
         where organization_id = $1 and applied is null",
    )
    .bind(organization.as_str())
    .fetch_optional(&postgres.pool)
    .await?;
    row.map(|row| {
        Ok(Pending {
            id: unsigned(row.id),
            counter: CounterId {
                organization: organization.clone(),
                meter: parse(&row.meter)?,
                start: row.period_start,
            },
            amount: row.amount,
            at: row.at,
        })
    })
    .transpose()
}

#[derive(FromRow)]
struct PendingRow {
    id: i64,
    meter: String,
    period_start: DateTime<Utc>,
    amount: i64,
    at: DateTime<Utc>,
}

/// Organizations with a pending adjustment, at most `count`.
pub async fn unfinished(postgres: &Postgres, count: u32) -> Result<Vec<OrganizationId>, Error> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select organization_id from adjustments where applied is null order by id limit $1",
    )
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    rows.iter().map(|(id,)| parse(id)).collect()
}

/// An adjustment that is finished; none where it is pending, or gone with its organization.
pub async fn finished(postgres: &Postgres, id: u64) -> Result<Option<Finished>, Error> {
    let row: Option<Row> = sqlx::query_as(
        "select organization_id, meter, period_start, amount, reason, actor, request_id, applied, used, limit_units, period_end
         from adjustments where id = $1 and applied is not null",
    )
    .bind(signed(id))
    .fetch_optional(&postgres.pool)
    .await?;
    row.map(|row| {
        let limit = row
            .limit_units
            .map(|units| Count::try_from(unsigned(units)));
        Ok(Finished {
            meter: parse(&row.meter)?,
            amount: row.amount,
            applied: row.applied,
            used: Count::try_from(unsigned(row.used)).map_err(corrupt_row)?,
            limit: limit.transpose().map_err(corrupt_row)?,
            period: Period {
                start: row.period_start,
                end: row.period_end,
            },
        })
    })
    .transpose()
}

/// Takes note of the adjustments that the snapshots contain which were just stored.
pub(super) async fn finish(
    connection: &mut PgConnection,
    snapshots: &[&Snapshot],
) -> Result<(), Error> {
    let contained: Vec<(&Snapshot, &AppliedAdjustment)> = snapshots
        .iter()
        .filter_map(|snapshot| Some((*snapshot, snapshot.adjusted.as_ref()?)))
        .collect();
    if contained.is_empty() {
        return Ok(());
    }
    let limit = |it: &Snapshot| it.stamp.rule.limit.map(|limit| signed(limit.get()));
    let rows: Vec<Row> = sqlx::query_as(
        "update adjustments
         set applied = contained.applied, used = contained.used, hour = contained.hour,
             limit_units = contained.limit_units, period_end = contained.period_end
         from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::bigint[], $6::timestamptz[])
              as contained (id, applied, used, hour, limit_units, period_end)
         where adjustments.id = contained.id and adjustments.applied is null
         returning organization_id, meter, period_start, amount, reason, actor, request_id, adjustments.applied,
                   adjustments.used, adjustments.limit_units, adjustments.period_end",
    )
    .bind(contained.iter().map(|(_, it)| signed(it.id)).collect::<Vec<_>>())
    .bind(contained.iter().map(|(_, it)| it.applied).collect::<Vec<_>>())
    .bind(contained.iter().map(|(_, it)| signed(it.used.get())).collect::<Vec<_>>())
    .bind(contained.iter().map(|(_, it)| it.hour).collect::<Vec<_>>())
    .bind(contained.iter().map(|(snapshot, _)| limit(snapshot)).collect::<Vec<_>>())
    .bind(contained.iter().map(|(snapshot, _)| snapshot.stamp.end).collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await?;
    for row in rows {
        let actor = Actor {
            name: row.actor,
            request_id: row.request_id,
        };
        let before = serde_json::json!({
            "meter": row.meter, "periodStart": row.period_start, "current": row.used.saturating_sub(row.applied),
        });
        let after = serde_json::json!({
            "meter": row.meter, "periodStart": row.period_start, "current": row.used, "amount": row.amount,
            "applied": row.applied, "reason": row.reason,
        });
        let (action, id) = ("organization.adjust", parse(&row.organization_id)?);
        audit::record(connection, &actor, action, Some(&id), &before, &after).await?;
    }
    Ok(())
}

/// Whether an organization has a pending adjustment.
pub(super) async fn is_pending(
    connection: &mut PgConnection,
    organization: &OrganizationId,
) -> Result<bool, Error> {
    let (pending,): (bool,) = sqlx::query_as(
        "select exists (select from adjustments where organization_id = $1 and applied is null)",
    )
    .bind(organization.as_str())
    .fetch_one(connection)
    .await?;
    Ok(pending)
}

#[derive(FromRow)]
struct Row {
    organization_id: String,
    meter: String,
    period_start: DateTime<Utc>,
    amount: i64,
    reason: String,
    actor: String,
    request_id: String,
    applied: i64,
    used: i64,
    limit_units: Option<i64>,
    period_end: Option<DateTime<Utc>>,
}
