//! Reads history in pages.
//!
//! Every page is one statement that begins after a [`Position`], so that neither a connection nor a snapshot is held
//! while a slow client reads. Slots and periods are read from an index in the requested order; days are sums of slots,
//! by windows that the caller computes.

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgBindIterExt as _, PgRow};
use sqlx::{FromRow, QueryBuilder, Row as _};

use super::pool::{Postgres, Result};
use super::types::unsigned;
use crate::domain::history::{Order, Position, Row, Window};
use crate::domain::ids::{MeterId, OrganizationId};

/// Which counts to read; none means any.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a> {
    /// Of these organizations.
    pub organizations: Option<&'a [OrganizationId]>,
    /// Of these meters.
    pub meters: Option<&'a [MeterId]>,
}

/// Which page of a list to read.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// Which counts the list contains.
    pub filter: Filter<'a>,
    /// Rows that start at this instant or later.
    pub from: DateTime<Utc>,
    /// Rows that start before this instant.
    pub to: DateTime<Utc>,
    /// The last row of the previous page.
    pub after: Option<&'a Position>,
    /// The order of the list.
    pub order: Order,
    /// The maximum number of rows.
    pub count: usize,
}

/// Reads counts by period.
pub async fn periods(db: &Postgres, page: &Page<'_>) -> Result<Vec<Row>> {
    let mut sql = QueryBuilder::new(
        "select period_start as start, period_end as ends, organization_id, meter, used, refunded, denied, limit_units,
                plan_id, reset_type, closed_at is not null as closed,
                (select coalesce(sum(applied), 0)::bigint from adjustments as a
                 where (a.organization_id, a.meter, a.period_start)
                     = (usage_history.organization_id, usage_history.meter, usage_history.period_start)) as adjusted
         from usage_history
         where ",
    );
    page.push_range(&mut sql, "period_start");
    page.filter.push(&mut sql, "organization_id", "meter");
    page.push_after(&mut sql, "(period_start, organization_id, meter)");
    page.push_order(&mut sql, "period_start", "organization_id", "meter");
    Ok(sql.build_query_as().fetch_all(db.pool().await?).await?)
}

/// Reads counts by windows of one zone, each of which starts in the page's range and where the one before ends.
pub async fn windows(db: &Postgres, page: &Page<'_>, windows: &[Window]) -> Result<Vec<Row>> {
    let (Some(first), Some(last)) = (windows.first(), windows.last()) else {
        return Ok(Vec::new());
    };
    let mut sql = QueryBuilder::new("with of_zone as (select ");
    sql.push_bind(windows.iter().map(|window| window.start).bind_iter());
    sql.push(" as starts, ");
    sql.push_bind(windows.iter().map(|window| window.end).bind_iter());
    // Each hour finds its window by a binary search.
    sql.push(
        " as ends), counted as (
             select width_bucket(h.hour, (select starts from of_zone)) as place, h.organization_id, h.meter,
                    sum(h.used) as used, sum(h.refunded) as refunded, sum(h.denied) as denied
             from usage_hourly as h
             where h.hour >= ",
    );
    sql.push_bind(first.start)
        .push(" and h.hour < ")
        .push_bind(last.end);
    page.filter.push(&mut sql, "h.organization_id", "h.meter");
    sql.push(
        "    group by place, h.organization_id, h.meter
         ), rows as (
             select place, (select starts from of_zone)[place] as start, (select ends from of_zone)[place] as ends, organization_id,
                    meter, used::bigint, refunded::bigint, denied::bigint
             from counted
         )
         select start, ends, organization_id, meter, used, refunded, denied, null::bigint as limit_units, null as plan_id,
                null as reset_type, false as closed, ",
    );
    sql.push(ADJUSTED).push(" from rows where true");
    page.push_after(&mut sql, "(start, organization_id, meter)");
    // In the order of the groups, so that they are not sorted again.
    page.push_order(&mut sql, "place", "organization_id", "meter");
    Ok(sql.build_query_as().fetch_all(db.pool().await?).await?)
}

/// The adjustments of a row of `rows`, as `adjusted`.
pub(super) const ADJUSTED: &str = "
    (select coalesce(sum(applied), 0)::bigint from adjustments as a
     where (a.organization_id, a.meter) = (rows.organization_id, rows.meter)
       and a.hour >= rows.start and a.hour < rows.ends) as adjusted";

