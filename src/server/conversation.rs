//! One connection from its beginning to its end: hyper speaks, and a single timer looks at how it stands.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::{Builder, Connection as Speaking};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::service::Answerer;
use super::state::{Entry, Order};
use super::stream::Watched;
use crate::config::ConnectionLimits;
use crate::metrics::CloseReason;

/// The largest head of a request, bytes. Beside it, room for a URI that is refused for its own length.
const HEAD_MAX: usize = 80 * 1024;

/// How many requests a connection of HTTP/2 has at once at most.
const STREAMS_MAX: u32 = 128;

/// How often a connection of HTTP/2 is asked whether anybody is there.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long a stop waits for a caller who has begun to send, or does not take what it is sent.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

type Hyper = Speaking<'static, TokioIo<Watched>, Answerer, TokioExecutor>;

/// How HTTP is spoken, with whomever.
#[derive(Debug)]
pub(super) struct Protocols(Builder<TokioExecutor>);

impl Protocols {
    pub(super) fn new() -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            // It would put a timer of its own into a box for every request; ours is one for all of them.
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

/// A connection; ends with what made us end it, if we did.
pub(super) struct Conversation {
    speaking: Pin<Box<Hyper>>,
    timer: Pin<Box<Sleep>>,
    limits: ConnectionLimits,
    entry: Entry,
    /// Since when there is no request.
    waiting: Option<Instant>,
    /// Since when there is half a head.
    head: Option<Instant>,
    /// Since when an answer is stuck.
    blocked: Option<Instant>,
    finishing: bool,
}

impl Conversation {
    pub(super) fn new(
        stream: TcpStream,
        router: Router,
        protocols: &Protocols,
        limits: ConnectionLimits,
        entry: Entry,
    ) -> Self {
        let connection = &entry.connection;
        let io = TokioIo::new(Watched::new(stream, connection.clone()));
        let answerer = Answerer {
            router,
            connection: connection.clone(),
        };
        let speaking = protocols.0.serve_connection(io, answerer).into_owned();
        let now = Instant::now();
        entry.waits_since(now);
        Self {
            speaking: Box::pin(speaking),
            timer: Box::pin(sleep_until(now + limits.header)),
            limits,
            entry,
            waiting: Some(now),
            head: None,
            blocked: None,
            finishing: false,
        }
    }

    /// Notes what has begun or ended, and when.
    fn look(&mut self) {
        let connection = &self.entry.connection;
        let head = connection.head_begun.load(Ordering::Relaxed)
            && !connection.multiplexed.load(Ordering::Relaxed);
        let stuck = connection.blocked.load(Ordering::Relaxed);
        let waits = connection.waits();
        if waits && self.waiting.is_none() {
            let now = Instant::now();
            self.waiting = Some(now);
            self.entry.waits_since(now);
        } else if !waits {
            self.waiting = None;
        }
        for (state, since) in [(head, &mut self.head), (stuck, &mut self.blocked)] {
            if state && since.is_none() {
                *since = Some(Instant::now());
            } else if !state {
                *since = None;
            }
        }
    }

    /// When it has to be looked at again at the latest, and why it ends then if nothing changes.
    fn deadline(&self) -> Option<(Instant, CloseReason)> {
        let asked = self.entry.connection.asked.load(Ordering::Relaxed);
        let limits = &self.limits;
        let waiting = self.waiting.map(|since| {
            if asked {
                (since + limits.idle, CloseReason::IdleTimeout)
            } else {
                (since + limits.header, CloseReason::HeaderTimeout)
            }
        });
        let head = self
            .head
            .map(|it| (it + limits.header, CloseReason::HeaderTimeout));
        let stuck = self
            .blocked
            .map(|it| (it + limits.body, CloseReason::WriteTimeout));
        [waiting, head, stuck]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    /// Begins to end where that is wanted; ready if there is nothing to wait for.
    fn poll_order(&mut self, context: &mut Context<'_>) -> Poll<Option<CloseReason>> {
        match self.entry.connection.order() {
            Order::Go => Poll::Pending,
            Order::Evicted => Poll::Ready(Some(CloseReason::Evicted)),
            Order::Close => Poll::Ready(Some(CloseReason::Stopped)),
            Order::Finish if self.finishing => Poll::Pending,
            Order::Finish => {
                self.finishing = true;
                self.speaking.as_mut().graceful_shutdown();
                let done = self.speaking.as_mut().poll(context).is_ready();
                if done || self.entry.connection.waits() {
                    return Poll::Ready(Some(CloseReason::Stopped));
                }
                self.timer.as_mut().reset(Instant::now() + STOP_PATIENCE);
                Poll::Pending
            }
        }
    }

    /// The timer, set to the next deadline again and again.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<Option<CloseReason>> {
        loop {
            let deadline = self.deadline();
            if !self.finishing
                && let Some((at, _)) = deadline
                && at < self.timer.deadline()
            {
                self.timer.as_mut().reset(at);
            }
            ready!(self.timer.as_mut().poll(context));
            let now = Instant::now();
            if self.finishing {
                if self.entry.connection.waits_for_caller() {
                    return Poll::Ready(Some(CloseReason::Stopped));
                }
                self.timer.as_mut().reset(now + STOP_PATIENCE);
                continue;
            }
            match deadline {
                Some((at, why)) if at <= now => return Poll::Ready(Some(why)),
                Some((at, _)) => self.timer.as_mut().reset(at),
                // A request is being answered; whatever comes after it is noted when it comes.
                None => self.timer.as_mut().reset(now + self.limits.idle),
            }
        }
    }
}

impl Future for Conversation {
    type Output = Option<CloseReason>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<CloseReason>> {
        self.entry.connection.listen(context.waker());
        // First, so that what was answered has left before anything else is decided.
        if let Poll::Ready(ended) = self.speaking.as_mut().poll(context) {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection has ended");
            }
            return Poll::Ready(None);
        }
        self.look();
        if let Poll::Ready(why) = self.poll_order(context) {
            return Poll::Ready(why);
        }
        self.poll_timer(context)
    }
}
