//! How long counters and their hours are of use, given how late an event may come.

use chrono::{DateTime, Duration, Utc};

/// How far ahead of the clock an event may be.
pub const EARLY_MAX: Duration = Duration::minutes(5);

/// What ended before this is final, and no event reaches it any more, with a day to spare: a counter of it that is stored
/// may disappear from Redis.
pub fn oldest_end(now: DateTime<Utc>, late: Duration) -> DateTime<Utc> {
    now.checked_sub_signed(late)
        .and_then(|instant| instant.checked_sub_signed(Duration::days(1)))
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// No event reaches an hour that begins before this; two hours to spare, because some are longer.
pub fn oldest_hour(now: DateTime<Utc>, late: Duration) -> DateTime<Utc> {
    now.checked_sub_signed(late)
        .and_then(|instant| instant.checked_sub_signed(Duration::hours(2)))
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}
