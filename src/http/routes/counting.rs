//! `POST /v1/track`, `/v1/consume`, `/v1/check` and `/v1/refund`.

use axum::body::Body;
use axum::extract::{FromRequestParts as _, Request, State as Shared};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::domain::decision::Operation;
use crate::http::auth::{Caller, Ingest, Refund};
use crate::http::charges::{Charges, ConsumeBody, RefundBody, TrackBody};
use crate::http::extract::{HotBody, Preference};
use crate::http::idempotency::{Idempotency, mark_replayed};
use crate::http::openapi::problems::{CheckingProblems, CountingProblems, TrackProblems};
use crate::http::openapi::responses::{Checked, Counted, Refused};
use crate::http::problem::Error;
use crate::http::rate_limit;
use crate::http::state::State;
use crate::http::usage_result::UsageResult;

/// Track usage
///
/// Counts unconditionally; `allowed` is false if a hard limit is exceeded afterwards.
#[utoipa::path(
    post,
    path = "/v1/track",
    tag = "Counting",
    security(("key" = ["ingest"])),
    params(Idempotency, Preference),
    request_body = TrackBody,
    responses(Counted, TrackProblems)
)]
pub(in crate::http) async fn track(Shared(state): Shared<State>, request: Request) -> Response {
    answer(state, Operation::Track, request).await
}

/// Consume
///
/// Counts if every limit allows it; otherwise responds with 429 and counts nothing. A soft limit always allows it.
/// Concurrent consumes against a hard limit are never granted more than the limit.
#[utoipa::path(
    post,
    path = "/v1/consume",
    tag = "Counting",
    security(("key" = ["ingest"])),
    params(Idempotency, Preference),
    request_body = ConsumeBody,
    responses(Counted, Refused, CountingProblems)
)]
pub(in crate::http) async fn consume(Shared(state): Shared<State>, request: Request) -> Response {
    answer(state, Operation::Consume, request).await
}

/// Check
///
/// Returns what consume would return now, always with status 200, and counts nothing.
#[utoipa::path(
    post,
    path = "/v1/check",
    tag = "Counting",
    security(("key" = ["ingest"])),
    params(Idempotency),
    request_body = ConsumeBody,
    responses(Checked, CheckingProblems)
)]
pub(in crate::http) async fn check(Shared(state): Shared<State>, request: Request) -> Response {
    answer(state, Operation::Check, request).await
}

/// Refund
///
/// Subtracts units, at most those counted in the period; `applied` has the units subtracted.
#[utoipa::path(
    post,
    path = "/v1/refund",
    tag = "Counting",
    security(("key" = ["refund"])),
    params(Idempotency, Preference),
    request_body = RefundBody,
    responses(Counted, CountingProblems)
)]
pub(in crate::http) async fn refund(Shared(state): Shared<State>, request: Request) -> Response {
    answer(state, Operation::Refund, request).await
}

/// Answers a request that counts, if the caller has the permission for the operation.
pub(in crate::http) async fn answer(
    state: State,
    operation: Operation,
    request: Request,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let answered = async {
        let parts = &mut parts;
        let caller = match operation {
            Operation::Refund => Refund::from_request_parts(parts, &state).await?.0,
            _ => Ingest::from_request_parts(parts, &state).await?.0,
        };
        let idempotency = Idempotency::from_request_parts(parts, &state).await?;
        let preference = match operation {
            // A check without its body would tell nothing.
            Operation::Check => Preference::Full,
            _ => Preference::from_request_parts(parts, &state).await?,
        };
        let charges = HotBody::receive(parts, body, &state).await?;
        decide(&state, &caller, operation, idempotency, preference, charges).await
    };
    answered.await.into_response()
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
    let request = charges.into_request(caller, kind, key)?;
    let decided = state.usage.decide(&request).await?;
    let refused = kind == Operation::Consume && !decided.granted;
    let now = state.ctx.clock.now();
    let usage = UsageResult::new(&request, &decided, several);
    let mut response = if refused {
        Error::limit_exceeded(&decided, usage, now).into_response()
    } else {
        json(usage.to_json().map_err(|_| Error::Internal)?)
    };
    if decided.degraded.is_none() {
        rate_limit::describe(&decided.meters, now, response.headers_mut());
    }
    mark_replayed(response.headers_mut(), decided.replayed);
    Ok(match preference {
        Preference::Full => response,
        Preference::Minimal => without_body(response),
    })
}

fn json(body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    let media_type = HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type);
    response
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
