//! How long counters and their hours are kept in Redis for late events.

use chrono::{DateTime, Duration, Utc};

/// The longest time after its end in which a setting can let a period accept late events.
pub const LATE_MAX: Duration = Duration::hours(24 * 31);

/// How far ahead of the clock an event may be.
pub const EARLY_MAX: Duration = Duration::minutes(5);

/// No late event reaches a period that ended before this, with a margin of a day: its stored counters can be
/// garbage-collected.
pub fn oldest_end(now: DateTime<Utc>, late: Duration) -> DateTime<Utc> {
    before(now, late, Duration::days(1))
}

/// No late event reaches an hour that began before this, with a margin of two hours, because some hours are longer.
pub fn oldest_hour(now: DateTime<Utc>, late: Duration) -> DateTime<Utc> {
    before(now, late, Duration::hours(2))
}

fn before(now: DateTime<Utc>, late: Duration, margin: Duration) -> DateTime<Utc> {
    now.checked_sub_signed(late)
        .and_then(|instant| instant.checked_sub_signed(margin))
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}
