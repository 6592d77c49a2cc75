//! `GET /healthz`, `GET /readyz` and `GET /metrics`: for whoever runs the service.

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

/// How long a server may take to answer before it counts as away.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the service takes requests, and what it depends on.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"status": "ready", "checks": {"redis": "ok", "postgres": "ok"}}))]
pub(in crate::http) struct Readiness {
    /// `degraded` while a server is away, `draining` while the service stops.
    #[schema(pattern = "^(ready|degraded|draining)$")]
    status: &'static str,
    checks: Checks,
}

/// Each server, `ok` or `away`.
#[derive(Debug, Serialize, ToSchema)]
struct Checks {
    #[schema(pattern = "^(ok|away)$")]
    redis: &'static str,
    #[schema(pattern = "^(ok|away)$")]
    postgres: &'static str,
}

/// The process lives
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "Operations",
    responses((status = 200, description = "It does.", body = String, example = "ok\n"))
)]
pub(in crate::http) async fn healthz() -> &'static str {
    "ok\n"
}

/// The process takes requests
///
/// It does so also, degraded, while Redis or Postgres is away; but not while it drains.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "Operations",
    responses(
        (status = 200, description = "It does.", body = Readiness),
        (status = 503, description = "The service stops.", body = Readiness,
            example = json!({"status": "draining", "checks": {"redis": "ok", "postgres": "ok"}})),
    )
)]
pub(in crate::http) async fn readyz(Shared(state): Shared<State>) -> (StatusCode, Json<Readiness>) {
    let redis = tokio::time::timeout(PATIENCE, state.ctx.redis.ping());
    let postgres = tokio::time::timeout(PATIENCE, state.ctx.postgres.ping());
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

/// What the service has measured
///
/// In the text format of Prometheus; nothing in it names an organization. Not here where `TALLYMAN_METRICS_LISTEN` gives it
/// an address of its own. A key that is bound to one organization does not suffice.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Operations",
    security(("key" = ["read"])),
    responses((status = 200, description = "One sample a line.", body = String,
        content_type = "application/openmetrics-text", example = "# TYPE tallyman_requests counter\n"))
)]
pub(in crate::http) async fn metrics(
    Shared(state): Shared<State>,
    Read(caller): Read,
    _: NoQuery,
) -> Result<Response, Error> {
    caller.authorize_all()?;
    Ok(metrics_to_anybody(Shared(state)).await)
}

/// The same, where an address of its own keeps others out.
async fn metrics_to_anybody(Shared(state): Shared<State>) -> Response {
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

/// The metrics alone, for an address that only those reach who may see them.
pub fn metrics_router(state: State) -> Router {
    Router::new()
        .route("/metrics", get(metrics_to_anybody))
        .with_state(state)
}
