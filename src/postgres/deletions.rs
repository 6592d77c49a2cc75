//! Deleting organizations: what can still be reached at once, in one transaction, and old history afterwards, in
//! pieces.
//!
//! The row of an organization stays, empty, with the version of its deletion. A snapshot that an older policy decided is
//! of the former life: [`take_out`] keeps it from being stored, whatever was in flight when.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::organizations::{Sources, describe, no_defaults, parse, read};
use super::{Actor, Error, Postgres, Uncommitted, api_keys, audit, events, signed, unsigned};
use crate::domain::counter::Snapshot;
use crate::domain::event::{self, Event};
use crate::domain::ids::{ApiKeyId, OrganizationId};

/// How many rows one transaction erases at most.
const CHUNK: i64 = 5000;

/// What a deletion did.
#[derive(Debug, Clone)]
pub struct Deleted {
    /// What the organization's policy comes from now.
    pub sources: Sources,
    /// Rows of history that are gone.
    pub rows: u64,
    /// Keys that were bound to the organization, and are revoked.
    pub keys: Vec<ApiKeyId>,
}

/// Deletes an organization, up to the commit, unless `check` refuses by what there is. Old history is left for [`erase_history`], and
/// noted as due at `due_at`: all periods that ended, and all hours that began, before `reach`, which is
/// earlier than anything that an event could reach.
pub async fn delete<E>(
    postgres: &Postgres,
    id: &OrganizationId,
    actor: &Actor,
    reach: DateTime<Utc>,
    due_at: DateTime<Utc>,
    now: DateTime<Utc>,
    check: impl FnOnce(&Sources) -> Result<(), E>,
) -> Result<Result<Uncommitted<Deleted>, E>, Error> {
    let (mut transaction, version) = postgres.begin_policy_change().await?;
    let before = read(&mut transaction, id).await?.ok_or_else(no_defaults)?;
    if let Err(refusal) = check(&before) {
        return Ok(Err(refusal));
    }
    // Counts first and the organization behind them, as every flush locks them; then what came in between.
    let mut rows = delete_reachable(&mut transaction, id, reach).await?;
    lock(&mut transaction, id).await?;
    rows += delete_reachable(&mut transaction, id, reach).await?;
    let hours = sqlx::query("delete from usage_hourly where organization_id = $1 and hour >= $2")
        .bind(id.as_str())
        .bind(reach)
        .execute(&mut *transaction)
        .await?;
    rows += hours.rows_affected();
    for table in [
        "delete from limits where organization_id = $1",
        "delete from temporary_limits where organization_id = $1",
        "delete from standings where organization_id = $1",
        "delete from resets where organization_id = $1",
        "delete from adjustments where organization_id = $1",
        "delete from attempts where scope = $1",
        // With what is still to be delivered of them. A new life may cross the same thresholds again.
        "delete from events where organization_id = $1",
    ] {
        sqlx::query(table)
            .bind(id.as_str())
            .execute(&mut *transaction)
            .await?;
    }
    sqlx::query(
        "update organizations set
             plan_id = null, features = '{}', reset_mode = null, reset_period = null, reset_day = null,
             reset_month = null, anchor = null, time_zone = null, metadata = '{}', timeline = null,
             version = $2, incarnation = $2, created_at = now(), updated_at = now(),
             deleted_at = now(), due_at = 'infinity'
         where id = $1",
    )
    .bind(id.as_str())
    .bind(signed(version))
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "insert into erasures (organization_id, incarnation, hours_before, due_at) values ($1, $2, $3, $4)
         on conflict (organization_id) do update set
             incarnation = excluded.incarnation, hours_before = excluded.hours_before, due_at = excluded.due_at",
    )
    .bind(id.as_str())
    .bind(signed(version))
    .bind(reach)
    .bind(due_at)
    .execute(&mut *transaction)
    .await?;
    let was = describe(before.organization.as_ref());
    audit::record(
        &mut transaction,
        actor,
        "organization.delete",
        Some(id),
        &was,
        &(),
    )
    .await?;
    let deletion = Event::OrganizationDeleted(event::Deletion {
        organization_id: id.clone(),
    });
    events::record(&mut transaction, &[deletion], now).await?;
    let keys = api_keys::revoke_bound(&mut transaction, id, actor).await?;
    // Read back, because it is on the default plan now.
    let sources = read(&mut transaction, id).await?.ok_or_else(no_defaults)?;
    let outcome = Deleted {
        sources,
        rows,
        keys,
    };
    Ok(Ok(Uncommitted {
        transaction,
        version,
        outcome,
    }))
}

