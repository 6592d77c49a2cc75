//! How much a period had counted when an interval of history ended.

use sqlx::postgres::PgBindIterExt as _;

use super::pool::{Postgres, Result};
use crate::domain::history::{Granularity, Row};

/// The totals of rows, in their order. The window function adds what the rows themselves contain to what the period had
/// before the first of them, so that each hour is read once.
const TOTALS: &str = "with page as materialized (
         select * from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[]) with ordinality
             as row (organization_id, meter, start, ends, place)
     ), placed as materialized (
         select page.*, period.period_start, ends_at >= ends as runs
         from page
         left join lateral (
             select period_start, coalesce(least(period_end, closed_at), 'infinity') as ends_at
             from usage_history as u
             where u.organization_id = page.organization_id collate \"C\" and u.meter = page.meter collate \"C\"
               and u.period_start < page.ends
             order by period_start desc limit 1
         ) as period on true
     ), counted as materialized (
         select place, sum(h.used) as used
         from placed
         join usage_hourly as h
           on h.organization_id = placed.organization_id collate \"C\" and h.meter = placed.meter collate \"C\"
          and h.period_start = placed.period_start and h.hour >= placed.start and h.hour < placed.ends
         group by place
     ), before as materialized (
         select first.organization_id, first.meter, first.period_start, sum(h.used) as used
         from (
             select organization_id, meter, period_start, min(start) as start
             from placed group by organization_id, meter, period_start
         ) as first
         join usage_hourly as h
           on h.organization_id = first.organization_id collate \"C\" and h.meter = first.meter collate \"C\"
          and h.period_start = first.period_start and h.hour < first.start
          -- The slot in which a reset began the period may have begun before it.
          and h.hour >= first.period_start - interval '2 hours'
         group by first.organization_id, first.meter, first.period_start
     ), dropped as materialized (
         -- What dropped slots had: what the count of the period has and its slots lack.
         select began.organization_id, began.meter, began.period_start, began.used - coalesce(sum(h.used), 0) as used
         from (
             select distinct placed.organization_id, placed.meter, placed.period_start, u.used
             from placed
             join usage_history as u
               on u.organization_id = placed.organization_id collate \"C\" and u.meter = placed.meter collate \"C\"
              and u.period_start = placed.period_start
             -- An imported period never had slots.
             where not (u.epoch = 0 and u.seq = 1) and u.period_start - interval '2 hours' < (select since from kept_hours)
         ) as began
         left join usage_hourly as h
           on h.organization_id = began.organization_id collate \"C\" and h.meter = began.meter collate \"C\"
          and h.period_start = began.period_start
          and h.hour >= (select since from kept_hours)
         group by began.organization_id, began.meter, began.period_start, began.used
     )
     select case when runs
         then coalesce(before.used, 0) + coalesce(dropped.used, 0)
            + coalesce(sum(counted.used) over (partition by organization_id, meter, period_start order by start), 0)
         else 0 end::bigint
     from placed
     left join counted using (place)
     left join before using (organization_id, meter, period_start)
     left join dropped using (organization_id, meter, period_start)
     order by place";

/// Gives each row the running total of the period in which it ends: 0 where that has no count.
pub async fn add(db: &Postgres, rows: &mut [Row], granularity: Granularity) -> Result<()> {
    if granularity == Granularity::Period {
        for row in rows {
            row.total = Some(row.used);
        }
        return Ok(());
    }
    let totals: Vec<i64> = sqlx::query_scalar(TOTALS)
        .bind(
            rows.iter()
                .map(|row| row.position.organization.as_str())
                .bind_iter(),
        )
        .bind(
            rows.iter()
                .map(|row| row.position.meter.as_str())
                .bind_iter(),
        )
        .bind(rows.iter().map(|row| row.position.start).bind_iter())
        .bind(rows.iter().map(|row| row.end).bind_iter())
        .fetch_all(db.pool().await?)
        .await?;
    for (row, total) in rows.iter_mut().zip(totals) {
        row.total = Some(total);
    }
    Ok(())
}
