//! `GET /v1/organizations`: everyone, by id, by how full they are, or by what they have used.

use std::collections::BTreeMap;

use axum::extract::State as Shared;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::ids::{MeterId, OrganizationId, PlanId};
use crate::domain::input::quoted;
use crate::domain::quantity::Count;
use crate::domain::summary::State as UsageSummary;
use crate::http::auth::Read;
use crate::http::extract::Query;

use crate::http::list::{List, PageSize};
use crate::http::problem::Error;
use crate::http::routes::usage::{self, Meter};
use crate::http::state::State;
use crate::postgres::summaries::{Listing, Position, Sort};
use crate::usage::Entry;

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Wanted {
    /// The beginning of an id.
    #[param(pattern = r"^[^\x00]*$", example = "org_")]
    search: Option<String>,
    /// Only those on this plan.
    plan_id: Option<PlanId>,
    /// Only those that stand so.
    #[param(inline)]
    state: Option<UsageSummary>,
    /// In which order; a minus puts the largest first, and ties are in the same order by id. `percentage` is that of
    /// the fullest meter, `current` that of `api`.
    #[serde(default)]
    #[param(inline)]
    sort: Order,
    #[serde(default)]
    #[param(inline)]
    page_size: PageSize,
    /// The `nextCursor` of the page before.
    cursor: Option<String>,
}

/// In which order; a minus puts the largest first. Ties are in the same order by id.
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
}

type Organizations = List<ListedOrganization>;

/// An organization, and how full it is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "organizationId": "org_123", "planId": "free", "state": "ok", "percentage": 0.5, "current": 5,
    "meters": {"api": {
        "current": 5, "limit": 1000, "remaining": 995, "overage": 0, "percentage": 0.5, "enforcement": "hard",
        "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z"
    }}
}))]
pub(in crate::http) struct ListedOrganization {
    organization_id: OrganizationId,
    plan_id: PlanId,
    #[schema(inline)]
    state: UsageSummary,
    /// Of the fullest meter; null where nothing was counted that has a limit.
    #[schema(required)]
    percentage: Option<f64>,
    /// Units of the meter `api`.
    current: Count,
    /// Every meter counted in a period that runs.
    meters: BTreeMap<MeterId, Meter>,
}

/// List organizations
///
/// Everyone who was ever counted or configured, as last stored, which is at most a flush interval ago.
/// `warning` begins at the lowest `warnAt`; `exceeded` is above the limit, or at it where it is hard.
/// What a changed plan or default limit means for an organization shows here once it is counted again.
#[utoipa::path(
    get,
    path = "/v1/organizations",
    operation_id = "listOrganizations",
    tag = "Organizations",
    security(("key" = ["read"])),
    params(Wanted),
    responses((status = 200, description = "A page of the list.", body = Organizations))
)]
pub(in crate::http) async fn organizations(
    Shared(state): Shared<State>,
    Read(caller): Read,
    Query(wanted): Query<Wanted>,
) -> Result<Organizations, Error> {
    caller.authorize_all()?;
    let order = wanted.sort;
    let listing = listing(wanted)?;
    let page = state.usage.directory(&listing).await?;
    let next = page.next.map(|position| cursor(order, &position));
    Ok(List::new(page.entries.into_iter().map(listed), next))
}

fn listed(entry: Entry) -> ListedOrganization {
    let percentages = entry.meters.iter().filter_map(usage::percentage);
    ListedOrganization {
        percentage: percentages.reduce(f64::max),
        organization_id: entry.organization,
        plan_id: entry.plan,
        state: entry.state,
        current: entry.current,
        meters: entry
            .meters
            .iter()
            .map(|it| (it.meter.clone(), usage::meter(it)))
            .collect(),
    }
}

fn listing(wanted: Wanted) -> Result<Listing, Error> {
    let order = wanted.sort;
    let after = wanted.cursor.map(|cursor| {
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
        prefix: wanted.search.filter(|search| !search.is_empty()),
        plan: wanted.plan_id,
        state: wanted.state,
        sort,
        descending,
        after: after.transpose()?,
        count: wanted.page_size.get(),
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
        }
    }

    /// How a cursor of this order begins.
    fn letter(self) -> char {
        match self {
            Self::Id => 'i',
            Self::IdDescending => 'I',
            Self::Percentage => 'p',
            Self::PercentageDescending => 'P',
            Self::Current => 'c',
            Self::CurrentDescending => 'C',
        }
    }
}

/// A place as text; it belongs to one order, so that no other is continued with it by mistake.
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