/// An organization of which something may be left.
#[derive(Debug, Clone)]
pub struct Erasure {
    /// Whose.
    pub organization: OrganizationId,
    /// The policy version of the deletion.
    pub incarnation: u64,
    /// Older hours are of the former life.
    hours_before: DateTime<Utc>,
}

/// Takes on at most `count` erasures that are due, which nobody else will until `until`.
pub async fn take_on(
    postgres: &Postgres,
    now: DateTime<Utc>,
    until: DateTime<Utc>,
    count: u32,
) -> Result<Vec<Erasure>, Error> {
    let rows: Vec<(String, i64, DateTime<Utc>)> = sqlx::query_as(
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
    .fetch_all(&postgres.pool)
    .await?;
    rows.iter()
        .map(|(id, incarnation, hours_before)| {
            Ok(Erasure {
                organization: parse(id)?,
                incarnation: unsigned(*incarnation),
                hours_before: *hours_before,
            })
        })
        .collect()
}

/// The erasure of one organization, if anything may be left of it.
pub async fn erasure_of(
    postgres: &Postgres,
    id: &OrganizationId,
) -> Result<Option<Erasure>, Error> {
    let row: Option<(i64, DateTime<Utc>)> =
        sqlx::query_as("select incarnation, hours_before from erasures where organization_id = $1")
            .bind(id.as_str())
            .fetch_optional(&postgres.pool)
            .await?;
    Ok(row.map(|(incarnation, hours_before)| Erasure {
        organization: id.clone(),
        incarnation: unsigned(incarnation),
        hours_before,
    }))
}

/// Erases some of the history of a former life; returns how many rows, 0 where none is left.
pub async fn erase_history(postgres: &Postgres, erasure: &Erasure) -> Result<u64, Error> {
    let hours = sqlx::query(
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
    .bind(erasure.organization.as_str())
    .bind(erasure.hours_before)
    .bind(CHUNK)
    .execute(&postgres.pool)
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
    .bind(erasure.organization.as_str())
    .bind(signed(erasure.incarnation))
    .bind(CHUNK)
    .execute(&postgres.pool)
    .await?;
    Ok(hours.rows_affected() + periods.rows_affected())
}

/// Notes that nothing is left, unless the organization was deleted again meanwhile.
pub async fn finish(postgres: &Postgres, erasure: &Erasure) -> Result<(), Error> {
    sqlx::query("delete from erasures where organization_id = $1 and incarnation = $2")
        .bind(erasure.organization.as_str())
        .bind(signed(erasure.incarnation))
        .execute(&postgres.pool)
        .await?;
    Ok(())
}

/// Takes out again what was just stored and is of a former life; `stored` says of each snapshot whether it was, and
/// is corrected. An organization of which something remains has come back to life.
///
/// This is asked behind the statement that stored the snapshots, and not before. A row that it inserted has locked the
/// organization for its foreign key, and a row that it found was locked by itself: so a deletion is either committed, and
/// seen here, or waits for this transaction, and finds what it has stored.
pub(super) async fn take_out(
    connection: &mut PgConnection,
    snapshots: &[Snapshot],
    stored: &mut [bool],
) -> Result<(), Error> {
    let organizations: HashSet<&str> = snapshots
        .iter()
        .zip(&*stored)
        .filter(|(_, stored)| **stored)
        .map(|(snapshot, _)| snapshot.counter.organization.as_str())
        .collect();
    let organizations: Vec<&str> = organizations.into_iter().collect();
    let incarnations = incarnations(connection, &organizations).await?;
    if incarnations.is_empty() {
        return Ok(());
    }
    let (mut former, mut alive) = (Vec::new(), HashSet::new());
    for (snapshot, stored) in snapshots.iter().zip(stored).filter(|(_, stored)| **stored) {
        let organization = snapshot.counter.organization.as_str();
        match incarnations.get(organization) {
            Some(incarnation) if snapshot.stamp.version < *incarnation => {
                *stored = false;
                former.push(&snapshot.counter);
            }
            Some(_) => {
                alive.insert(organization);
            }
            None => {}
        }
    }
    sqlx::query(
        "delete from usage_history
         using unnest($1::text[], $2::text[], $3::timestamptz[]) as former (organization_id, meter, period_start)
         where usage_history.organization_id = former.organization_id and usage_history.meter = former.meter
             and usage_history.period_start = former.period_start",
    )
    .bind(former.iter().map(|it| it.organization.as_str()).collect::<Vec<_>>())
    .bind(former.iter().map(|it| it.meter.as_str()).collect::<Vec<_>>())
    .bind(former.iter().map(|it| it.start).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    let alive: Vec<&str> = alive.into_iter().collect();
    bring_to_life(connection, &alive).await
}

/// Refuses what a policy older than its organization's deletion has decided; otherwise the organizations have come
/// back to life. `decided` has each with the version of the policy. Asked behind the statement that wrote their rows, as
/// [`take_out`] is.
pub(super) async fn refuse_former(
    connection: &mut PgConnection,
    decided: &[(&OrganizationId, u64)],
) -> Result<(), Error> {
    let organizations: Vec<&str> = decided.iter().map(|(id, _)| id.as_str()).collect();
    let incarnations = incarnations(connection, &organizations).await?;
    if incarnations.is_empty() {
        return Ok(());
    }
    let is_former = |(id, version): &(&OrganizationId, u64)| {
        incarnations.get(id.as_str()).is_some_and(|it| version < it)
    };
    if decided.iter().any(is_former) {
        return Err(Error::OlderPolicy);
    }
    let alive: Vec<&str> = incarnations.keys().map(String::as_str).collect();
    bring_to_life(connection, &alive).await
}

/// Those of these organizations that were ever deleted, and when by version.
async fn incarnations(
    connection: &mut PgConnection,
    organizations: &[&str],
) -> Result<BTreeMap<String, u64>, Error> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "select id, incarnation
         from unnest($1::text[]) as named (name)
         cross join lateral (
             -- With an offset, so that it stays a look into the small index of those that were deleted, for each.
             select id, incarnation from organizations where id = name and incarnation > 0 offset 0
         ) as deleted",
    )
    .bind(organizations)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(id, incarnation)| (id, unsigned(incarnation)))
        .collect())
}

