//! How full every organization is, ready to be listed by it.
//!
//! One row an organization, worked out from its snapshots some time after they were stored ([`refresh`]). Only a
//! period that runs counts: until [`age`] has blanked the row of one that is over, every query takes it for blank.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection, QueryBuilder};
use strum::VariantArray as _;

use super::organizations::{parse, read_defaults};
use super::{Error, Postgres, signed, unsigned, usage};
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::limit::WARN_AT_DEFAULT;
use crate::domain::summary::{MeterSummary, State, UsageSummary};

/// What to list, and in which order.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Only organizations whose id begins with this.
    pub prefix: Option<String>,
    /// Only organizations on this plan.
    pub plan: Option<PlanId>,
    /// Only organizations that stand like this.
    pub state: Option<State>,
    /// What to sort by; ties are broken by id.
    pub sort: Sort,
    /// Largest first.
    pub descending: bool,
    /// Where the last page ended.
    pub after: Option<Position>,
    /// How many to list at most.
    pub count: u32,
}

/// What a list can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// The organization's id.
    Id,
    /// How full the fullest meter is.
    Fullness,
    /// Units of the meter that a call counts unless it names another.
    Current,
}

/// A place in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// What the list is sorted by; 0 in one that is sorted by id.
    pub value: u64,
    /// Whose place it is.
    pub organization: OrganizationId,
}

/// One organization in a list.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Where in the list it is.
    pub position: Position,
    /// Its plan.
    pub plan: PlanId,
    /// Its meters in the periods that run.
    pub standing: UsageSummary,
}

/// The organizations of one page.
pub async fn page(
    postgres: &Postgres,
    listing: &Listing,
    now: DateTime<Utc>,
) -> Result<Vec<Listed>, Error> {
    let mut connection = postgres.pool.acquire().await?;
    let Some(defaults) = read_defaults(&mut connection).await? else {
        return Ok(Vec::new());
    };
    let defaults = defaults.settings.0;
    let select = Select {
        listing,
        default_plan: &defaults.plan_id,
        now,
    };
    let mut query = select.query();
    // Planned anew each time: which index is best depends on what is asked for.
    let rows: Vec<Row> = query
        .build_query_as()
        .persistent(false)
        .fetch_all(&mut *connection)
        .await?;
    let ids: Vec<&str> = rows
        .iter()
        .map(|row| row.organization_id.as_str())
        .collect();
    let mut standings = read(&mut connection, &ids, now).await?;
    rows.iter()
        .map(|row| {
            Ok(Listed {
                position: Position {
                    value: unsigned(row.value),
                    organization: parse(&row.organization_id)?,
                },
                plan: match &row.plan_id {
                    Some(plan) => parse(plan)?,
                    None => defaults.plan_id.clone(),
                },
                standing: standings
                    .remove(row.organization_id.as_str())
                    .unwrap_or_default(),
            })
        })
        .collect()
}

/// Blanks rows whose period is over, at most `count`; returns how many.
pub async fn age(postgres: &Postgres, now: DateTime<Utc>, count: u32) -> Result<u64, Error> {
    let aged = sqlx::query(
        "update standings
         set state = 0, fullness = 0, current = 0, period_end = '-infinity'
         where organization_id in (
             select organization_id from standings
             where period_end > '-infinity' and period_end <= $1
             order by period_end
             limit $2
             for update skip locked
         )",
    )
    .bind(now)
    .bind(i64::from(count))
    .execute(&postgres.pool)
    .await?;
    Ok(aged.rows_affected())
}

/// Works out anew how full these organizations are.
pub async fn refresh(
    postgres: &Postgres,
    organizations: &[OrganizationId],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let ids: Vec<&str> = organizations.iter().map(OrganizationId::as_str).collect();
    let mut transaction = postgres.pool.begin().await?;
    // Before the snapshots are read, so that of two who refresh at once the later one has seen what the other has.
    let rows: Vec<(String,)> = sqlx::query_as(
        "select organization_id from standings
         where organization_id = any($1)
         order by organization_id
         for no key update",
    )
    .bind(&ids)
    .fetch_all(&mut *transaction)
    .await?;
    let ids: Vec<&str> = rows.iter().map(|(id,)| id.as_str()).collect();
    let mut standings = read(&mut transaction, &ids, now).await?;
    let all = ids
        .into_iter()
        .map(|id| (id, standings.remove(id).unwrap_or_default()))
        .collect::<Vec<_>>();
    write(&mut transaction, &all).await?;
    transaction.commit().await?;
    Ok(())
}

