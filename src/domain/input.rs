//! Serde helpers for what clients send: bounded integers, instants, and fields that may be absent or null.
//!
//! An error says what would be valid; the HTTP layer adds the field and the value received.

use std::fmt;
use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::instant;

/// A type that defines how its value is deserialized.
pub trait ReadAs {
    /// The type of the field.
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

/// For `deserialize_with` of a field that may be absent but not null: a value as `W` reads it.
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

/// For `deserialize_with` of a field that may be absent but not null.
pub fn not_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let value = Option::deserialize(deserializer)?;
    value
        .map(Some)
        .ok_or_else(|| de::Error::custom("must not be null; leave the field out instead"))
}

/// For `deserialize_with` of an `Option<Option<T>>`: tells null from absent.
pub fn double_option<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

macro_rules! read_as {
    ($(#[$doc:meta])* $name:ident($value:ty), $deserialize:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name($value);

        impl $crate::domain::input::ReadAs for $name {
            type Value = $value;

            fn value(self) -> $value {
                self.0
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $deserialize(deserializer).map(Self)
            }
        }
    };
}

pub(super) use read_as;

read_as!(
    /// An instant.
    Instant(DateTime<Utc>),
    |deserializer| parse_str(deserializer, instant::EXPECTED, instant::parse_instant)
);

read_as!(
    /// A day of the month or of the week; the calendar decides which.
    Day(u8),
    |deserializer| integer(deserializer, 0..=31, "an integer from 0 to 31").map(narrow)
);

read_as!(
    /// A month.
    Month(u8),
    |deserializer| integer(deserializer, 1..=12, "an integer from 1 to 12").map(narrow)
);

/// A narrower type for an integer whose bounds were checked.
pub(super) fn narrow<T: TryFrom<i64> + Default>(number: i64) -> T {
    T::try_from(number).unwrap_or_default()
}

/// Deserializes a string and parses it; `expected` describes a valid string.
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

/// The integer that a double represents exactly. JSON Schema, and languages whose numbers are doubles, treat `3.0` and
/// `3` as the same number.
#[expect(
    clippy::cast_possible_truncation,
    reason = "an integer in the range where doubles are exact"
)]
fn exact(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_991.0;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// Deserializes an integer, also from `3.0`; `expected` describes the bounds.
pub fn integer<'de, D: Deserializer<'de>>(
    deserializer: D,
    bounds: RangeInclusive<i64>,
    expected: &'static str,
) -> Result<i64, D::Error> {
    struct Integer(RangeInclusive<i64>, &'static str);

    impl Integer {
        fn check<E: de::Error>(&self, number: Option<i64>, given: Unexpected) -> Result<i64, E> {
            let number = number.filter(|number| self.0.contains(number));
            number.ok_or_else(|| E::invalid_value(given, self))
        }
    }

    impl Visitor<'_> for Integer {
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

    deserializer.deserialize_i64(Integer(bounds, expected))
}

/// The most characters of a text that an error quotes.
const QUOTED_MAX: usize = 60;

/// A text as errors quote it: shortened, and without control characters that a terminal would obey.
pub fn quoted(text: &str) -> String {
    let mut start: String = text.chars().take(QUOTED_MAX).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    format!("{start:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_shortened_and_escaped() {
        assert_eq!(quoted("a\"b"), r#""a\"b""#);
        assert_eq!(
            quoted("\u{1b}[31m\0\u{9b}\u{202e}"),
            r#""\u{1b}[31m\0\u{9b}\u{202e}""#
        );
        assert_eq!(quoted(&"ü".repeat(61)), format!("\"{}…\"", "ü".repeat(60)));
        assert_eq!(quoted(&"ü".repeat(60)), format!("\"{}\"", "ü".repeat(60)));
    }
}
