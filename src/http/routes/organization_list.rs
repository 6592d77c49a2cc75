//! `GET /v1/organizations`: all organizations by id, by percentage used, or by count.

use std::collections::BTreeMap;

use axum::extract::State as Shared;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::input::{integer, quoted};
use crate::domain::quantity::Count;
use crate::domain::summary::State as UsageSummary;
use crate::http::auth::Read;
use crate::http::extract::Query;
use crate::http::list::{List, PageSize};
use crate::http::problem::Error;
use crate::http::routes::projections::Exhausted;
use crate::http::routes::usage::{self, Meter};
use crate::http::state::State;
use crate::postgres::summaries::{Listing, Position, Sort};
use crate::usage::Entry;

/// Which organizations to list, and in which order.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct OrganizationQuery {
    /// A part of the id or of the name, in any case.
    #[param(pattern = r"^[^\x00]*$", example = "org_")]
    search: Option<String>,
    /// Only organizations on this plan.
    plan_id: Option<PlanId>,
    /// Only organizations in this state.
    #[param(inline)]
    state: Option<UsageSummary>,
    /// Only organizations whose fullest meter is at this percentage of its limit or above: an integer from 0 to 100000.
    #[serde(default, deserialize_with = "percentage")]
    #[param(value_type = Option<u32>, minimum = 0, maximum = 100_000)]
    min_percentage: Option<u64>,
    /// With `brief`, `meters` is empty.
    #[serde(default)]
    #[param(inline)]
    view: View,
    /// The order; a minus sorts descending, and ties are ordered by id in the same direction. `percentage` is the highest
    /// of all meters, `current` that of `api`. `exhausted` lists only organizations with a meter that is expected to reach its
    /// limit before its period ends, the first one first.
    #[serde(default)]
    #[param(inline)]
    sort: Order,
    #[serde(default)]
    #[param(inline)]
    page_size: PageSize,
    /// The `nextCursor` of the previous page.
    cursor: Option<String>,
}

fn percentage<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let percentage = integer(deserializer, 0..=100_000, "an integer from 0 to 100000")?;
    Ok(Some(percentage.unsigned_abs()))
}

/// How much of an organization to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum View {
    /// All of it.
    #[default]
    Full,
    /// All but its meters.
    Brief,
}

/// The order; a minus sorts descending. Ties are ordered by id in the same direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
enum Order {
    #[default]
    #[serde(rename = "id")]
    Id,
    #[serde(rename = "-id")]
    IdDescending,
    #[serde(rename = "percentage")]
    Percentage,
    #[serde(rename = "-percentage")]
    PercentageDescending,
    #[serde(rename = "current")]
    Current,
    #[serde(rename = "-current")]
    CurrentDescending,
    #[serde(rename = "exhausted")]
    Exhausted,
    #[serde(rename = "-exhausted")]
    ExhaustedDescending,
}

type Organizations = List<ListedOrganization>;

/// An organization with its usage summary.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "organizationId": "org_123", "name": "Acme", "planId": "free", "state": "ok", "percentage": 0.5, "current": 5,
    "storedAt": "2026-11-23T10:14:00Z", "periodOver": false,
    "fullest": {
        "meter": "api", "current": 5, "limit": 1000, "remaining": 995, "overage": 0, "percentage": 0.5,
        "enforcement": "hard", "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z"
    },
    "exhausted": {"meter": "api", "fullAt": "2026-11-24T06:00:00Z", "lastDay": 5, "usualDay": 2, "timesUsual": 2.5},
    "meters": {"api": {
        "current": 5, "limit": 1000, "remaining": 995, "overage": 0, "percentage": 0.5, "enforcement": "hard",
        "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z"
    }}
}))]
pub(in crate::http) struct ListedOrganization {
    organization_id: OrganizationId,
    /// `name` of its metadata, if that is a text.
    #[schema(required)]
    name: Option<String>,
    plan_id: PlanId,
    #[schema(inline)]
    state: UsageSummary,
    /// The highest of all meters; null if no limited meter was counted.
    #[schema(required)]
    percentage: Option<f64>,
    /// The count of the meter `api`.
    current: Count,
    /// When its counts were last stored; null if none was.
    #[schema(required)]
    stored_at: Option<DateTime<Utc>>,
    /// Whether it was counted, and not yet in a running period: its counts are 0.
    period_over: bool,
    /// The limited meter with the highest percentage; null if no limited meter was counted.
    #[schema(required)]
    fullest: Option<FullestMeter>,
    /// The meter that is expected to reach its limit first; null if none is expected to before its period ends.
    #[schema(required)]
    exhausted: Option<Exhausted>,
    /// Every meter counted in its running period; empty with `view=brief`.
    meters: BTreeMap<MeterId, Meter>,
}

