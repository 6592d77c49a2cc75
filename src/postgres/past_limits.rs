//! Which limit a meter had at the end of an interval of history.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Duration, Utc};

use super::pool::{Postgres, Result};
use crate::domain::history::Row;
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::quantity::Count;

/// A limit, and since when it was effective.
type Since = (DateTime<Utc>, Option<Count>);

/// Gives each row the limit that was effective at its last instant, or is now if the interval still runs.
pub async fn add(db: &Postgres, rows: &mut [Row], now: DateTime<Utc>) -> Result<()> {
    let last = |row: &Row| {
        let end = row.end.map_or(now, |end| end.min(now));
        end - Duration::milliseconds(1)
    };
    let (Some(from), Some(to)) = (rows.iter().map(last).min(), rows.iter().map(last).max()) else {
        return Ok(());
    };
    let organizations: BTreeSet<&OrganizationId> =
        rows.iter().map(|row| &row.position.organization).collect();
    let organizations: Vec<&str> = organizations
        .into_iter()
        .map(OrganizationId::as_str)
        .collect();
    let found: Vec<(OrganizationId, MeterId, DateTime<Utc>, Option<Count>)> = sqlx::query_as(
        "select organization_id, meter, since, limit_units from analytics.limits_over_time
         where organization_id = any($1) and since <= $3 and (until is null or until > $2)
         order by since",
    )
    .bind(organizations)
    .bind(from)
    .bind(to)
    .fetch_all(db.pool().await?)
    .await?;
    let mut limits: HashMap<(OrganizationId, MeterId), Vec<Since>> = HashMap::new();
    for (organization, meter, since, limit) in found {
        let of_meter = limits.entry((organization, meter)).or_default();
        of_meter.push((since, limit));
    }
    for row in rows {
        let at = last(row);
        let meter = (
            row.position.organization.clone(),
            row.position.meter.clone(),
        );
        let of_meter = limits.get(&meter).map(Vec::as_slice).unwrap_or_default();
        let effective = of_meter.iter().rev().find(|(since, _)| *since <= at);
        row.limit = effective.and_then(|(_, limit)| *limit);
    }
    Ok(())
}
