//! Waits until replicas have what was counted, so that a failover loses nothing that was acknowledged.
//!
//! `WAIT` is about the writes of its own connection, and blocks that. So it has a connection of its own, over which it follows
//! a write: replicas that have this write have every earlier one of the server. Lanes that wait at the same time share one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisResult, pipe};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::error::Error;

/// How long replicas may take.
const WAIT_TIMEOUT: Duration = Duration::from_millis(500);

/// The replicas of one master.
#[derive(Debug)]
pub(super) struct Replication {
    connection: MultiplexedConnection,
    /// Cancelled when the connection is lost.
    broken: CancellationToken,
    replicas: u16,
    waits: Shared,
}

impl Replication {
    pub(super) fn new(
        connection: MultiplexedConnection,
        replicas: u16,
        broken: CancellationToken,
    ) -> Self {
        Self {
            connection,
            broken,
            replicas,
            waits: Shared::default(),
        }
    }

    /// Returns when enough replicas have everything that the master had when this was called. `key` is one that the master
    /// has; it is written.
    pub(super) async fn wait(&self, key: &str) -> Result<(), Error> {
        self.waits.share(self.wait_now(key)).await
    }

    async fn wait_now(&self, key: &str) -> Result<(), Error> {
        let mut pipeline = pipe();
        let write = ("", "PX", 1000);
        pipeline.cmd("SET").arg(key).arg(write).ignore();
        let limit = (self.replicas, WAIT_TIMEOUT.as_millis().to_string());
        pipeline.cmd("WAIT").arg(limit);
        let mut connection = self.connection.clone();
        let reply: RedisResult<(u16,)> = pipeline.query_async(&mut connection).await;
        let (reached,) = reply.map_err(|error| {
            if Error::from(error.clone()).breaks_connection() {
                self.broken.cancel();
            }
            // It was counted, and whether a replica has it is not known.
            Error::Unknown(error.to_string())
        })?;
        if reached < self.replicas {
            let needed = self.replicas;
            return Err(Error::Unknown(format!(
                "{reached} replicas have it, {needed} are needed"
            )));
        }
        Ok(())
    }
}

/// Waits of which each answers all callers that asked before it began.
#[derive(Debug, Default)]
struct Shared {
    /// How many callers have asked.
    asked: AtomicU64,
    last: Mutex<Last>,
}

/// The last wait that has ended.
#[derive(Debug)]
struct Last {
    /// How many callers had asked when it began.
    answers: u64,
    result: Result<(), Error>,
}

impl Default for Last {
    fn default() -> Self {
        Self {
            answers: 0,
            result: Ok(()),
        }
    }
}

impl Shared {
    /// The result of `wait`, or of another caller's that began after this was called.
    async fn share(&self, wait: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        let own = self.asked.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        let mut last = self.last.lock().await;
        if last.answers < own {
            let answers = self.asked.load(Ordering::Acquire);
            let result = wait.await;
            // Together, and only now: a caller that gives up while it waits answers nobody.
            *last = Last { answers, result };
        }
        last.result.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::AtomicUsize;

    use futures::FutureExt as _;
    use futures::future::join_all;
    use tokio::task::yield_now;

    use super::*;

    fn too_few() -> Result<(), Error> {
        Err(Error::Unknown("too few".to_owned()))
    }

    #[tokio::test]
    async fn callers_that_asked_before_a_wait_began_share_its_result() {
        let (shared, waits) = (Shared::default(), AtomicUsize::new(0));
        let wait = || async {
            let first = waits.fetch_add(1, Ordering::SeqCst) == 0;
            yield_now().await;
            if first { Ok(()) } else { too_few() }
        };
        let results = join_all((0..10).map(|_| shared.share(wait()))).await;
        // The others asked after the first wait had begun.
        assert!(results[0].is_ok() && results[1..].iter().all(Result::is_err));
        assert_eq!(waits.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_answers_nobody() {
        let shared = Shared::default();
        shared.share(async { Ok(()) }).await.unwrap();
        let mut running = Box::pin(shared.share(pending()));
        let mut given_up = Box::pin(shared.share(pending()));
        let mut other = Box::pin(shared.share(async { too_few() }));
        for waiting in [&mut running, &mut given_up] {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        assert!(other.as_mut().now_or_never().is_none());
        drop(running);
        // It begins a wait that would answer both.
        assert!(given_up.as_mut().now_or_never().is_none());
        drop(given_up);
        assert!(other.await.is_err());
    }
}
