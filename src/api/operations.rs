//! `GET /healthz` and `GET /readyz`: for whoever runs the service.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use serde::Serialize;

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