async fn bring_to_life(connection: &mut PgConnection, organizations: &[&str]) -> Result<(), Error> {
    sqlx::query(
        "with alive as (
             update organizations set deleted_at = null, due_at = '-infinity'
             where id in (
                 select id from organizations
                 where id = any($1) and deleted_at is not null
                 order by id
                 for no key update
             )
             returning id
         )
         insert into standings (organization_id) select id from alive",
    )
    .bind(organizations)
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes the counts that a flush or a restore could write.
async fn delete_reachable(
    connection: &mut PgConnection,
    id: &OrganizationId,
    reach: DateTime<Utc>,
) -> Result<u64, Error> {
    // Locked in key order, as by whoever stores or restores several of them.
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
    .bind(id.as_str())
    .bind(reach)
    .execute(connection)
    .await?;
    Ok(deleted.rows_affected())
}

/// Waits for everybody who has just stored something of an organization, and keeps everybody else waiting.
async fn lock(connection: &mut PgConnection, id: &OrganizationId) -> Result<(), Error> {
    sqlx::query("insert into organizations (id) values ($1) on conflict do nothing")
        .bind(id.as_str())
        .execute(&mut *connection)
        .await?;
    sqlx::query("select from organizations where id = $1 for update")
        .bind(id.as_str())
        .execute(&mut *connection)
        .await?;
    Ok(())
}
