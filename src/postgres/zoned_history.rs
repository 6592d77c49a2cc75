//! Reads history where organizations have different time zones, or have changed theirs.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sqlx::postgres::{PgBindIterExt as _, PgRow};
use sqlx::{FromRow, QueryBuilder, Row as _};

use super::history::{ADJUSTED, Filter, Page, limit};
use super::pool::{Postgres, Result};
use super::types::TimeZone;
use crate::domain::history::{Row, Window};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::schedule::ZoneSpan;

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

/// Reads counts by the windows that start in the page's range: for each organization those of the zones that it has had,
/// cut at a change of the zone.
pub async fn windows(db: &Postgres, page: &Page<'_>, windows: &[Window]) -> Result<Vec<Row>> {
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
    // Counted organizations first: they may be few among very many, which the planner cannot know.
    let mut sql = QueryBuilder::new(
        "with counted as materialized (select distinct h.organization_id as id from usage_hourly h",
    );
    push_span(&mut sql);
    sql.push("), ").push(ZONED).push(
        ", windows as materialized (
             select id, greatest(of_zone.start, since) as start, least(ends, until) as ends
             from unnest(",
    );
    sql.push_bind(windows.iter().map(|window| window.zone.name()).bind_iter());
    sql.push(", ");
    sql.push_bind(windows.iter().map(|window| window.start).bind_iter());
    sql.push(", ");
    sql.push_bind(windows.iter().map(|window| window.end).bind_iter());
    sql.push(
        ") as of_zone (zone, start, ends)
             join zoned on zoned.zone = of_zone.zone and of_zone.start < until and since < ends
         ), rows as (
             select it.start, it.ends, h.organization_id, h.meter, sum(h.used)::bigint as used,
                    sum(h.refunded)::bigint as refunded, sum(h.denied)::bigint as denied
             from windows as it
             join usage_hourly h on h.hour >= it.start and h.hour < it.ends and h.organization_id = it.id",
    );
    push_span(&mut sql);
    sql.push(" and it.start >= ").push_bind(page.from);
    sql.push(" and it.start < ").push_bind(page.to);
    page.push_after(&mut sql, "(it.start, h.organization_id, h.meter)");
    sql.push(
        "    group by it.start, it.ends, h.organization_id, h.meter
         )
         select start, ends, organization_id, meter, used, refunded, denied, null::bigint as limit_units, null as plan_id,
                null as reset_type, false as closed, ",
    );
    sql.push(ADJUSTED).push(" from rows");
    page.push_order(&mut sql, "start", "organization_id", "meter");
    Ok(sql.build_query_as().fetch_all(db.pool().await?).await?)
}

/// Lists every time zone that any organization, or the defaults, ever had.
pub async fn zones(db: &Postgres) -> Result<Vec<Tz>> {
    let zones: Vec<TimeZone> = sqlx::query_scalar("select name from time_zones")
        .fetch_all(db.pool().await?)
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
    Ok(sql.build_query_as().fetch_all(db.pool().await?).await?)
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
