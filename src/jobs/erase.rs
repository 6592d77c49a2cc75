//! Erases the remaining data of deleted organizations: old history in Postgres, and their keys in Redis.
//!
//! The deletion itself ([`Admin::delete_organization`](crate::admin::Admin::delete_organization)) is effective at once.
//! It leaves a row for each erasure, which stays until the data is erased, so an erasure survives a crash.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::driver::Job;
use crate::context::Context;
use crate::failure::Failure;
use crate::metrics::Worker;
use crate::postgres::deletions::{self, Erasure};

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long an instance may work on an erasure before another one takes it over.
const LEASE: TimeDelta = TimeDelta::seconds(60);

/// How often the leases of a work that is not finished are extended.
const RENEWAL: Duration = Duration::from_secs(20);

/// How many times as long as its work the job pauses: scans of Redis take at most 10 % of the time.
const THROTTLE: u32 = 9;

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_hours(1);

/// The most erasures that one scan of Redis serves.
const BATCH: u32 = 1000;

/// The job that erases.
#[derive(Debug, Clone)]
pub struct Eraser {
    ctx: Context,
}

impl Eraser {
    /// A job for this service.
    pub fn new(ctx: Context) -> Self {
        Self { ctx }
    }

    /// Erases the remaining data of deleted organizations whose erasure is due; returns how many there were.
    pub async fn erase_once(&self) -> Result<usize, Failure> {
        let postgres = &self.ctx.postgres;
        let now = self.ctx.clock.now();
        let due = deletions::lease(postgres, now, now + LEASE, BATCH).await?;
        if due.is_empty() {
            return Ok(0);
        }
        tokio::select! {
            erased = self.erase(&due) => erased?,
            never = self.keep_leased(&due) => match never {},
        }
        Ok(due.len())
    }

    async fn erase(&self, due: &[Erasure]) -> Result<(), Failure> {
        let postgres = &self.ctx.postgres;
        let incarnations: BTreeMap<_, _> = due
            .iter()
            .map(|it| (it.organization.clone(), it.incarnation))
            .collect();
        for erasure in due {
            while deletions::erase_history(postgres, erasure).await? > 0 {}
        }
        let redis = self.ctx.redis.pooled().await?;
        redis.erase_traces(&incarnations).await?;
        drop(redis);
        for erasure in due {
            deletions::finish(postgres, erasure).await?;
        }
        Ok(())
    }

    /// Extends leases again and again, because a scan of very many keys takes minutes.
    async fn keep_leased(&self, due: &[Erasure]) -> Infallible {
        loop {
            tokio::time::sleep(RENEWAL).await;
            let until = self.ctx.clock.now() + LEASE;
            // If it fails, another instance may erase the same, which does no harm.
            let _ = deletions::extend(&self.ctx.postgres, due, until).await;
        }
    }

    /// Erases until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let task = "erase the data of deleted organizations";
        Job::new(&self.ctx, Some(Worker::Erase), task)
            .cancellable()
            .paced(INTERVAL, &stop, || async {
                let started = Instant::now();
                self.erase_once().await?;
                let pause = started.elapsed().saturating_mul(THROTTLE);
                Ok::<_, Failure>(pause.clamp(INTERVAL, PAUSE_MAX))
            })
            .await;
    }
}
