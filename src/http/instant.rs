//! Serializes instants on the hot path exactly as chrono does (RFC 3339), but faster: chrono formats each number by
//! itself and passes single characters to the JSON writer, which checks each for escaping.

use chrono::{DateTime, Datelike as _, SecondsFormat, Timelike as _, Utc};
use serde::Serializer;

/// Serializes an instant.
pub(super) fn required<S: Serializer>(instant: &DateTime<Utc>, to: S) -> Result<S::Ok, S::Error> {
    if let Some(text) = whole_second(instant)
        && let Ok(text) = str::from_utf8(&text)
    {
        return to.serialize_str(text);
    }
    to.serialize_str(&instant.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// The usual case: a year with four digits, and no fraction of a second.
pub(super) fn whole_second(instant: &DateTime<Utc>) -> Option<[u8; 20]> {
    let mut text = *b"0000-00-00T00:00:00Z";
    // Once, because the instant itself would compute its date and time for each part.
    let instant = instant.naive_utc();
    let year = u32::try_from(instant.year())
        .ok()
        .filter(|it| *it < 10_000)?;
    if instant.nanosecond() != 0 {
        return None;
    }
    for (at, number) in [
        (0, year / 100),
        (2, year % 100),
        (5, instant.month()),
        (8, instant.day()),
        (11, instant.hour()),
        (14, instant.minute()),
        (17, instant.second()),
    ] {
        for (digit, value) in text.iter_mut().skip(at).zip([number / 10, number % 10]) {
            *digit = b'0' + u8::try_from(value).ok()?;
        }
    }
    Some(text)
}

/// Serializes an instant or null.
#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
pub(super) fn optional<S: Serializer>(
    instant: &Option<DateTime<Utc>>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match instant {
        Some(instant) => required(instant, to),
        None => to.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize;

    use super::*;

    #[derive(Serialize)]
    struct Ours(
        #[serde(serialize_with = "required")] DateTime<Utc>,
        #[serde(serialize_with = "optional")] Option<DateTime<Utc>>,
    );

    proptest! {
        #[test]
        fn instants_are_serialized_as_chrono_does(
            seconds in -62_167_219_200_i64..300_000_000_000,
            ms in prop_oneof![Just(0), 0..1000_i64],
            ends: bool,
        ) {
            let instant = DateTime::from_timestamp_millis(seconds * 1000 + ms).unwrap();
            let end = ends.then_some(instant);
            prop_assert_eq!(
                serde_json::to_string(&Ours(instant, end)).unwrap(),
                serde_json::to_string(&(instant, end)).unwrap()
            );
        }
    }
}
