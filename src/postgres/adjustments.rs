//! Adjustments of counts: committed here first, applied in Redis, and finished with the snapshot that contains them.
//!
//! An adjustment is *pending* until that snapshot is stored; the same transaction writes its outcome and its row of the
//! audit log. An organization has at most one pending adjustment, and none while a reset of the meter is pending, so
//! that adjustments reach a counter in the order of their ids and never a closed counter.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{FromRow, PgConnection};

use super::audit::{self, Actor};
use super::idempotency::{self, IdempotencyUse, Replay};
use super::pool::{Postgres, Result};
use super::sources::{self, Sources};
use super::types::{BigInt, BindColumns as _};
use super::{organizations, pending};
use crate::domain::counter::{AppliedAdjustment, CounterId, Snapshot};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::Period;
use crate::domain::quantity::Count;

/// The request for an adjustment.
#[derive(Debug, Clone)]
pub struct AdjustmentRequest<'a> {
    /// The organization.
    pub organization: &'a OrganizationId,
    /// The meter.
    pub meter: &'a MeterId,
    /// Units to add; negative to subtract.
    pub amount: i64,
    /// The reason, for the audit log.
    pub reason: &'a str,
    /// The idempotency key, if the caller sent one.
    pub idempotency: Option<&'a IdempotencyUse>,
}

/// The result of a request.
#[derive(Debug)]
pub enum Outcome {
    /// The adjustment is committed.
    Committed {
        /// The adjustment's id.
        id: u64,
        /// Whether an earlier request with the same idempotency key committed it.
        replayed: bool,
    },
    /// The organization was deleted since; nothing was done.
    Deleted,
    /// Another adjustment, or a reset of the meter, is pending; nothing was done.
    Unfinished,
    /// The idempotency key was used for another payload.
    KeyReused,
}

/// An adjustment that may not have been applied in Redis.
#[derive(Debug, Clone, FromRow)]
pub struct Pending {
    /// The adjustment's id; grows within an organization.
    #[sqlx(try_from = "i64")]
    pub id: u64,
    /// The counter.
    #[sqlx(flatten)]
    pub counter: CounterId,
    /// Units to add; negative to subtract.
    pub amount: i64,
    /// When it was committed.
    pub at: DateTime<Utc>,
}

/// A finished adjustment.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The meter.
    pub meter: MeterId,
    /// The requested change of the count.
    pub amount: i64,
    /// The actual change of the count.
    pub applied: i64,
    /// The count right after the adjustment.
    pub used: Count,
    /// The limit at that time; none if unlimited.
    pub limit: Option<Count>,
    /// The period of the count.
    pub period: Period,
}

/// Commits an adjustment of the period that runs at `now`, unless `exists` rejects the organization's sources.
pub async fn commit(
    db: &Postgres,
    request: &AdjustmentRequest<'_>,
    actor: &Actor,
    now: DateTime<Utc>,
    exists: impl FnOnce(&Sources) -> bool,
) -> Result<Outcome> {
    let organization = request.organization;
    let mut tx = db.begin_change().await?;
    match idempotency::find(&mut *tx, request.idempotency).await? {
        Replay::New => {}
        Replay::KeyReused => return Ok(Outcome::KeyReused),
        Replay::Response(id) => return Ok(Outcome::Committed { id, replayed: true }),
    }
    let sources = sources::read(&mut tx, organization).await?;
    if !exists(&sources) {
        return Ok(Outcome::Deleted);
    }
    let resets = pending::reset_meters(&mut *tx, organization).await?;
    if resets.contains(request.meter) || pending::has_adjustment(&mut *tx, organization).await? {
        return Ok(Outcome::Unfinished);
    }
    organizations::create(&mut tx, [organization]).await?;
    let period = sources.resolve(now).schedule.running(request.meter, now);
    let BigInt(id) = sqlx::query_scalar(
        "insert into adjustments (organization_id, meter, period_start, at, amount, reason, actor, request_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8)
         returning id",
    )
    .bind(organization)
    .bind(request.meter)
    .bind(period.start)
    .bind(now)
    .bind(request.amount)
    .bind(request.reason)
    .bind(&actor.name)
    .bind(&actor.request_id)
    .fetch_one(&mut *tx)
    .await?;
    idempotency::record(&mut *tx, request.idempotency, &id, now).await?;
    tx.commit().await?;
    Ok(Outcome::Committed {
        id,
        replayed: false,
    })
}

