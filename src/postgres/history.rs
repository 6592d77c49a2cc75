//! Reads what was counted when, in pages.
//!
//! Every page is one statement that begins behind a [`Position`], so that no connection, and no
//! snapshot, is held while a slow caller reads. Hours and periods come out of an index in the order
//! that is asked for; days are added up from hours, by windows that the caller has worked out.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sqlx::{FromRow, QueryBuilder};

use super::organizations::{corrupt_row, parse};
use super::{Error, Postgres, unsigned};
use crate::domain::calendar::parse_time_zone;
use crate::domain::history::{Order, Position, Row, Window};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::quantity::Count;
use crate::domain::schedule::ZoneSpan;

/// Whose counts, and of what.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a> {
    /// Of these organizations; of all if none.
    pub organizations: Option<&'a [OrganizationId]>,
    /// Of this meter; of all if none.
    pub meter: Option<&'a MeterId>,
}

/// A part of a list.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// What the list is about.
    pub filter: Filter<'a>,
    /// The first instant at which a row may start.
    pub from: DateTime<Utc>,
    /// The first instant at which none may.
    pub to: DateTime<Utc>,
    /// Only what comes after this.
    pub after: Option<&'a Position>,
    /// What comes first.
    pub order: Order,
    /// The most rows that are wanted.
    pub count: usize,
}

/// A meter of an organization.
#[derive(Debug, Clone)]
pub struct Counted {
    /// Whose.
    pub organization: OrganizationId,
    /// Of what.
    pub meter: MeterId,
    /// The zones that the organization has had, oldest first.
    pub zones: Vec<ZoneSpan>,
}

/// Defines `zoned (id, zone, since, until)`: which zones organizations of the relation `counted (id)` have had, and when,
/// as `Schedule::zones` has it. An organization that never changed its calendar has its own zone, or else those that were
/// the default; one that did has the zones of its timeline and, where it has no zone of its own, the defaults after it.
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

/// Counts by period.
pub async fn periods(postgres: &Postgres, page: &Page<'_>) -> Result<Vec<Row>, Error> {
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
    fetch(postgres, sql).await
}

