//! `GET /v1/events`: what happened, newest first.

use axum::Json;
use axum::extract::State as Shared;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::domain::event::EventType;
use crate::domain::ids::{EventId, OrganizationId};
use crate::http::extract::{OrganizationParam, PageSize, Query, Read, instant};
use crate::http::problem::Error;
use crate::http::state::State;
use crate::postgres::events::{Listing, Recorded};

/// Which events to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Wanted {
    /// Only this type.
    #[param(inline)]
    r#type: Option<EventType>,
    /// Only about this organization, which is all that a key reaches that is bound to it.
    #[param(value_type = Option<OrganizationId>)]
    organization_id: Option<OrganizationParam>,
    /// Only at this instant or later.
    #[serde(default, deserialize_with = "instant")]
    from: Option<DateTime<Utc>>,
    /// Only before this instant.
    #[serde(default, deserialize_with = "instant")]
    to: Option<DateTime<Utc>>,
    #[param(inline)]
    page_size: Option<PageSize>,
    /// The `nextCursor` of the page before.
    cursor: Option<EventId>,
}

/// Some events, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "data": [{
        "id": "evt_01a207e5f2407000a3f0c2d9e8b7a695", "type": "usage.warning", "timestamp": "2026-11-23T10:14:00Z",
        "data": {
            "organizationId": "org_123", "meter": "api", "threshold": 80, "current": 801, "limit": 1000,
            "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z"
        }
    }],
    "nextCursor": null
}))]
pub(in crate::http) struct Events {
    data: Vec<Event>,
    /// Null on the last page.
    #[schema(required)]
    next_cursor: Option<EventId>,
}

/// Something that happened.
#[derive(Debug, Serialize, ToSchema)]
struct Event {
    id: EventId,
    r#type: EventType,
    /// When it was recorded.
    timestamp: DateTime<Utc>,
    /// What there is to tell: always the `organizationId`, and by type
    /// `meter`, `threshold`, `current`, `limit`, `periodStart` and `resetDate` of `usage.warning` and
    /// `usage.limit_exceeded`; `meter`, `resetType`, `previousCount`, `periodStart` and `resetDate` of `usage.reset`;
    /// `limits` by meter of `limits.updated`.
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
/// Each threshold that is crossed is one event in a period, unless the limit changes; it is recorded with the count, at most a
/// flush interval after the crossing.
#[utoipa::path(
    get,
    path = "/v1/events",
    operation_id = "listEvents",
    tag = "Events",
    security(("key" = ["read"]), ("token" = [])),
    params(Wanted),
    responses((status = 200, description = "A page of events.", body = Events))
)]
pub(in crate::http) async fn list_events(
    Shared(state): Shared<State>,
    Read(caller): Read,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Events>, Error> {
    let named = wanted.organization_id.as_ref();
    let organization = named.map(|named| caller.reach(named)).transpose()?;
    if organization.is_none() {
        caller.reach_all()?;
    }
    let size = wanted.page_size.unwrap_or_default();
    let listing = Listing {
        event_type: wanted.r#type,
        organization,
        from: wanted.from,
        to: wanted.to,
        before: wanted.cursor,
        count: size.and_one(),
    };
    let mut recorded = state.history.events(&listing).await?;
    let last = size.cut(&mut recorded);
    Ok(Json(Events {
        next_cursor: last.map(|it| it.id.clone()),
        data: recorded.into_iter().map(Event::from).collect(),
    }))
}
