//! Latencies, to a thousandth of their size, up to two minutes.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::load::float;

/// Latencies in nanoseconds.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1_000, 120_000_000_000, 3)?))
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanoseconds);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// A quantile, in milliseconds.
    pub(crate) fn milliseconds(&self, quantile: f64) -> f64 {
        float(self.0.value_at_quantile(quantile)) / 1e6
    }

    /// The highest, in milliseconds.
    pub(crate) fn max(&self) -> f64 {
        float(self.0.max()) / 1e6
    }
}
