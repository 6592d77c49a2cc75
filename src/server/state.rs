//! The state of each connection, and the set of open connections.
//!
//! The state is atomic, because the requests of an HTTP/2 connection run in their own tasks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use futures::task::AtomicWaker;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// The state of a connection, updated by its stream and its requests.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// Requests whose responses are not yet passed to hyper.
    in_flight: AtomicU32,
    /// Those of them whose bodies are incomplete.
    receiving: AtomicU32,
    /// Whether its TLS handshake failed.
    pub(super) handshake_failed: AtomicBool,
    /// Whether it has had a request.
    pub(super) was_used: AtomicBool,
    /// Whether it is HTTP/2, where heads and pings look the same at this level.
    pub(super) multiplexed: AtomicBool,
    /// Whether a part of the head of a request has arrived.
    pub(super) in_head: AtomicBool,
    /// Whether the socket's send buffer is full.
    pub(super) blocked: AtomicBool,
    /// Whether a part of the last request was not read.
    pub(super) unread: AtomicBool,
    /// An [`Order`].
    order: AtomicU8,
    /// Since when it is idle, in milliseconds after [`Connections::start`].
    idle_since: AtomicU64,
    waker: AtomicWaker,
}

/// An order from the server to a connection; a higher one overrides a lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// Continue.
    Go,
    /// Complete the requests in flight, then close.
    Finish,
    /// Close now, to make room.
    Evicted,
    /// Close now.
    Close,
}

impl Connection {
    /// Whether no request is in flight and nothing is left to send.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0 && !self.blocked.load(Ordering::Relaxed)
    }

    /// Whether it waits for the client to send or to read.
    pub(super) fn waits_for_client(&self) -> bool {
        let in_flight = self.in_flight.load(Ordering::Acquire);
        self.receiving.load(Ordering::Acquire) >= in_flight || self.blocked.load(Ordering::Relaxed)
    }

    pub(super) fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Go,
            1 => Order::Finish,
            2 => Order::Evicted,
            _ => Order::Close,
        }
    }

    /// Registers the task to wake at the next order.
    pub(super) fn listen(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    fn send(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.waker.wake();
    }
}

/// Counts a request until its response is passed to hyper.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Connection>);

impl InFlight {
    pub(super) fn new(connection: &Arc<Connection>) -> Self {
        connection.in_flight.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(connection))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counts the body of a request until it is complete or dropped.
#[derive(Debug)]
pub(super) struct ReceivingBody(Option<Arc<Connection>>);

impl ReceivingBody {
    pub(super) fn new(connection: &Arc<Connection>) -> Self {
        connection.receiving.fetch_add(1, Ordering::AcqRel);
        connection.unread.store(true, Ordering::Relaxed);
        Self(Some(Arc::clone(connection)))
    }

    /// The body is complete.
    pub(super) fn done(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.unread.store(false, Ordering::Relaxed);
            connection.receiving.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for ReceivingBody {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.receiving.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The open connections.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    open: Arc<Mutex<Open>>,
    /// The origin of [`Connection::idle_since`].
    start: Instant,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_number: HashMap<u64, Arc<Connection>>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            open: Arc::default(),
            start: Instant::now(),
        }
    }
}

impl Connections {
    pub(super) fn count(&self) -> usize {
        self.open().by_number.len()
    }

    /// Adds a connection until the entry is dropped.
    pub(super) fn enter(&self, metrics: Metrics) -> Entry {
        let connection = Arc::<Connection>::default();
        let mut open = self.open();
        let number = open.next;
        open.next += 1;
        open.by_number.insert(number, Arc::clone(&connection));
        metrics.connection_opened();
        Entry {
            connection,
            number,
            connections: self.clone(),
            metrics,
        }
    }

    /// Closes the connection that has been idle longest, preferably one that never had a request; false if none is idle.
    pub(super) fn evict(&self) -> bool {
        let mut open = self.open();
        let idle = open.by_number.iter().filter(|(_, it)| it.is_idle());
        let longest = idle.min_by_key(|(_, it)| {
            let since = it.idle_since.load(Ordering::Relaxed);
            (it.was_used.load(Ordering::Relaxed), since)
        });
        let Some(number) = longest.map(|(number, _)| *number) else {
            return false;
        };
        // Removed at once, so that it is not evicted twice.
        if let Some(connection) = open.by_number.remove(&number) {
            connection.send(Order::Evicted);
        }
        true
    }

    pub(super) fn broadcast(&self, order: Order) {
        for connection in self.open().by_number.values() {
            connection.send(order);
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Membership in the set of open connections.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) connection: Arc<Connection>,
    number: u64,
    connections: Connections,
    metrics: Metrics,
}

impl Entry {
    /// Records that it is idle since then.
    pub(super) fn idle_since(&self, at: Instant) {
        let age = at.duration_since(self.connections.start).as_millis();
        let age = u64::try_from(age).unwrap_or(u64::MAX);
        let since = &self.connection.idle_since;
        since.store(age, Ordering::Relaxed);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.open().by_number.remove(&self.number);
        self.metrics.connection_ended();
    }
}