/// Finds the pending adjustment of an organization.
pub async fn pending(db: &Postgres, organization: &OrganizationId) -> Result<Option<Pending>> {
    Ok(sqlx::query_as(
        "select id, organization_id, meter, period_start, amount, at from adjustments
         where organization_id = $1 and applied is null",
    )
    .bind(organization)
    .fetch_optional(db.pool().await?)
    .await?)
}

/// Lists at most `count` organizations with a pending adjustment.
pub async fn unfinished(db: &Postgres, count: u32) -> Result<Vec<OrganizationId>> {
    Ok(sqlx::query_scalar(
        "select organization_id from adjustments where applied is null order by id limit $1",
    )
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}

/// Finds a finished adjustment; none if it is pending, or was deleted with its organization.
pub async fn finished(db: &Postgres, id: u64) -> Result<Option<Finished>> {
    let row: Option<FinishedRow> = sqlx::query_as(
        "select organization_id, meter, period_start, amount, reason, actor, request_id, applied, used, limit_units, period_end
         from adjustments where id = $1 and applied is not null",
    )
    .bind(BigInt(id))
    .fetch_optional(db.pool().await?)
    .await?;
    Ok(row.map(|row| Finished {
        meter: row.counter.meter,
        amount: row.amount,
        applied: row.applied,
        used: row.used,
        limit: row.limit_units,
        period: Period {
            start: row.counter.start,
            end: row.period_end,
        },
    }))
}

/// Finishes the pending adjustments that snapshots contain which were just stored.
pub(super) async fn finish(tx: &mut PgConnection, snapshots: &[&Snapshot]) -> Result<()> {
    let contained: Vec<(&Snapshot, &AppliedAdjustment)> = snapshots
        .iter()
        .filter_map(|snapshot| Some((*snapshot, snapshot.adjusted.as_ref()?)))
        .collect();
    if contained.is_empty() {
        return Ok(());
    }
    let rows: Vec<FinishedRow> = sqlx::query_as(
        "update adjustments
         set applied = contained.applied, used = contained.used, hour = contained.hour,
             limit_units = contained.limit_units, period_end = contained.period_end
         from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::bigint[], $6::timestamptz[])
              as contained (id, applied, used, hour, limit_units, period_end)
         where adjustments.id = contained.id and adjustments.applied is null
         returning organization_id, meter, period_start, amount, reason, actor, request_id, adjustments.applied,
                   adjustments.used, adjustments.limit_units, adjustments.period_end",
    )
    .column(&contained, |(_, it)| BigInt(it.id))
    .column(&contained, |(_, it)| it.applied)
    .column(&contained, |(_, it)| it.used)
    .column(&contained, |(_, it)| it.hour)
    .column(&contained, |(snapshot, _)| snapshot.stamp.rule.limit)
    .column(&contained, |(snapshot, _)| snapshot.stamp.end)
    .fetch_all(&mut *tx)
    .await?;
    for row in rows {
        row.record(tx).await?;
    }
    Ok(())
}

#[derive(FromRow)]
struct FinishedRow {
    #[sqlx(flatten)]
    counter: CounterId,
    amount: i64,
    reason: String,
    actor: String,
    request_id: String,
    applied: i64,
    used: Count,
    limit_units: Option<Count>,
    period_end: Option<DateTime<Utc>>,
}

impl FinishedRow {
    /// Records the adjustment in the audit log.
    async fn record(self, tx: &mut PgConnection) -> Result<()> {
        let actor = Actor {
            name: self.actor,
            request_id: self.request_id,
        };
        let CounterId {
            organization,
            meter,
            start,
        } = &self.counter;
        let current = self.used.get().cast_signed();
        let before = current.saturating_sub(self.applied);
        let was = json!({"meter": meter, "periodStart": start, "current": before});
        let is = json!({
            "meter": meter, "periodStart": start, "current": current, "amount": self.amount,
            "applied": self.applied, "reason": self.reason,
        });
        let (action, organization) = ("organization.adjust", Some(organization));
        audit::record(tx, &actor, action, organization, &was, &is).await
    }
}