/// The fullest meter of an organization.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct FullestMeter {
    meter: MeterId,
    #[serde(flatten)]
    usage: Meter,
}

/// List organizations
///
/// Every organization that was ever counted or configured, as last stored, at most one flush interval ago.
/// `warning` starts at the lowest `warnAt`; `exceeded` is above the limit, or at a hard limit.
/// A changed plan or default limit shows here once the organization is counted again.
/// `minPercentage=95` lists those that are nearly full; `search` with `view=brief` and a small page suits a search box.
#[utoipa::path(
    get,
    path = "/v1/organizations",
    operation_id = "listOrganizations",
    tag = "Organizations",
    security(("key" = ["read"])),
    params(OrganizationQuery),
    responses((status = 200, description = "A page of the list.", body = Organizations))
)]
pub(in crate::http) async fn organizations(
    Shared(state): Shared<State>,
    Read(caller): Read,
    Query(query): Query<OrganizationQuery>,
) -> Result<Organizations, Error> {
    caller.authorize_all()?;
    let (order, view) = (query.sort, query.view);
    let listing = listing(query)?;
    let page = state.usage.list(&listing).await?;
    let next = page.next.map(|position| cursor(order, &position));
    Ok(List::new(
        page.entries.into_iter().map(|it| listed(it, view)),
        next,
    ))
}

fn listed(entry: Entry, view: View) -> ListedOrganization {
    let percentages = entry.meters.iter().filter_map(usage::percentage);
    let percentage = percentages.reduce(f64::max);
    let meters = entry.meters.iter();
    let fullest = meters
        .clone()
        .find(|it| Some(&it.meter) == entry.fullest.as_ref());
    ListedOrganization {
        percentage,
        fullest: fullest.map(|it| FullestMeter {
            meter: it.meter.clone(),
            usage: usage::meter(it),
        }),
        meters: meters
            .filter(|_| view == View::Full)
            .map(|it| (it.meter.clone(), usage::meter(it)))
            .collect(),
        exhausted: entry.exhausted.map(Exhausted::from),
        organization_id: entry.organization,
        name: entry.name,
        plan_id: entry.plan,
        state: entry.state,
        current: entry.current,
        stored_at: entry.stored_at,
        period_over: entry.period_over,
    }
}

fn listing(query: OrganizationQuery) -> Result<Listing, Error> {
    let order = query.sort;
    let after = query.cursor.map(|cursor| {
        position(order, &cursor).ok_or_else(|| Error::InvalidField {
            pointer: "/cursor".to_owned(),
            detail: format!(
                "must be the nextCursor of a page in this order; got {}",
                quoted(&cursor)
            ),
        })
    });
    let (sort, descending) = order.parts();
    Ok(Listing {
        search: query.search.filter(|search| !search.is_empty()),
        plan: query.plan_id,
        state: query.state,
        min_fullness: query.min_percentage.map(|it| it.saturating_mul(100)),
        sort,
        descending,
        after: after.transpose()?,
        count: query.page_size.get(),
    })
}

impl Order {
    fn parts(self) -> (Sort, bool) {
        match self {
            Self::Id => (Sort::Id, false),
            Self::IdDescending => (Sort::Id, true),
            Self::Percentage => (Sort::Fullness, false),
            Self::PercentageDescending => (Sort::Fullness, true),
            Self::Current => (Sort::Current, false),
            Self::CurrentDescending => (Sort::Current, true),
            Self::Exhausted => (Sort::Exhausted, false),
            Self::ExhaustedDescending => (Sort::Exhausted, true),
        }
    }

    /// The first letter of a cursor of this order.
    fn letter(self) -> char {
        match self {
            Self::Id => 'i',
            Self::IdDescending => 'I',
            Self::Percentage => 'p',
            Self::PercentageDescending => 'P',
            Self::Current => 'c',
            Self::CurrentDescending => 'C',
            Self::Exhausted => 'e',
            Self::ExhaustedDescending => 'E',
        }
    }
}

/// A position as text. It contains the order, so that a list in another order refuses it.
fn cursor(order: Order, position: &Position) -> String {
    let letter = order.letter();
    format!("{letter}{}.{}", position.value, position.organization)
}

/// The inverse of [`cursor`].
fn position(order: Order, cursor: &str) -> Option<Position> {
    let (value, organization) = cursor.strip_prefix(order.letter())?.split_once('.')?;
    Some(Position {
        value: value.parse().ok()?,
        organization: organization.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_names_its_place_in_its_own_order_only() {
        let place = Position {
            value: 8525,
            organization: "user.1@example.com".parse().unwrap(),
        };
        let text = cursor(Order::PercentageDescending, &place);
        assert_eq!(position(Order::PercentageDescending, &text), Some(place));
        assert_eq!(position(Order::Percentage, &text), None);
        assert_eq!(position(Order::Id, "i0."), None);
    }
}