/// At most `count` organizations in the order of their ids, from the one behind `after` on.
pub async fn some_after(
    postgres: &Postgres,
    after: Option<&OrganizationId>,
    count: u32,
) -> Result<Vec<OrganizationId>, Error> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select organization_id from standings
         where organization_id > $1
         order by organization_id
         limit $2",
    )
    .bind(after.map_or("", OrganizationId::as_str))
    .bind(i64::from(count))
    .fetch_all(&postgres.pool)
    .await?;
    rows.iter().map(|(id,)| parse(id)).collect()
}

/// How these organizations stand by what is stored of them; one of which nothing runs is left out.
async fn read<'a>(
    connection: &mut PgConnection,
    organizations: &[&'a str],
    now: DateTime<Utc>,
) -> Result<HashMap<&'a str, UsageSummary>, Error> {
    let snapshots = usage::unfinished_of(connection, organizations, now).await?;
    let warnings = lowest_warnings(connection, organizations).await?;
    let mut standings: HashMap<&str, UsageSummary> = HashMap::new();
    let by_id: HashMap<&str, &'a str> = organizations.iter().map(|id| (*id, *id)).collect();
    for snapshot in &snapshots {
        let CounterId {
            organization,
            meter,
            ..
        } = &snapshot.counter;
        let Some(id) = by_id.get(organization.as_str()) else {
            continue;
        };
        let said = warnings.get(&(organization.to_string(), meter.to_string()));
        let warn_at = said
            .copied()
            .unwrap_or_else(|| WARN_AT_DEFAULT.first().copied());
        let standing = standings.entry(id).or_default();
        standing.update(meter, standing_of(snapshot, warn_at), now);
    }
    Ok(standings)
}

fn standing_of(snapshot: &Snapshot, warn_at: Option<u16>) -> MeterSummary {
    MeterSummary {
        start: snapshot.counter.start,
        end: snapshot.stamp.end,
        used: snapshot.used,
        limit: snapshot.stamp.rule.limit,
        enforcement: snapshot.stamp.rule.enforcement,
        warn_at,
    }
}

/// The lowest level of each limit of which the organization, or else its plan, says the levels; none where it has none
/// at all.
async fn lowest_warnings(
    connection: &mut PgConnection,
    organizations: &[&str],
) -> Result<HashMap<(String, String), Option<u16>>, Error> {
    let rows: Vec<(String, String, Option<i16>)> = sqlx::query_as(
        "select id, meter, lowest
         from (
             select organizations.id, planned.key as meter, (planned.value->'warnAt'->>0)::smallint as lowest, 0 as nearness
             from organizations
             -- The only row, which a planner without statistics would take for a thousand.
             cross join (select settings from defaults limit 1) as defaults
             join plans on plans.id = coalesce(organizations.plan_id, defaults.settings->>'planId')
             cross join jsonb_each(plans.limits) as planned
             where organizations.id = any($1) and planned.value ? 'warnAt'
             union all
             select organization_id, meter, warn_at[1], 1 from limits
             where organization_id = any($1) and warn_at is not null
         ) as levels
         order by nearness",
    )
    .bind(organizations)
    .fetch_all(connection)
    .await?;
    // The nearer of two comes later, and stays.
    Ok(rows
        .into_iter()
        .map(|(organization, meter, lowest)| ((organization, meter), lowest.map(i16::unsigned_abs)))
        .collect())
}

