//! Arithmetic on the wall clocks of time zones, and their clock changes.

use chrono::{DateTime, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::{GapInfo, Tz};

use super::instant::{EARLIEST, LATEST, from_millis};

/// Start and end of the hour that contains `at` on the wall clock of `zone`.
///
/// A clock change within an hour starts a new one. So a local midnight is always the start of an hour, and hours tile
/// the local day, also in zones with an offset of half an hour.
pub fn hour(zone: Tz, at: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
    in_calendar_years(at, |at| hour_window(zone, None, at))
}

/// The first instant at which the wall clock of `zone` shows `local` or, where it skips that, a later time.
pub(super) fn first_instant(zone: Tz, local: NaiveDateTime) -> DateTime<Utc> {
    zone.from_local_datetime(&local)
        .earliest()
        .or_else(|| GapInfo::new(&local, &zone)?.end)
        // Every gap has an end, and `in_calendar_years` excludes instants out of chrono's range.
        .map_or_else(|| local.and_utc(), |instant| instant.to_utc())
}

pub(super) const HOUR_MS: i64 = 3_600_000;

/// The window of an hour that starts `anchor` milliseconds past each full hour.
///
/// Without an anchor, every clock change starts a new hour. With one, only a clock change by a fraction of an hour does:
/// other changes keep the minutes, and an hourly limit should last a whole hour.
pub(super) fn hour_window(
    zone: Tz,
    anchor: Option<i64>,
    at: DateTime<Utc>,
) -> (DateTime<Utc>, DateTime<Utc>) {
    let now = millis(at);
    let elapsed = local_millis(zone, at)
        .saturating_sub(anchor.unwrap_or_default())
        .rem_euclid(HOUR_MS);
    let start = now.saturating_sub(elapsed);
    let end = start.saturating_add(HOUR_MS);
    let cut = |from, to| {
        let jump =
            utc_offset(zone, from_millis(to)).saturating_sub(utc_offset(zone, from_millis(from)));
        let cuts = jump != 0 && (anchor.is_none() || jump % HOUR_MS != 0);
        cuts.then(|| clock_change(zone, from, to))
    };
    (
        from_millis(cut(start, now).unwrap_or(start)),
        from_millis(cut(now, end).unwrap_or(end)),
    )
}

/// The millisecond of the clock change in `(from, to]`.
///
/// A bisection, because chrono-tz does not expose its transitions. It requires exactly one in the interval; no zone has
/// ever had two within an hour.
pub(super) fn clock_change(zone: Tz, from: i64, to: i64) -> i64 {
    let offset_before = utc_offset(zone, from_millis(from));
    let (mut before, mut after) = (from, to);
    while after.saturating_sub(before) > 1 {
        let middle = before.midpoint(after);
        if utc_offset(zone, from_millis(middle)) == offset_before {
            before = middle;
        } else {
            after = middle;
        }
    }
    after
}

/// The local time of `zone` at `at`, in milliseconds since 1970-01-01 00:00 local time.
pub(super) fn local_millis(zone: Tz, at: DateTime<Utc>) -> i64 {
    millis(at).saturating_add(utc_offset(zone, at))
}

/// How far the wall clock of `zone` is ahead of UTC, in milliseconds.
pub(super) fn utc_offset(zone: Tz, at: DateTime<Utc>) -> i64 {
    let offset = zone.offset_from_utc_datetime(&at.naive_utc()).fix();
    i64::from(offset.local_minus_utc()).saturating_mul(1000)
}

/// The millisecond that contains `at`.
pub(super) fn millis(at: DateTime<Utc>) -> i64 {
    // chrono represents a leap second as milliseconds 1000 and later of the second before. Unclamped, it would lie
    // before the start of its own window.
    let in_second = i64::from(at.timestamp_subsec_millis()).min(999);
    at.timestamp()
        .saturating_mul(1000)
        .saturating_add(in_second)
}

/// Applies `window` to the years 1 to 9999; all time before them is one window, and all time after.
///
/// chrono's arithmetic panics or fails at the ends of its range, and clients choose the instants.
pub(super) fn in_calendar_years(
    at: DateTime<Utc>,
    window: impl FnOnce(DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>),
) -> (DateTime<Utc>, DateTime<Utc>) {
    if at < EARLIEST {
        return (DateTime::<Utc>::MIN_UTC, EARLIEST);
    }
    if at >= LATEST {
        return (LATEST, DateTime::<Utc>::MAX_UTC);
    }
    let (start, end) = window(at);
    (start.max(EARLIEST), end.min(LATEST))
}
