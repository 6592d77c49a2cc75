//! The walk over all organizations: instances claim its batches in turn, so that together they visit each once in a round.

use chrono::{DateTime, Utc};

use super::pool::{Postgres, Result};
use crate::domain::ids::OrganizationId;
use crate::domain::walk;

/// A part of the walk that one instance visits.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// The organizations.
    pub organizations: Vec<OrganizationId>,
    /// How many there are in all, as far as Postgres knows.
    pub total: u64,
    /// The position before them.
    after: String,
}

/// Claims the organizations that are due, of those that exist. None are due if another instance is claiming some.
///
/// What an instance has claimed when it dies is visited in the next round.
pub async fn claim(db: &Postgres, now: DateTime<Utc>) -> Result<Claim> {
    let mut tx = db.pool().await?.begin().await?;
    let row: Option<(String, Option<DateTime<Utc>>, i64)> = sqlx::query_as(
        "select position, nullif(claimed_at, '-infinity'),
                -- An estimate: to count them would be a walk of its own.
                (select greatest(reltuples, 0)::bigint from pg_class where oid = 'organizations'::regclass)
         from organization_walk
         for update of organization_walk skip locked",
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some((after, claimed_at, total)) = row else {
        return Ok(Claim::default());
    };
    let total = total.unsigned_abs();
    let due = walk::due(total, claimed_at.map(|at| now - at));
    if due == 0 {
        // At once, because other instances skip the row while it is locked.
        tx.rollback().await?;
        return Ok(Claim {
            total,
            ..Claim::default()
        });
    }
    let organizations: Vec<OrganizationId> = sqlx::query_scalar(
        "select id from organizations
         where id > $1 and deleted_at is null
         order by id
         limit $2",
    )
    .bind(&after)
    .bind(i64::try_from(due).unwrap_or(i64::MAX))
    .fetch_all(&mut *tx)
    .await?;
    let is_end = (organizations.len() as u64) < due;
    let last = organizations.last().filter(|_| !is_end);
    sqlx::query("update organization_walk set position = $1, claimed_at = $2")
        .bind(last.map_or("", OrganizationId::as_str))
        .bind(now)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(Claim {
        organizations,
        total,
        after,
    })
}

/// Lets a claim be claimed again, because its organizations could not be visited.
pub async fn give_back(db: &Postgres, claim: &Claim) -> Result<()> {
    sqlx::query("update organization_walk set position = least(position, $1 collate \"C\")")
        .bind(&claim.after)
        .execute(db.pool().await?)
        .await?;
    Ok(())
}
