//! Deletes what is older than its retention: hourly usage, a month at a time, and events with their deliveries.
//!
//! [`RetentionJob::run`] loops; [`RetentionJob::delete_once`] does the work. Any number of instances may run it at once:
//! advisory locks let one of them delete at a time. The count of a period stays in history, whatever was dropped of its
//! hours.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;

use super::driver::{Job, throttle};
use crate::context::Context;
use crate::domain::retention;
use crate::metrics::Worker;
use crate::postgres::usage::{self, Dropped};
use crate::postgres::{self, events};

/// Between two rounds, and so until a partition that was in use is tried again.
const INTERVAL: Duration = Duration::from_mins(5);

/// The most events that one transaction deletes.
const BATCH: u32 = 1000;

/// How long what was recorded is kept; none means for ever.
#[derive(Debug, Clone, Copy, Default)]
pub struct Retention {
    /// Hourly usage.
    pub hours: Option<TimeDelta>,
    /// Events and their deliveries.
    pub events: Option<TimeDelta>,
}

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Months of hourly usage.
    pub months: usize,
    /// Events.
    pub events: u64,
}

/// The job that deletes.
#[derive(Debug, Clone)]
pub struct RetentionJob {
    ctx: Context,
    retention: Retention,
}

impl RetentionJob {
    /// A job that keeps usage and events for as long as `retention` says.
    pub fn new(ctx: Context, retention: Retention) -> Self {
        Self { ctx, retention }
    }

    /// Deletes everything that is older than its retention, but for a month that is in use.
    pub async fn delete_once(&self) -> Result<Deleted, postgres::Error> {
        let now = self.ctx.clock.now();
        let mut deleted = Deleted::default();
        if let Some(kept) = self.retention.hours {
            deleted.months = self.drop_months(retention::kept_since(now, kept)).await?;
        }
        if let Some(kept) = self.retention.events {
            deleted.events = self.delete_events(retention::kept_since(now, kept)).await?;
        }
        Ok(deleted)
    }

    async fn drop_months(&self, before: DateTime<Utc>) -> Result<usize, postgres::Error> {
        let expired = usage::months_before(&self.ctx.postgres, before).await?;
        let (mut dropped, mut left) = (0, expired.len());
        for month in expired {
            match usage::drop_month(&self.ctx.postgres, month).await? {
                Dropped::Done => {
                    tracing::info!(%month, "dropped hourly usage that is older than its retention");
                    self.ctx.metrics.month_dropped();
                    dropped += 1;
                }
                Dropped::Gone => {}
                // Flushes would wait behind a drop that waits, so it gives up soon and the next round tries again.
                Dropped::Busy => {
                    tracing::debug!(%month, "hourly usage is in use, and will be dropped later");
                    break;
                }
            }
            left -= 1;
        }
        self.ctx.metrics.set_months_expired(left);
        Ok(dropped)
    }

    async fn delete_events(&self, before: DateTime<Utc>) -> Result<u64, postgres::Error> {
        let (mut deleted, mut after) = (0, None);
        loop {
            let started = Instant::now();
            let step = events::delete_older(&self.ctx.postgres, before, after.as_ref(), BATCH);
            // None if another instance is deleting.
            let Some(step) = step.await? else {
                break;
            };
            deleted += step.deleted;
            self.ctx.metrics.events_deleted(step.deleted);
            if step.last.is_none() {
                break;
            }
            after = step.last;
            tokio::time::sleep(throttle(started.elapsed())).await;
        }
        if deleted > 0 {
            tracing::debug!(
                events = deleted,
                "deleted events that are older than their retention"
            );
        }
        Ok(deleted)
    }

    /// Deletes until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let task = "delete usage and events that are older than their retention";
        Job::new(&self.ctx, Some(Worker::Retention), task)
            .cancellable()
            .every(INTERVAL, &stop, || self.delete_once())
            .await;
    }
}
