//! Reads stored snapshots.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row as _};

use crate::domain::counter::{CounterId, Snapshot, Stamp};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::limit::Rule;
use crate::domain::threshold::{Notified, Thresholds};
use crate::postgres::pool::{Postgres, Result};
use crate::postgres::types::{BindColumns as _, unsigned};

/// The columns of `usage_history` that a [`Snapshot`] is read from.
macro_rules! snapshot_columns {
    () => {
        "organization_id, meter, period_start, period_end, used, denied, refunded, limit_units, enforcement,
         policy_version, epoch, seq, closed_at, told, adjusted, drained"
    };
}
pub(super) use snapshot_columns;

/// Without slots.
impl FromRow<'_, PgRow> for Snapshot {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let closed_at: Option<DateTime<Utc>> = row.try_get("closed_at")?;
        let notified: Option<Notified> = row.try_get("told")?;
        Ok(Self {
            counter: CounterId::from_row(row)?,
            stamp: Stamp {
                generation: unsigned(row, "epoch")?,
                version: unsigned(row, "policy_version")?,
                rule: Rule {
                    limit: row.try_get("limit_units")?,
                    enforcement: row.try_get("enforcement")?,
                },
                end: row.try_get("period_end")?,
                closed: closed_at.is_some(),
            },
            used: row.try_get("used")?,
            denied: unsigned(row, "denied")?,
            refunded: unsigned(row, "refunded")?,
            sequence: unsigned(row, "seq")?,
            hours: Vec::new(),
            oldest_unstored: None,
            never_stored: false,
            adjusted: row.try_get("adjusted")?,
            drained: unsigned(row, "drained")?,
            thresholds: Thresholds {
                notified: notified.unwrap_or_default(),
                ..Thresholds::default()
            },
        })
    }
}

/// Reads an organization's snapshots of periods that are not over, without slots.
///
/// If another instance's clock was ahead when it reset a meter, the running period begins after `now`: the policy
/// decides which of a meter's periods runs.
pub async fn unfinished(
    db: &Postgres,
    organization: &OrganizationId,
    now: DateTime<Utc>,
) -> Result<Vec<Snapshot>> {
    let mut connection = db.pool().await?.acquire().await?;
    unfinished_of(&mut connection, std::slice::from_ref(organization), now).await
}

/// Like [`unfinished`], of several organizations, sorted by organization.
pub(in crate::postgres) async fn unfinished_of(
    tx: &mut PgConnection,
    organizations: &[OrganizationId],
    now: DateTime<Utc>,
) -> Result<Vec<Snapshot>> {
    Ok(sqlx::query_as(concat!(
        "select ",
        snapshot_columns!(),
        " from usage_history
         where organization_id = any($1) and (period_end is null or period_end > $2)
         order by organization_id, meter, period_start",
    ))
    .bind(organizations)
    .bind(now)
    .fetch_all(tx)
    .await?)
}

/// Reads when a snapshot of a running period of an organization was last stored.
pub async fn last_stored(
    db: &Postgres,
    organization: &OrganizationId,
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>> {
    Ok(sqlx::query_scalar(
        "select max(stored_at) from usage_history
         where organization_id = $1 and period_start <= $2 and (period_end is null or period_end > $2)",
    )
    .bind(organization)
    .bind(now)
    .fetch_one(db.pool().await?)
    .await?)
}

/// Reads, by organization, the meters with a count in a running period.
pub async fn running_meters(
    db: &Postgres,
    organizations: &[OrganizationId],
    now: DateTime<Utc>,
) -> Result<HashMap<OrganizationId, BTreeSet<MeterId>>> {
    let mut connection = db.pool().await?.acquire().await?;
    running_meters_of(&mut connection, organizations, now).await
}

pub(in crate::postgres) async fn running_meters_of(
    tx: &mut PgConnection,
    organizations: impl IntoIterator<Item = &OrganizationId>,
    now: DateTime<Utc>,
) -> Result<HashMap<OrganizationId, BTreeSet<MeterId>>> {
    let organizations: BTreeSet<&OrganizationId> = organizations.into_iter().collect();
    let rows: Vec<(OrganizationId, MeterId)> = sqlx::query_as(
        "select organization_id, meter
         from unnest($1::text[]) as requested (id)
         cross join lateral (
             -- The order forces an index lookup for each, whatever the statistics are.
             select organization_id, meter from usage_history
             where organization_id = id and (period_end is null or period_end > $2)
             order by meter
         ) as running",
    )
    .column(organizations, |id| id)
    .bind(now)
    .fetch_all(tx)
    .await?;
    let mut meters: HashMap<OrganizationId, BTreeSet<MeterId>> = HashMap::new();
    for (organization, meter) in rows {
        meters.entry(organization).or_default().insert(meter);
    }
    Ok(meters)
}

/// Reads the start of the last period of an organization with a stored count.
pub async fn last_counted(
    db: &Postgres,
    organization: &OrganizationId,
) -> Result<Option<DateTime<Utc>>> {
    Ok(sqlx::query_scalar(
        "select max(period_start) from usage_history where organization_id = $1 and (used > 0 or refunded > 0)",
    )
    .bind(organization)
    .fetch_one(db.pool().await?)
    .await?)
}
