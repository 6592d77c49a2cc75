//! Resets, adjustments and increments that are committed and have not reached a stored snapshot yet.

use std::collections::BTreeSet;

use sqlx::{PgConnection, PgExecutor};

use super::error::Result;
use crate::domain::ids::{MeterId, OrganizationId};

/// The meters of an organization with a pending reset.
pub(super) async fn reset_meters(
    executor: impl PgExecutor<'_>,
    organization: &OrganizationId,
) -> Result<BTreeSet<MeterId>> {
    let meters: Vec<MeterId> =
        sqlx::query_scalar("select meter from resets where organization_id = $1 and pending")
            .bind(organization)
            .fetch_all(executor)
            .await?;
    Ok(meters.into_iter().collect())
}

/// Whether an organization has a pending adjustment.
pub(super) async fn has_adjustment(
    executor: impl PgExecutor<'_>,
    organization: &OrganizationId,
) -> Result<bool> {
    Ok(sqlx::query_scalar(
        "select exists (select from adjustments where organization_id = $1 and applied is null)",
    )
    .bind(organization)
    .fetch_one(executor)
    .await?)
}

/// Whether an organization has pending increments. No more are admitted until the transaction ends, if the organization
/// exists.
pub(super) async fn has_increments(
    tx: &mut PgConnection,
    organization: &OrganizationId,
) -> Result<bool> {
    lock(tx, organization).await?;
    let exists = "select exists (select from pending_increments where organization_id = $1)";
    let exists = sqlx::query_scalar(exists).bind(organization);
    Ok(exists.fetch_one(tx).await?)
}

/// Blocks admissions, and changes of its policy, until the transaction ends.
pub(super) async fn lock(tx: &mut PgConnection, organization: &OrganizationId) -> Result<()> {
    sqlx::query("select from organizations where id = $1 for no key update")
        .bind(organization)
        .execute(tx)
        .await?;
    Ok(())
}
