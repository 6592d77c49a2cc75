//! `GET /v1/live` and `GET /v1/organizations/{id}/live`: server-sent events when usage changes.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use futures::future::try_join_all;
use futures::stream;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::ids::{MeterId, OrganizationId};
use crate::domain::quantity::Count;
use crate::http::auth::{Caller, InOrganization, OrganizationParam, Read};
use crate::http::extract::{NoQuery, Query};
use crate::http::openapi::problems::MayBeOverloaded;
use crate::http::path::Path;
use crate::http::problem::Error;
use crate::http::routes::summary::{Organizations, organizations, seconds};
use crate::http::routes::usage::usage_for;
use crate::http::state::State;
use crate::jobs::activity::{Outages, Summary};
use crate::jobs::live::{Full, Round, Subscription};
use crate::usage::OrganizationUsage;

/// How long a client waits before it connects again.
const RETRY: Duration = Duration::from_secs(2);

/// How often a comment is sent while nothing changes, so that proxies keep the connection.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The maximum number of organizations in one stream.
const ORGANIZATIONS_MAX: usize = 32;

/// The data of an event: what has changed; the first event has everything.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "at": "2026-11-23T10:14:00Z",
    "organizations": {"org_123": {"exact": true, "meters": {"api": {
        "current": 5, "limit": 1000, "denied": 0, "resetDate": "2026-12-01T00:00:00Z"
    }}}}
}))]
#[schema(as = LiveEvent)]
pub(in crate::http) struct LiveEvent {
    at: DateTime<Utc>,
    /// Only of the stream of all organizations.
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<LiveSummary>,
    /// The watched organizations with a change.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false)]
    organizations: BTreeMap<OrganizationId, LiveUsage>,
}

/// The figures of the summary that change by the second, read at most every 5 seconds.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct LiveSummary {
    organizations: Organizations,
    /// Calls of all instances in the last 60 seconds, estimated from the last two minutes.
    calls_per_minute: u64,
    /// As in the summary.
    #[schema(required)]
    flush_lag_seconds: Option<f64>,
    /// As in the summary.
    webhook_lag_seconds: f64,
    /// As in the summary.
    #[schema(required)]
    redis_away_since: Option<DateTime<Utc>>,
    /// As in the summary.
    #[schema(required)]
    postgres_away_since: Option<DateTime<Utc>>,
}

/// An organization with a change.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
struct LiveUsage {
    /// As in the usage.
    exact: bool,
    /// The meters that changed.
    meters: BTreeMap<MeterId, LiveMeter>,
}

/// A meter in its running period.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct LiveMeter {
    /// The count of the running period.
    current: Count,
    /// The limit of a period; null if unlimited.
    #[schema(required)]
    limit: Option<Count>,
    /// Calls denied in the running period.
    denied: u64,
    /// Start of the next period; null if the period does not end by itself.
    #[schema(required)]
    reset_date: Option<DateTime<Utc>>,
}

impl LiveSummary {
    fn new((summary, outages): &(impl AsRef<Summary>, Outages)) -> Self {
        let summary = summary.as_ref();
        Self {
            organizations: organizations(&summary.organizations),
            calls_per_minute: summary.recent_calls,
            flush_lag_seconds: summary.flush_lag.map(seconds),
            webhook_lag_seconds: seconds(summary.webhook_lag),
            redis_away_since: outages.redis,
            postgres_away_since: outages.postgres,
        }
    }
}

impl LiveUsage {
    fn new(usage: &OrganizationUsage) -> Self {
        let meters = usage.meters.iter().map(|it| {
            let meter = LiveMeter {
                current: it.used,
                limit: it.rule.limit,
                denied: it.denied,
                reset_date: it.period.end,
            };
            (it.meter.clone(), meter)
        });
        Self {
            exact: usage.exact,
            meters: meters.collect(),
        }
    }

    /// What has changed since `sent`; none if nothing has.
    fn since(&self, sent: Option<&Self>) -> Option<Self> {
        let Some(sent) = sent.filter(|it| it.exact == self.exact) else {
            return Some(self.clone());
        };
        let meters = self.meters.iter();
        let changed = meters.filter(|(meter, now)| sent.meters.get(*meter) != Some(*now));
        let meters: BTreeMap<_, _> = changed
            .map(|(meter, now)| (meter.clone(), now.clone()))
            .collect();
        (!meters.is_empty()).then_some(Self {
            exact: self.exact,
            meters,
        })
    }
}

/// An open stream.
struct Stream {
    state: State,
    caller: Caller,
    subscription: Subscription,
    summary: Option<LiveSummary>,
    usage: BTreeMap<OrganizationId, LiveUsage>,
    first: Option<LiveEvent>,
}

impl Stream {
    /// The next event; none at the end.
    async fn next(&mut self) -> Option<Event> {
        if let Some(first) = self.first.take() {
            return Event::default().retry(RETRY).json_data(first).ok();
        }
        loop {
            let round = self.subscription.next().await?;
            if !self.caller.is_still_valid(&self.state).await {
                return None;
            }
            if let Some(changes) = self.changes(&round)? {
                return Event::default().json_data(changes).ok();
            }
        }
    }

