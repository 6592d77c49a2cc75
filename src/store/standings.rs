//! How full every organization is, ready to be listed by it.
//!
//! One row an organization, written with its snapshots. Only a period that runs counts: until
//! [`age`] has blanked the row of one that is over, every query takes it for blank.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use super::organizations::{parse, read_defaults};
use super::{Error, Store, signed, unsigned};
use crate::domain::counter::Snapshot;
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::policy::WARN_AT_DEFAULT;
use crate::domain::standing::{MeterStanding, Standing, State};

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
    pub standing: Standing,
}

/// The organizations of one page.
pub async fn page(
    store: &Store,
    listing: &Listing,
    now: DateTime<Utc>,
) -> Result<Vec<Listed>, Error> {
    let mut connection = store.pool.acquire().await?;
    let Some((defaults, _)) = read_defaults(&mut connection).await? else {
        return Ok(Vec::new());
    };
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
    rows.into_iter()
        .map(|row| {
            let mut standing = Standing {
                meters: row.meters.0,
            };
            standing.prune(now);
            Ok(Listed {
                position: Position {
                    value: unsigned(row.value),
                    organization: parse(&row.organization_id)?,
                },
                plan: match &row.plan_id {
                    Some(plan) => parse(plan)?,
                    None => defaults.plan_id.clone(),
                },
                standing,
            })
        })
        .collect()
}

/// Blanks rows whose period is over, at most `count`; returns how many.
pub async fn age(store: &Store, now: DateTime<Utc>, count: u32) -> Result<u64, Error> {
    let aged = sqlx::query(
        "update standings
         set state = 0, fullness = 0, current = 0, period_end = '-infinity', meters = '{}'
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
    .execute(&store.pool)
    .await?;
    Ok(aged.rows_affected())
}

/// Takes in what was just stored.
pub(super) async fn take_in(
    connection: &mut PgConnection,
    snapshots: &[&Snapshot],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let mut news: BTreeMap<&str, Vec<&Snapshot>> = BTreeMap::new();
    for snapshot in snapshots {
        let organization = snapshot.counter.organization.as_str();
        news.entry(organization).or_default().push(snapshot);
    }
    if news.is_empty() {
        return Ok(());
    }
    let ids: Vec<&str> = news.keys().copied().collect();
    // Locked, because two flushers may hold different meters of one organization.
    let rows: Vec<(String, Json<BTreeMap<MeterId, MeterStanding>>)> = sqlx::query_as(
        "select organization_id, meters from standings
         where organization_id = any($1)
         order by organization_id
         for no key update",
    )
    .bind(&ids)
    .fetch_all(&mut *connection)
    .await?;
    let warnings = own_warnings(connection, &ids).await?;
    let mut changed = Vec::new();
    for (organization, Json(meters)) in rows {
        let before = Standing { meters };
        let mut after = before.clone();
        for snapshot in news.get(organization.as_str()).into_iter().flatten() {
            let meter = &snapshot.counter.meter;
            let own = warnings.get(&(organization.clone(), meter.to_string()));
            let warn_at = own
                .copied()
                .unwrap_or_else(|| WARN_AT_DEFAULT.first().copied());
            after.take_in(meter, standing_of(snapshot, warn_at), now);
        }
        if after != before {
            changed.push((organization, after));
        }
    }
    write(connection, &changed).await
}

fn standing_of(snapshot: &Snapshot, warn_at: Option<u16>) -> MeterStanding {
    MeterStanding {
        start: snapshot.counter.start,
        end: snapshot.stamp.end,
        used: snapshot.used,
        limit: snapshot.stamp.rule.limit,
        enforcement: snapshot.stamp.rule.enforcement,
        warn_at,
    }
}

/// The lowest level of each limit that has levels of its own; none where it has none at all.
async fn own_warnings(
    connection: &mut PgConnection,
    organizations: &[&str],
) -> Result<HashMap<(String, String), Option<u16>>, Error> {
    let rows: Vec<(String, String, Option<i16>)> = sqlx::query_as(
        "select organization_id, meter, warn_at[1] from limits
         where organization_id = any($1) and warn_at is not null",
    )
    .bind(organizations)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(organization, meter, lowest)| ((organization, meter), lowest.map(i16::unsigned_abs)))
        .collect())
}

async fn write(
    connection: &mut PgConnection,
    standings: &[(String, Standing)],
) -> Result<(), Error> {
    if standings.is_empty() {
        return Ok(());
    }
    let counted_by_default = MeterId::default();
    let column = |of: &dyn Fn(&Standing) -> i64| -> Vec<i64> {
        standings.iter().map(|(_, standing)| of(standing)).collect()
    };
    sqlx::query(
        "update standings
         set state = new.state, fullness = new.fullness, current = new.current, meters = new.meters,
             period_end = case when new.meters = '{}' then '-infinity' else coalesce(new.period_end, 'infinity') end
         from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::jsonb[])
              as new (organization_id, state, fullness, current, period_end, meters)
         where standings.organization_id = new.organization_id",
    )
    .bind(standings.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>())
    .bind(column(&|it| it.state() as i64))
    .bind(column(&|it| signed(it.fullness())))
    .bind(column(&|it| signed(it.current(&counted_by_default).get())))
    .bind(standings.iter().map(|(_, it)| it.end()).collect::<Vec<_>>())
    .bind(standings.iter().map(|(_, it)| Json(&it.meters)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

#[derive(FromRow)]
struct Row {
    organization_id: String,
    plan_id: Option<String>,
    meters: Json<BTreeMap<MeterId, MeterStanding>>,
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
    fn query(&self) -> QueryBuilder<Postgres> {
        let parts = match (self.listing.state, self.listing.sort) {
            (None, Sort::Id) => vec![Part::All],
            (Some(State::Ok), _) => vec![Part::Running(State::Ok), Part::Blank],
            (Some(state), _) => vec![Part::Running(state)],
            // By state, because the indexes are.
            (None, _) => State::ALL
                .into_iter()
                .map(Part::Running)
                .chain([Part::Blank])
                .collect(),
        };
        let mut query = QueryBuilder::new(
            "select organization_id, plan_id, meters, value from (select null::text as organization_id, null::text as plan_id,
             null::jsonb as meters, null::bigint as value where false",
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

    fn push_part(&self, query: &mut QueryBuilder<Postgres>, part: Part) {
        let value = match (self.listing.sort, part) {
            (Sort::Id, _) | (_, Part::Blank) => None,
            (Sort::Fullness, _) => Some("fullness"),
            (Sort::Current, _) => Some("current"),
        };
        query.push(format_args!(
            "select organization_id, plan_id, meters, {} as value from standings where ",
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
    fn push_order(&self, query: &mut QueryBuilder<Postgres>, value: Option<&str>) {
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
