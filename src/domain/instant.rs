//! The range of instants, and how clients write them.
//!
//! The only place that parses an instant.

use chrono::{DateTime, Timelike as _, Utc};

/// 0001-01-01T00:00:00Z: the earliest instant that RFC 3339, Postgres and the calendar all represent.
pub const EARLIEST: DateTime<Utc> = from_millis(-62_135_596_800_000);

/// 10000-01-01T00:00:00Z: the first instant after the latest.
pub const LATEST: DateTime<Utc> = from_millis(253_402_300_800_000);

/// The last millisecond before [`LATEST`].
const LAST: DateTime<Utc> = from_millis(253_402_300_799_999);

pub(super) const EXPECTED: &str =
    "an RFC 3339 date-time in the years 0001 to 9999, such as 2026-11-01T00:00:00Z";

/// Why a text is not an instant. Clients see the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInstant {
    /// It is not RFC 3339, or out of range.
    #[error("must be {EXPECTED}")]
    Unreadable,
    /// Second 60 would silently be read as another instant.
    #[error("must not be a leap second; write second 59, or 00 of the next minute")]
    LeapSecond,
}

/// Parses RFC 3339 in the years 0001 to 9999, without leap seconds.
pub fn parse_instant(text: &str) -> Result<DateTime<Utc>, InvalidInstant> {
    let instant = DateTime::parse_from_rfc3339(text).map_err(|_| InvalidInstant::Unreadable)?;
    let instant = instant.to_utc();
    if instant.nanosecond() >= 1_000_000_000 {
        return Err(InvalidInstant::LeapSecond);
    }
    if (EARLIEST..=LAST).contains(&instant) {
        Ok(instant)
    } else {
        Err(InvalidInstant::Unreadable)
    }
}

/// The instant so many milliseconds after 1970, clamped to what chrono represents.
pub(super) const fn from_millis(millis: i64) -> DateTime<Utc> {
    match DateTime::from_timestamp_millis(millis) {
        Some(instant) => instant,
        None if millis < 0 => DateTime::<Utc>::MIN_UTC,
        None => DateTime::<Utc>::MAX_UTC,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn instants_are_rfc_3339_in_the_years_0001_to_9999() {
        for (text, back) in [
            ("2026-11-01T00:00:00Z", "2026-11-01T00:00:00+00:00"),
            (
                "2026-11-01t01:00:00.25+01:00",
                "2026-11-01T00:00:00.250+00:00",
            ),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00"),
            ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999+00:00"),
        ] {
            assert_eq!(parse_instant(text).unwrap().to_rfc3339(), back, "{text}");
        }
        for text in [
            "",
            "2026-11-01",
            "2026-11-01T00:00:00",
            "2026-13-01T00:00:00Z",
            "2026-11-01T00:00:00 02:00",
            "-262143-01-01T00:00:00Z",
            "-4800-01-01T00:00:00Z",
            "0000-12-31T23:59:59Z",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            "9999-12-31T23:59:59.9999Z",
            "+10000-01-01T00:00:00Z",
        ] {
            assert_eq!(
                parse_instant(text),
                Err(InvalidInstant::Unreadable),
                "{text}"
            );
        }
        for text in [
            "2026-12-31T23:59:60Z",
            "9999-12-31T23:59:60Z",
            "2026-11-01T12:00:60.5+02:00",
        ] {
            assert_eq!(
                parse_instant(text),
                Err(InvalidInstant::LeapSecond),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_formatted_instant_parses_to_the_same_instant(
            ms in -62_135_596_800_000_i64..=253_402_300_799_999,
        ) {
            let instant = DateTime::from_timestamp_millis(ms).unwrap();
            prop_assert_eq!(parse_instant(&instant.to_rfc3339()), Ok(instant));
        }
    }
}
