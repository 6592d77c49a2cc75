//! Instants in the answers to calls that count, as chrono's own implementation of serde writes them (RFC 3339). That
//! hands one character after the other to the writer of JSON, which looks for something to escape in each.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serializer;

/// Writes an instant.
pub(super) fn required<S: Serializer>(instant: &DateTime<Utc>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&instant.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// Writes an instant, or null.
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
        fn instants_read_as_everywhere_else(
            ms in -62_135_596_800_000_i64..253_402_300_799_999,
            ends: bool,
        ) {
            let instant = DateTime::from_timestamp_millis(ms).unwrap();
            let end = ends.then_some(instant);
            prop_assert_eq!(
                serde_json::to_string(&Ours(instant, end)).unwrap(),
                serde_json::to_string(&(instant, end)).unwrap()
            );
        }
    }
}
