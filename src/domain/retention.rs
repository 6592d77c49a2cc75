//! How long counters and their hours are kept in Redis for late events, and what was recorded is kept in Postgres.

use chrono::{DateTime, Duration, Utc};

/// The longest time after its end in which a setting can let a period accept late events.
pub const LATE_MAX: Duration = Duration::hours(24 * 31);

/// How far ahead of the clock an event may be.
pub const EARLY_MAX: Duration = Duration::minutes(5);

/// The fewest days of a retention of hourly usage: a restore, a late event and a projection never need older hours.
pub const HOURS_KEPT_MIN_DAYS: u64 = 35;

/// The fewest days of a retention of events: a delivery is given up after a day, and an endpoint that fails has five.
pub const EVENTS_KEPT_MIN_DAYS: u64 = 7;

/// No late event reaches a period that ended before this, with a margin of a day: its stored counters can be
/// garbage-collected.
pub fn oldest_end(now: DateTime<Utc>, late: Duration) -> DateTime<Utc> {
    before(now, late, Duration::days(1))
}

/// No late event reaches an hour that began before this, with a margin of two hours, because some hours are longer.
pub fn oldest_hour(now: DateTime<Utc>, late: Duration) -> DateTime<Utc> {
    before(now, late, Duration::hours(2))
}

/// What was recorded before this may be deleted from Postgres.
pub fn kept_since(now: DateTime<Utc>, kept: Duration) -> DateTime<Utc> {
    before(now, kept, Duration::zero())
}

fn before(now: DateTime<Utc>, late: Duration, margin: Duration) -> DateTime<Utc> {
    now.checked_sub_signed(late)
        .and_then(|instant| instant.checked_sub_signed(margin))
        .unwrap_or(DateTime::<Utc>::MIN_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hours_that_a_late_event_reaches_are_kept_whatever_the_settings_are() {
        let now: DateTime<Utc> = "2031-03-15T12:00:00Z".parse().unwrap();
        let kept = Duration::days(HOURS_KEPT_MIN_DAYS.try_into().unwrap());
        assert!(kept_since(now, kept) < oldest_hour(now, LATE_MAX));
        assert!(kept_since(now, kept) < oldest_end(now, LATE_MAX));
        assert_eq!(kept_since(now, Duration::MAX), DateTime::<Utc>::MIN_UTC);
    }
}
