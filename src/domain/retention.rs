//! How long counters and their hours are of use, given how late an event may come.

use chrono::{DateTime, Duration, Utc};

/// How far ahead of the clock an event may be.
pub const EARLY: Duration = Duration::minutes(5);

/// When a counter that is stored may disappear from Redis: its period is final and no event reaches
/// it any more, with a day to spare. None while its period does not end.
pub fn expiry(end: Option<DateTime<Utc>>, late: Duration) -> Option<DateTime<Utc>> {
    end?.checked_add_signed(late)?
        .checked_add_signed(Duration::days(1))
}

/// No event reaches an hour that begins before this; two hours to spare, because some are longer.
pub fn oldest_hour(now: DateTime<Utc>, late: Duration) -> DateTime<Utc> {
    now.checked_sub_signed(late)
        .and_then(|instant| instant.checked_sub_signed(Duration::hours(2)))
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}
