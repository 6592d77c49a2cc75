//! Keeps snapshots of stale incarnations out: what a policy older than the organization's deletion has decided.
//!
//! Both checks run after the statement that wrote the rows, not before. A row that it inserted has locked the
//! organization for its foreign key, and a row that it found was locked by itself. So a deletion is either committed,
//! and seen here, or waits for this transaction, and finds what it has stored.

use std::collections::{HashMap, HashSet};

use sqlx::PgConnection;

use super::error::{Error, Result};
use super::types::{BigInt, BindColumns as _};
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::OrganizationId;

/// Removes snapshots of stale incarnations that were just stored; `stored` says of each snapshot whether it was, and is
/// corrected. An organization with a snapshot that remains exists again.
pub(super) async fn remove_stale(
    tx: &mut PgConnection,
    snapshots: &[Snapshot],
    stored: &mut [bool],
) -> Result<()> {
    let organizations = snapshots
        .iter()
        .zip(&*stored)
        .filter(|(_, stored)| **stored)
        .map(|(snapshot, _)| &snapshot.counter.organization);
    let organizations: HashSet<&OrganizationId> = organizations.collect();
    let incarnations = incarnations(tx, organizations).await?;
    if incarnations.is_empty() {
        return Ok(());
    }
    let (mut stale, mut alive): (Vec<&CounterId>, _) = (Vec::new(), HashSet::new());
    for (snapshot, stored) in snapshots.iter().zip(stored).filter(|(_, stored)| **stored) {
        match incarnations.get(&snapshot.counter.organization) {
            Some(incarnation) if snapshot.stamp.version < *incarnation => {
                *stored = false;
                stale.push(&snapshot.counter);
            }
            Some(_) => {
                alive.insert(&snapshot.counter.organization);
            }
            None => {}
        }
    }
    sqlx::query(
        "delete from usage_history
         using unnest($1::text[], $2::text[], $3::timestamptz[]) as stale (organization_id, meter, period_start)
         where usage_history.organization_id = stale.organization_id and usage_history.meter = stale.meter
             and usage_history.period_start = stale.period_start",
    )
    .counters(stale.into_iter())
    .execute(&mut *tx)
    .await?;
    revive(tx, alive).await
}

/// Fails if a policy older than its organization's deletion made a decision; otherwise the organizations exist again.
/// `decisions` has each organization with the version of the policy.
pub(super) async fn refuse_stale(
    tx: &mut PgConnection,
    decisions: &[(&OrganizationId, u64)],
) -> Result<()> {
    let incarnations = incarnations(tx, decisions.iter().map(|(id, _)| *id)).await?;
    if incarnations.is_empty() {
        return Ok(());
    }
    let mut decisions = decisions.iter();
    if decisions.any(|(id, version)| incarnations.get(id).is_some_and(|it| version < it)) {
        return Err(Error::OlderPolicy);
    }
    revive(tx, incarnations.keys()).await
}

/// Finds the organizations that were ever deleted, each with the policy version of its last deletion.
async fn incarnations(
    tx: &mut PgConnection,
    organizations: impl IntoIterator<Item = &OrganizationId>,
) -> Result<HashMap<OrganizationId, u64>> {
    let rows: Vec<(OrganizationId, BigInt)> = sqlx::query_as(
        "select id, incarnation
         from unnest($1::text[]) as named (name)
         cross join lateral (
             -- The offset forces a lookup for each in the small index of those that were deleted.
             select id, incarnation from organizations where id = name and incarnation > 0 offset 0
         ) as deleted",
    )
    .column(organizations, |id| id)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|(id, it)| (id, it.0)).collect())
}

/// Marks deleted organizations as existing.
pub(super) async fn revive(
    tx: &mut PgConnection,
    organizations: impl IntoIterator<Item = &OrganizationId>,
) -> Result<()> {
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
    .column(organizations, |id| id)
    .execute(tx)
    .await?;
    Ok(())
}
