//! The pace of an open loop: releases requests when they are due, from its own thread.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::sync::Semaphore;

/// Tokio's timers are ten times as coarse.
const TICK: Duration = Duration::from_micros(100);

/// Releases requests at a constant rate until it is dropped.
pub(crate) struct Pace {
    /// Nanoseconds between two requests.
    interval: u64,
    /// Number of requests of the load.
    pub(crate) total: u64,
    /// A permit for each request that is due and not yet started.
    pub(crate) due: Arc<Semaphore>,
}

impl Pace {
    /// Nanoseconds between two requests.
    pub(crate) fn interval(rate: u32) -> u64 {
        1_000_000_000 / u64::from(rate.max(1))
    }

    /// Releases `total` requests for this many workers.
    pub(crate) fn start(rate: u32, total: u64, workers: usize, start: Instant) -> Result<Self> {
        let pace = Self {
            interval: Self::interval(rate),
            total,
            due: Arc::new(Semaphore::new(0)),
        };
        let (due, interval) = (Arc::clone(&pace.due), pace.interval);
        thread::Builder::new()
            .name("pace".to_owned())
            .spawn(move || {
                let mut released = 0;
                while released < total && !due.is_closed() {
                    let elapsed = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    let now = (elapsed / interval + 1).min(total);
                    due.add_permits(usize::try_from(now - released).unwrap_or(0));
                    released = now;
                    thread::sleep(TICK);
                }
                // Wakes all workers, so that they end.
                due.add_permits(workers);
            })
            .context("a thread cannot be started")?;
        Ok(pace)
    }

    /// When a request is due, after the start.
    pub(crate) fn after(&self, serial: u64) -> Duration {
        Duration::from_nanos(self.interval.saturating_mul(serial))
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.due.close();
    }
}