/// Writes those that have changed.
async fn write(
    connection: &mut PgConnection,
    standings: &[(&str, UsageSummary)],
) -> Result<(), Error> {
    let counted_by_default = MeterId::default();
    let column = |of: &dyn Fn(&UsageSummary) -> i64| -> Vec<i64> {
        standings.iter().map(|(_, standing)| of(standing)).collect()
    };
    sqlx::query(
        "update standings
         set state = new.state, fullness = new.fullness, current = new.current, period_end = new.period_end
         from (select organization_id, state::smallint, fullness, current,
                      case when blank then '-infinity' else coalesce(period_end, 'infinity') end as period_end
               from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bool[], $6::timestamptz[])
                    as new (organization_id, state, fullness, current, blank, period_end)) as new
         where standings.organization_id = new.organization_id
         and (standings.state, standings.fullness, standings.current, standings.period_end)
             is distinct from (new.state, new.fullness, new.current, new.period_end)",
    )
    .bind(standings.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(column(&|it| it.state() as i64))
    .bind(column(&|it| signed(it.fullness())))
    .bind(column(&|it| signed(it.current(&counted_by_default).get())))
    .bind(standings.iter().map(|(_, it)| it.meters.is_empty()).collect::<Vec<_>>())
    .bind(standings.iter().map(|(_, it)| it.end()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

#[derive(FromRow)]
struct Row {
    organization_id: String,
    plan_id: Option<String>,
    value: i64,
}

/// Which rows a part of a list is made of.
#[derive(Clone, Copy)]
enum Part {
    /// All of them; for an order that time does not change.
    All,
    /// Those that stand like this in a period that runs.
    Running(State),
    /// Those that are blank, or whose period is over, which is as good.
    Blank,
}

/// A list as SQL: its parts, each in order and no longer than the page, merged.
struct Select<'a> {
    listing: &'a Listing,
    default_plan: &'a PlanId,
    now: DateTime<Utc>,
}

impl Select<'_> {
    fn query(&self) -> QueryBuilder<sqlx::Postgres> {
        let parts = match (self.listing.state, self.listing.sort) {
            (None, Sort::Id) => vec![Part::All],
            (Some(State::Ok), _) => vec![Part::Running(State::Ok), Part::Blank],
            (Some(state), _) => vec![Part::Running(state)],
            // By state, because the indexes are.
            (None, _) => State::VARIANTS
                .iter()
                .copied()
                .map(Part::Running)
                .chain([Part::Blank])
                .collect(),
        };
        let mut query = QueryBuilder::new(
            "select organization_id, plan_id, value from (select null::text as organization_id, null::text as plan_id,
             null::bigint as value where false",
        );
        for part in parts {
            query.push(" union all (");
            self.push_part(&mut query, part);
            query.push(")");
        }
        query.push(") as page");
        let sorted_by_value = self.listing.sort != Sort::Id;
        self.push_order(&mut query, sorted_by_value.then_some("value"));
        query
    }

    fn push_part(&self, query: &mut QueryBuilder<sqlx::Postgres>, part: Part) {
        let value = match (self.listing.sort, part) {
            (Sort::Id, _) | (_, Part::Blank) => None,
            (Sort::Fullness, _) => Some("fullness"),
            (Sort::Current, _) => Some("current"),
        };
        query.push(format_args!(
            "select organization_id, plan_id, {} as value from standings where ",
            value.unwrap_or("0::bigint")
        ));
        match part {
            Part::All => query.push("true"),
            Part::Running(state) => query
                .push(format_args!("state = {} and period_end > ", state as i16))
                .push_bind(self.now),
            Part::Blank => query.push("period_end <= ").push_bind(self.now),
        };
        if let Some(prefix) = &self.listing.prefix {
            // No id has a character above the tilde, or the tilde itself.
            query
                .push(" and organization_id >= ")
                .push_bind(prefix.clone())
                .push(" and organization_id < ")
                .push_bind(format!("{prefix}~"));
        }
        if let Some(plan) = &self.listing.plan {
            query.push(" and (plan_id = ").push_bind(plan.to_string());
            query.push(if plan == self.default_plan {
                " or plan_id is null)"
            } else {
                ")"
            });
        }
        if let Some(after) = &self.listing.after {
            let comparison = if self.listing.descending { "<" } else { ">" };
            match value {
                Some(value) => {
                    query
                        .push(format_args!(
                            " and ({value}, organization_id) {comparison} ("
                        ))
                        .push_bind(signed(after.value))
                        .push(", ")
                        .push_bind(after.organization.to_string())
                        .push(")");
                }
                None if after.value == 0 => {
                    query
                        .push(format_args!(" and organization_id {comparison} "))
                        .push_bind(after.organization.to_string());
                }
                // Zero comes behind any other value, or has come before it.
                None if self.listing.descending => {}
                None => {
                    query.push(" and false");
                }
            }
        }
        self.push_order(query, value);
    }

    /// By a value, where not all have the same, and then by id.
    fn push_order(&self, query: &mut QueryBuilder<sqlx::Postgres>, value: Option<&str>) {
        let direction = if self.listing.descending {
            "desc"
        } else {
            "asc"
        };
        query.push(" order by ");
        if let Some(value) = value {
            query.push(format_args!("{value} {direction}, "));
        }
        query
            .push(format_args!("organization_id {direction} limit "))
            .push_bind(i64::from(self.listing.count));
    }
}
