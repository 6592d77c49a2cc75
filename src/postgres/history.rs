//! Reads history in pages.
//!
//! Every page is one statement that begins after a [`Position`], so that neither a connection nor a snapshot is held
//! while a slow client reads. Slots and periods are read from an index in the requested order; days are sums of slots,
//! by windows that the caller computes.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sqlx::postgres::{PgBindIterExt as _, PgRow};
use sqlx::{FromRow, QueryBuilder, Row as _};

use super::pool::{Postgres, Result};
use super::types::{TimeZone, unsigned};
use crate::domain::history::{Order, Position, Row, Window};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::schedule::ZoneSpan;

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

/// A meter of an organization.
#[derive(Debug, Clone)]
pub struct Counted {
    /// The organization.
    pub organization: OrganizationId,
    /// The meter.
    pub meter: MeterId,
    /// The time zones that the organization has had, oldest first.
    pub zones: Vec<ZoneSpan>,
}

/// Defines `zoned (id, zone, since, until)`: which zones organizations of the relation `counted (id)` have had, and when,
/// like `Schedule::zones`. An organization that never changed its calendar has its own zone, or else those that were the
/// default; one that did has the zones of its timeline and, without a zone of its own, the defaults after it.
const ZONED: &str = "
    default_zones as materialized (
        select it ->> 'timeZone' as zone, (it ->> 'version')::bigint as version,
               coalesce(date_trunc('second', (it ->> 'since')::timestamptz), '-infinity') as since, place
        from defaults
        cross join lateral jsonb_array_elements(calendars) with ordinality as calendar (it, place)
    ), defaults_tiled as materialized (
        select zone, since, lead(since, 1, 'infinity') over (order by place) as until from default_zones
    ), named as materialized (
        select o.id, o.time_zone, o.timeline from counted join organizations o using (id)
    ), zoned as materialized (
        select id, time_zone as zone, timestamptz '-infinity' as since, timestamptz 'infinity' as until
        from named where timeline is null and time_zone is not null
        union all
        select id, zone, since, until
        from named cross join defaults_tiled where timeline is null and time_zone is null
        union all
        select id, zone, since, until
        from named
        cross join lateral (
            select zone, since, lead(since, 1, 'infinity') over (order by place) as until
            from (
                select zone, since, place, lag(zone) over (order by place) as before
                from (
                    select it -> 'calendar' ->> 'timeZone' as zone,
                           coalesce(date_trunc('second', (it -> 'takeover' ->> 'at')::timestamptz), '-infinity') as since,
                           place
                    from jsonb_array_elements(coalesce(timeline -> 'past', '[]') || jsonb_build_array(timeline - 'past'))
                         with ordinality as segment (it, place)
                    union all
                    select zone, since, 1000000 + place
                    from default_zones
                    where time_zone is null and version > (timeline ->> 'defaultsVersion')::bigint
                ) as segments
            ) as compared
            where zone is distinct from before
        ) as spans
        where timeline is not null
    )";

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
    Ok(sql.build_query_as().fetch_all(&db.pool).await?)
}

/// Reads counts by the windows that start in the page's range: for each organization those of the zones that it has had,
/// cut at a change of the zone, or all windows if they are of the zone `fixed`.
pub async fn windows(
    db: &Postgres,
    page: &Page<'_>,
    windows: &[Window],
    fixed: Option<Tz>,
) -> Result<Vec<Row>> {
    let (Some(from), Some(to)) = (
        windows.iter().map(|window| window.start).min(),
        windows.iter().map(|window| window.end).max(),
    ) else {
        return Ok(Vec::new());
    };
    // Redundant with the windows, but lets the planner prune partitions.
    let push_span = |sql: &mut QueryBuilder<sqlx::Postgres>| {
        sql.push(" where h.hour >= ").push_bind(from);
        sql.push(" and h.hour < ").push_bind(to);
        page.filter.push(sql, "h.organization_id", "h.meter");
    };
    let push_windows = |sql: &mut QueryBuilder<sqlx::Postgres>| {
        let zones = windows.iter().map(|window| window.zone.name());
        let starts = windows.iter().map(|window| window.start);
        let ends = windows.iter().map(|window| window.end);
        sql.push("unnest(").push_bind(zones.bind_iter());
        sql.push(", ").push_bind(starts.bind_iter());
        sql.push(", ").push_bind(ends.bind_iter());
        sql.push(") as of_zone (zone, start, ends)");
    };
    let mut sql = QueryBuilder::new("with ");
    if fixed.is_some() {
        sql.push("windows as materialized (select start, ends from ");
        push_windows(&mut sql);
    } else {
        // Counted organizations first: they may be few among very many, which the planner cannot know.
        sql.push(
            "counted as materialized (select distinct h.organization_id as id from usage_hourly h",
        );
        push_span(&mut sql);
        sql.push("), ").push(ZONED);
        sql.push(
            ", windows as materialized (
                 select id, greatest(of_zone.start, since) as start, least(ends, until) as ends
                 from ",
        );
        push_windows(&mut sql);
        sql.push(
            " join zoned on zoned.zone = of_zone.zone and of_zone.start < until and since < ends",
        );
    }
    sql.push(
        ") select it.start, it.ends, h.organization_id, h.meter, sum(h.used)::bigint as used,
                sum(h.refunded)::bigint as refunded, sum(h.denied)::bigint as denied, null::bigint as limit_units,
                null as plan_id, null as reset_type, false as closed,
                (select coalesce(sum(applied), 0)::bigint from adjustments as a
                 where (a.organization_id, a.meter) = (h.organization_id, h.meter)
                   and a.hour >= it.start and a.hour < it.ends) as adjusted
         from windows as it
         join usage_hourly h on h.hour >= it.start and h.hour < it.ends",
    );
    if fixed.is_none() {
        sql.push(" and h.organization_id = it.id");
    }
    push_span(&mut sql);
    sql.push(" and it.start >= ").push_bind(page.from);
    sql.push(" and it.start < ").push_bind(page.to);
    page.push_after(&mut sql, "(it.start, h.organization_id, h.meter)");
    sql.push(" group by it.start, it.ends, h.organization_id, h.meter");
    page.push_order(&mut sql, "it.start", "h.organization_id", "h.meter");
    Ok(sql.build_query_as().fetch_all(&db.pool).await?)
}

