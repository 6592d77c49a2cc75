//! Resets and adjustments that are committed and have not reached a stored snapshot yet.

use std::collections::BTreeSet;

use sqlx::PgExecutor;

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
