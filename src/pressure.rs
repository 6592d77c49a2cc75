//! Tells a queue that stays long from a burst, so that no queue is longer than its callers wait.
//!
//! The measure is how long the oldest waiting call has waited. A burst, or a pause of the server, raises it briefly; under
//! a load beyond capacity it stays high, however long the queue is. So calls are refused only once it has been above a
//! target for a while, and as long as it is. After `CoDel` (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10/5,
//! 2012), which drops packets by the same measure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pressure on one queue; clones share it.
#[derive(Debug, Clone)]
pub struct Pressure(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    target: Duration,
    tolerance: Duration,
    refuses: AtomicBool,
    excess: Mutex<Excess>,
}

#[derive(Debug, Default)]
struct Excess {
    /// Since when the oldest call has always waited longer than the target.
    since: Option<Instant>,
    /// When calls were last refused.
    refused_at: Option<Instant>,
}

impl Pressure {
    /// Of a queue whose calls may wait for `target`, and longer for as long as `tolerance`.
    pub fn new(target: Duration, tolerance: Duration) -> Self {
        Self(Arc::new(Inner {
            target,
            tolerance,
            refuses: AtomicBool::default(),
            excess: Mutex::default(),
        }))
    }

    /// Whether another call must be refused.
    pub fn refuses(&self) -> bool {
        self.0.refuses.load(Ordering::Relaxed)
    }

    /// Observes the queue whenever calls leave it: since when the oldest of those left has waited.
    pub fn observe(&self, oldest: Option<Instant>, now: Instant) {
        let waited = oldest.map(|since| now.saturating_duration_since(since));
        let queue = &*self.0;
        let excess = queue.excess.lock();
        let mut excess = excess.unwrap_or_else(PoisonError::into_inner);
        if waited.is_none_or(|waited| waited <= queue.target) {
            excess.since = None;
            queue.refuses.store(false, Ordering::Relaxed);
            return;
        }
        let since = *excess.since.get_or_insert(now);
        let lately = |at: Instant| now.saturating_duration_since(at) < queue.tolerance;
        // A load that was just beyond capacity probably still is.
        let refuses = !lately(since) || excess.refused_at.is_some_and(lately);
        if refuses {
            excess.refused_at = Some(now);
        }
        queue.refuses.store(refuses, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(20);
    const TOLERANCE: Duration = Duration::from_millis(200);

    /// Observes, at each of these milliseconds, a queue whose oldest call has waited for so long; returns when it
    /// refuses.
    fn refusals(waits: &[(u64, u64)]) -> Vec<u64> {
        let (pressure, start) = (Pressure::new(TARGET, TOLERANCE), Instant::now());
        let mut refused = Vec::new();
        for (at, waited) in waits {
            let now = start + Duration::from_secs(10) + Duration::from_millis(*at);
            let oldest = now.checked_sub(Duration::from_millis(*waited));
            pressure.observe(oldest, now);
            if pressure.refuses() {
                refused.push(*at);
            }
        }
        refused
    }

    #[test]
    fn a_burst_is_not_refused() {
        assert_eq!(
            refusals(&[(0, 0), (100, 100), (190, 150), (240, 15), (500, 30)]),
            [0; 0]
        );
    }

    #[test]
    fn a_queue_that_stays_long_is_refused_until_it_is_short() {
        let waits = [
            (0, 30),
            (100, 60),
            (210, 80),
            (300, 50),
            (310, 10),
            (320, 25),
            (700, 25),
            (900, 25),
        ];
        assert_eq!(refusals(&waits), [210, 300, 320, 700, 900]);
    }

    #[test]
    fn an_empty_queue_is_not_refused() {
        let (pressure, start) = (Pressure::new(TARGET, TOLERANCE), Instant::now());
        for after in [0, 300] {
            let now = start + Duration::from_secs(1) + Duration::from_millis(after);
            pressure.observe(Some(start), now);
        }
        assert!(pressure.refuses());
        pressure.observe(None, start + Duration::from_secs(2));
        assert!(!pressure.refuses());
    }
}