/// Counts by window that starts in the page's range: for each organization those of the zones that it has had, cut where
/// one took over from another, or all if they are of the zone `fixed`.
pub async fn windows(
    postgres: &Postgres,
    page: &Page<'_>,
    windows: &[Window],
    fixed: Option<Tz>,
) -> Result<Vec<Row>, Error> {
    let (Some(from), Some(to)) = (
        windows.iter().map(|window| window.start).min(),
        windows.iter().map(|window| window.end).max(),
    ) else {
        return Ok(Vec::new());
    };
    // The windows say the same as this range, but not to the planner, which could then leave no partition out.
    let push_span = |sql: &mut QueryBuilder<sqlx::Postgres>| {
        sql.push(" where h.hour >= ").push_bind(from);
        sql.push(" and h.hour < ").push_bind(to);
        page.filter.push(sql, "h.organization_id", "h.meter");
    };
    let push_windows = |sql: &mut QueryBuilder<sqlx::Postgres>| {
        let zones: Vec<_> = windows.iter().map(|window| window.zone.name()).collect();
        let starts: Vec<_> = windows.iter().map(|window| window.start).collect();
        let ends: Vec<_> = windows.iter().map(|window| window.end).collect();
        sql.push("unnest(").push_bind(zones);
        sql.push(", ").push_bind(starts);
        sql.push(", ").push_bind(ends);
        sql.push(") as of_zone (zone, start, ends)");
    };
    let mut sql = QueryBuilder::new("with ");
    if fixed.is_some() {
        sql.push("windows as materialized (select start, ends from ");
        push_windows(&mut sql);
    } else {
        // Those that were counted, first: they may be few among very many, which the planner cannot know.
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
    fetch(postgres, sql).await
}

/// The first and the last slot in which anything was counted.
pub async fn slots_counted(
    postgres: &Postgres,
    filter: &Filter<'_>,
) -> Result<Option<(DateTime<Utc>, DateTime<Utc>)>, Error> {
    let bounds: (Option<DateTime<Utc>>, Option<DateTime<Utc>>) = match filter.organizations {
        None => {
            sqlx::query_as("select min(hour), max(hour) from usage_hourly")
                .fetch_one(&postgres.pool)
                .await?
        }
        // For each, the two ends of its part of the index.
        Some(organizations) => {
            sqlx::query_as(
                "select min(first), max(last)
                 from unnest($1::text[]) as id
                 cross join lateral (select min(hour) as first, max(hour) as last from usage_hourly
                                     where organization_id = id collate \"C\") as hours",
            )
            .bind(names(organizations))
            .fetch_one(&postgres.pool)
            .await?
        }
    };
    Ok(bounds.0.zip(bounds.1))
}

/// Every zone that any organization, or the defaults, ever had.
pub async fn zones(postgres: &Postgres) -> Result<Vec<Tz>, Error> {
    let names: Vec<(String,)> = sqlx::query_as("select name from time_zones")
        .fetch_all(&postgres.pool)
        .await?;
    names
        .iter()
        .map(|(name,)| parse_time_zone(name).map_err(corrupt_row))
        .collect()
}

/// Everything that could be counted, at most `count`: the meter that the filter names, for each of its
/// organizations, or else every meter that was ever counted.
pub async fn counted(
    postgres: &Postgres,
    filter: &Filter<'_>,
    count: usize,
) -> Result<Vec<Counted>, Error> {
    let mut sql = QueryBuilder::new(
        "with all_counted as materialized (
             select o.id, used.meter from organizations o cross join lateral (",
    );
    match filter.meter {
        Some(meter) => {
            sql.push("select ")
                .push_bind(meter.as_str())
                .push(" as meter");
        }
        None => {
            sql.push("select distinct meter from usage_history where organization_id = o.id");
        }
    }
    sql.push(") as used where o.deleted_at is null");
    if let Some(organizations) = filter.organizations {
        sql.push(" and o.id = any(")
            .push_bind(names(organizations))
            .push(")");
    }
    sql.push(" order by o.id limit ").push_bind(limit(count));
    sql.push("), counted as materialized (select distinct id from all_counted), ")
        .push(ZONED);
    sql.push(
        " select all_counted.id, meter, array_agg(zone order by since) as zones,
                 array_agg(nullif(since, '-infinity') order by since) as sinces
          from all_counted join zoned using (id)
          group by all_counted.id, meter
          order by all_counted.id",
    );
    let rows: Vec<CountedRow> = sql.build_query_as().fetch_all(&postgres.pool).await?;
    rows.into_iter().map(CountedRow::counted).collect()
}

#[derive(FromRow)]
struct CountedRow {
    id: String,
    meter: String,
    /// Oldest first.
    zones: Vec<String>,
    /// When each took over; null for the first.
    sinces: Vec<Option<DateTime<Utc>>>,
}

impl CountedRow {
    fn counted(self) -> Result<Counted, Error> {
        let mut zones: Vec<ZoneSpan> = Vec::with_capacity(self.zones.len());
        for (name, since) in self.zones.iter().zip(self.sinces) {
            let since = since.unwrap_or(DateTime::<Utc>::MIN_UTC);
            if let Some(before) = zones.last_mut() {
                before.until = since;
            }
            zones.push(ZoneSpan {
                since,
                ..ZoneSpan::always(parse_time_zone(name).map_err(corrupt_row)?)
            });
        }
        Ok(Counted {
            organization: parse(&self.id)?,
            meter: parse(&self.meter)?,
            zones,
        })
    }
}

impl Filter<'_> {
    fn push(&self, sql: &mut QueryBuilder<sqlx::Postgres>, organization: &str, meter: &str) {
        match self.organizations {
            None => {}
            // One is told apart, because its part of the index is in order already.
            Some([one]) => {
                sql.push(format_args!(" and {organization} = "));
                sql.push_bind(one.as_str().to_owned());
            }
            Some(several) => {
                sql.push(format_args!(" and {organization} = any("));
                sql.push_bind(
                    names(several)
                        .into_iter()
                        .map(str::to_owned)
                        .collect::<Vec<_>>(),
                );
                sql.push(")");
            }
        }
        if let Some(one) = self.meter {
            sql.push(format_args!(" and {meter} = "));
            sql.push_bind(one.as_str().to_owned());
        }
    }
}

impl Page<'_> {
    /// The range, without what lies before the position.
    fn push_range(&self, sql: &mut QueryBuilder<sqlx::Postgres>, start: &str) {
        sql.push(format_args!("{start} >= ")).push_bind(self.from);
        sql.push(format_args!(" and {start} < ")).push_bind(self.to);
        // Says less than the comparison of the whole position, but so that partitions can be left out.
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
        sql.push_bind(after.organization.as_str().to_owned())
            .push(", ");
        sql.push_bind(after.meter.as_str().to_owned()).push(")");
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

#[derive(FromRow)]
struct HistoryRow {
    start: DateTime<Utc>,
    ends: Option<DateTime<Utc>>,
    organization_id: String,
    meter: String,
    used: i64,
    refunded: i64,
    denied: i64,
    adjusted: i64,
    limit_units: Option<i64>,
    plan_id: Option<String>,
    reset_type: Option<String>,
    closed: bool,
}

async fn fetch(
    postgres: &Postgres,
    mut sql: QueryBuilder<sqlx::Postgres>,
) -> Result<Vec<Row>, Error> {
    let rows: Vec<HistoryRow> = sql.build_query_as().fetch_all(&postgres.pool).await?;
    rows.into_iter().map(HistoryRow::row).collect()
}

impl HistoryRow {
    fn row(self) -> Result<Row, Error> {
        let limit = self
            .limit_units
            .map(|units| Count::try_from(unsigned(units)));
        Ok(Row {
            position: Position {
                start: self.start,
                organization: parse(&self.organization_id)?,
                meter: parse(&self.meter)?,
            },
            end: self.ends,
            used: self.used,
            refunded: unsigned(self.refunded),
            denied: unsigned(self.denied),
            adjusted: self.adjusted,
            limit: limit.transpose().map_err(corrupt_row)?,
            plan: self.plan_id.as_deref().map(parse).transpose()?,
            reset_type: self.reset_type.as_deref().map(parse).transpose()?,
            closed: self.closed,
        })
    }
}

fn names(organizations: &[OrganizationId]) -> Vec<&str> {
    organizations.iter().map(OrganizationId::as_str).collect()
}

fn limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
