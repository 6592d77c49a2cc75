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
    /// How many waits were asked for.
    asked: AtomicU64,
    last: Mutex<Last>,
}

/// The last wait, and how many that were asked for it has answered.
#[derive(Debug)]
struct Last {
    answers: u64,
    reply: Result<(), Error>,
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
            asked: AtomicU64::new(0),
            last: Mutex::new(Last {
                answers: 0,
                reply: Ok(()),
            }),
        }
    }

    /// Returns when enough replicas have everything that the master had when this was called. `key` is one that the master
    /// has; it is written.
    pub(super) async fn wait(&self, key: &str) -> Result<(), Error> {
        let own = self.asked.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        let mut last = self.last.lock().await;
        if last.answers < own {
            // Whoever has asked by now is answered by this one.
            last.answers = self.asked.load(Ordering::Acquire);
            last.reply = self.wait_now(key).await;
        }
        last.reply.clone()
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