    /// What a round has changed. None at the end: when a watched organization was deleted, or cannot be read: the client
    /// reconnects, and gets the problem as a response.
    #[expect(clippy::option_option, reason = "the end, no change, or a change")]
    fn changes(&mut self, round: &Round) -> Option<Option<LiveEvent>> {
        let mut organizations = BTreeMap::new();
        for organization in self.subscription.organizations() {
            match round.usage.get(organization) {
                // It was subscribed after this round had begun.
                None => {}
                Some(Ok(None)) if self.caller.trusts_existence() => {}
                Some(Ok(None) | Err(_)) => return None,
                Some(Ok(Some(usage))) => {
                    let usage = LiveUsage::new(usage);
                    if let Some(change) = usage.since(self.usage.get(organization)) {
                        organizations.insert(organization.clone(), change);
                        self.usage.insert(organization.clone(), usage);
                    }
                }
            }
        }
        let wanted = self.summary.is_some().then_some(round.summary.as_ref());
        let summary = wanted.flatten().map(LiveSummary::new);
        let summary = summary.filter(|it| self.summary.as_ref() != Some(it));
        if summary.is_some() {
            self.summary.clone_from(&summary);
        }
        let is_empty = organizations.is_empty() && summary.is_none();
        Some((!is_empty).then(|| LiveEvent {
            at: self.state.ctx.clock.now(),
            summary,
            organizations,
        }))
    }
}

fn too_many(full: Full) -> Error {
    Error::Overloaded(match full {
        Full::All => {
            "this instance has the maximum number of live streams; poll instead, or try again later"
        }
        Full::Own => {
            "this caller has the maximum number of live streams of this instance; close some, watch several organizations in one, or poll"
        }
    })
}

/// Opens a stream, which begins with the present state.
async fn open(
    state: State,
    caller: Caller,
    organizations: Vec<OrganizationId>,
    with_summary: bool,
) -> Result<Response, Error> {
    // First, so that a refused stream reads nothing.
    let subscription = state
        .live
        .subscribe(&caller.name(), organizations, with_summary)
        .map_err(too_many)?;
    let reads = subscription.organizations().iter();
    let reads = reads.map(|it| usage_for(&state, &caller, it));
    let usage = try_join_all(reads).await?;
    let usage: BTreeMap<_, _> = subscription
        .organizations()
        .iter()
        .cloned()
        .zip(usage.iter().map(LiveUsage::new))
        .collect();
    let summary = if with_summary {
        let summary = state.activity.summary().await?;
        Some(LiveSummary::new(&(summary, state.activity.outages())))
    } else {
        None
    };
    let first = LiveEvent {
        at: state.ctx.clock.now(),
        summary: summary.clone(),
        organizations: usage.clone(),
    };
    let stream = Stream {
        state,
        caller,
        subscription,
        summary,
        usage,
        first: Some(first),
    };
    let events = stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    let heartbeat = KeepAlive::new().interval(HEARTBEAT);
    // Nginx would buffer the events.
    let unbuffered = [("x-accel-buffering", "no")];
    Ok((unbuffered, Sse::new(events).keep_alive(heartbeat)).into_response())
}

/// The query of the stream of all organizations.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct LiveQuery {
    /// Adds the usage of these organizations, at most 32; repeat the parameter.
    #[serde(default)]
    #[param(value_type = Vec<OrganizationId>, required = false, max_items = 32)]
    organization_id: Vec<OrganizationParam>,
}

/// Stream the summary
///
/// Server-sent events: the first has the figures of the summary and the usage of the organizations that the query names;
/// the others have what has changed, at most once a second. Needs a key that is not bound to an organization.
#[utoipa::path(
    get,
    path = "/v1/live",
    operation_id = "streamSummary",
    tag = "Usage",
    security(("key" = ["read"])),
    params(LiveQuery),
    responses(
        (status = 200, description = "Events without a name, whose data is JSON of this schema.",
         body = LiveEvent, content_type = "text/event-stream"),
        MayBeOverloaded,
    )
)]
pub(in crate::http) async fn of_all(
    Shared(state): Shared<State>,
    Read(caller): Read,
    Query(query): Query<LiveQuery>,
) -> Result<Response, Error> {
    caller.authorize_all()?;
    let named = query.organization_id.iter();
    let named: BTreeSet<OrganizationId> = named
        .map(|it| caller.authorize(it))
        .collect::<Result<_, _>>()?;
    if named.len() > ORGANIZATIONS_MAX {
        let given = named.len();
        return Err(Error::InvalidField {
            pointer: "/organizationId".to_owned(),
            detail: format!("must be given at most {ORGANIZATIONS_MAX} times; got {given}"),
        });
    }
    open(state, caller, named.into_iter().collect(), true).await
}

/// Stream the usage of an organization
///
/// Server-sent events: the first has every meter, the others those that changed, at most once a second. The stream ends
/// when the key is revoked, the organization is deleted, or the service stops.
#[utoipa::path(
    get,
    path = "/v1/organizations/{id}/live",
    operation_id = "streamUsage",
    tag = "Usage",
    security(("key" = ["read"]), ("token" = [])),
    params(Path<OrganizationId>),
    responses(
        (status = 200, description = "Events without a name, whose data is JSON of this schema.",
         body = LiveEvent, content_type = "text/event-stream"),
        MayBeOverloaded,
    )
)]
pub(in crate::http) async fn of_organization(
    Shared(state): Shared<State>,
    InOrganization(Read(caller), organization): InOrganization<Read>,
    _: NoQuery,
) -> Result<Response, Error> {
    open(state, caller, vec![organization], false).await
}
