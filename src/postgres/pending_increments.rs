//! Operations that were admitted while Redis was away, until they are counted there.
//!
//! An operation is committed here before it is acknowledged. Later it is drained: counted in Redis, which keeps the id
//! of the last operation in each counter, and deleted once a stored snapshot has that id. Ids are drawn under the lock
//! of the organization's row, so they become visible in order, and none is drained before a smaller one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sqlx::FromRow;

use super::pool::{Postgres, Result, Transaction};
use super::sources::{self, Sources};
use super::types::{BigInt, BindColumns as _};
use super::usage::running_meters_of;
use super::{organizations, pending};
use crate::domain::counter::CounterId;
use crate::domain::ids::{IdempotencyKey, MeterId, OrganizationId};

/// The most rows that are drained together; an operation of more is drained alone.
const DRAINED_MAX: i64 = 500;

/// One row: what an operation adds to one counter.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Increment {
    /// The counter.
    #[sqlx(flatten)]
    pub counter: CounterId,
    /// The hour that the units are counted in.
    pub hour: DateTime<Utc>,
    /// Units to add.
    #[sqlx(try_from = "BigInt")]
    pub amount: u64,
}

/// An idempotency key and the fingerprint of its payload.
pub type Key = (IdempotencyKey, String);

/// An operation to be committed.
#[derive(Debug)]
pub struct NewOperation {
    /// What it adds to different counters of one organization.
    pub increments: Vec<Increment>,
    /// Makes a retry harmless.
    pub idempotency: Option<Key>,
}

/// A committed operation.
#[derive(Debug)]
pub struct PendingOperation {
    /// Grows within an organization.
    pub id: u64,
    /// What it adds, by meter.
    pub increments: Vec<Increment>,
    /// Its idempotency key.
    pub idempotency: Option<Key>,
}

/// How much is pending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Rows.
    pub increments: u64,
    /// Since when the oldest has been pending.
    pub since: Option<DateTime<Utc>>,
}

/// A transaction that admits operations.
#[derive(Debug)]
pub struct Admission(Transaction);

impl Admission {
    /// Begins a transaction.
    pub async fn begin(db: &Postgres) -> Result<Self> {
        Ok(Self(db.pool().await?.begin().await?))
    }

    /// Reads the sources of organizations.
    pub async fn sources(
        &mut self,
        organizations: &BTreeSet<OrganizationId>,
    ) -> Result<HashMap<OrganizationId, Sources>> {
        if organizations.is_empty() {
            return Ok(HashMap::new());
        }
        let ids: Vec<_> = organizations.iter().collect();
        sources::read_by_id(&mut self.0, &ids).await
    }

    /// Creates missing organizations, and blocks changes of their policies until the commit.
    pub async fn lock(&mut self, organizations: &BTreeSet<OrganizationId>) -> Result<()> {
        organizations::create(&mut self.0, organizations).await?;
        // In this order everywhere.
        sqlx::query("select from organizations where id = any($1) order by id for no key update")
            .bind(
                organizations
                    .iter()
                    .map(OrganizationId::as_str)
                    .collect::<Vec<_>>(),
            )
            .execute(&mut *self.0)
            .await?;
        Ok(())
    }

    /// The meters of locked organizations with a count in a running period, or with a pending one.
    pub async fn meters(
        &mut self,
        organizations: &BTreeSet<OrganizationId>,
        now: DateTime<Utc>,
    ) -> Result<HashMap<OrganizationId, BTreeSet<MeterId>>> {
        let mut meters = running_meters_of(&mut self.0, organizations, now).await?;
        let pending: Vec<(OrganizationId, MeterId)> = sqlx::query_as(
            "select distinct organization_id, meter from pending_increments where organization_id = any($1)",
        )
        .bind(organizations.iter().map(OrganizationId::as_str).collect::<Vec<_>>())
        .fetch_all(&mut *self.0)
        .await?;
        for (organization, meter) in pending {
            meters.entry(organization).or_default().insert(meter);
        }
        Ok(meters)
    }

