//! Imports usage that another system has counted.
//!
//! An imported row has epoch 0 and sequence 1, which no snapshot has, and is closed. No counter has its start, so no call
//! and no restore changes it.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection};

use super::audit::{self, Actor};
use super::pool::{Error, Postgres, Result};
use super::sources::schedules;
use super::types::BindColumns as _;
use super::{incarnations, organizations};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::past_usage::{PastPeriod, PastUsage, Rejected, StoredUsage};
use crate::domain::period::ResetMode;
use crate::domain::quantity::Count;

/// A meter of an organization.
type Metered = (OrganizationId, MeterId);

/// The result of an import.
#[derive(Debug, Clone, Default)]
pub struct Imported {
    /// The added periods, oldest first.
    pub periods: BTreeMap<Metered, Vec<PastPeriod>>,
    /// How many were imported before.
    pub repeated: usize,
    /// How many organizations did not exist.
    pub created: u64,
}

/// Adds all counts to history, or none; with `dry_run` none in any case. Creates the organizations that do not exist.
/// Excludes changes of calendars and deletions meanwhile.
pub async fn import(
    db: &Postgres,
    usage: &[PastUsage],
    actor: &Actor,
    dry_run: bool,
    now: DateTime<Utc>,
) -> Result<Result<Imported, Vec<Rejected>>> {
    let mut tx = db.begin_change().await?;
    let ids: BTreeSet<&OrganizationId> = usage.iter().map(|it| &it.organization).collect();
    let ids: Vec<OrganizationId> = ids.into_iter().cloned().collect();
    let created = create(&mut tx, &ids).await?;
    let schedules = schedules(&mut tx, &ids).await?;
    let mut stored = stored(&mut tx, &ids).await?;
    let mut by_end: Vec<&PastUsage> = usage.iter().collect();
    by_end.sort_by_key(|it| it.end);
    let (mut rejected, mut rows) = (Vec::new(), Vec::new());
    let mut imported = Imported {
        created,
        ..Imported::default()
    };
    for usage in by_end {
        let schedule = schedules.get(&usage.organization);
        let schedule = schedule.ok_or_else(Error::no_defaults)?;
        let metered = (usage.organization.clone(), usage.meter.clone());
        let stored = stored.entry(metered.clone()).or_default();
        match stored.add(usage, schedule, now) {
            Ok(Some(period)) => {
                imported.periods.entry(metered).or_default().push(period);
                rows.push((usage, period, schedule.mode()));
            }
            Ok(None) => imported.repeated += 1,
            Err(error) => rejected.push(error),
        }
    }
    if !rejected.is_empty() {
        rejected.sort_by_key(|it| it.line);
        return Ok(Err(rejected));
    }
    if !dry_run && !rows.is_empty() {
        insert(&mut tx, &rows, now).await?;
        let is = serde_json::json!({"periods": rows.len(), "organizations": ids.len(), "created": created});
        audit::record(&mut tx, actor, "usage_history.import", None, &(), &is).await?;
        tx.commit().await?;
    }
    Ok(Ok(imported))
}

/// Creates the organizations that do not exist; returns how many.
async fn create(tx: &mut PgConnection, ids: &[OrganizationId]) -> Result<u64> {
    let existing: i64 = sqlx::query_scalar(
        "select count(*) from organizations where id = any($1) and deleted_at is null",
    )
    .bind(ids)
    .fetch_one(&mut *tx)
    .await?;
    organizations::create(&mut *tx, ids).await?;
    incarnations::revive(tx, ids).await?;
    let existing = usize::try_from(existing).unwrap_or_default();
    Ok(ids.len().saturating_sub(existing) as u64)
}

#[derive(FromRow)]
struct PeriodRow {
    organization_id: OrganizationId,
    meter: MeterId,
    period_start: DateTime<Utc>,
    period_end: Option<DateTime<Utc>>,
    used: Count,
    imported: bool,
}

/// Reads what is stored of these organizations.
async fn stored(
    tx: &mut PgConnection,
    ids: &[OrganizationId],
) -> Result<BTreeMap<Metered, StoredUsage>> {
    let periods: Vec<PeriodRow> = sqlx::query_as(
        "select organization_id, meter, period_start, period_end, used, epoch = 0 and seq = 1 as imported
         from usage_history where organization_id = any($1)",
    )
    .bind(ids)
    .fetch_all(&mut *tx)
    .await?;
    let mut stored: BTreeMap<Metered, StoredUsage> = BTreeMap::new();
    for row in periods {
        let of_meter = stored.entry((row.organization_id, row.meter)).or_default();
        match row.period_end.filter(|_| row.imported) {
            Some(end) => {
                let period = PastPeriod {
                    start: row.period_start,
                    end,
                    used: row.used,
                };
                of_meter.imported.insert(end, period);
            }
            None => {
                of_meter.starts.insert(row.period_start);
            }
        }
    }
    let counted: Vec<(OrganizationId, MeterId, DateTime<Utc>)> = sqlx::query_as(
        "select organization_id, meter, min(until)
         from (
             select organization_id, meter, hour + interval '1 hour' as until
             from usage_hourly where organization_id = any($1)
             union all
             -- The first hours of these may have been dropped.
             select organization_id, meter, period_start
             from usage_history
             where organization_id = any($1) and not (epoch = 0 and seq = 1) and used + denied + refunded > 0
               and period_start < (select since from kept_hours)
         ) as counted
         group by organization_id, meter",
    )
    .bind(ids)
    .fetch_all(tx)
    .await?;
    for (organization, meter, from) in counted {
        stored
            .entry((organization, meter))
            .or_default()
            .counted_from = Some(from);
    }
    Ok(stored)
}

/// Stores periods, which belong to the present incarnation of their organizations.
async fn insert(
    tx: &mut PgConnection,
    rows: &[(&PastUsage, PastPeriod, ResetMode)],
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "insert into usage_history (organization_id, meter, period_start, period_end, used, denied, refunded, enforcement,
                                    policy_version, epoch, seq, closed_at, reset_type, stored_at)
         select organization_id, meter, period_start, period_end, used, 0, 0, 'hard', incarnation, 0, 1, period_end,
                reset_type, $7
         from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::text[])
              as new (organization_id, meter, period_start, period_end, used, reset_type)
         join organizations on id = organization_id
         order by organization_id collate \"C\", meter collate \"C\", period_start",
    )
    .column(rows, |(usage, ..)| &usage.organization)
    .column(rows, |(usage, ..)| &usage.meter)
    .column(rows, |(_, period, _)| period.start)
    .column(rows, |(_, period, _)| period.end)
    .column(rows, |(_, period, _)| period.used)
    .column(rows, |(.., mode)| *mode)
    .bind(now)
    .execute(tx)
    .await?;
    Ok(())
}
