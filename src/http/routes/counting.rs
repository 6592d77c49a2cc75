//! `POST /v1/track`, `/v1/consume`, `/v1/check` and `/v1/refund`.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SubsecRound as _, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::decision::{Demand, Operation};
use crate::domain::ids::{IdempotencyKey, METERS_MAX, MeterId, OrganizationId};
use crate::domain::input::{ByMeter, Instant, optional};
use crate::domain::patch::not_null;
use crate::domain::policy::Enforcement;
use crate::domain::quantity::{Amount, Count};
use crate::http::auth::{Caller, Ingest, OrganizationParam, Refund};
use crate::http::extract::{HotBody, Preference};
use crate::http::idempotency::{Idempotency, mark_replayed};
use crate::http::instant;
use crate::http::openapi::answers::{Checked, Counted, Refused};
use crate::http::openapi::bodies::{ConsumeBody, RefundBody, TrackBody};
use crate::http::openapi::problems::{CheckingProblems, CountingProblems, TrackProblems};
use crate::http::problem::Error;
use crate::http::rate_limit::{self, seconds};
use crate::http::state::State;
use crate::usage::{self, Decided, MeterUsage, Request};

/// What all four take; each refuses the fields that mean nothing to it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::http) struct Charges {
    /// One that is unknown starts on the default plan.
    #[schema(value_type = OrganizationId)]
    pub(in crate::http) organization_id: OrganizationParam,
    /// What is counted; `api` unless said.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    pub(in crate::http) meter: Option<MeterId>,
    /// How many units; 1 unless said.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    pub(in crate::http) amount: Option<Amount>,
    /// Units by meter: all of them are charged, or none.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = BTreeMap<MeterId, Amount>, required = false)]
    pub(in crate::http) meters: Option<ByMeter<Amount>>,
    /// Units by meter that must fit on top, and are not charged.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = BTreeMap<MeterId, Amount>, required = false)]
    pub(in crate::http) require: Option<ByMeter<Amount>>,
    /// When it happened: at most 48 hours ago (a setting), and 5 minutes ahead. It counts in the hour and the period that
    /// it belongs to.
    #[serde(default, deserialize_with = "optional::<Instant, _>")]
    #[schema(nullable = false)]
    pub(in crate::http) timestamp: Option<DateTime<Utc>>,
}

/// What all four answer; a refusal carries it too.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum UsageResult {
    /// One meter was named by `meter`, or none was.
    One {
        #[serde(flatten)]
        result: MeterResult,
        #[serde(flatten)]
        denial: Denial,
    },
    /// Several were named by `meters`.
    Several {
        allowed: bool,
        #[serde(rename = "organizationId")]
        organization_id: OrganizationId,
        meters: BTreeMap<MeterId, MeterResult>,
        #[serde(flatten)]
        denial: Denial,
    },
}

/// What a refusal says besides; nothing where there was none.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct Denial {
    /// The meters that refused, which may be ones that were only required.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    denied_by: Vec<MeterId>,
    /// True where this is the first call that one of them has refused in its period; absent otherwise, and in what a check
    /// says. Of any number of calls that are refused at once, one has it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    first: bool,
    /// The first instant at which the same call would be granted if nobody else calls; absent where waiting does not help.
    #[serde(
        serialize_with = "instant::optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    retry_at: Option<DateTime<Utc>>,
}

/// The state of one meter after the decision.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct MeterResult {
    /// Whether the call was granted; of a track or a refund, whether the organization is within its hard limit afterwards.
    allowed: bool,
    organization_id: OrganizationId,
    meter: MeterId,
    /// What was asked for.
    amount: u64,
    /// What a refund gave back, which may be less than the amount.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<u64>,
    /// Units counted in the period.
    current: Count,
    /// Units that the period includes; null is unlimited.
    #[schema(required)]
    limit: Option<Count>,
    /// `limit - current`, never below 0; null where the limit is.
    #[schema(required)]
    remaining: Option<Count>,
    /// `current - limit`, never below 0.
    overage: Count,
    /// The percentages of `warnAt` that this call has crossed; absent where it has crossed none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    crossed: Vec<u16>,
    /// Among several meters: true where this is the first call that this one has refused in its period.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    first: bool,
    enforcement: Enforcement,
    /// When the period began.
    #[serde(serialize_with = "instant::required")]
    period_start: DateTime<Utc>,
    /// When the next begins; null where the period does not end by itself.
    #[schema(required)]
    #[serde(serialize_with = "instant::optional")]
    reset_date: Option<DateTime<Utc>>,
}

/// Count
///
/// Counts always; `allowed` is false where a hard limit is exceeded afterwards.
#[utoipa::path(
    post,
    path = "/v1/track",
    tag = "Counting",
    security(("key" = ["ingest"])),
    params(Idempotency, Preference),
    request_body = TrackBody,
    responses(Counted, TrackProblems)
)]
pub(in crate::http) async fn track(
    Shared(state): Shared<State>,
    Ingest(caller): Ingest,
    idempotency: Idempotency,
    preference: Preference,
    charges: HotBody<Charges>,
) -> Result<Response, Error> {
    decide(
        &state,
        &caller,
        Operation::Track,
        idempotency,
        preference,
        charges,
    )
    .await
}

