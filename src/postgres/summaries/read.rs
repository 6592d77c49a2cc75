//! Computes usage summaries.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::limit::WARN_AT_DEFAULT;
use crate::domain::summary::{MeterSummary, UsageSummary};
use crate::postgres::pool::Result;
use crate::postgres::usage;

/// Computes summaries from stored snapshots; an organization without a running period is left out.
pub(super) async fn read(
    tx: &mut PgConnection,
    organizations: &[OrganizationId],
    now: DateTime<Utc>,
) -> Result<HashMap<OrganizationId, UsageSummary>> {
    let snapshots = usage::unfinished_of(tx, organizations, now).await?;
    let warnings = lowest_warnings(tx, organizations).await?;
    let mut summaries: HashMap<OrganizationId, UsageSummary> = HashMap::new();
    for snapshot in snapshots {
        let summary = meter_summary(&snapshot, &warnings);
        let CounterId {
            organization,
            meter,
            ..
        } = snapshot.counter;
        let organization = summaries.entry(organization).or_default();
        organization.update(&meter, summary, now);
    }
    Ok(summaries)
}

fn meter_summary(snapshot: &Snapshot, warnings: &Warnings) -> MeterSummary {
    let counter = &snapshot.counter;
    let own = warnings.get(&(counter.organization.clone(), counter.meter.clone()));
    let default = || WARN_AT_DEFAULT.first().copied();
    MeterSummary {
        start: counter.start,
        end: snapshot.stamp.end,
        used: snapshot.used,
        limit: snapshot.stamp.rule.limit,
        enforcement: snapshot.stamp.rule.enforcement,
        warn_at: own.copied().unwrap_or_else(default),
    }
}

/// The lowest warning threshold of each limit with its own thresholds; none if that list is empty.
type Warnings = HashMap<(OrganizationId, MeterId), Option<u16>>;

/// Reads the warning thresholds of the organizations, or else of their plans.
async fn lowest_warnings(
    tx: &mut PgConnection,
    organizations: &[OrganizationId],
) -> Result<Warnings> {
    let rows: Vec<(OrganizationId, MeterId, Option<i16>)> = sqlx::query_as(
        "select id, meter, lowest
         from (
             select organizations.id, planned.key as meter, (planned.value->'warnAt'->>0)::smallint as lowest, 0 as precedence
             from organizations
             -- Limited to its only row, for which a planner without statistics would estimate a thousand.
             cross join (select settings from defaults limit 1) as defaults
             join plans on plans.id = coalesce(organizations.plan_id, defaults.settings->>'planId')
             cross join jsonb_each(plans.limits) as planned
             where organizations.id = any($1) and planned.value ? 'warnAt'
             union all
             select organization_id, meter, warn_at[1], 1 from limits
             where organization_id = any($1) and warn_at is not null
         ) as levels
         order by precedence",
    )
    .bind(organizations)
    .fetch_all(tx)
    .await?;
    // The later of two has precedence.
    let warnings = rows.into_iter().map(|(organization, meter, lowest)| {
        ((organization, meter), lowest.map(i16::unsigned_abs))
    });
    Ok(warnings.collect())
}
