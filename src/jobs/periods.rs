//! Ends what is over in scheduled mode on time, and finishes resets and adjustments that were cut short.
//!
//! [`PeriodsJob::run`] loops; [`PeriodsJob::sweep_once`] does the work. Any number of instances may do it at once.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin};
use crate::context::Context;
use crate::metrics::Worker;

/// Between two looks; a reset is late by as much at most, and by what the look takes.
const INTERVAL: Duration = Duration::from_secs(1);

/// The handle on scheduling.
#[derive(Debug, Clone)]
pub struct PeriodsJob {
    ctx: Context,
    admin: Admin,
    /// Whether periods are ended here; somebody else may do it by `POST /v1/reset-expired`.
    ends_periods: bool,
}

impl PeriodsJob {
    /// A handle on these.
    pub fn new(ctx: Context, admin: Admin, ends_periods: bool) -> Self {
        Self {
            ctx,
            admin,
            ends_periods,
        }
    }

    /// Finishes resets and adjustments that were cut short, and ends periods that are over; returns of how many organizations.
    pub async fn sweep_once(&self) -> Result<usize, admin::Error> {
        self.admin.finish_resets_once().await?;
        self.admin.finish_adjustments_once().await?;
        self.admin.forget_attempts(self.ctx.idempotency).await?;
        if !self.ends_periods {
            return Ok(0);
        }
        let ended = self.admin.reset_expired_once().await?.count;
        self.ctx.metrics.periods_ended(ended);
        Ok(ended)
    }

    /// Sweeps until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut failing = false;
        while stop
            .run_until_cancelled(tokio::time::sleep(INTERVAL))
            .await
            .is_some()
        {
            match self
                .ctx
                .metrics
                .timed(Worker::Periods, self.sweep_once())
                .await
            {
                Err(error) if !failing => {
                    tracing::warn!(%error, "periods cannot be ended");
                    failing = true;
                }
                Err(_) => {}
                Ok(_) => failing = false,
            }
        }
    }
}