/// Reads the start of the first and of the last slot with counts.
pub async fn slots_counted(
    db: &Postgres,
    filter: &Filter<'_>,
) -> Result<Option<(DateTime<Utc>, DateTime<Utc>)>> {
    let bounds: (Option<DateTime<Utc>>, Option<DateTime<Utc>>) = match filter.organizations {
        None => {
            sqlx::query_as("select min(hour), max(hour) from usage_hourly")
                .fetch_one(&db.pool)
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
            .fetch_one(&db.pool)
            .await?
        }
    };
    Ok(bounds.0.zip(bounds.1))
}

/// Finds when a meter of named organizations was first used, to the slot, or to the period if its slots are no longer stored.
pub async fn first_use(db: &Postgres, filter: &Filter<'_>) -> Result<Option<DateTime<Utc>>> {
    let mut sql = QueryBuilder::new(
        "select min(coalesce(hours.first, period.period_start))
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
    Ok(sql.build_query_scalar().fetch_one(&db.pool).await?)
}

/// Lists every time zone that any organization, or the defaults, ever had.
pub async fn zones(db: &Postgres) -> Result<Vec<Tz>> {
    let zones: Vec<TimeZone> = sqlx::query_scalar("select name from time_zones")
        .fetch_all(&db.pool)
        .await?;
    Ok(zones.into_iter().map(|TimeZone(zone)| zone).collect())
}

/// Lists at most `count` meters of organizations: the meters of the filter for each of its organizations, or else every
/// meter that was ever counted.
pub async fn counted(db: &Postgres, filter: &Filter<'_>, count: usize) -> Result<Vec<Counted>> {
    let mut sql = QueryBuilder::new(
        "with all_counted as materialized (
             select o.id, used.meter from organizations o cross join lateral (",
    );
    match filter.meters {
        Some(meters) => {
            sql.push("select unnest(")
                .push_bind(meters)
                .push(") as meter");
        }
        None => {
            sql.push("select distinct meter from usage_history where organization_id = o.id");
        }
    }
    sql.push(") as used where o.deleted_at is null");
    if let Some(organizations) = filter.organizations {
        sql.push(" and o.id = any(")
            .push_bind(organizations)
            .push(")");
    }
    sql.push(" order by o.id limit ").push_bind(limit(count));
    sql.push("), counted as materialized (select distinct id from all_counted), ")
        .push(ZONED);
    sql.push(
        " select all_counted.id as organization_id, meter, array_agg(zone order by since) as zones,
                 array_agg(nullif(since, '-infinity') order by since) as sinces
          from all_counted join zoned using (id)
          group by all_counted.id, meter
          order by all_counted.id",
    );
    Ok(sql.build_query_as().fetch_all(&db.pool).await?)
}

impl FromRow<'_, PgRow> for Counted {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        // Oldest first, and when each took effect; null for the first.
        let names: Vec<TimeZone> = row.try_get("zones")?;
        let sinces: Vec<Option<DateTime<Utc>>> = row.try_get("sinces")?;
        let mut zones: Vec<ZoneSpan> = Vec::with_capacity(names.len());
        for (TimeZone(zone), since) in names.into_iter().zip(sinces) {
            let since = since.unwrap_or(DateTime::<Utc>::MIN_UTC);
            if let Some(before) = zones.last_mut() {
                before.until = since;
            }
            zones.push(ZoneSpan {
                since,
                ..ZoneSpan::always(zone)
            });
        }
        Ok(Self {
            organization: row.try_get("organization_id")?,
            meter: row.try_get("meter")?,
            zones,
        })
    }
}

impl Filter<'_> {
    fn push(&self, sql: &mut QueryBuilder<sqlx::Postgres>, organization: &str, meter: &str) {
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
    fn push_range(&self, sql: &mut QueryBuilder<sqlx::Postgres>, start: &str) {
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

    fn push_after(&self, sql: &mut QueryBuilder<sqlx::Postgres>, position: &str) {
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

    fn push_order(
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

fn limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
