//! Ids and names, validated when parsed and cheap to clone.
//!
//! Ids in Redis keys contain no `:`, except the idempotency key, which is always the last part.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::input::parse_str;

/// Why an id or name is invalid. Clients see the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {0}")]
pub struct InvalidId(&'static str);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $valid:expr, $pattern:literal, $example:literal, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
        #[schema(value_type = String, pattern = $pattern, examples($example))]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether a text is one.
            pub fn is_valid(text: &str) -> bool {
                let valid: fn(&[u8]) -> bool = $valid;
                valid(text.as_bytes())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if Self::is_valid(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId($rule))
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                parse_str(deserializer, $rule, str::parse)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// The tenant that is counted, under the auth server's own id.
    OrganizationId,
    |text| starts_alphanumeric(text, 128)
        && text.iter().all(|c| c.is_ascii_alphanumeric() || b"_.@-".contains(c)),
    "^[A-Za-z0-9][A-Za-z0-9_.@-]{0,127}$",
    "org_123",
    "1 to 128 characters of A-Z a-z 0-9 _ . @ -, and begin with a letter or a digit"
);

id!(
    /// What is counted.
    MeterId,
    |text| text.first().is_some_and(u8::is_ascii_lowercase)
        && text.len() <= 64
        && text.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_.-".contains(c)),
    "^[a-z][a-z0-9_.-]{0,63}$",
    "api",
    "1 to 64 characters of a-z 0-9 _ . -, and begin with a letter"
);

id!(
    /// A named set of limits and features.
    PlanId,
    |text| starts_alphanumeric(text, 64)
        && text.iter().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(c)),
    "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
    "free",
    "1 to 64 characters of A-Z a-z 0-9 _ . -, and begin with a letter or a digit"
);

id!(
    /// The key under which a response is stored, so that retries count nothing.
    IdempotencyKey,
    |text| !text.is_empty() && text.len() <= 255 && text.iter().all(|c| (b' '..=b'~').contains(c)),
    "^[ -~]{1,255}$",
    "7d3f6c1e-order-42",
    "1 to 255 printable ASCII characters"
);

id!(
    /// An API key's id, which is not secret.
    ApiKeyId,
    |text| is_hex(text, 16),
    "^[0-9a-f]{16}$",
    "0123456789abcdef",
    "16 characters of 0-9 a-f"
);

/// For look-ups by the text that a caller presents.
impl Borrow<str> for ApiKeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

id!(
    /// An API key's display name.
    ApiKeyName,
    display_name,
    r"^(?=\s*\S)[^\x00-\x1f\x7f-\x9f]{1,100}$",
    "auth server",
    "1 to 100 characters, not all of them spaces, and none a control character"
);

id!(
    /// An event's id. Ids sort by creation, to the millisecond.
    EventId,
    |text| text.strip_prefix(b"evt_").is_some_and(|rest| is_hex(rest, 32)),
    "^evt_[0-9a-f]{32}$",
    "evt_01a207e5f2407000a3f0c2d9e8b7a695",
    "evt_ and 32 characters of 0-9 a-f"
);

id!(
    /// A webhook's id. Ids sort by creation.
    WebhookId,
    |text| text.strip_prefix(b"wh_").is_some_and(|rest| is_hex(rest, 32)),
    "^wh_[0-9a-f]{32}$",
    "wh_01a207e5f2407000a3f0c2d9e8b7a695",
    "wh_ and 32 characters of 0-9 a-f"
);

id!(
    /// A plan's display name.
    PlanName,
    display_name,
    r"^(?=\s*\S)[^\x00-\x1f\x7f-\x9f]{1,100}$",
    "Pro",
    "1 to 100 characters, not all of them spaces, and none a control character"
);

id!(
    /// What people call a meter.
    MeterLabel,
    display_name,
    r"^(?=\s*\S)[^\x00-\x1f\x7f-\x9f]{1,100}$",
    "API calls",
    "1 to 100 characters, not all of them spaces, and none a control character"
);

