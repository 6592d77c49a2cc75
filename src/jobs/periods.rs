//! Ends expired periods on time in scheduled mode, and finishes interrupted resets and adjustments.
//!
//! [`PeriodsJob::run`] loops; [`PeriodsJob::sweep_once`] does the work. Any number of instances may run it at once.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::driver::Job;
use crate::admin::{self, Admin};
use crate::context::Context;
use crate::metrics::Worker;

/// Between two sweeps, and so the longest delay of a reset, apart from the duration of a sweep.
const INTERVAL: Duration = Duration::from_secs(1);

/// The job that ends periods.
#[derive(Debug, Clone)]
pub struct PeriodsJob {
    ctx: Context,
    admin: Admin,
    /// Whether this instance ends periods; where it does not, clients call `POST /v1/reset-expired`.
    ends_periods: bool,
}

impl PeriodsJob {
    /// A job that ends periods only if `ends_periods`.
    pub fn new(ctx: Context, admin: Admin, ends_periods: bool) -> Self {
        Self {
            ctx,
            admin,
            ends_periods,
        }
    }

    /// Finishes interrupted resets and adjustments, deletes old idempotency records, and ends expired periods; returns of
    /// how many organizations.
    pub async fn sweep_once(&self) -> Result<usize, admin::Error> {
        self.admin.finish_resets_once().await?;
        self.admin.finish_adjustments_once().await?;
        self.admin.delete_old_idempotency_records().await?;
        if !self.ends_periods {
            return Ok(0);
        }
        let ended = self.admin.reset_expired_once().await?.count;
        self.ctx.metrics.periods_ended(ended);
        Ok(ended)
    }

    /// Sweeps until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        Job::new(&self.ctx, Some(Worker::Periods), "end periods")
            .every(INTERVAL, &stop, || self.sweep_once())
            .await;
    }
}
