//! A connection from accept to close: hyper speaks HTTP, a single timer enforces all timeouts.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::{Builder, Connection as HttpConnection};
use tokio::time::{Instant, Sleep, sleep_until};

use super::service::ConnectionService;
use super::state::{Entry, Order};
use super::stream::ObservedStream;
use super::transport::Transport;
use crate::config::ConnectionLimits;
use crate::metrics::CloseReason;

/// Maximum size of the head of a request, in bytes: more than the limit on URIs, which has a response of its own.
const HEAD_MAX: usize = 80 * 1024;

/// Maximum number of concurrent requests on an HTTP/2 connection.
const STREAMS_MAX: u32 = 128;

/// Interval and timeout of pings on HTTP/2 connections.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long a shutdown waits for a client that is still sending a request, or does not read its response.
const STOP_GRACE: Duration = Duration::from_secs(2);

type Hyper = HttpConnection<'static, TokioIo<ObservedStream>, ConnectionService, TokioExecutor>;

/// HTTP parameters, shared by all connections.
#[derive(Debug)]
pub(super) struct Protocols(Builder<TokioExecutor>);

impl Protocols {
    pub(super) fn new() -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            // It would allocate a timer for every request; ours is one for all of them.
            .header_read_timeout(None)
            .max_buf_size(HEAD_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL);
        Self(builder)
    }
}

/// A connection. Resolves to the reason if the server closed it.
pub(super) struct ServedConnection {
    http: Pin<Box<Hyper>>,
    timer: Pin<Box<Sleep>>,
    /// Whom the timer wakes, once it was polled after it was set.
    timed: Option<Waker>,
    limits: ConnectionLimits,
    entry: Entry,
    /// Since when no request is in flight.
    idle: Option<Instant>,
    /// Since when the head of a request is incomplete.
    head: Option<Instant>,
    /// Since when the client does not read a response.
    blocked: Option<Instant>,
    finishing: bool,
}

impl ServedConnection {
    pub(super) fn new(
        transport: Transport,
        service: ConnectionService,
        protocols: &Protocols,
        limits: ConnectionLimits,
        entry: Entry,
    ) -> Self {
        let connection = &entry.connection;
        let io = TokioIo::new(ObservedStream::new(transport, connection.clone()));
        let http = protocols.0.serve_connection(io, service).into_owned();
        let now = Instant::now();
        entry.idle_since(now);
        Self {
            http: Box::pin(http),
            timer: Box::pin(sleep_until(now + limits.header)),
            timed: None,
            limits,
            entry,
            idle: Some(now),
            head: None,
            blocked: None,
            finishing: false,
        }
    }

    /// Records when each state began.
    fn update(&mut self) {
        let connection = &self.entry.connection;
        let head = connection.in_head.load(Ordering::Relaxed)
            && !connection.multiplexed.load(Ordering::Relaxed);
        let blocked = connection.blocked.load(Ordering::Relaxed);
        let idle = connection.is_idle();
        if idle && self.idle.is_none() {
            let now = Instant::now();
            self.idle = Some(now);
            self.entry.idle_since(now);
        } else if !idle {
            self.idle = None;
        }
        for (state, since) in [(head, &mut self.head), (blocked, &mut self.blocked)] {
            if state && since.is_none() {
                *since = Some(Instant::now());
            } else if !state {
                *since = None;
            }
        }
    }

    /// The next timeout, and its reason.
    fn deadline(&self) -> Option<(Instant, CloseReason)> {
        let was_used = self.entry.connection.was_used.load(Ordering::Relaxed);
        let limits = &self.limits;
        let idle = self.idle.map(|since| {
            if was_used {
                (since + limits.idle, CloseReason::IdleTimeout)
            } else {
                (since + limits.header, CloseReason::HeaderTimeout)
            }
        });
        let head = self
            .head
            .map(|it| (it + limits.header, CloseReason::HeaderTimeout));
        let blocked = self
            .blocked
            .map(|it| (it + limits.body, CloseReason::WriteTimeout));
        [idle, head, blocked]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    /// Obeys an order to close; ready if there is nothing to wait for.
    fn poll_order(&mut self, context: &mut Context<'_>) -> Poll<Option<CloseReason>> {
        match self.entry.connection.order() {
            Order::Go => Poll::Pending,
            Order::Evicted => Poll::Ready(Some(CloseReason::Evicted)),
            Order::Close => Poll::Ready(Some(CloseReason::Stopped)),
            Order::Finish if self.finishing => Poll::Pending,
            Order::Finish => {
                self.finishing = true;
                self.http.as_mut().graceful_shutdown();
                let done = self.http.as_mut().poll(context).is_ready();
                if done || self.entry.connection.is_idle() {
                    return Poll::Ready(Some(CloseReason::Stopped));
                }
                self.set_timer(Instant::now() + STOP_GRACE);
                Poll::Pending
            }
        }
    }

    fn set_timer(&mut self, at: Instant) {
        self.timer.as_mut().reset(at);
        self.timed = None;
    }

    /// Whether the timer is going to wake this task, so that it need not be polled.
    fn is_timed(&self, context: &Context<'_>) -> bool {
        let waker = self.timed.as_ref();
        waker.is_some_and(|it| it.will_wake(context.waker())) && !self.timer.is_elapsed()
    }

    /// Polls the timer, which is always set to the next deadline.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<Option<CloseReason>> {
        loop {
            let deadline = self.deadline();
            if !self.finishing
                && let Some((at, _)) = deadline
                && at < self.timer.deadline()
            {
                self.set_timer(at);
            }
            if self.is_timed(context) {
                return Poll::Pending;
            }
            if self.timer.as_mut().poll(context).is_pending() {
                self.timed = Some(context.waker().clone());
                return Poll::Pending;
            }
            let now = Instant::now();
            if self.finishing {
                if self.entry.connection.waits_for_client() {
                    return Poll::Ready(Some(CloseReason::Stopped));
                }
                self.set_timer(now + STOP_GRACE);
                continue;
            }
            match deadline {
                Some((at, why)) if at <= now => return Poll::Ready(Some(why)),
                Some((at, _)) => self.set_timer(at),
                // Only a handler is running; its end is noticed when it comes.
                None => self.set_timer(now + self.limits.idle),
            }
        }
    }
}

impl Future for ServedConnection {
    type Output = Option<CloseReason>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<CloseReason>> {
        self.entry.connection.listen(context.waker());
        // First, so that pending responses are written before any timeout is checked.
        if let Poll::Ready(ended) = self.http.as_mut().poll(context) {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection failed");
            }
            let has_failed = self
                .entry
                .connection
                .handshake_failed
                .load(Ordering::Relaxed);
            return Poll::Ready(has_failed.then_some(CloseReason::HandshakeFailed));
        }
        self.update();
        if let Poll::Ready(why) = self.poll_order(context) {
            return Poll::Ready(why);
        }
        self.poll_timer(context)
    }
}
