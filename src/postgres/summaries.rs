//! Usage summaries: how full every organization is, sorted and filtered by lists of organizations.
//!
//! One row an organization, computed from its snapshots some time after they were stored ([`refresh`]). Only running
//! periods count: a row whose period is over reads as blank, until [`age`] has blanked it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection, QueryBuilder};
use strum::VariantArray as _;

use super::pool::{Postgres, Result};
use super::types::{BigInt, BindColumns as _};
use super::{defaults, usage};
use crate::domain::counter::{CounterId, Snapshot};
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::limit::WARN_AT_DEFAULT;
use crate::domain::summary::{MeterSummary, State, UsageSummary};

/// Which organizations to list, and in which order.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Only organizations whose id has this prefix.
    pub prefix: Option<String>,
    /// Only organizations on this plan.
    pub plan: Option<PlanId>,
    /// Only organizations in this state.
    pub state: Option<State>,
    /// The sort key; ties are broken by id.
    pub sort: Sort,
    /// Whether to sort in descending order.
    pub descending: bool,
    /// The end of the previous page.
    pub after: Option<Position>,
    /// The maximum number of organizations.
    pub count: u32,
}

/// The sort key of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// The organization's id.
    Id,
    /// How full the fullest meter is.
    Fullness,
    /// Units of the default meter.
    Current,
}

/// A position in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The sort key; 0 in a list sorted by id.
    pub value: u64,
    /// The organization at this position.
    pub organization: OrganizationId,
}

/// One organization in a list.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its position in the list.
    pub position: Position,
    /// Its plan.
    pub plan: PlanId,
    /// Its meters in running periods.
    pub summary: UsageSummary,
}

/// Reads one page of a list.
pub async fn page(db: &Postgres, listing: &Listing, now: DateTime<Utc>) -> Result<Vec<Listed>> {
    let mut connection = db.pool.acquire().await?;
    let Some(defaults) = defaults::read(&mut *connection).await? else {
        return Ok(Vec::new());
    };
    let default_plan = defaults.settings.plan_id;
    let select = Select {
        listing,
        default_plan: &default_plan,
        now,
    };
    // Planned for each call, because the best index depends on the listing.
    let rows: Vec<Row> = select
        .query()
        .build_query_as()
        .persistent(false)
        .fetch_all(&mut *connection)
        .await?;
    let ids: Vec<_> = rows.iter().map(|row| row.organization_id.clone()).collect();
    let mut summaries = read(&mut connection, &ids, now).await?;
    let listed = rows.into_iter().map(|row| Listed {
        summary: summaries.remove(&row.organization_id).unwrap_or_default(),
        position: Position {
            value: row.value,
            organization: row.organization_id,
        },
        plan: row.plan_id.unwrap_or_else(|| default_plan.clone()),
    });
    Ok(listed.collect())
}

