//! The only reader of wall time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Duration, Utc};

use crate::domain::checkup::Distance;

/// How often the distance of a server is measured.
const ROUND_TRIPS: usize = 9;

/// The time in whole milliseconds: the system's, one that differs from it, or one that a test advances.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// A clock that is ahead of the machine's by this much, or behind it.
    Shifted(Duration),
    /// Milliseconds since the epoch, shared by all clones.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that shows `start` until it is advanced.
    pub fn manual(start: DateTime<Utc>) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(start.timestamp_millis())))
    }

    /// The current time.
    pub fn now(&self) -> DateTime<Utc> {
        match self {
            #[expect(
                clippy::disallowed_methods,
                reason = "the only place that reads wall time"
            )]
            Self::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                instant(i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX))
            }
            Self::Shifted(by) => Self::System.now() + *by,
            Self::Manual(ms) => instant(ms.load(Ordering::SeqCst)),
        }
    }

    /// Measures how far away a server is, which `ask` asks for its time.
    pub async fn distance<E>(
        &self,
        mut ask: impl AsyncFnMut() -> Result<DateTime<Utc>, E>,
    ) -> Result<Distance, E> {
        let mut readings = Vec::with_capacity(ROUND_TRIPS);
        for _ in 0..ROUND_TRIPS {
            let (before, started) = (self.now(), Instant::now());
            let said = ask().await?;
            let round_trip = started.elapsed();
            // It read its clock in the middle of the round trip.
            let half = Duration::from_std(round_trip / 2).unwrap_or_default();
            let skew = said - (before + half);
            readings.push(Distance { skew, round_trip });
        }
        readings.sort_unstable_by_key(|reading| reading.round_trip);
        let median = readings.get(ROUND_TRIPS / 2).copied();
        Ok(median.unwrap_or_default())
    }

    /// Advances a manual clock; no effect on the system clock.
    pub fn advance(&self, by: Duration) {
        if let Self::Manual(ms) = self {
            ms.fetch_add(by.num_milliseconds(), Ordering::SeqCst);
        }
    }
}

fn instant(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap_or(DateTime::<Utc>::MAX_UTC)
}