/// Enforce
///
/// Counts if everything fits, or always where the limit is soft; otherwise answers 429 and counts nothing.
/// Of any set of concurrent consumes against a hard limit, never more than the limit is granted.
#[utoipa::path(
    post,
    path = "/v1/consume",
    tag = "Counting",
    security(("key" = ["ingest"])),
    params(Idempotency, Preference),
    request_body = ConsumeBody,
    responses(Counted, Refused, CountingProblems)
)]
pub(in crate::http) async fn consume(
    Shared(state): Shared<State>,
    Ingest(caller): Ingest,
    idempotency: Idempotency,
    preference: Preference,
    charges: HotBody<Charges>,
) -> Result<Response, Error> {
    decide(
        &state,
        &caller,
        Operation::Consume,
        idempotency,
        preference,
        charges,
    )
    .await
}

/// Ask
///
/// Says what consume would say now; always 200, and counts nothing.
#[utoipa::path(
    post,
    path = "/v1/check",
    tag = "Counting",
    security(("key" = ["ingest"])),
    params(Idempotency),
    request_body = ConsumeBody,
    responses(Checked, CheckingProblems)
)]
pub(in crate::http) async fn check(
    Shared(state): Shared<State>,
    Ingest(caller): Ingest,
    idempotency: Idempotency,
    charges: HotBody<Charges>,
) -> Result<Response, Error> {
    // The body is the whole point of asking, so that no preference can do without it.
    let preference = Preference::Full;
    decide(
        &state,
        &caller,
        Operation::Check,
        idempotency,
        preference,
        charges,
    )
    .await
}

/// Give back
///
/// As far as there is something to give back; the answer has `applied`.
#[utoipa::path(
    post,
    path = "/v1/refund",
    tag = "Counting",
    security(("key" = ["refund"])),
    params(Idempotency, Preference),
    request_body = RefundBody,
    responses(Counted, CountingProblems)
)]
pub(in crate::http) async fn refund(
    Shared(state): Shared<State>,
    Refund(caller): Refund,
    idempotency: Idempotency,
    preference: Preference,
    charges: HotBody<Charges>,
) -> Result<Response, Error> {
    decide(
        &state,
        &caller,
        Operation::Refund,
        idempotency,
        preference,
        charges,
    )
    .await
}

async fn decide(
    state: &State,
    caller: &Caller,
    kind: Operation,
    Idempotency(key): Idempotency,
    preference: Preference,
    HotBody(charges): HotBody<Charges>,
) -> Result<Response, Error> {
    let several = charges.meters.is_some();
    let request = request(caller, kind, key, charges)?;
    let decided = state.usage.decide(&request).await?;
    let refused = kind == Operation::Consume && !decided.granted;
    let now = state.ctx.clock.now();
    let body = result(&request, &decided, several);
    let mut response = if refused {
        refusal(&decided, body, now).into_response()
    } else {
        Json(body).into_response()
    };
    rate_limit::describe(&decided.meters, now, response.headers_mut());
    mark_replayed(response.headers_mut(), decided.replayed);
    Ok(match preference {
        Preference::Full => response,
        Preference::Minimal => without_body(response),
    })
}

/// What a call asks for, if the caller may ask for it.
pub(in crate::http) fn request(
    caller: &Caller,
    kind: Operation,
    key: Option<IdempotencyKey>,
    charges: Charges,
) -> Result<Request, Error> {
    let organization = caller.authorize(&charges.organization_id)?;
    refuse_what_means_nothing(kind, &charges)?;
    let timestamp = charges.timestamp.map(|at| at.trunc_subsecs(3));
    let demands = demands(charges)?;
    let attempt =
        key.map(|key| usage::attempt(key, &payload(kind, &organization, &demands, timestamp)));
    Ok(Request {
        organization,
        kind,
        demands,
        timestamp,
        attempt,
        times: 1,
    })
}

fn without_body(response: Response) -> Response {
    let (mut head, _) = response.into_parts();
    if head.status == StatusCode::OK {
        head.status = StatusCode::NO_CONTENT;
    }
    head.headers.remove(header::CONTENT_TYPE);
    head.headers.insert(
        "preference-applied",
        HeaderValue::from_static("return=minimal"),
    );
    Response::from_parts(head, Body::empty())
}

/// A field that would be ignored is refused, so that nobody relies on it.
fn refuse_what_means_nothing(kind: Operation, charges: &Charges) -> Result<(), Error> {
    let (pointer, detail) = match kind {
        Operation::Track | Operation::Refund if charges.require.is_some() => {
            ("/require", "is for consume and check alone; leave it out")
        }
        Operation::Consume | Operation::Check | Operation::Refund
            if charges.timestamp.is_some() =>
        {
            ("/timestamp", "is for track alone; leave it out")
        }
        _ => return Ok(()),
    };
    Err(Error::InvalidField {
        pointer: pointer.to_owned(),
        detail: detail.to_owned(),
    })
}

