//! What is known of a connection, and the list of all of them.
//!
//! All of it is atomic, because the requests of an HTTP/2 connection run in tasks of their own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use futures::task::AtomicWaker;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// One connection, as its stream and its requests leave it.
#[derive(Debug)]
pub(super) struct Connection {
    /// Requests whose answers are not handed over yet.
    in_flight: AtomicU32,
    /// Those of them whose bodies have not arrived.
    arriving: AtomicU32,
    /// Whether there was a request yet.
    pub(super) asked: AtomicBool,
    /// Whether it speaks HTTP/2, where heads and pings cannot be told apart from here.
    pub(super) multiplexed: AtomicBool,
    /// Whether bytes have come that are no request yet.
    pub(super) head_begun: AtomicBool,
    /// Whether the socket takes no more of an answer.
    pub(super) blocked: AtomicBool,
    /// Whether the last request was answered before its body had arrived.
    pub(super) unread: AtomicBool,
    /// An [`Order`].
    order: AtomicU8,
    /// Since when it waits for a request, in milliseconds of [`Connections::begun`].
    waiting_since: AtomicU64,
    waker: AtomicWaker,
}

/// What a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// Go on.
    Go,
    /// Answer what was asked, and end.
    Finish,
    /// End now, to make room.
    Evicted,
    /// End now.
    Close,
}

impl Connection {
    /// Whether it has nothing to do: no request, and nothing left to send.
    pub(super) fn waits(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0 && !self.blocked.load(Ordering::Relaxed)
    }

    /// Whether it can go on only when its caller sends, or takes, something.
    pub(super) fn waits_for_caller(&self) -> bool {
        let in_flight = self.in_flight.load(Ordering::Acquire);
        self.arriving.load(Ordering::Acquire) >= in_flight || self.blocked.load(Ordering::Relaxed)
    }

    pub(super) fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Go,
            1 => Order::Finish,
            2 => Order::Evicted,
            _ => Order::Close,
        }
    }

    /// Has the connection's task woken when it is told something.
    pub(super) fn listen(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    fn tell(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.waker.wake();
    }
}

/// A request, until its answer is handed over.
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

/// A body, until it has arrived or nobody wants it.
#[derive(Debug)]
pub(super) struct Arriving(Option<Arc<Connection>>);

impl Arriving {
    pub(super) fn new(connection: &Arc<Connection>) -> Self {
        connection.arriving.fetch_add(1, Ordering::AcqRel);
        connection.unread.store(true, Ordering::Relaxed);
        Self(Some(Arc::clone(connection)))
    }

    /// It has arrived.
    pub(super) fn done(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.unread.store(false, Ordering::Relaxed);
            connection.arriving.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.arriving.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The connections that are open.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    open: Arc<Mutex<Open>>,
    /// From when their times are told.
    begun: Instant,
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
            begun: Instant::now(),
        }
    }
}

impl Connections {
    pub(super) fn count(&self) -> usize {
        self.open().by_number.len()
    }

    /// Adds one, until the entry is dropped.
    pub(super) fn enter(&self, metrics: Metrics) -> Entry {
        let connection = Arc::new(Connection {
            in_flight: AtomicU32::new(0),
            arriving: AtomicU32::new(0),
            asked: AtomicBool::new(false),
            multiplexed: AtomicBool::new(false),
            head_begun: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            order: AtomicU8::new(Order::Go as u8),
            waiting_since: AtomicU64::new(0),
            waker: AtomicWaker::new(),
        });
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

    /// Ends the connection that has waited longest for a request, first of those that never sent any; false where none
    /// waits.
    pub(super) fn evict(&self) -> bool {
        let mut open = self.open();
        let waiting = open.by_number.iter().filter(|(_, it)| it.waits());
        let longest = waiting.min_by_key(|(_, it)| {
            let since = it.waiting_since.load(Ordering::Relaxed);
            (it.asked.load(Ordering::Relaxed), since)
        });
        let Some(number) = longest.map(|(number, _)| *number) else {
            return false;
        };
        // It counts no more from here on, so that none is evicted twice.
        if let Some(connection) = open.by_number.remove(&number) {
            connection.tell(Order::Evicted);
        }
        true
    }

    pub(super) fn tell_all(&self, order: Order) {
        for connection in self.open().by_number.values() {
            connection.tell(order);
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among those that are open.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) connection: Arc<Connection>,
    number: u64,
    connections: Connections,
    metrics: Metrics,
}

impl Entry {
    /// Notes that it waits for a request from now on.
    pub(super) fn waits_since(&self, at: Instant) {
        let age = at.duration_since(self.connections.begun).as_millis();
        let age = u64::try_from(age).unwrap_or(u64::MAX);
        let since = &self.connection.waiting_since;
        since.store(age, Ordering::Relaxed);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.open().by_number.remove(&self.number);
        self.metrics.connection_ended();
    }
}
