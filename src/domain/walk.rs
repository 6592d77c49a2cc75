//! Walks: jobs that visit every organization, or every key of Redis, over and over, to repair or remove what they find.
//!
//! A walk competes with requests, so it is slow while there is little to visit. But it visits everything within a day,
//! because its rate grows with the number: 100 million organizations are 1,389 a second, of all instances together.

use std::time::Duration;

use chrono::TimeDelta;

/// In which time everything is visited: a day, with a margin for restarts and for what is added meanwhile.
const ROUND: Duration = Duration::from_hours(20);

/// The fewest organizations a second, so that a small service is repaired within seconds or minutes.
const RATE_MIN: u64 = 50;

/// The longest time between two batches.
const INTERVAL_MAX: Duration = Duration::from_secs(2);

/// The most organizations of a batch, so that others wait only briefly for what it locks.
const BATCH_MAX: u64 = 200;

/// What a walk may use of the time where a round needs it: a half. Beyond that it takes longer than a day.
const SHARE_MAX: u32 = 2;

/// How far the clocks of instances may be apart. Where the last claim is further in the future, the clock was wrong.
const AHEAD_MAX: TimeDelta = TimeDelta::minutes(-5);

/// How many organizations a walk over so many visits each second.
pub fn rate(organizations: u64) -> u64 {
    organizations.div_ceil(ROUND.as_secs()).max(RATE_MIN)
}

/// How many organizations are due, at most a batch, when so much time has passed since one of the instances claimed the
/// batch before; none if there was none.
pub fn due(organizations: u64, since: Option<TimeDelta>) -> u64 {
    let rate = rate(organizations);
    let batch = batch(rate);
    match since {
        Some(since) if since >= AHEAD_MAX => {
            let ms = u64::try_from(since.num_milliseconds()).unwrap_or(0);
            (rate.saturating_mul(ms) / 1000).min(batch)
        }
        _ => batch,
    }
}

/// How long a walk over so many organizations pauses after a batch that took so long. Uses a tenth of the time at most, or
/// what the rate needs, up to a half.
pub fn pause(organizations: u64, took: Duration) -> Duration {
    let rate = rate(organizations);
    let interval = time_of(batch(rate), rate, Duration::from_secs(1));
    let throttled = throttle(organizations, batch(rate), took, 10);
    throttled.max(interval.saturating_sub(took))
}

/// How long a walk over `total` things pauses after a step over `count` of them that took so long. Uses one part in `share`
/// of the time at most, or what a round needs, up to a half.
pub fn throttle(total: u64, count: u64, took: Duration, share: u32) -> Duration {
    let needed = time_of(count, total, ROUND);
    let at_most = needed.max(took.saturating_mul(SHARE_MAX));
    took.saturating_mul(share).min(at_most).saturating_sub(took)
}

fn batch(rate: u64) -> u64 {
    rate.saturating_mul(INTERVAL_MAX.as_secs()).min(BATCH_MAX)
}

/// How long `count` things take if `total` take `time`.
fn time_of(count: u64, total: u64, time: Duration) -> Duration {
    let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let of_all = us.saturating_mul(count);
    Duration::from_micros(of_all.checked_div(total).unwrap_or(of_all))
}

#[cfg(test)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "test data is small, and an overflow would fail the test"
)]
mod tests {
    use super::*;

    const MILLION: u64 = 1_000_000;

    /// How many organizations one instance visits in a day, alone.
    fn in_a_day(organizations: u64, took: Duration) -> u64 {
        let round = took + pause(organizations, took);
        let since = TimeDelta::from_std(round).unwrap();
        let rounds = Duration::from_hours(24).as_micros() / round.as_micros();
        due(organizations, Some(since)) * u64::try_from(rounds).unwrap()
    }

    #[test]
    fn one_instance_visits_a_hundred_million_organizations_in_a_day() {
        assert_eq!(rate(100 * MILLION), 1389);
        assert!(rate(100 * MILLION) >= 1160);
        for organizations in [1, 1000, MILLION, 10 * MILLION, 100 * MILLION, 200 * MILLION] {
            for ms in [5, 20, 30] {
                let visited = in_a_day(organizations, Duration::from_millis(ms));
                assert!(
                    visited >= organizations,
                    "{visited} of {organizations}, {ms} ms each"
                );
            }
        }
    }

    #[test]
    fn a_walk_over_few_organizations_uses_a_tenth_of_the_time_at_most() {
        assert_eq!(rate(0), 50);
        assert_eq!(rate(3_600_000), 50);
        assert_eq!(due(10, None), 100);
        let (quick, slow) = (Duration::from_millis(10), Duration::from_secs(1));
        assert_eq!(pause(10, quick) + quick, INTERVAL_MAX);
        assert_eq!(pause(10, slow), 9 * slow);
    }

    #[test]
    fn a_walk_never_uses_more_than_half_of_the_time() {
        let took = Duration::from_millis(400);
        for organizations in [100 * MILLION, 1000 * MILLION, u64::MAX] {
            assert!(pause(organizations, took) >= took);
            assert!(throttle(organizations, 500, took, 20) >= took);
        }
    }

    #[test]
    fn instances_share_the_rate() {
        let total = 100 * MILLION;
        // However many instances claim, and how often, all of them together get what the rate allows.
        for interval in [1, 10, 100] {
            let claims = 1000 / interval;
            let since = Some(TimeDelta::milliseconds(interval));
            let claimed = due(total, since) * u64::try_from(claims).unwrap();
            assert!((1000..=1389).contains(&claimed), "{claimed}");
        }
        assert_eq!(due(total, Some(TimeDelta::zero())), 0);
        assert_eq!(due(total, Some(TimeDelta::days(3))), BATCH_MAX);
    }

    #[test]
    fn a_clock_that_is_ahead_stops_a_walk_for_minutes_at_most() {
        assert_eq!(due(10, Some(TimeDelta::minutes(-1))), 0);
        assert_eq!(due(10, Some(TimeDelta::minutes(-6))), 100);
        assert_eq!(due(10, Some(TimeDelta::MIN)), 100);
    }

    #[test]
    fn a_scan_of_a_billion_keys_ends_within_a_day() {
        let (keys, step) = (1000 * MILLION, Duration::from_millis(4));
        let steps = u32::try_from(keys / 500).unwrap();
        let whole = (step + throttle(keys, 500, step, 20)) * steps;
        assert!(whole <= Duration::from_hours(24), "{whole:?}");
        // Few keys are scanned in a twentieth of the time.
        assert_eq!(throttle(10_000, 500, step, 20), 19 * step);
        assert_eq!(throttle(0, 500, step, 20), 19 * step);
    }
}