/// Reads the start of the first and of the last slot with counts.
pub async fn slots_counted(
    db: &Postgres,
    filter: &Filter<'_>,
) -> Result<Option<(DateTime<Utc>, DateTime<Utc>)>> {
    let bounds: (Option<DateTime<Utc>>, Option<DateTime<Utc>>) = match filter.organizations {
        None => {
            sqlx::query_as("select min(hour), max(hour) from usage_hourly")
                .fetch_one(db.pool().await?)
                .await?
        }
        // Reads both ends of the index range of each.
        Some(organizations) => {
            sqlx::query_as(
                "select min(first), max(last)
                 from unnest($1::text[]) as id
                 cross join lateral (select min(hour) as first, max(hour) as last from usage_hourly
                                     where organization_id = id collate \"C\") as hours",
            )
            .bind(organizations)
            .fetch_one(db.pool().await?)
            .await?
        }
    };
    Ok(bounds.0.zip(bounds.1))
}

/// Finds when a meter of named organizations was first used, to the slot, or to the period if its slots are no longer stored.
pub async fn first_use(db: &Postgres, filter: &Filter<'_>) -> Result<Option<DateTime<Utc>>> {
    let mut sql = QueryBuilder::new(
        // Where slots were dropped, the first of those that are kept is not the first use.
        "select min(case when period.period_start < (select since from kept_hours) then period.period_start
                         else coalesce(hours.first, period.period_start) end)
         from (
             select distinct on (organization_id, meter) organization_id, meter, period_start
             from usage_history where used + denied + refunded > 0",
    );
    filter.push(&mut sql, "organization_id", "meter");
    sql.push(
        "    order by organization_id, meter, period_start
         ) as period
         cross join lateral (
             -- The slot in which a reset began the period may have begun before it.
             select min(hour) as first from usage_hourly as h
             where (h.organization_id, h.meter, h.period_start)
                 = (period.organization_id, period.meter, period.period_start)
               and h.hour >= period.period_start - interval '2 hours'
         ) as hours",
    );
    Ok(sql.build_query_scalar().fetch_one(db.pool().await?).await?)
}

impl Filter<'_> {
    pub(super) fn push(
        &self,
        sql: &mut QueryBuilder<sqlx::Postgres>,
        organization: &str,
        meter: &str,
    ) {
        match self.organizations {
            None => {}
            // A special case, because the index range of a single organization is already sorted.
            Some([one]) => {
                sql.push(format_args!(" and {organization} = "))
                    .push_bind(one);
            }
            Some(several) => {
                sql.push(format_args!(" and {organization} = any("));
                sql.push_bind(several).push(")");
            }
        }
        if let Some(several) = self.meters {
            sql.push(format_args!(" and {meter} = any("));
            sql.push_bind(several).push(")");
        }
    }
}

impl Page<'_> {
    /// Pushes the range, cut at the position of the page.
    pub(super) fn push_range(&self, sql: &mut QueryBuilder<sqlx::Postgres>, start: &str) {
        sql.push(format_args!("{start} >= ")).push_bind(self.from);
        sql.push(format_args!(" and {start} < ")).push_bind(self.to);
        // Redundant with the comparison of the whole position, but lets the planner prune partitions.
        if let Some(position) = self.after {
            let comparison = match self.order {
                Order::Asc => ">=",
                Order::Desc => "<=",
            };
            sql.push(format_args!(" and {start} {comparison} "));
            sql.push_bind(position.start);
        }
    }

    pub(super) fn push_after(&self, sql: &mut QueryBuilder<sqlx::Postgres>, position: &str) {
        let Some(after) = self.after else { return };
        let comparison = match self.order {
            Order::Asc => '>',
            Order::Desc => '<',
        };
        sql.push(format_args!(" and {position} {comparison} ("));
        sql.push_bind(after.start).push(", ");
        sql.push_bind(&after.organization).push(", ");
        sql.push_bind(&after.meter).push(")");
    }

    pub(super) fn push_order(
        &self,
        sql: &mut QueryBuilder<sqlx::Postgres>,
        start: &str,
        organization: &str,
        meter: &str,
    ) {
        let word = match self.order {
            Order::Asc => "asc",
            Order::Desc => "desc",
        };
        sql.push(format_args!(
            " order by {start} {word}, {organization} {word}, {meter} {word} limit "
        ));
        sql.push_bind(limit(self.count));
    }
}

impl FromRow<'_, PgRow> for Row {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            position: Position {
                start: row.try_get("start")?,
                organization: row.try_get("organization_id")?,
                meter: row.try_get("meter")?,
            },
            end: row.try_get("ends")?,
            used: row.try_get("used")?,
            total: None,
            refunded: unsigned(row, "refunded")?,
            denied: unsigned(row, "denied")?,
            adjusted: row.try_get("adjusted")?,
            limit: row.try_get("limit_units")?,
            plan: row.try_get("plan_id")?,
            reset_type: row.try_get("reset_type")?,
            closed: row.try_get("closed")?,
        })
    }
}

pub(super) fn limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
