//! Accepts TCP connections and limits them: their number, timeouts, and the duration of a graceful shutdown.
//!
//! `axum::serve` has neither timeouts nor limits. Here every connection has a state ([`state`]), updated by its stream
//! ([`stream`]) and its requests ([`service`]), and one timer that enforces the timeouts ([`connection`]). A request
//! needs no timer of its own.

mod connection;
mod open_files;
mod service;
mod state;
mod stream;
mod tls;
mod transport;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use open_files::{files_needed, make_room};
pub use tls::Tls;

use crate::config::ConnectionLimits;
use crate::http;
use crate::http::{Dispatch, Peer};
use crate::metrics::{CloseReason, Metrics};
use connection::{Protocols, ServedConnection};
use service::ConnectionService;
use state::{Connections, Order};
use transport::Transport;

/// Minimum interval between two warnings.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// Pause after a failed accept, so that a shortage of file descriptors causes neither a busy loop nor an exit.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the connections of one listener; clones share the limits.
#[derive(Debug, Clone)]
pub struct Server(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: ConnectionLimits,
    metrics: Metrics,
    /// None if connections are plain.
    tls: Option<Tls>,
    open: Connections,
    /// Whether HTTP/1 responses say `connection: close`.
    draining: Arc<AtomicBool>,
    /// When a warning was last logged.
    warned: Mutex<Option<Instant>>,
}

impl Server {
    /// A server without connections.
    pub fn new(limits: ConnectionLimits, metrics: Metrics, tls: Option<Tls>) -> Self {
        Self(Arc::new(Shared {
            limits,
            metrics,
            tls,
            open: Connections::default(),
            draining: Arc::default(),
            warned: Mutex::default(),
        }))
    }

    /// From now on, HTTP/1 responses say `connection: close`.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Serves until `stop`, then completes the requests in flight for at most `grace`. Returns whether that was enough.
    pub async fn serve(
        &self,
        listener: TcpListener,
        service: Dispatch,
        stop: CancellationToken,
        grace: Duration,
    ) -> bool {
        let tasks = TaskTracker::new();
        let protocols = Protocols::new();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok(accepted) => self.accept(accepted, &service, &protocols, &tasks),
                Err(error) => {
                    stop.run_until_cancelled(self.pause_after(&error)).await;
                }
            }
        }
        drop(listener);
        tasks.close();
        self.0.open.broadcast(Order::Finish);
        let in_time = timeout(grace, tasks.wait()).await.is_ok();
        if !in_time {
            self.0.open.broadcast(Order::Close);
            tasks.wait().await;
        }
        in_time
    }

    /// Serves a new connection. At the limit, it replaces the one that has been idle longest.
    fn accept(
        &self,
        (stream, address): (TcpStream, SocketAddr),
        service: &Dispatch,
        protocols: &Protocols,
        tasks: &TaskTracker,
    ) {
        // Small responses must not wait for more data (Nagle).
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY cannot be set");
        }
        let Shared {
            limits,
            metrics,
            tls,
            open,
            ..
        } = &*self.0;
        if open.count() >= limits.max {
            self.warn(|| {
                tracing::warn!(
                    limit = limits.max,
                    "the limit TALLYMAN_CONNECTIONS is reached; new connections replace idle ones, and are refused if none \
                     is idle"
                );
            });
            if !open.evict() {
                metrics.connection_closed(CloseReason::Refused);
                // Without waiting, and so without a handshake: a refused connection must not occupy a task.
                if tls.is_none() {
                    let _ = stream.try_write(http::refusal(503).unwrap_or_default().as_bytes());
                }
                return;
            }
        }
        let entry = open.enter(metrics.clone());
        tracing::trace!(open = open.count(), "connection accepted");
        let service = ConnectionService {
            service: service.clone(),
            connection: Arc::clone(&entry.connection),
            peer: Peer {
                ip: address.ip().to_canonical(),
                is_tls: tls.is_some(),
            },
            draining: Arc::clone(&self.0.draining),
        };
        let transport = match tls {
            Some(tls) => tls.accept(stream),
            None => Transport::plain(stream),
        };
        let serving = ServedConnection::new(transport, service, protocols, limits.clone(), entry);
        let metrics = metrics.clone();
        tasks.spawn(async move {
            if let Some(reason) = serving.await {
                metrics.connection_closed(reason);
            }
        });
    }

    /// Pauses after an error that is likely to recur at once.
    async fn pause_after(&self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
        if matches!(
            error.kind(),
            ConnectionAborted | ConnectionRefused | ConnectionReset
        ) {
            return;
        }
        self.warn(|| tracing::warn!(%error, "cannot accept connections"));
        sleep(ACCEPT_PAUSE).await;
    }

    fn warn(&self, log: impl FnOnce()) {
        let now = Instant::now();
        let mut warned = self.0.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| now.duration_since(at) >= WARNING_INTERVAL) {
            *warned = Some(now);
            log();
        }
    }
}
