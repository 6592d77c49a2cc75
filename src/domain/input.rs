//! What callers write, as serde reads it: instants, texts, numbers within bounds, amounts by meter.
//!
//! The one place that parses an instant. A refusal says what would do; whoever reads the body or the query adds
//! which field is meant, and what was given.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;

use chrono::{DateTime, Timelike as _, Utc};
use chrono_tz::Tz;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::ids::MeterId;
use super::period::parse_time_zone;
use super::policy::WARN_AT;

/// The instants that a caller may name: years of four digits, which Postgres, the calendar and RFC 3339 all hold.
const INSTANTS: RangeInclusive<DateTime<Utc>> =
    at(-62_135_596_800, 0)..=at(253_402_300_799, 999_000_000);

const fn at(seconds: i64, nanoseconds: u32) -> DateTime<Utc> {
    match DateTime::from_timestamp(seconds, nanoseconds) {
        Some(instant) => instant,
        None => DateTime::UNIX_EPOCH,
    }
}

const INSTANT: &str =
    "an RFC 3339 date-time in the years 0001 to 9999, such as 2026-11-01T00:00:00Z";

/// Why a text is no instant; fit to show to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInstant {
    /// It is written otherwise, or lies outside of the years that are held.
    #[error("must be {INSTANT}")]
    Unreadable,
    /// No clock here counts the second 60, so that it would be read as another instant.
    #[error("must not be a leap second; write second 59, or 00 of the next minute")]
    LeapSecond,
}

/// Parses an instant: RFC 3339, in the years 0001 to 9999, without leap seconds.
pub fn parse_instant(text: &str) -> Result<DateTime<Utc>, InvalidInstant> {
    let instant = DateTime::parse_from_rfc3339(text).map_err(|_| InvalidInstant::Unreadable)?;
    let instant = instant.to_utc();
    if instant.nanosecond() >= 1_000_000_000 {
        return Err(InvalidInstant::LeapSecond);
    }
    if INSTANTS.contains(&instant) {
        Ok(instant)
    } else {
        Err(InvalidInstant::Unreadable)
    }
}

/// A type that only tells how a value is written.
pub trait ReadAs {
    /// What is written.
    type Value;

    /// The value.
    fn value(self) -> Self::Value;
}

/// For `deserialize_with`: a value as `W` reads it, or null.
pub fn nullable<'de, W, T, D>(deserializer: D) -> Result<T, D::Error>
where
    W: ReadAs + Deserialize<'de>,
    T: From<Option<W::Value>>,
    D: Deserializer<'de>,
{
    Ok(Option::<W>::deserialize(deserializer)?
        .map(ReadAs::value)
        .into())
}

/// For `deserialize_with` of a field that may be left out: a value as `W` reads it, and not null.
pub fn optional<'de, W, D>(deserializer: D) -> Result<Option<W::Value>, D::Error>
where
    W: ReadAs + Deserialize<'de>,
    D: Deserializer<'de>,
{
    required::<W, D>(deserializer).map(Some)
}

/// For `deserialize_with`: a value as `W` reads it.
pub fn required<'de, W, D>(deserializer: D) -> Result<W::Value, D::Error>
where
    W: ReadAs + Deserialize<'de>,
    D: Deserializer<'de>,
{
    W::deserialize(deserializer).map(ReadAs::value)
}

macro_rules! read_as {
    ($(#[$doc:meta])* $name:ident($value:ty), $deserialize:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name($value);

        impl ReadAs for $name {
            type Value = $value;

            fn value(self) -> $value {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $deserialize(deserializer).map(Self)
            }
        }
    };
}

read_as!(
    /// An instant.
    Instant(DateTime<Utc>),
    |deserializer| parse_str(deserializer, INSTANT, parse_instant)
);

read_as!(
    /// The name of a time zone.
    Zone(Tz),
    |deserializer| parse_str(
        deserializer,
        "the IANA name of a time zone, such as Europe/Berlin",
        |name| parse_time_zone(name).map_err(|error| error.detail)
    )
);

read_as!(
    /// A day of the month, or of the week; which of both the calendar decides.
    Day(u8),
    |deserializer| integer(deserializer, 0..=31, "an integer from 0 to 31").map(small)
);

read_as!(
    /// A month.
    Month(u8),
    |deserializer| integer(deserializer, 1..=12, "an integer from 1 to 12").map(small)
);

read_as!(
    /// Percentages at which people are told.
    WarnAt(Vec<u16>),
    |deserializer| {
        let percentages = Vec::<Percentage>::deserialize(deserializer)?;
        Ok(percentages.into_iter().map(ReadAs::value).collect())
    }
);

read_as!(
    /// One of them.
    Percentage(u16),
    |deserializer| {
        let bounds = i64::from(*WARN_AT.start())..=i64::from(*WARN_AT.end());
        integer(deserializer, bounds, "an integer from 1 to 1000").map(small)
    }
);

/// A number that was read within bounds.
fn small<T: TryFrom<i64> + Default>(number: i64) -> T {
    T::try_from(number).unwrap_or_default()
}

/// Reads a text, and parses it; `expected` says what would do where it is no text.
pub fn parse_str<'de, D, T, E>(
    deserializer: D,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    E: fmt::Display,
{
    struct Text<P>(&'static str, P);

    impl<T, E: fmt::Display, P: FnOnce(&str) -> Result<T, E>> Visitor<'_> for Text<P> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<F: de::Error>(self, text: &str) -> Result<T, F> {
            (self.1)(text).map_err(F::custom)
        }
    }

    deserializer.deserialize_str(Text(expected, parse))
}

