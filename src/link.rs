//! The link to a server: one task connects, watches the connection, and connects again when it breaks.
//!
//! Callers share the attempt that is running and its result. While the server is down they fail at once with the failure of
//! the last attempt, as behind a circuit breaker: an outage costs a caller milliseconds, however many there are, and the
//! task notices the end of it however few there are.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

/// How long an attempt to connect may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause after a failed attempt.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// How long a caller waits for the next attempt while the server is down: long enough for one that succeeds.
const DOWN_WAIT: Duration = Duration::from_millis(10);

/// Between two checks of a connection.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How long half of a check may take. Two, so that a process that had no CPU itself still reads the reply.
const CHECK_TIMEOUT: Duration = Duration::from_millis(200);

/// A server that a [`Link`] leads to.
pub trait Server: Send + Sync + 'static {
    /// What callers use.
    type Connection: Clone + Send + Sync + 'static;
    /// Why there is none.
    type Error: Clone + Send + Sync + 'static;

    /// Connects.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, Self::Error>> + Send;

    /// Returns when the server has replied.
    fn check(
        &self,
        connection: &Self::Connection,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Whether a connection cannot be used any more.
    fn is_broken(connection: &Self::Connection) -> bool;

    /// Returns when a connection cannot be used any more.
    fn broken(connection: &Self::Connection) -> impl Future<Output = ()> + Send;

    /// Makes a connection unusable, and fails what waits for a reply over it.
    fn break_off(connection: &Self::Connection);

    /// The error where the server does not reply in time.
    fn late() -> Self::Error;

    /// Records whether the server is up.
    fn observe(&self, up: bool);
}

/// The link to a server; clones share it. It connects at its first use.
pub struct Link<S: Server>(Arc<Shared<S>>);

struct Shared<S: Server> {
    server: S,
    state: watch::Sender<State<S>>,
    wanted: Arc<Notify>,
}

enum State<S: Server> {
    /// Nobody has used the link, or the connection has broken and the first attempt is running.
    Connecting,
    Up(S::Connection),
    /// The last attempt has failed.
    Down(S::Error),
}

impl<S: Server> Clone for Link<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Server> fmt::Debug for Link<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl<S: Server> Link<S> {
    /// A link that connects at its first use; it ends with its last handle.
    pub fn new(server: S) -> Self {
        let wanted = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            server,
            state: watch::Sender::new(State::Connecting),
            wanted: Arc::clone(&wanted),
        });
        let weak = Arc::downgrade(&shared);
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with the last handle, and has nothing to save"
        )]
        tokio::spawn(async move {
            wanted.notified().await;
            keep_connected(weak).await;
        });
        Self(shared)
    }

    /// The server.
    pub fn server(&self) -> &S {
        &self.0.server
    }

    /// The connection in use, or else the result of the running attempt. While the server is down, fails within
    /// milliseconds.
    pub async fn connection(&self) -> Result<S::Connection, S::Error> {
        match &*self.0.state.borrow() {
            State::Up(connection) if !S::is_broken(connection) => return Ok(connection.clone()),
            _ => {}
        }
        // Boxed: keeps the hot-path future small.
        Box::pin(self.wait()).await
    }

    async fn wait(&self) -> Result<S::Connection, S::Error> {
        let mut state = self.0.state.subscribe();
        self.0.wanted.notify_one();
        let started = Instant::now();
        loop {
            let down = match &*state.borrow_and_update() {
                State::Up(connection) if !S::is_broken(connection) => {
                    return Ok(connection.clone());
                }
                State::Down(error) => Some(error.clone()),
                State::Up(_) | State::Connecting => None,
            };
            let patience = match down {
                Some(_) => DOWN_WAIT.saturating_sub(started.elapsed()),
                None => ATTEMPT_TIMEOUT + DOWN_WAIT,
            };
            let changed = timeout(patience, state.changed()).await;
            match (changed, down) {
                // The attempt that was running has failed.
                (Err(_), Some(error)) => return Err(error),
                (Err(_), None) | (Ok(Err(_)), _) => return Err(S::late()),
                (Ok(Ok(())), _) => {}
            }
        }
    }

    /// Returns once an attempt to connect has failed, with its failure.
    pub async fn down(&self) -> S::Error {
        let mut state = self.0.state.subscribe();
        loop {
            if let State::Down(error) = &*state.borrow_and_update() {
                return error.clone();
            }
            // The sender lives as long as this handle.
            let _ = state.changed().await;
        }
    }

    /// The failure of the last attempt, while the server is down. A use of the link, like any other.
    pub fn failure(&self) -> Option<S::Error> {
        self.0.wanted.notify_one();
        match &*self.0.state.borrow() {
            State::Down(error) => Some(error.clone()),
            State::Up(_) | State::Connecting => None,
        }
    }
}

