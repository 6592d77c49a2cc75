//! `GET /healthz`, `GET /readyz` and `GET /metrics`: for operators.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::auth::Read;
use crate::http::extract::NoQuery;
use crate::http::problem::Error;
use crate::http::state::State;
use crate::metrics;

/// A server that does not reply within this time is down.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether the service accepts requests, and the state of its servers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "status": "ready", "checks": {"redis": "ok", "postgres": "ok"}, "pending": {"increments": 0, "ageSeconds": 0}
}))]
pub(in crate::http) struct Readiness {
    /// `degraded` while a server is down, `draining` while the service stops.
    #[schema(pattern = "^(ready|degraded|draining)$")]
    status: &'static str,
    checks: Checks,
    pending: Pending,
}

/// What was admitted while Redis was down, and is not counted yet, as this instance last saw it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Pending {
    /// Increments in Postgres.
    increments: u64,
    /// How long the oldest has waited.
    age_seconds: u64,
}

/// The state of each server: `ok` or `away`.
#[derive(Debug, Serialize, ToSchema)]
struct Checks {
    #[schema(pattern = "^(ok|away)$")]
    redis: &'static str,
    #[schema(pattern = "^(ok|away)$")]
    postgres: &'static str,
}

/// Check liveness
///
/// Responds while the process runs.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "Operations",
    responses((status = 200, description = "The process runs.", body = String, example = "ok\n"))
)]
pub(in crate::http) async fn healthz() -> &'static str {
    "ok\n"
}

/// Check readiness
///
/// The service is ready, though degraded, while Redis or Postgres is down; it is not ready while it drains.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "Operations",
    responses(
        (status = 200, description = "The service accepts requests.", body = Readiness),
        (status = 503, description = "The service is stopping.", body = Readiness,
            example = json!({
                "status": "draining", "checks": {"redis": "ok", "postgres": "ok"},
                "pending": {"increments": 0, "ageSeconds": 0}
            })),
    )
)]
pub(in crate::http) async fn readyz(Shared(state): Shared<State>) -> (StatusCode, Json<Readiness>) {
    let redis = tokio::time::timeout(PING_TIMEOUT, state.ctx.redis.ping());
    let postgres = tokio::time::timeout(PING_TIMEOUT, state.ctx.postgres.ping());
    let (redis, postgres) = tokio::join!(redis, postgres);
    let (redis, postgres) = (matches!(redis, Ok(Ok(()))), matches!(postgres, Ok(Ok(()))));
    let state_of = |up| if up { "ok" } else { "away" };
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
    let pending = state.ctx.metrics.pending();
    (
        code,
        Json(Readiness {
            status,
            pending: Pending {
                increments: pending.increments,
                age_seconds: pending.age.as_secs(),
            },
            checks: Checks {
                redis: state_of(redis),
                postgres: state_of(postgres),
            },
        }),
    )
}

/// Get metrics
///
/// In the Prometheus text format, without organization ids. Not served here if `TALLYMAN_METRICS_LISTEN` is set. Needs a key
/// that is not bound to an organization.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Operations",
    security(("key" = ["read"])),
    responses((status = 200, description = "One sample per line.", body = String,
        content_type = "application/openmetrics-text", example = "# TYPE tallyman_requests counter\n"))
)]
pub(in crate::http) async fn metrics(
    Shared(state): Shared<State>,
    Read(caller): Read,
    _: NoQuery,
) -> Result<Response, Error> {
    caller.authorize_all()?;
    Ok(public_metrics(Shared(state)).await)
}

/// Metrics without authentication.
async fn public_metrics(Shared(state): Shared<State>) -> Response {
    match state.ctx.metrics.to_text() {
        Ok(text) => {
            let headers = [
                (CONTENT_TYPE, metrics::CONTENT_TYPE),
                (X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (CACHE_CONTROL, "no-store"),
            ];
            (headers, text).into_response()
        }
        Err(_) => Error::Internal.into_response(),
    }
}

/// Metrics only, without authentication, for the address of `TALLYMAN_METRICS_LISTEN`.
pub fn metrics_router(state: State) -> Router {
    Router::new()
        .route("/metrics", get(public_metrics))
        .with_state(state)
}
