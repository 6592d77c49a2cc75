//! Quantities: units in one request, and units in a counter.

use std::ops::RangeInclusive;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{KnownFormat, RefOr, Schema, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

use super::input::integer;

/// The largest count: 2^53 − 1, the largest integer that Lua, JavaScript, JSON and Postgres' bigint all represent
/// exactly. Lua and SQL repeat this constant.
pub const COUNT_MAX: u64 = (1 << 53) - 1;

/// The most units that one request may count: 10^12.
pub const AMOUNT_MAX: u64 = 1_000_000_000_000;

const CORRECTION: &str = "an integer from -10^12 to 10^12, and not 0";

/// Why a number is invalid. Clients see the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {0}")]
pub struct InvalidQuantity(&'static str);

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $bounds:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(into = "u64")]
        pub struct $name(u64);

        impl $name {
            const BOUNDS: RangeInclusive<u64> = $bounds;

            /// The number of units.
            pub fn get(self) -> u64 {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                integer(deserializer, signed(&Self::BOUNDS), $rule)
                    .map(|units| Self(units.unsigned_abs()))
            }
        }

        impl TryFrom<u64> for $name {
            type Error = InvalidQuantity;

            fn try_from(units: u64) -> Result<Self, InvalidQuantity> {
                if Self::BOUNDS.contains(&units) {
                    Ok(Self(units))
                } else {
                    Err(InvalidQuantity($rule))
                }
            }
        }

        impl From<$name> for u64 {
            fn from(quantity: $name) -> Self {
                quantity.0
            }
        }

        // Not derived, so that the schema has the bounds of the parser.
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                schema(&signed(&Self::BOUNDS))
            }
        }

        impl ToSchema for $name {}
    };
}

quantity!(
    /// Units counted in one period, or its limit: 0 to [`COUNT_MAX`].
    #[derive(Default)]
    Count,
    0..=COUNT_MAX,
    "an integer from 0 to 2^53 - 1"
);

quantity!(
    /// Units in one request: 1 to [`AMOUNT_MAX`].
    Amount,
    1..=AMOUNT_MAX,
    "an integer from 1 to 10^12"
);

impl Count {
    /// No units.
    pub const ZERO: Self = Self(0);

    /// `self − other`, or zero where `other` is larger.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self − units`, or zero where there are fewer.
    #[must_use]
    pub fn saturating_less(self, units: u64) -> Self {
        Self(self.0.saturating_sub(units))
    }

    /// `self + units`, or `None` beyond [`COUNT_MAX`].
    pub fn checked_add(self, units: u64) -> Option<Self> {
        self.0
            .checked_add(units)
            .and_then(|sum| Self::try_from(sum).ok())
    }
}

impl Amount {
    /// The default amount.
    pub const ONE: Self = Self(1);
}

/// Units that an adjustment adds to a count or, if negative, subtracts: never 0, at most ±[`AMOUNT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Correction(i64);

impl Correction {
    const BOUNDS: RangeInclusive<i64> =
        AMOUNT_MAX.cast_signed().wrapping_neg()..=AMOUNT_MAX.cast_signed();

    /// The number of units.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Correction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match integer(deserializer, Self::BOUNDS, CORRECTION)? {
            0 => Err(de::Error::custom(InvalidQuantity(CORRECTION))),
            units => Ok(Self(units)),
        }
    }
}

impl PartialSchema for Correction {
    fn schema() -> RefOr<Schema> {
        schema(&Self::BOUNDS)
    }
}

impl ToSchema for Correction {}

fn signed(bounds: &RangeInclusive<u64>) -> RangeInclusive<i64> {
    bounds.start().cast_signed()..=bounds.end().cast_signed()
}

fn schema(bounds: &RangeInclusive<i64>) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::Integer))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(*bounds.start()))
        .maximum(Some(*bounds.end()))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_parse_from_any_json_notation() {
        for text in ["3", "3.0", "3e0", "0.3e1"] {
            let amount: Amount = serde_json::from_str(text).unwrap();
            assert_eq!(amount.get(), 3, "{text}");
        }
        let count: Count = serde_json::from_str("9007199254740991.0").unwrap();
        assert_eq!(count.get(), COUNT_MAX);
        for text in [
            "3.5", "-3.0", "-1", "1e16", "1e300", "\"3\"", "null", "true",
        ] {
            assert!(serde_json::from_str::<Count>(text).is_err(), "{text}");
        }
    }
}
