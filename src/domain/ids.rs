//! Names: of organizations, meters, plans, API keys, attempts, events and webhooks; and reasons.
//!
//! Each is validated when parsed and shared cheaply afterwards. None that becomes part of a Redis key
//! can hold a `:`, except the idempotency key, which is always the last part.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::input::parse_str;

/// Why a name was refused; the text is fit to show to the caller.
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
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid: fn(&[u8]) -> bool = $valid;
                if valid(text.as_bytes()) {
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
    /// The tenant being counted; opaque, the auth server's own id.
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
    /// A caller's name for one attempt, so that repeating the attempt counts nothing.
    IdempotencyKey,
    |text| !text.is_empty() && text.len() <= 255 && text.iter().all(|c| (b' '..=b'~').contains(c)),
    "^[ -~]{1,255}$",
    "7d3f6c1e-order-42",
    "1 to 255 printable ASCII characters"
);

id!(
    /// Names an API key; not secret.
    ApiKeyId,
    |text| is_hex(text, 16),
    "^[0-9a-f]{16}$",
    "0123456789abcdef",
    "16 characters of 0-9 a-f"
);

id!(
    /// What people know an API key by.
    ApiKeyName,
    readable,
    r"^(?=.*\S)[^\x00-\x1f\x7f-\x9f]{1,100}$",
    "auth server",
    "1 to 100 characters, not all of them spaces, and none a control character"
);

id!(
    /// Names an event; the order of ids is that of events, but for those of one millisecond.
    EventId,
    |text| text.strip_prefix(b"evt_").is_some_and(|rest| is_hex(rest, 32)),
    "^evt_[0-9a-f]{32}$",
    "evt_01a207e5f2407000a3f0c2d9e8b7a695",
    "evt_ and 32 characters of 0-9 a-f"
);

id!(
    /// Names a webhook; the order of ids is that of their making.
    WebhookId,
    |text| text.strip_prefix(b"wh_").is_some_and(|rest| is_hex(rest, 32)),
    "^wh_[0-9a-f]{32}$",
    "wh_01a207e5f2407000a3f0c2d9e8b7a695",
    "wh_ and 32 characters of 0-9 a-f"
);

id!(
    /// What people know a plan by.
    PlanName,
    readable,
    r"^(?=.*\S)[^\x00-\x1f\x7f-\x9f]{1,100}$",
    "Pro",
    "1 to 100 characters, not all of them spaces, and none a control character"
);

id!(
    /// Why somebody has corrected or reset a count, for the audit log.
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
    /// The meter of a call that names none.
    pub const DEFAULT: &'static str = "api";
}

impl Default for MeterId {
    fn default() -> Self {
        // Not one for all threads, which would wait for each other to count its references.
        thread_local!(static ONE: Arc<str> = MeterId::DEFAULT.into());
        Self(ONE.with(Arc::clone))
    }
}

/// The most meters that one organization may have.
pub const METERS_MAX: usize = 32;

fn readable(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| {
        (1..=100).contains(&text.chars().count())
            && !text.trim().is_empty()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_accept_what_auth_servers_use_and_refuse_what_would_break_a_key() {
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
    fn api_keys_have_names_that_people_can_read() {
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
    fn deserialising_validates() {
        assert!(serde_json::from_str::<MeterId>(r#""api""#).is_ok());
        assert!(serde_json::from_str::<MeterId>(r#""API""#).is_err());
    }
}
