//! `GET /healthz`, `GET /readyz` and `GET /metrics`: for whoever runs the service.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;

use super::extract::Read;
use super::problem::Error;
use crate::metrics;
use crate::state::State;

/// How long a server may take to answer before it counts as away.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the service takes requests, and what it depends on.
#[derive(Debug, Serialize)]
pub(super) struct Readiness {
    status: &'static str,
    checks: Checks,
}

#[derive(Debug, Serialize)]
struct Checks {
    redis: &'static str,
    postgres: &'static str,
}

/// The process lives.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The process takes requests: also, degraded, while Redis or Postgres is away; not while it drains.
pub(super) async fn readyz(Shared(state): Shared<State>) -> (StatusCode, Json<Readiness>) {
    let redis = tokio::time::timeout(PATIENCE, state.counters.ping());
    let postgres = tokio::time::timeout(PATIENCE, state.store.ping());
    let (redis, postgres) = tokio::join!(redis, postgres);
    let (redis, postgres) = (matches!(redis, Ok(Ok(()))), matches!(postgres, Ok(Ok(()))));
    let word = |answers| if answers { "ok" } else { "away" };
    let draining = state.draining.load(Ordering::Acquire);
    let status = match (draining, redis && postgres) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "degraded",
    };
    let code = if draining {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    (
        code,
        Json(Readiness {
            status,
            checks: Checks {
                redis: word(redis),
                postgres: word(postgres),
            },
        }),
    )
}

/// What the service has measured, to callers who may read about every organization.
pub(super) async fn metrics(
    Shared(state): Shared<State>,
    Read(caller): Read,
) -> Result<Response, Error> {
    caller.reach_all()?;
    Ok(metrics_to_anybody(Shared(state)).await)
}

/// The same, where an address of its own keeps others out.
pub(super) async fn metrics_to_anybody(Shared(state): Shared<State>) -> Response {
    match state.metrics.to_text() {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => Error::Internal.into_response(),
    }
}
