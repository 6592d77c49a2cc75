//! Reads what was counted when, in pages.
//!
//! Every page is one statement that begins behind a [`Position`], so that no connection, and no
//! snapshot, is held while a slow caller reads. Hours and periods come out of an index in the order
//! that is asked for; days are added up from hours, by windows that the caller has worked out.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sqlx::{FromRow, Postgres, QueryBuilder};

use super::organizations::{nonsense, parse};
use super::{Error, Store, unsigned};
use crate::domain::history::{Order, Position, Row, Window, hour_end};
use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::period::parse_time_zone;
use crate::domain::quantity::Count;

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
    /// Where the organization's midnight is.
    pub zone: Tz,
}

/// The zone of an organization `o`. Without own settings it has the one that the service was started with.
const ZONE: &str = "coalesce(o.time_zone, (select settings ->> 'timeZone' from defaults), 'UTC')";

/// Counts by period.
pub async fn periods(store: &Store, page: &Page<'_>) -> Result<Vec<Row>, Error> {
    let mut sql = QueryBuilder::new(
        "select period_start as start, period_end as ends, organization_id, meter, used, refunded, denied, limit_units,
                plan_id, reset_type, closed_at is not null as closed, null as zone,
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
    fetch(store, sql).await
}

/// Counts by hour. An hour in which one period ended and another began is one row.
pub async fn hours(store: &Store, page: &Page<'_>) -> Result<Vec<Row>, Error> {
    let mut sql = QueryBuilder::new(
        "with page as (
             select hour, organization_id, meter, sum(used)::bigint as used, sum(refunded)::bigint as refunded,
                    sum(denied)::bigint as denied
             from usage_hourly
             where ",
    );
    page.push_range(&mut sql, "hour");
    page.filter.push(&mut sql, "organization_id", "meter");
    page.push_after(&mut sql, "(hour, organization_id, meter)");
    sql.push(" group by hour, organization_id, meter");
    page.push_order(&mut sql, "hour", "organization_id", "meter");
    sql.push(format_args!(
        ") select hour as start, null::timestamptz as ends, organization_id, meter, used, refunded, denied,
                  null::bigint as limit_units, null as plan_id, null as reset_type, false as closed, {ZONE} as zone,
                  (select coalesce(sum(applied), 0)::bigint from adjustments as a
                   where (a.organization_id, a.meter, a.hour) = (page.organization_id, page.meter, page.hour)) as adjusted
           from page left join organizations o on o.id = organization_id"
    ));
    // The join may have shuffled what the page had in order.
    page.push_order(&mut sql, "hour", "organization_id", "meter");
    fetch(store, sql).await
}

/// Counts by window: for each organization those of its own zone, or all if they are of the zone `fixed`.
pub async fn days(
    store: &Store,
    page: &Page<'_>,
    windows: &[Window],
    fixed: Option<Tz>,
) -> Result<Vec<Row>, Error> {
    let (Some(from), Some(to)) = (
        windows.iter().map(|day| day.start).min(),
        windows.iter().map(|day| day.end).max(),
    ) else {
        return Ok(Vec::new());
    };
    // The windows say the same as this range, but not to the planner, which could then leave no partition out.
    let push_span = |sql: &mut QueryBuilder<Postgres>| {
        sql.push(" where h.hour >= ").push_bind(from);
        sql.push(" and h.hour < ").push_bind(to);
        page.filter.push(sql, "h.organization_id", "h.meter");
    };
    let mut sql = QueryBuilder::new("");
    if fixed.is_none() {
        // Those that were counted, first: they may be few among very many, which the planner cannot know.
        sql.push(format_args!(
            "with zoned as materialized (
                 select o.id, {ZONE} as zone
                 from (select distinct h.organization_id as id from usage_hourly h"
        ));
        push_span(&mut sql);
        sql.push(") as counted join organizations o using (id)) ");
    }
    sql.push(
        "select day.start, day.ends, h.organization_id, h.meter, sum(h.used)::bigint as used,
                sum(h.refunded)::bigint as refunded, sum(h.denied)::bigint as denied, null::bigint as limit_units,
                null as plan_id, null as reset_type, false as closed, null as zone,
                (select coalesce(sum(applied), 0)::bigint from adjustments as a
                 where (a.organization_id, a.meter) = (h.organization_id, h.meter)
                   and a.hour >= day.start and a.hour < day.ends) as adjusted
         from unnest(",
    );
    sql.push_bind(
        windows
            .iter()
            .map(|day| day.zone.name())
            .collect::<Vec<_>>(),
    );
    sql.push(", ");
    sql.push_bind(windows.iter().map(|day| day.start).collect::<Vec<_>>());
    sql.push(", ");
    sql.push_bind(windows.iter().map(|day| day.end).collect::<Vec<_>>());
    sql.push(") as day (zone, start, ends)");
    if fixed.is_none() {
        sql.push(" join zoned on zoned.zone = day.zone");
    }
    sql.push(" join usage_hourly h on h.hour >= day.start and h.hour < day.ends");
    if fixed.is_none() {
        sql.push(" and h.organization_id = zoned.id");
    }
    push_span(&mut sql);
    page.push_after(&mut sql, "(day.start, h.organization_id, h.meter)");
    sql.push(" group by day.start, day.ends, h.organization_id, h.meter");
    page.push_order(&mut sql, "day.start", "h.organization_id", "h.meter");
    fetch(store, sql).await
}

/// The first and the last hour in which anything was counted.
pub async fn hours_counted(
    store: &Store,
    filter: &Filter<'_>,
) -> Result<Option<(DateTime<Utc>, DateTime<Utc>)>, Error> {
    let bounds: (Option<DateTime<Utc>>, Option<DateTime<Utc>>) = match filter.organizations {
        None => {
            sqlx::query_as("select min(hour), max(hour) from usage_hourly")
                .fetch_one(&store.pool)
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
            .fetch_one(&store.pool)
            .await?
        }
    };
    Ok(bounds.0.zip(bounds.1))
}

/// Every zone that an organization has.
pub async fn zones(store: &Store, filter: &Filter<'_>) -> Result<Vec<Tz>, Error> {
    let names: Vec<(String,)> = match filter.organizations {
        // From each zone to the next in the index, however many organizations there are.
        None => {
            sqlx::query_as(
                "with recursive own as (
                     select min(time_zone) as zone from organizations where time_zone is not null
                     union all
                     select (select min(time_zone) from organizations where time_zone > own.zone)
                     from own where own.zone is not null
                 )
                 select zone from own where zone is not null
                 union
                 select coalesce((select settings ->> 'timeZone' from defaults), 'UTC')",
            )
            .fetch_all(&store.pool)
            .await?
        }
        Some(organizations) => {
            let mut sql = QueryBuilder::new("select distinct ");
            sql.push(ZONE)
                .push(" from organizations o where o.id = any(");
            sql.push_bind(self::names(organizations)).push(")");
            sql.build_query_as().fetch_all(&store.pool).await?
        }
    };
    names
        .iter()
        .map(|(name,)| parse_time_zone(name).map_err(nonsense))
        .collect()
}

/// Everything that could be counted, at most `count`: the meter that the filter names, for each of its
/// organizations, or else every meter that was ever counted.
pub async fn counted(
    store: &Store,
    filter: &Filter<'_>,
    count: usize,
) -> Result<Vec<Counted>, Error> {
    let mut sql = QueryBuilder::new("select o.id, used.meter, ");
    sql.push(ZONE)
        .push(" from organizations o cross join lateral (");
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
    let rows: Vec<(String, String, String)> = sql.build_query_as().fetch_all(&store.pool).await?;
    rows.iter()
        .map(|(organization, meter, zone)| {
            Ok(Counted {
                organization: parse(organization)?,
                meter: parse(meter)?,
                zone: parse_time_zone(zone).map_err(nonsense)?,
            })
        })
        .collect()
}

impl Filter<'_> {
    fn push(&self, sql: &mut QueryBuilder<Postgres>, organization: &str, meter: &str) {
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
    fn push_range(&self, sql: &mut QueryBuilder<Postgres>, start: &str) {
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

    fn push_after(&self, sql: &mut QueryBuilder<Postgres>, position: &str) {
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
        sql: &mut QueryBuilder<Postgres>,
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
    /// Where the end of an hour has to be worked out.
    zone: Option<String>,
}

async fn fetch(store: &Store, mut sql: QueryBuilder<Postgres>) -> Result<Vec<Row>, Error> {
    let rows: Vec<HistoryRow> = sql.build_query_as().fetch_all(&store.pool).await?;
    rows.into_iter().map(HistoryRow::row).collect()
}

impl HistoryRow {
    fn row(self) -> Result<Row, Error> {
        let zone = self.zone.as_deref().map(parse_time_zone).transpose();
        let end = match zone.map_err(nonsense)? {
            Some(zone) => Some(hour_end(zone, self.start)),
            None => self.ends,
        };
        let limit = self
            .limit_units
            .map(|units| Count::try_from(unsigned(units)));
        Ok(Row {
            position: Position {
                start: self.start,
                organization: parse(&self.organization_id)?,
                meter: parse(&self.meter)?,
            },
            end,
            used: self.used,
            refunded: unsigned(self.refunded),
            denied: unsigned(self.denied),
            adjusted: self.adjusted,
            limit: limit.transpose().map_err(nonsense)?,
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
