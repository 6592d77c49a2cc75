//! Reads how fast meters have been used lately.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::projection::{Pace, Paces, observed_from};
use crate::postgres::pool::{Postgres, Result};

type Slots = BTreeMap<DateTime<Utc>, i64>;

/// Reads the paces of an organization's meters.
pub async fn paces(
    db: &Postgres,
    organization: &OrganizationId,
    now: DateTime<Utc>,
) -> Result<Paces> {
    let mut connection = db.pool().await?.acquire().await?;
    let one = std::slice::from_ref(organization);
    let mut paces = paces_of(&mut connection, one, now).await?;
    Ok(paces.remove(organization).unwrap_or_default())
}

/// Like [`paces`], of several organizations. Corrections are not use.
pub(in crate::postgres) async fn paces_of(
    tx: &mut PgConnection,
    organizations: &[OrganizationId],
    now: DateTime<Utc>,
) -> Result<HashMap<OrganizationId, Paces>> {
    let from = observed_from(now);
    let rows: Vec<(OrganizationId, MeterId, DateTime<Utc>, i64)> = sqlx::query_as(
        "select organization_id, meter, hour, sum(units)::bigint
         from (
             select organization_id, meter, hour, used as units from usage_hourly
             where organization_id = any($1) and hour >= $2
             union all
             select organization_id, meter, hour, -applied from adjustments
             where organization_id = any($1) and hour >= $2
         ) as counted
         group by organization_id, meter, hour",
    )
    .bind(organizations)
    .bind(from)
    .fetch_all(&mut *tx)
    .await?;
    let known: HashSet<OrganizationId> = counted_before(tx, organizations, from).await?;
    let mut slots: HashMap<OrganizationId, BTreeMap<MeterId, Slots>> = HashMap::new();
    for (organization, meter, start, units) in rows {
        let meters = slots.entry(organization).or_default();
        meters.entry(meter).or_default().insert(start, units);
    }
    let paces = slots.into_iter().map(|(organization, meters)| {
        let first = meters.values().flat_map(Slots::keys).min().copied();
        let first = first.filter(|_| !known.contains(&organization));
        let since = first.unwrap_or(from);
        let paces = meters
            .into_iter()
            .filter_map(|(meter, slots)| Some((meter, Pace::of(&slots, since, now)?)));
        (organization, paces.collect())
    });
    Ok(paces.collect())
}

/// Which of the organizations were counted before an instant.
async fn counted_before(
    tx: &mut PgConnection,
    organizations: &[OrganizationId],
    at: DateTime<Utc>,
) -> Result<HashSet<OrganizationId>> {
    let known: Vec<OrganizationId> = sqlx::query_scalar(
        "select id from unnest($1::text[]) as requested (id)
         cross join lateral (
             -- The order and the limit force an index lookup for each, whatever the statistics are.
             select from usage_hourly where organization_id = id collate \"C\" and hour < $2
             order by hour desc
             limit 1
         ) as counted",
    )
    .bind(organizations)
    .bind(at)
    .fetch_all(tx)
    .await?;
    Ok(known.into_iter().collect())
}
