//! Accepts connections, and bounds what they cost: how many there are, how long each may dawdle, how long a stop waits.
//!
//! `axum::serve` has no timer and no bound. Here every connection has a state ([`state`]) that its stream ([`stream`])
//! and its requests ([`service`]) keep, and one timer that looks at it ([`conversation`]); a request costs neither an
//! allocation nor a timer of its own.

mod conversation;
mod open_files;
mod service;
mod state;
mod stream;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use open_files::make_room;

use crate::config::ConnectionLimits;
use crate::http;
use crate::metrics::{CloseReason, Metrics};
use conversation::{Conversation, Protocols};
use state::{Connections, Order};

/// Between two warnings of the same.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// After the listener has failed, so that a shortage of files is neither spun on nor fatal.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the connections of one listener; clones share the bound.
#[derive(Debug, Clone)]
pub struct Server(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: ConnectionLimits,
    metrics: Metrics,
    open: Connections,
    /// When the log was last told that the bound is reached, or that accepting fails.
    warned: Mutex<Option<Instant>>,
}

impl Server {
    /// A server without connections.
    pub fn new(limits: ConnectionLimits, metrics: Metrics) -> Self {
        Self(Arc::new(Shared {
            limits,
            metrics,
            open: Connections::default(),
            warned: Mutex::default(),
        }))
    }

    /// Serves until `stop`; then answers what was asked, for at most `grace`. Returns whether that was enough.
    pub async fn serve(
        &self,
        listener: TcpListener,
        router: Router,
        stop: CancellationToken,
        grace: Duration,
    ) -> bool {
        let tasks = TaskTracker::new();
        let protocols = Protocols::new();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, _)) => self.take(stream, &router, &protocols, &tasks),
                Err(error) => {
                    stop.run_until_cancelled(self.sit_out(&error)).await;
                }
            }
        }
        drop(listener);
        tasks.close();
        self.0.open.tell_all(Order::Finish);
        let in_time = timeout(grace, tasks.wait()).await.is_ok();
        if !in_time {
            self.0.open.tell_all(Order::Close);
            tasks.wait().await;
        }
        in_time
    }

    /// Takes a connection on, in place of the one that has waited longest where there are too many.
    fn take(&self, stream: TcpStream, router: &Router, protocols: &Protocols, tasks: &TaskTracker) {
        // Small answers must not wait for more to send.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY cannot be set");
        }
        let Shared {
            limits,
            metrics,
            open,
            ..
        } = &*self.0;
        if open.count() >= limits.max {
            self.warn(|| {
                tracing::warn!(
                    bound = limits.max,
                    "there are as many connections as TALLYMAN_CONNECTIONS allows; idle ones are closed for new ones, \
                     and new ones refused where none is idle"
                );
            });
            if !open.evict() {
                metrics.connection_closed(CloseReason::Refused);
                // As far as the socket takes it at once: whoever is refused costs nothing.
                let _ = stream.try_write(http::refusal(503).unwrap_or_default().as_bytes());
                return;
            }
        }
        let entry = open.enter(metrics.clone());
        tracing::trace!(open = open.count(), "a connection is accepted");
        let talking = Conversation::new(stream, router.clone(), protocols, limits.clone(), entry);
        let metrics = metrics.clone();
        tasks.spawn(async move {
            if let Some(reason) = talking.await {
                metrics.connection_closed(reason);
            }
        });
    }

    /// Waits where accepting failed for a reason that will not pass by itself at once.
    async fn sit_out(&self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
        if matches!(
            error.kind(),
            ConnectionAborted | ConnectionRefused | ConnectionReset
        ) {
            return;
        }
        self.warn(|| tracing::warn!(%error, "connections cannot be accepted"));
        sleep(ACCEPT_PAUSE).await;
    }

    fn warn(&self, say: impl FnOnce()) {
        let now = Instant::now();
        let mut warned = self.0.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| now.duration_since(at) >= WARNING_INTERVAL) {
            *warned = Some(now);
            say();
        }
    }
}