/// What is wanted of each meter: what is charged first, then what is only required.
fn demands(charges: Charges) -> Result<Vec<(MeterId, Demand)>, Error> {
    let at_fault = |detail: String| Error::InvalidField {
        pointer: "/meters".to_owned(),
        detail,
    };
    let all_of = |amount: Amount| Demand {
        amount: amount.get(),
        need: amount.get(),
    };
    let wanted: Vec<(MeterId, Demand)> = match charges.meters {
        Some(_) if charges.meter.is_some() || charges.amount.is_some() => {
            return Err(at_fault(
                "takes the place of meter and amount; give either, not both".to_owned(),
            ));
        }
        Some(ByMeter(meters)) if meters.is_empty() => {
            return Err(at_fault(
                "must name at least one meter; got an empty object".to_owned(),
            ));
        }
        Some(ByMeter(meters)) => meters
            .into_iter()
            .map(|(meter, amount)| (meter, all_of(amount)))
            .collect(),
        None => vec![(
            charges.meter.unwrap_or_default(),
            all_of(charges.amount.unwrap_or(Amount::ONE)),
        )],
    };
    let Some(ByMeter(required)) = charges.require else {
        return within_bounds(wanted);
    };
    let mut wanted: BTreeMap<MeterId, Demand> = wanted.into_iter().collect();
    for (meter, amount) in required {
        let demand = wanted.entry(meter).or_insert(Demand { amount: 0, need: 0 });
        demand.need = demand.need.saturating_add(amount.get());
    }
    within_bounds(wanted.into_iter().collect())
}

fn within_bounds(demands: Vec<(MeterId, Demand)>) -> Result<Vec<(MeterId, Demand)>, Error> {
    if demands.len() > METERS_MAX {
        return Err(Error::InvalidField {
            pointer: "/meters".to_owned(),
            detail: format!(
                "must name at most {METERS_MAX} meters, as many as an organization may have; got {}",
                demands.len()
            ),
        });
    }
    Ok(demands)
}

/// All that a repetition must have in common with the first attempt, however it is spelled.
fn payload(
    kind: Operation,
    organization: &OrganizationId,
    demands: &[(MeterId, Demand)],
    timestamp: Option<DateTime<Utc>>,
) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{kind:?} {organization}");
    for (meter, demand) in demands {
        let _ = write!(text, " {meter} {} {}", demand.amount, demand.need);
    }
    if let Some(at) = timestamp {
        let _ = write!(text, " @{}", at.timestamp_millis());
    }
    text
}

pub(in crate::http) fn result(request: &Request, decided: &Decided, several: bool) -> UsageResult {
    let allowed = |usage: &MeterUsage| match request.kind {
        // A track is always counted; whether the organization is within its limit is for the caller to act on.
        Operation::Track | Operation::Refund => {
            usage.rule.cap().is_none_or(|cap| usage.used <= cap)
        }
        Operation::Consume | Operation::Check => decided.granted,
    };
    let counts = matches!(request.kind, Operation::Track | Operation::Consume);
    let first = |usage: &MeterUsage| usage.refused.is_some_and(|refused| refused.first);
    let meter_result = |usage: &MeterUsage| MeterResult {
        allowed: allowed(usage),
        organization_id: request.organization.clone(),
        meter: usage.meter.clone(),
        amount: usage.demand.amount,
        applied: (request.kind == Operation::Refund).then_some(usage.given_back),
        current: usage.used,
        limit: usage.rule.limit,
        remaining: usage.remaining(),
        overage: usage.overage(),
        crossed: if counts && decided.granted {
            decided.crossed(usage)
        } else {
            Vec::new()
        },
        // Of one alone, the answer says it already.
        first: false,
        enforcement: usage.rule.enforcement,
        period_start: usage.period.start,
        reset_date: usage.period.end,
    };
    let denial = if decided.granted {
        Denial::default()
    } else {
        Denial::of(decided)
    };
    match decided.meters.iter().find(|usage| usage.demand.amount > 0) {
        Some(charged) if !several => UsageResult::One {
            result: meter_result(charged),
            denial,
        },
        _ => UsageResult::Several {
            allowed: decided.meters.iter().all(allowed),
            organization_id: request.organization.clone(),
            meters: decided
                .meters
                .iter()
                .map(|usage| {
                    let result = MeterResult {
                        first: first(usage),
                        ..meter_result(usage)
                    };
                    (usage.meter.clone(), result)
                })
                .collect(),
            denial,
        },
    }
}

/// A refusal as a problem.
pub(in crate::http) fn refusal(decided: &Decided, usage: UsageResult, now: DateTime<Utc>) -> Error {
    Error::LimitExceeded {
        retry_after_seconds: decided.earliest_grant.map(|at| seconds(at - now)),
        usage: Box::new(usage),
    }
}

impl Denial {
    fn of(decided: &Decided) -> Self {
        let refused = |usage: &MeterUsage| Some((usage.meter.clone(), usage.refused?));
        let refused: Vec<_> = decided.meters.iter().filter_map(refused).collect();
        Self {
            first: refused.iter().any(|(_, refused)| refused.first),
            denied_by: refused.into_iter().map(|(meter, _)| meter).collect(),
            retry_at: decided.earliest_grant,
        }
    }
}