id!(
    /// What one unit of a meter is, in the plural.
    MeterUnit,
    |text| display_name(text)
        && std::str::from_utf8(text).is_ok_and(|text| text.chars().count() <= 30),
    r"^(?=\s*\S)[^\x00-\x1f\x7f-\x9f]{1,30}$",
    "tokens",
    "1 to 30 characters, not all of them spaces, and none a control character"
);

id!(
    /// The reason for an adjustment or a reset, for the audit log.
    Reason,
    |text| std::str::from_utf8(text)
        .is_ok_and(|text| (1..=500).contains(&text.chars().count()) && !text.contains('\0')),
    r"^[^\x00]{1,500}$",
    "goodwill after the outage",
    "1 to 500 characters, none of them U+0000"
);

impl From<&PlanId> for PlanName {
    fn from(id: &PlanId) -> Self {
        Self(Arc::clone(&id.0))
    }
}

impl MeterId {
    /// The meter of requests that name none.
    pub const DEFAULT: &'static str = "api";
}

impl Default for MeterId {
    fn default() -> Self {
        // One for each thread: a shared one would make threads contend for its reference count.
        thread_local!(static ONE: Arc<str> = MeterId::DEFAULT.into());
        Self(ONE.with(Arc::clone))
    }
}

/// The most meters that one organization may have.
pub const METERS_MAX: usize = 32;

fn display_name(text: &[u8]) -> bool {
    // As in the regular expressions of JSON Schema, where U+FEFF is a space.
    let is_space = |c: char| c.is_whitespace() || c == '\u{feff}';
    std::str::from_utf8(text).is_ok_and(|text| {
        (1..=100).contains(&text.chars().count())
            && !text.chars().all(is_space)
            && !text.contains(char::is_control)
    })
}

fn starts_alphanumeric(text: &[u8], length_max: usize) -> bool {
    text.len() <= length_max && text.first().is_some_and(u8::is_ascii_alphanumeric)
}

fn is_hex(text: &[u8], length: usize) -> bool {
    text.len() == length
        && text
            .iter()
            .all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(c))
}

/// Values by meter; a duplicate meter is an error.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_accept_those_of_auth_servers_and_reject_key_separators() {
        for good in [
            "org_123",
            "a",
            "0b3e-77",
            "user@example.com",
            &"x".repeat(128),
        ] {
            assert!(good.parse::<OrganizationId>().is_ok(), "{good}");
        }
        for bad in ["", "_a", "a:b", "a b", "a{b}", "ü", &"x".repeat(129)] {
            assert!(bad.parse::<OrganizationId>().is_err(), "{bad}");
        }
        for good in ["api", "tokens.input", "a-1_b"] {
            assert!(good.parse::<MeterId>().is_ok(), "{good}");
        }
        for bad in ["", "Api", "1a", "a:b", &"x".repeat(65)] {
            assert!(bad.parse::<MeterId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn api_key_names_are_printable() {
        for good in ["auth server", "ü", " a", &"ü".repeat(100)] {
            assert!(good.parse::<ApiKeyName>().is_ok(), "{good}");
        }
        for bad in ["", "  ", "a\n", "\0", "\u{1b}[31m", &"ü".repeat(101)] {
            assert!(bad.parse::<ApiKeyName>().is_err(), "{bad:?}");
        }
        assert!("0123456789abcdef".parse::<ApiKeyId>().is_ok());
        for bad in [
            "",
            "0123456789abcde",
            "0123456789ABCDEF",
            "0123456789abcdeg",
        ] {
            assert!(bad.parse::<ApiKeyId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn deserializing_validates() {
        assert!(serde_json::from_str::<MeterId>(r#""api""#).is_ok());
        assert!(serde_json::from_str::<MeterId>(r#""API""#).is_err());
    }

    #[test]
    fn a_duplicate_meter_is_rejected() {
        let read = serde_json::from_str::<ByMeter<u64>>;
        assert_eq!(read(r#"{"a": 1, "b": 2}"#).unwrap().0.len(), 2);
        assert!(read(r#"{"a": 1, "a": 1}"#).is_err());
        assert!(read(r#"{"a": 1, "\u0061": 2}"#).is_err());
    }
}
