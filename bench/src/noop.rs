//! The ceiling of the HTTP stack that the service is built with: a POST that is read as JSON and
//! answered with JSON, by the same axum with the same allocator, profile and number of threads, and
//! without authentication, counting, headers or logging.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::runtime::Builder;

/// What a consume has, without a look at it.
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

/// The path is that of a consume, so that the very same requests can be sent.
fn router() -> Router {
    Router::new()
        .route("/v1/consume", post(nothing))
        .route("/readyz", get(async || "ready"))
}

async fn nothing(Json(body): Json<Body>) -> Json<Answer> {
    Json(Answer {
        allowed: true,
        organization_id: body.organization_id,
        amount: body.amount.unwrap_or(1),
    })
}