async fn keep_connected<S: Server>(link: Weak<Shared<S>>) {
    loop {
        let Some(shared) = link.upgrade() else { return };
        let attempt = timeout(ATTEMPT_TIMEOUT, shared.server.connect()).await;
        match attempt.unwrap_or_else(|_| Err(S::late())) {
            Ok(connection) => {
                shared.server.observe(true);
                shared.state.send_replace(State::Up(connection.clone()));
                drop(shared);
                watch_over(&link, &connection).await;
                let Some(shared) = link.upgrade() else { return };
                shared.state.send_replace(State::Connecting);
            }
            Err(error) => {
                shared.server.observe(false);
                // Wakes nobody if the server was down before.
                shared.state.send_if_modified(|state| {
                    let before = std::mem::replace(state, State::Down(error));
                    !matches!(before, State::Down(_))
                });
                drop(shared);
                sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// Returns when a connection is broken, or the link has no handle any more.
async fn watch_over<S: Server>(link: &Weak<Shared<S>>, connection: &S::Connection) {
    loop {
        let pause = timeout(CHECK_INTERVAL, S::broken(connection)).await;
        let Some(shared) = link.upgrade() else { return };
        if pause.is_ok() {
            return;
        }
        let mut check = Box::pin(shared.server.check(connection));
        let mut replied = timeout(CHECK_TIMEOUT, &mut check).await;
        if replied.is_err() {
            replied = timeout(CHECK_TIMEOUT, &mut check).await;
        }
        if !matches!(replied, Ok(Ok(()))) {
            S::break_off(connection);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// A server that replies, refuses or hangs, and counts the attempts to connect.
    #[derive(Clone, Default)]
    struct Fake {
        is_away: Arc<AtomicBool>,
        hangs: Arc<AtomicBool>,
        attempts: Arc<AtomicUsize>,
    }

    impl Fake {
        async fn reply(&self) -> Result<(), &'static str> {
            if self.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if self.is_away.load(Ordering::SeqCst) {
                return Err("refused");
            }
            Ok(())
        }
    }

    impl Server for Fake {
        type Connection = CancellationToken;
        type Error = &'static str;

        async fn connect(&self) -> Result<CancellationToken, &'static str> {
            self.attempts.fetch_add(1, Ordering::SeqCst);
            self.reply().await.map(|()| CancellationToken::new())
        }

        async fn check(&self, _: &CancellationToken) -> Result<(), &'static str> {
            self.reply().await
        }

        fn is_broken(connection: &CancellationToken) -> bool {
            connection.is_cancelled()
        }

        async fn broken(connection: &CancellationToken) {
            connection.cancelled().await;
        }

        fn break_off(connection: &CancellationToken) {
            connection.cancel();
        }

        fn late() -> &'static str {
            "late"
        }

        fn observe(&self, _: bool) {}
    }

    #[tokio::test(start_paused = true)]
    async fn callers_share_one_attempt_and_a_connection_that_breaks_is_replaced() {
        let fake = Fake::default();
        let link = Link::new(fake.clone());
        let connections = join_all((0..100).map(|_| link.connection())).await;
        assert!(connections.iter().all(Result::is_ok));
        assert_eq!(fake.attempts.load(Ordering::SeqCst), 1);
        let first = connections[0].clone().unwrap();
        first.cancel();
        assert!(!link.connection().await.unwrap().is_cancelled());
        assert_eq!(fake.attempts.load(Ordering::SeqCst), 2);
        // Nobody has to call for the connection to be watched.
        fake.hangs.store(true, Ordering::SeqCst);
        assert_eq!(link.down().await, "late");
        fake.hangs.store(false, Ordering::SeqCst);
        assert!(link.connection().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_server_is_away_or_hangs_callers_fail_within_milliseconds() {
        for (is_away, failure) in [(true, "refused"), (false, "late")] {
            let fake = Fake::default();
            fake.is_away.store(is_away, Ordering::SeqCst);
            fake.hangs.store(!is_away, Ordering::SeqCst);
            let link = Link::new(fake.clone());
            // The first callers wait for the first attempt.
            assert_eq!(link.connection().await.unwrap_err(), failure);
            for _ in 0..10 {
                let started = Instant::now();
                let failures = join_all((0..100).map(|_| link.connection())).await;
                assert!(
                    failures
                        .iter()
                        .all(|it| *it.as_ref().unwrap_err() == failure)
                );
                assert_eq!(started.elapsed(), DOWN_WAIT);
                assert_eq!(link.failure(), Some(failure));
            }
            fake.is_away.store(false, Ordering::SeqCst);
            fake.hangs.store(false, Ordering::SeqCst);
            let up = timeout(ATTEMPT_TIMEOUT * 2, async {
                while link.connection().await.is_err() {}
            });
            assert!(up.await.is_ok());
            assert_eq!(link.failure(), None);
        }
    }
}
