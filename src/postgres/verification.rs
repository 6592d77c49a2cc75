//! Reads what Postgres holds of counters, to compare it with Redis.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row as _};

use super::pool::{Postgres, Result};
use super::types::{BindColumns as _, unsigned};
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::OrganizationId;
use crate::domain::verification::{StoredCounter, Totals};

/// Lists the counters of some organizations whose period ends after `ends_after`.
pub async fn counters(
    db: &Postgres,
    organizations: &[OrganizationId],
    ends_after: DateTime<Utc>,
) -> Result<Vec<CounterId>> {
    Ok(sqlx::query_as(
        "select organization_id, meter, period_start
         from usage_history
         where organization_id = any($1) and (period_end is null or period_end > $2)",
    )
    .bind(organizations)
    .bind(ends_after)
    .fetch_all(db.pool().await?)
    .await?)
}

/// Reads the same counters with what is stored of them, as of one instant. `held` is what Redis held of them before.
pub async fn stored(
    db: &Postgres,
    organizations: &[OrganizationId],
    ends_after: DateTime<Utc>,
    held: &[&Snapshot],
) -> Result<Vec<StoredCounter>> {
    let mut slots: Vec<(&CounterId, DateTime<Utc>)> = Vec::new();
    for snapshot in held {
        let starts = snapshot.hours.iter().map(|slot| slot.start);
        slots.extend(starts.map(|start| (&snapshot.counter, start)));
    }
    Ok(sqlx::query_as(
        "select usage_history.organization_id, usage_history.meter, usage_history.period_start,
             usage_history.epoch, usage_history.seq,
             usage_history.used, usage_history.denied, usage_history.refunded,
             -- The slot in which a reset began the period may have begun before it.
             usage_history.period_start - interval '2 hours' < (select since from kept_hours) as hours_dropped,
             coalesce(sum(usage_hourly.used), 0)::bigint as hours_used,
             coalesce(sum(usage_hourly.denied), 0)::bigint as hours_denied,
             coalesce(sum(usage_hourly.refunded), 0)::bigint as hours_refunded,
             coalesce(sum(usage_hourly.used) filter (where held.hour is not null), 0)::bigint as held_used,
             coalesce(sum(usage_hourly.denied) filter (where held.hour is not null), 0)::bigint as held_denied,
             coalesce(sum(usage_hourly.refunded) filter (where held.hour is not null), 0)::bigint as held_refunded
         from usage_history
         left join usage_hourly using (organization_id, meter, period_start)
         left join unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[])
             as held (organization_id, meter, period_start, hour)
             using (organization_id, meter, period_start, hour)
         where usage_history.organization_id = any($5)
             and (usage_history.period_end is null or usage_history.period_end > $6)
         group by usage_history.organization_id, usage_history.meter, usage_history.period_start",
    )
    .counters(slots.iter().map(|(counter, _)| *counter))
    .column(&slots, |(_, start)| *start)
    .bind(organizations)
    .bind(ends_after)
    .fetch_all(db.pool().await?)
    .await?)
}

impl FromRow<'_, PgRow> for StoredCounter {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let sums = |[used, denied, refunded]: [&str; 3]| -> sqlx::Result<Totals> {
            Ok(Totals {
                used: row.try_get(used)?,
                denied: row.try_get(denied)?,
                refunded: row.try_get(refunded)?,
            })
        };
        Ok(Self {
            counter: CounterId::from_row(row)?,
            version: (unsigned(row, "epoch")?, unsigned(row, "seq")?),
            hours_dropped: row.try_get("hours_dropped")?,
            sums: sums(["used", "denied", "refunded"])?,
            hours: sums(["hours_used", "hours_denied", "hours_refunded"])?,
            hours_in_redis: sums(["held_used", "held_denied", "held_refunded"])?,
        })
    }
}
