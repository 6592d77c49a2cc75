//! The ceiling of the HTTP stack: a POST that parses and returns JSON, in the same axum with the same allocator, profile
//! and number of threads as the service, without authentication, counting, headers or logging.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::runtime::Builder;

/// The body of a consume, unused.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Body {
    organization_id: String,
    amount: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    allowed: bool,
    organization_id: String,
    amount: u64,
}

/// Serves until the process ends.
pub(crate) fn serve(listen: SocketAddr, workers: usize) -> Result<()> {
    // As the service does.
    let mut builder = match workers {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    let runtime = builder
        .worker_threads(workers)
        .event_interval(16)
        .enable_all()
        .build()
        .context("threads cannot be started")?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        // As the service does.
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        Ok(axum::serve(listener, router()).await?)
    })
}

/// The path is that of a consume, so that the load is the same.
fn router() -> Router {
    Router::new()
        .route("/v1/consume", post(noop))
        .route("/readyz", get(async || "ready"))
}

async fn noop(Json(body): Json<Body>) -> Json<Answer> {
    Json(Answer {
        allowed: true,
        organization_id: body.organization_id,
        amount: body.amount.unwrap_or(1),
    })
}