/// Blanks at most `count` rows whose period is over; returns how many.
pub async fn age(db: &Postgres, now: DateTime<Utc>, count: u32) -> Result<u64> {
    let aged = sqlx::query(
        "update standings
         set state = 0, denies = false, fullness = 0, current = 0, period_end = '-infinity'
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
    .execute(&db.pool)
    .await?;
    Ok(aged.rows_affected())
}

/// Computes the summaries of these organizations.
pub async fn refresh(
    db: &Postgres,
    organizations: &[OrganizationId],
    now: DateTime<Utc>,
) -> Result<()> {
    let mut tx = db.pool.begin().await?;
    // Locked before the snapshots are read, so that of two concurrent refreshes the later one reads newer snapshots.
    let ids: Vec<OrganizationId> = sqlx::query_scalar(
        "select organization_id from standings
         where organization_id = any($1)
         order by organization_id
         for no key update",
    )
    .bind(organizations)
    .fetch_all(&mut *tx)
    .await?;
    let mut summaries = read(&mut tx, &ids, now).await?;
    let summaries: Vec<(&OrganizationId, UsageSummary)> = ids
        .iter()
        .map(|id| (id, summaries.remove(id).unwrap_or_default()))
        .collect();
    write(&mut tx, &summaries).await?;
    tx.commit().await?;
    Ok(())
}

/// Computes summaries from stored snapshots; an organization without a running period is left out.
async fn read(
    tx: &mut PgConnection,
    organizations: &[OrganizationId],
    now: DateTime<Utc>,
) -> Result<HashMap<OrganizationId, UsageSummary>> {
    let snapshots = usage::unfinished_of(tx, organizations, now).await?;
    let warnings = lowest_warnings(tx, organizations).await?;
    let mut summaries: HashMap<OrganizationId, UsageSummary> = HashMap::new();
    for snapshot in snapshots {
        let summary = meter_summary(&snapshot, &warnings);
        let CounterId {
            organization,
            meter,
            ..
        } = snapshot.counter;
        let organization = summaries.entry(organization).or_default();
        organization.update(&meter, summary, now);
    }
    Ok(summaries)
}

fn meter_summary(snapshot: &Snapshot, warnings: &Warnings) -> MeterSummary {
    let counter = &snapshot.counter;
    let own = warnings.get(&(counter.organization.clone(), counter.meter.clone()));
    let default = || WARN_AT_DEFAULT.first().copied();
    MeterSummary {
        start: counter.start,
        end: snapshot.stamp.end,
        used: snapshot.used,
        limit: snapshot.stamp.rule.limit,
        enforcement: snapshot.stamp.rule.enforcement,
        warn_at: own.copied().unwrap_or_else(default),
    }
}

/// The lowest warning threshold of each limit with its own thresholds; none if that list is empty.
type Warnings = HashMap<(OrganizationId, MeterId), Option<u16>>;

/// Reads the warning thresholds of the organizations, or else of their plans.
async fn lowest_warnings(
    tx: &mut PgConnection,
    organizations: &[OrganizationId],
) -> Result<Warnings> {
    let rows: Vec<(OrganizationId, MeterId, Option<i16>)> = sqlx::query_as(
        "select id, meter, lowest
         from (
             select organizations.id, planned.key as meter, (planned.value->'warnAt'->>0)::smallint as lowest, 0 as precedence
             from organizations
             -- Limited to its only row, for which a planner without statistics would estimate a thousand.
             cross join (select settings from defaults limit 1) as defaults
             join plans on plans.id = coalesce(organizations.plan_id, defaults.settings->>'planId')
             cross join jsonb_each(plans.limits) as planned
             where organizations.id = any($1) and planned.value ? 'warnAt'
             union all
             select organization_id, meter, warn_at[1], 1 from limits
             where organization_id = any($1) and warn_at is not null
         ) as levels
         order by precedence",
    )
    .bind(organizations)
    .fetch_all(tx)
    .await?;
    // The later of two has precedence.
    let warnings = rows.into_iter().map(|(organization, meter, lowest)| {
        ((organization, meter), lowest.map(i16::unsigned_abs))
    });
    Ok(warnings.collect())
}

/// Writes the summaries that have changed.
async fn write(tx: &mut PgConnection, summaries: &[(&OrganizationId, UsageSummary)]) -> Result<()> {
    let default_meter = MeterId::default();
    sqlx::query(
        "update standings
         set state = new.state, denies = new.denies, fullness = new.fullness, current = new.current,
             period_end = new.period_end
         from (select organization_id, state, denies, fullness, current,
                      case when blank then '-infinity' else coalesce(period_end, 'infinity') end as period_end
               from unnest($1::text[], $2::smallint[], $3::bool[], $4::bigint[], $5::bigint[], $6::bool[],
                           $7::timestamptz[])
                    as new (organization_id, state, denies, fullness, current, blank, period_end)) as new
         where standings.organization_id = new.organization_id
         and (standings.state, standings.denies, standings.fullness, standings.current, standings.period_end)
             is distinct from (new.state, new.denies, new.fullness, new.current, new.period_end)",
    )
    .column(summaries, |(id, _)| *id)
    .column(summaries, |(_, it)| it.state() as i16)
    .column(summaries, |(_, it)| it.denies())
    .column(summaries, |(_, it)| BigInt(it.fullness()))
    .column(summaries, |(_, it)| it.current(&default_meter))
    .column(summaries, |(_, it)| it.meters.is_empty())
    .column(summaries, |(_, it)| it.end())
    .execute(tx)
    .await?;
    Ok(())
}

#[derive(FromRow)]
struct Row {
    organization_id: OrganizationId,
    plan_id: Option<PlanId>,
    #[sqlx(try_from = "i64")]
    value: u64,
}

/// Which rows a part of a list contains.
#[derive(Clone, Copy)]
enum Part {
    /// All rows, in an order that does not depend on time.
    All,
    /// Rows in this state with a running period.
    Running(State),
    /// Rows that are blank, or read as blank because their period is over.
    Blank,
}

/// The SQL of a page: a merge of parts, each sorted and no longer than the page.
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
            // By state, like the indexes.
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
            // The tilde sorts after every character of an id.
            query
                .push(" and organization_id >= ")
                .push_bind(prefix)
                .push(" and organization_id < ")
                .push_bind(format!("{prefix}~"));
        }
        if let Some(plan) = &self.listing.plan {
            query.push(" and (plan_id = ").push_bind(plan);
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
                        .push_bind(BigInt(after.value))
                        .push(", ")
                        .push_bind(&after.organization)
                        .push(")");
                }
                None if after.value == 0 => {
                    query
                        .push(format_args!(" and organization_id {comparison} "))
                        .push_bind(&after.organization);
                }
                // All values here are 0: they follow any other value, or precede it.
                None if self.listing.descending => {}
                None => {
                    query.push(" and false");
                }
            }
        }
        self.push_order(query, value);
    }

    /// Sorts by a value, unless it is constant, and then by id.
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
