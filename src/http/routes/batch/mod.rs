//! `POST /v1/batch`: many tracks and consumes in one request; each item succeeds or fails independently.

mod items;
mod plan;

use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;
use tracing::Span;

use crate::http::auth::Ingest;
use crate::http::extract::Query;
use crate::http::idempotency::Idempotency;
use crate::http::openapi::problems::NeedsCounterStore;
use crate::http::problem::Error;
use crate::http::state::State;
use crate::usage::Decided;
use items::{Item, ItemList, Items};
use plan::{BatchQuery, Plan, Summary};

/// Bodies of at least this many bytes are processed on a blocking thread; below, the switch costs more than it saves.
const LARGE: usize = 16 * 1024;

const TOO_MANY_BATCHES: &str = "too many large batches of this caller are in flight, and none finished in time; nothing was counted";

/// Track and consume in a batch
///
/// Each item succeeds or fails independently. All items together may name at most 20,000 meters. Items of one organization
/// are decided in order, unless a counter has to be recovered first. A batch costs as much as it has distinct counters.
#[utoipa::path(
    post,
    path = "/v1/batch",
    tag = "Counting",
    security(("key" = ["ingest"])),
    params(Idempotency, BatchQuery),
    request_body(description = "JSON, or one item per line.", content(
        (ItemList<Item> = "application/json", example = json!({"items": [
            {"op": "consume", "organizationId": "org_123", "amount": 2},
            {"op": "track", "organizationId": "org_456", "meter": "tokens", "amount": 1200},
        ]})),
        (String = "application/x-ndjson", example = "{\"op\":\"consume\",\"organizationId\":\"org_123\"}\n"),
    )),
    responses(
        (status = 200, description = "The results of the items.", body = Summary, example = json!({
            "counted": 1, "denied": 1, "failed": 0, "replayed": 0, "results": [
                {"index": 0, "status": 200, "allowed": true, "organizationId": "org_123", "meter": "api", "amount": 2,
                 "current": 1000, "limit": 1000, "remaining": 0, "overage": 0, "enforcement": "hard",
                 "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z"},
                {"index": 1, "type": "urn:tallyman:problem:limit_exceeded", "title": "Limit exceeded", "status": 429,
                 "detail": "the organization's limit does not allow this; nothing was counted", "code": "limit_exceeded",
                 "allowed": false, "organizationId": "org_123", "meter": "api", "amount": 2, "current": 1000,
                 "limit": 1000, "remaining": 0, "overage": 0, "enforcement": "hard",
                 "periodStart": "2026-11-01T00:00:00Z", "resetDate": "2026-12-01T00:00:00Z", "deniedBy": ["api"],
                 "first": true, "retryAt": "2026-12-01T00:00:00Z"}
            ]})),
        NeedsCounterStore,
    )
)]
pub(in crate::http) async fn batch(
    Shared(state): Shared<State>,
    Ingest(caller): Ingest,
    Idempotency(key): Idempotency,
    Query(query): Query<BatchQuery>,
    items: Items,
) -> Result<Response, Error> {
    let large = items.len() >= LARGE;
    let _turn = if large {
        let turn = timeout(state.body_patience, state.batches.turn(&caller.name())).await;
        Some(turn.map_err(|_| Error::Overloaded(TOO_MANY_BATCHES))?)
    } else {
        None
    };
    let plan = offload(large, move || Plan::of(&caller, key.as_ref(), &items)).await??;
    let decided = state.usage.decide_all(&plan.requests).await?;
    let now = state.ctx.clock.now();
    let span = Span::current();
    offload(large, move || {
        let decided: Vec<Result<Decided, Error>> = decided
            .into_iter()
            .map(|decided| decided.map_err(Error::from))
            .collect();
        let causes = decided.iter().filter_map(|it| it.as_ref().err()?.cause());
        if let Some(error) = causes.clone().next() {
            let requests = causes.count();
            tracing::warn!(parent: &span, error, requests, "items of a batch could not be decided");
        }
        Json(plan.summary(&decided, query.results, now)).into_response()
    })
    .await
}

/// Runs CPU-bound work, on a blocking thread if it is large, so that it delays no other request.
async fn offload<T: Send + 'static>(
    large: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    if large {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| Error::panicked())
    } else {
        Ok(work())
    }
}