    /// The fingerprints of pending operations with these idempotency keys.
    pub async fn fingerprints(
        &mut self,
        keys: &[(&OrganizationId, &IdempotencyKey)],
    ) -> Result<HashMap<(OrganizationId, IdempotencyKey), String>> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let rows: Vec<(OrganizationId, IdempotencyKey, String)> = sqlx::query_as(
            "select distinct organization_id, idempotency_key, fingerprint
             from unnest($1::text[], $2::text[]) as used (organization_id, idempotency_key)
             join pending_increments using (organization_id, idempotency_key)",
        )
        .column(keys, |(organization, _)| *organization)
        .column(keys, |(_, key)| *key)
        .fetch_all(&mut *self.0)
        .await?;
        let rows = rows.into_iter();
        Ok(rows
            .map(|(organization, key, fingerprint)| ((organization, key), fingerprint))
            .collect())
    }

    /// Writes operations of locked organizations.
    pub async fn insert(&mut self, operations: &[NewOperation], now: DateTime<Utc>) -> Result<()> {
        let rows = (1_i64..).zip(operations).flat_map(|(number, operation)| {
            let increments = operation.increments.iter();
            increments.map(move |increment| (number, increment, operation.idempotency.as_ref()))
        });
        let rows: Vec<(i64, &Increment, Option<&Key>)> = rows.collect();
        sqlx::query(
            "with ids as materialized (
                 select number, nextval('pending_operation') as id from generate_series(1, $9) as number
             )
             insert into pending_increments (organization_id, meter, period_start, operation, hour, amount,
                                             idempotency_key, fingerprint, created_at)
             select organization_id, meter, period_start, id, hour, amount, idempotency_key, fingerprint, $10
             from unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::timestamptz[], $6::bigint[],
                         $7::text[], $8::text[])
                  as new (organization_id, meter, period_start, number, hour, amount, idempotency_key, fingerprint)
             join ids using (number)",
        )
        .counters(rows.iter().map(|(_, increment, _)| &increment.counter))
        .column(&rows, |(number, _, _)| *number)
        .column(&rows, |(_, increment, _)| increment.hour)
        .column(&rows, |(_, increment, _)| BigInt(increment.amount))
        .column(&rows, |(_, _, key)| key.map(|(key, _)| key))
        .column(&rows, |(_, _, key)| key.map(|(_, fingerprint)| fingerprint.as_str()))
        .bind(BigInt(operations.len() as u64))
        .bind(now)
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }

    /// Commits. After an error, it is unknown whether it has.
    pub async fn commit(self) -> Result<()> {
        self.0.commit().await?;
        Ok(())
    }
}

/// How much is pending.
pub async fn backlog(db: &Postgres) -> Result<Backlog> {
    let (BigInt(increments), since) =
        sqlx::query_as("select count(*), min(created_at) from pending_increments")
            .fetch_one(db.pool().await?)
            .await?;
    Ok(Backlog { increments, since })
}

/// Lists at most `count` organizations with pending operations, those with the oldest first.
pub async fn organizations(db: &Postgres, count: u32) -> Result<Vec<OrganizationId>> {
    Ok(sqlx::query_scalar(
        "select organization_id from pending_increments
         group by organization_id
         order by min(operation)
         limit $1",
    )
    .bind(i64::from(count))
    .fetch_all(db.pool().await?)
    .await?)
}

#[derive(FromRow)]
struct Row {
    #[sqlx(try_from = "BigInt")]
    operation: u64,
    #[sqlx(flatten)]
    increment: Increment,
    idempotency_key: Option<IdempotencyKey>,
    fingerprint: Option<String>,
}

/// The pending operations of an organization, in the order of their ids; if there are many, the first ones.
pub async fn of(db: &Postgres, organization: &OrganizationId) -> Result<Vec<PendingOperation>> {
    let rows: Vec<Row> = sqlx::query_as(
        "select organization_id, meter, period_start, operation, hour, amount, idempotency_key, fingerprint
         from pending_increments
         where organization_id = $1 and operation <= coalesce(
             -- Whole operations: up to the one before the first that does not fit, or that one.
             (select operation from pending_increments where organization_id = $1
              order by operation, meter offset $2 limit 1),
             9223372036854775807)
         order by operation, meter",
    )
    .bind(organization)
    .bind(DRAINED_MAX)
    .fetch_all(db.pool().await?)
    .await?;
    let mut operations: BTreeMap<u64, PendingOperation> = BTreeMap::new();
    for row in rows {
        let operation = operations.entry(row.operation).or_insert(PendingOperation {
            id: row.operation,
            increments: Vec::new(),
            idempotency: row.idempotency_key.zip(row.fingerprint),
        });
        operation.increments.push(row.increment);
    }
    Ok(operations.into_values().collect())
}

/// Deletes what stored snapshots of an organization contain.
pub async fn delete_stored(db: &Postgres, organization: &OrganizationId) -> Result<()> {
    sqlx::query(
        "delete from pending_increments using usage_history
         where pending_increments.organization_id = $1 and usage_history.organization_id = $1
             and usage_history.meter = pending_increments.meter
             and usage_history.period_start = pending_increments.period_start
             and usage_history.drained >= pending_increments.operation",
    )
    .bind(organization)
    .execute(db.pool().await?)
    .await?;
    Ok(())
}

/// Moves what is pending for a counter whose period is closed to the running one. Its operations get new ids, because
/// that counter may already contain later ones; none of them has been drained, because a closed counter takes none.
pub async fn move_to_running(
    db: &Postgres,
    closed: &CounterId,
    running: DateTime<Utc>,
) -> Result<()> {
    let mut tx = db.pool().await?.begin().await?;
    pending::lock(&mut tx, &closed.organization).await?;
    sqlx::query(
        "with renumbered as (
             select operation, nextval('pending_operation') as new
             from (select distinct operation from pending_increments
                   where organization_id = $1 and meter = $2 and period_start = $3 order by operation) as closed
         )
         update pending_increments set
             operation = new,
             period_start = case when meter = $2 and period_start = $3 then $4 else period_start end,
             hour = case when meter = $2 and period_start = $3 then greatest(hour, $4) else hour end
         from renumbered
         where organization_id = $1 and pending_increments.operation = renumbered.operation",
    )
    .bind(&closed.organization)
    .bind(&closed.meter)
    .bind(closed.start)
    .bind(running)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}