/// The number that a double is, if it is whole and doubles are exact there: to JSON Schema, and to languages whose
/// numbers are doubles, `3.0` is the same number as `3`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "whole, and between numbers where doubles are exact"
)]
fn exact(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_991.0;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// Reads a whole number, also where it is written as `3.0`; `expected` says which ones would do.
pub fn integer<'de, D: Deserializer<'de>>(
    deserializer: D,
    bounds: RangeInclusive<i64>,
    expected: &'static str,
) -> Result<i64, D::Error> {
    struct Whole(RangeInclusive<i64>, &'static str);

    impl Whole {
        fn check<E: de::Error>(&self, number: Option<i64>, given: Unexpected) -> Result<i64, E> {
            let number = number.filter(|number| self.0.contains(number));
            number.ok_or_else(|| E::invalid_value(given, self))
        }
    }

    impl Visitor<'_> for Whole {
        type Value = i64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.1)
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<i64, E> {
            self.check(Some(number), Unexpected::Signed(number))
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<i64, E> {
            self.check(i64::try_from(number).ok(), Unexpected::Unsigned(number))
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<i64, E> {
            self.check(exact(number), Unexpected::Float(number))
        }
    }

    deserializer.deserialize_i64(Whole(bounds, expected))
}

/// Values by meter, none of which is named twice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ByMeter<T>(pub BTreeMap<MeterId, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ByMeter<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Meters<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Meters<T> {
            type Value = ByMeter<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a member for each meter")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<ByMeter<T>, A::Error> {
                let mut meters = BTreeMap::new();
                while let Some((meter, value)) = members.next_entry()? {
                    if meters.insert(meter, value).is_some() {
                        return Err(de::Error::custom("must name each meter once"));
                    }
                }
                Ok(ByMeter(meters))
            }
        }

        deserializer.deserialize_map(Meters(PhantomData))
    }
}

/// The most characters of a text that an error repeats.
const SHOWN_MAX: usize = 60;

/// A text as an error repeats it: in quotes, shortened, and without anything that a terminal would obey.
pub fn quoted(text: &str) -> String {
    let mut beginning: String = text.chars().take(SHOWN_MAX).collect();
    if beginning.len() < text.len() {
        beginning.push('…');
    }
    format!("{beginning:?}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_instant_is_rfc_3339_within_the_years_that_everything_holds() {
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
        fn an_instant_that_is_accepted_reads_back_the_same(
            ms in -62_135_596_800_000_i64..=253_402_300_799_999,
        ) {
            let instant = DateTime::from_timestamp_millis(ms).unwrap();
            prop_assert_eq!(parse_instant(&instant.to_rfc3339()), Ok(instant));
        }
    }

    #[test]
    fn a_meter_that_is_named_twice_is_refused() {
        let read = serde_json::from_str::<ByMeter<u64>>;
        assert_eq!(read(r#"{"a": 1, "b": 2}"#).unwrap().0.len(), 2);
        assert!(read(r#"{"a": 1, "a": 1}"#).is_err());
        assert!(read(r#"{"a": 1, "\u0061": 2}"#).is_err());
    }

    #[test]
    fn what_an_error_repeats_is_short_and_harmless() {
        assert_eq!(quoted("a\"b"), r#""a\"b""#);
        assert_eq!(
            quoted("\u{1b}[31m\0\u{9b}\u{202e}"),
            r#""\u{1b}[31m\0\u{9b}\u{202e}""#
        );
        assert_eq!(quoted(&"ü".repeat(61)), format!("\"{}…\"", "ü".repeat(60)));
        assert_eq!(quoted(&"ü".repeat(60)), format!("\"{}\"", "ü".repeat(60)));
    }
}
