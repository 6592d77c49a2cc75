//! `GET /v1/events`: events, newest first.

use axum::extract::State as Shared;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::domain::event::EventType;
use crate::domain::ids::{EventId, OrganizationId};
use crate::http::auth::{OrganizationParam, Read};
use crate::http::extract::{Query, instant};
use crate::http::list::{List, PageSize};
use crate::http::problem::Error;
use crate::http::state::State;
use crate::postgres::events::{Listing, Recorded};

/// Which events to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct EventQuery {
    /// Only this type.
    #[param(inline)]
    r#type: Option<EventType>,
    /// Only events of this organization; a key that is bound to an organization must name it.
    #[param(value_type = Option<OrganizationId>)]
    organization_id: Option<OrganizationParam>,
    /// Only events at this instant or later.
    #[serde(default, deserialize_with = "instant")]
    from: Option<DateTime<Utc>>,
    /// Only events before this instant.
    #[serde(default, deserialize_with = "instant")]
    to: Option<DateTime<Utc>>,
    #[serde(default)]
    #[param(inline)]
    page_size: PageSize,
    /// The `nextCursor` of the previous page.
    cursor: Option<EventId>,
}

type Events = List<Event, EventId>;

/// An event.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "evt_01a207e5f2407000a3f0c2d9e8b7a695", "type": "usage.warning", "timestamp": "2026-11-23T10:14:00Z",
    "data": {
        "organizationId": "org_123", "meter": "api", "threshold": 80, "current": 801, "limit": 1000,
        "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z"
    }
}))]
pub(in crate::http) struct Event {
    id: EventId,
    r#type: EventType,
    /// When it was recorded.
    timestamp: DateTime<Utc>,
    /// Always the `organizationId`, and by type
    /// `meter`, `threshold`, `current`, `limit`, `periodStart` and `resetDate` of `usage.warning` and
    /// `usage.limit_exceeded`; `meter`, `resetType`, `previousCount`, `periodStart` and `resetDate` of `usage.reset`;
    /// `limits` and `previousLimits` by meter of `limits.updated`.
    #[schema(value_type = Object)]
    data: Box<RawValue>,
}

impl From<Recorded> for Event {
    fn from(recorded: Recorded) -> Self {
        Self {
            id: recorded.id,
            r#type: recorded.event_type,
            timestamp: recorded.at,
            data: recorded.data,
        }
    }
}

/// List events
///
/// Each crossed threshold is one event per period, unless the limit changes. It has the count at the crossing and is
/// recorded at most one flush interval later.
#[utoipa::path(
    get,
    path = "/v1/events",
    operation_id = "listEvents",
    tag = "Events",
    security(("key" = ["read"]), ("token" = [])),
    params(EventQuery),
    responses((status = 200, description = "A page of events.", body = Events))
)]
pub(in crate::http) async fn list_events(
    Shared(state): Shared<State>,
    Read(caller): Read,
    Query(query): Query<EventQuery>,
) -> Result<Events, Error> {
    let organization = caller.authorize_filter(query.organization_id.as_ref())?;
    let size = query.page_size;
    let listing = Listing {
        event_type: query.r#type,
        organization,
        from: query.from,
        to: query.to,
        before: query.cursor,
        count: size.and_one(),
    };
    let found = state.history.events(&listing).await?;
    Ok(List::page(found, size, |event| event.id.clone()))
}
