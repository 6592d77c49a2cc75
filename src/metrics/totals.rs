//! Totals that this instance reads back.

use super::Metrics;

impl Metrics {
    /// Calls ended that count or check; each item of a batch is one.
    pub fn calls_ended(&self, calls: u64) {
        self.0.decisions.calls.inc_by(calls);
    }

    /// The calls since the start.
    pub fn calls(&self) -> u64 {
        self.0.decisions.calls.get()
    }

    /// The snapshots stored since the start.
    pub fn snapshots_stored(&self) -> u64 {
        self.0.jobs.flush_rows.get()
    }
}
