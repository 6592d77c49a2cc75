//! Drives background jobs: rounds at an interval, metrics, logs when an outage begins and ends, throttling, supervision.

use std::fmt::Display;
use std::time::{Duration, Instant};

use futures::TryFutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::context::Context;
use crate::metrics::{Metrics, Worker};

/// How many times as long as its work a throttled job pauses: it runs for at most 10 % of the time, because it
/// competes with requests for CPU, Redis and Postgres.
const THROTTLE: u32 = 9;

/// The longest pause of a throttled job: a loss of Redis loses the counts that are not stored yet.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long to pause after work that took this long.
pub(super) fn throttle(took: Duration) -> Duration {
    (took * THROTTLE).min(PAUSE_MAX)
}

/// A job that runs in rounds.
pub(super) struct Job<'a> {
    metrics: &'a Metrics,
    /// None if another job reports the same outages.
    worker: Option<Worker>,
    /// What it does, for the log: "store counts".
    task: &'static str,
    /// Whether a stop cancels a round that is running.
    cancellable: bool,
    failing_since: Option<Instant>,
}

impl<'a> Job<'a> {
    /// Without a worker, a job has no metrics, and its failures are logged at level debug.
    pub(super) fn new(ctx: &'a Context, worker: Option<Worker>, task: &'static str) -> Self {
        Self {
            metrics: &ctx.metrics,
            worker,
            task,
            cancellable: false,
            failing_since: None,
        }
    }

    /// Lets a stop cancel a round that is running: for rounds that take long and may end anywhere.
    pub(super) fn cancellable(mut self) -> Self {
        self.cancellable = true;
        self
    }

    /// Runs `once` every `interval` until `stop`, and finishes a round that is running.
    pub(super) async fn every<T, E: Display, F: Future<Output = Result<T, E>>>(
        &mut self,
        interval: Duration,
        stop: &CancellationToken,
        mut once: impl FnMut() -> F,
    ) {
        let round = || once().map_ok(|_| interval);
        self.paced(interval, stop, round).await;
    }

    /// The same, where a round returns how long to pause after it; after a failure the pause is `interval`.
    pub(super) async fn paced<E: Display, F: Future<Output = Result<Duration, E>>>(
        &mut self,
        interval: Duration,
        stop: &CancellationToken,
        mut once: impl FnMut() -> F,
    ) {
        let mut pause = interval;
        while let Some(()) = stop.run_until_cancelled(tokio::time::sleep(pause)).await {
            let cancellable = self.cancellable;
            // Boxed, because a round is a large future.
            let round = self.round(Box::pin(once()));
            let done = if cancellable {
                stop.run_until_cancelled(round).await.flatten()
            } else {
                round.await
            };
            pause = done.unwrap_or(interval);
        }
    }

    /// Runs one round: measures it, and logs if it is the first to fail, or to succeed again.
    pub(super) async fn round<T, E: Display>(
        &mut self,
        once: impl Future<Output = Result<T, E>>,
    ) -> Option<T> {
        let done = match self.worker {
            Some(worker) => self.metrics.timed(worker, once).await,
            None => once.await,
        };
        match done {
            Ok(done) => {
                if let Some(since) = self.failing_since.take() {
                    let seconds = since.elapsed().as_secs();
                    tracing::info!(outage.seconds = seconds, "can {} again", self.task);
                }
                Some(done)
            }
            Err(error) => {
                if self.failing_since.is_none() {
                    self.log(&error);
                    self.failing_since = Some(Instant::now());
                }
                None
            }
        }
    }

    fn log(&self, error: &impl Display) {
        match self.worker {
            // While this fails, a loss of Redis loses counts.
            Some(Worker::Flush) => tracing::error!(%error, "cannot {}", self.task),
            Some(_) => tracing::warn!(%error, "cannot {}", self.task),
            None => tracing::debug!(%error, "cannot {}", self.task),
        }
    }
}

/// Runs jobs, and detects that one has ended before it was stopped, which means that it panicked.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: TaskTracker,
    died: CancellationToken,
}

impl Supervisor {
    /// Starts a job.
    pub fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let guard = self.died.clone().drop_guard();
        self.tasks.spawn(async move {
            job.await;
            drop(guard);
        });
    }

    /// Waits until a job ends.
    pub async fn died(&self) {
        self.died.cancelled().await;
    }

    /// Waits until all jobs have ended, at most for `patience`; returns whether they have.
    pub async fn ended(&self, patience: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(patience, self.tasks.wait())
            .await
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicBool, Ordering};

    use chrono::{DateTime, Utc};
    use tokio::sync::Notify;

    use super::*;

    /// Stops a job while its first round runs; returns whether that round was finished.
    async fn finishes_its_round(job: Job<'_>) -> bool {
        let (stop, finished) = (CancellationToken::new(), AtomicBool::new(false));
        let started = Notify::new();
        let mut job = job;
        let run = job.every(Duration::ZERO, &stop, || async {
            started.notify_one();
            // Pending often enough for the stop to come in between.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            finished.store(true, Ordering::Relaxed);
            Ok::<_, Infallible>(())
        });
        let control = async {
            started.notified().await;
            stop.cancel();
        };
        tokio::join!(run, control);
        finished.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_stop_waits_for_the_running_round_unless_it_is_cancellable() {
        let metrics = Metrics::new("0.1.0", DateTime::<Utc>::UNIX_EPOCH);
        let job = |cancellable| Job {
            metrics: &metrics,
            worker: None,
            task: "test",
            cancellable,
            failing_since: None,
        };
        assert!(finishes_its_round(job(false)).await);
        assert!(!finishes_its_round(job(true)).await);
    }
}
