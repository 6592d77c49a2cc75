//! Lists of organizations, sorted and filtered by their usage summaries.

use chrono::{DateTime, Utc};
use sqlx::{FromRow, QueryBuilder};
use strum::VariantArray as _;

use super::read::read;
use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::projection::{Pace, Paces};
use crate::domain::summary::{State, UsageSummary};
use crate::postgres::defaults;
use crate::postgres::pool::{Postgres, Result};
use crate::postgres::types::BigInt;

/// Which organizations to list, and in which order.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Only organizations whose id or name contains this text, in any case.
    pub search: Option<String>,
    /// Only organizations on this plan.
    pub plan: Option<PlanId>,
    /// Only organizations in this state.
    pub state: Option<State>,
    /// Only organizations whose fullest meter is at least so full, in hundredths of a per cent.
    pub min_fullness: Option<u64>,
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
    /// When the first meter is expected to be full: only organizations that are expected to be before their period ends.
    Exhausted,
}

/// A position in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The sort key; 0 in a list sorted by id, Unix seconds in one sorted by exhaustion.
    pub value: u64,
    /// The organization at this position.
    pub organization: OrganizationId,
}

/// Which meter of an organization is expected to be full first.
#[derive(Debug, Clone)]
pub struct Exhausted {
    /// The meter.
    pub meter: MeterId,
    /// When it is expected to be full.
    pub at: DateTime<Utc>,
    /// What that was concluded from.
    pub pace: Pace,
}

/// One organization in a list.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its position in the list.
    pub position: Position,
    /// Its display name: `name` of its metadata, if that is a text.
    pub name: Option<String>,
    /// Its plan.
    pub plan: PlanId,
    /// When its counts were last stored.
    pub stored_at: Option<DateTime<Utc>>,
    /// Whether it was counted, and has no running period with a stored count.
    pub period_over: bool,
    /// What is expected to be full first, before its period ends.
    pub exhausted: Option<Exhausted>,
    /// Its meters in running periods.
    pub summary: UsageSummary,
}

/// Reads one page of a list.
pub async fn page(db: &Postgres, listing: &Listing, now: DateTime<Utc>) -> Result<Vec<Listed>> {
    let mut connection = db.pool().await?.acquire().await?;
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
        exhausted: row.exhausted(now),
        position: Position {
            value: row.value,
            organization: row.organization_id,
        },
        name: row.name,
        period_over: row.stored_at.is_some() && row.is_over,
        stored_at: row.stored_at,
        plan: row.plan_id.unwrap_or_else(|| default_plan.clone()),
    });
    Ok(listed.collect())
}

#[derive(FromRow)]
struct Row {
    organization_id: OrganizationId,
    plan_id: Option<PlanId>,
    name: Option<String>,
    stored_at: Option<DateTime<Utc>>,
    is_over: bool,
    #[sqlx(json)]
    paces: Paces,
    exhausted_at: Option<i64>,
    exhausted_meter: Option<MeterId>,
    #[sqlx(try_from = "i64")]
    value: u64,
}

impl Row {
    fn exhausted(&self, now: DateTime<Utc>) -> Option<Exhausted> {
        let at = DateTime::from_timestamp(self.exhausted_at?, 0)?;
        let meter = self.exhausted_meter.clone()?;
        let pace = *self.paces.get(&meter)?;
        (now < at && !self.is_over).then_some(Exhausted { meter, at, pace })
    }
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
    /// Rows with a running period that are expected to be full before it ends.
    Exhausted,
}

/// The SQL of a page: a merge of parts, each sorted and no longer than the page.
struct Select<'a> {
    listing: &'a Listing,
    default_plan: &'a PlanId,
    now: DateTime<Utc>,
}

impl Select<'_> {
    fn query(&self) -> QueryBuilder<sqlx::Postgres> {
        let mut parts = match (self.listing.state, self.listing.sort) {
            (_, Sort::Exhausted) => vec![Part::Exhausted],
            (None, Sort::Id) if self.listing.min_fullness.is_none() => vec![Part::All],
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
        if self.listing.min_fullness > Some(0) {
            // Blank rows are not full.
            parts.retain(|part| !matches!(part, Part::Blank));
        }
        let mut query = QueryBuilder::new(
            "select organization_id, standings.plan_id, value, stored_at, organization_name(metadata) as name, paces,
                    exhausted_at, exhausted_meter, period_end <= ",
        );
        query.push_bind(self.now).push(
            " as is_over
             from (select null::text as organization_id, null::bigint as value where false",
        );
        for part in parts {
            query.push(" union all (");
            self.push_part(&mut query, part);
            query.push(")");
        }
        query.push(") as page join standings using (organization_id) join organizations on organizations.id = organization_id");
        let sorted_by_value = self.listing.sort != Sort::Id;
        self.push_order(&mut query, sorted_by_value.then_some("value"));
        query
    }

    fn push_part(&self, query: &mut QueryBuilder<sqlx::Postgres>, part: Part) {
        let value = match (self.listing.sort, part) {
            (Sort::Id, _) | (_, Part::Blank) => None,
            (Sort::Fullness, _) => Some("fullness"),
            (Sort::Current, _) => Some("current"),
            (Sort::Exhausted, _) => Some("exhausted_at"),
        };
        query.push(format_args!(
            "select organization_id, {} as value from standings where ",
            value.unwrap_or("0::bigint")
        ));
        match part {
            Part::All => query.push("true"),
            Part::Running(state) => query
                .push(format_args!("state = {} and period_end > ", state as i16))
                .push_bind(self.now),
            Part::Blank => query.push("period_end <= ").push_bind(self.now),
            Part::Exhausted => query
                .push("exhausted_at > ")
                .push_bind(self.now.timestamp())
                .push(" and period_end > ")
                .push_bind(self.now),
        };
        self.push_filters(query);
        self.push_position(query, value);
        self.push_order(query, value);
    }

    fn push_filters(&self, query: &mut QueryBuilder<sqlx::Postgres>) {
        if let Some(search) = &self.listing.search {
            // Without a collation of its own: with one, the index of trigrams would not be used.
            query
                .push(
                    " and organization_id in (select id from organizations
                      where organization_search(id, metadata) like lower(",
                )
                .push_bind(containing(search))
                .push("))");
        }
        if let (Some(state), Sort::Exhausted) = (self.listing.state, self.listing.sort) {
            query.push(format_args!(" and state = {}", state as i16));
        }
        if let Some(fullness) = self.listing.min_fullness {
            query.push(" and fullness >= ").push_bind(BigInt(fullness));
        }
        if let Some(plan) = &self.listing.plan {
            query.push(" and (plan_id = ").push_bind(plan);
            query.push(if plan == self.default_plan {
                " or plan_id is null)"
            } else {
                ")"
            });
        }
    }

    /// Continues after the previous page.
    fn push_position(&self, query: &mut QueryBuilder<sqlx::Postgres>, value: Option<&str>) {
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

/// The pattern of `like` for texts that contain this one.
fn containing(text: &str) -> String {
    let mut pattern = "%".to_owned();
    for character in text.chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}
