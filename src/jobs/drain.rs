//! Counts what was admitted while Redis was down, once it is back.
//!
//! [`DrainJob::run`] loops; [`DrainJob::drain_once`] does the work. Any number of instances may run it at once.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::driver::Job;
use crate::context::Context;
use crate::failure::Failure;
use crate::metrics::{Pending, Worker};
use crate::postgres::pending_increments::{self, Backlog};
use crate::usage::drain::Drainer;

/// Between two rounds.
const INTERVAL: Duration = Duration::from_millis(500);

/// The job that drains.
#[derive(Debug, Clone)]
pub struct DrainJob {
    ctx: Context,
    drainer: Drainer,
}

impl DrainJob {
    /// Creates the job.
    pub fn new(ctx: Context, drainer: Drainer) -> Self {
        Self { ctx, drainer }
    }

    /// Drains everything that is pending, as far as possible; returns how many organizations it has drained.
    pub async fn drain_once(&self) -> Result<usize, Failure> {
        let mut drained = 0;
        if self.observe().await?.increments == 0 {
            return Ok(drained);
        }
        self.ctx.redis.connection().await?;
        loop {
            let round = self.drainer.drain_once().await?;
            drained += round;
            if round == 0 || self.observe().await?.increments == 0 {
                return Ok(drained);
            }
        }
    }

    /// Measures how much is pending.
    async fn observe(&self) -> Result<Backlog, Failure> {
        let backlog = pending_increments::backlog(&self.ctx.postgres).await?;
        let age = backlog.since.map(|since| self.ctx.clock.now() - since);
        self.ctx.metrics.set_pending(Pending {
            increments: backlog.increments,
            // Negative if the clock of another instance is ahead.
            age: age.and_then(|age| age.to_std().ok()).unwrap_or_default(),
        });
        Ok(backlog)
    }

    /// Drains until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        Job::new(&self.ctx, Some(Worker::Drain), "count what is pending")
            .cancellable()
            .every(INTERVAL, &stop, || self.drain_once())
            .await;
    }
}
