//! Quantities: how much one call counts, and how much a counter can hold.

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{KnownFormat, RefOr, Schema, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

use super::input::integer;

/// The most that a counter can hold: 2^53 − 1, the largest integer that Lua, JavaScript, JSON and
/// Postgres' bigint all represent exactly. Lua and SQL repeat this constant.
pub const COUNT_MAX: u64 = (1 << 53) - 1;

/// The most that one call may count: 10^12.
pub const AMOUNT_MAX: u64 = 1_000_000_000_000;

const COUNT: &str = "an integer from 0 to 2^53 - 1";
const AMOUNT: &str = "an integer from 1 to 10^12";
const CORRECTION: &str = "an integer from -10^12 to 10^12, and not 0";

/// Units counted in one period, or the limit that they are held against: 0 to [`COUNT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(into = "u64")]
pub struct Count(u64);

impl Count {
    /// Nothing counted.
    pub const ZERO: Self = Self(0);

    /// The number of units.
    pub fn get(self) -> u64 {
        self.0
    }

    /// `self − other`, or zero where `other` is the larger.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self − units`, or zero where there are fewer.
    #[must_use]
    pub fn saturating_less(self, units: u64) -> Self {
        Self(self.0.saturating_sub(units))
    }

    /// `self + units`, or none beyond [`COUNT_MAX`].
    pub fn checked_add(self, units: u64) -> Option<Self> {
        self.0
            .checked_add(units)
            .and_then(|sum| Self::try_from(sum).ok())
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bounds = 0..=COUNT_MAX.cast_signed();
        let units = integer(deserializer, bounds, COUNT)?;
        Ok(Self(units.unsigned_abs()))
    }
}

impl TryFrom<u64> for Count {
    type Error = InvalidQuantity;

    fn try_from(units: u64) -> Result<Self, InvalidQuantity> {
        if units <= COUNT_MAX {
            Ok(Self(units))
        } else {
            Err(InvalidQuantity(COUNT))
        }
    }
}

impl From<Count> for u64 {
    fn from(count: Count) -> Self {
        count.0
    }
}

/// Units that one call counts: 1 to [`AMOUNT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "u64")]
pub struct Amount(u64);

impl Amount {
    /// What a call counts unless it says otherwise.
    pub const ONE: Self = Self(1);

    /// The number of units.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bounds = 1..=AMOUNT_MAX.cast_signed();
        let units = integer(deserializer, bounds, AMOUNT)?;
        Ok(Self(units.unsigned_abs()))
    }
}

impl TryFrom<u64> for Amount {
    type Error = InvalidQuantity;

    fn try_from(units: u64) -> Result<Self, InvalidQuantity> {
        if (1..=AMOUNT_MAX).contains(&units) {
            Ok(Self(units))
        } else {
            Err(InvalidQuantity(AMOUNT))
        }
    }
}

impl From<Amount> for u64 {
    fn from(amount: Amount) -> Self {
        amount.0
    }
}

/// Units that a correction adds to a count or, below 0, gives back: never 0, and at most [`AMOUNT_MAX`] either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Correction(i64);

impl Correction {
    /// The number of units.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Correction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bounds = AMOUNT_MAX.cast_signed();
        match integer(deserializer, bounds.wrapping_neg()..=bounds, CORRECTION)? {
            0 => Err(de::Error::custom(InvalidQuantity(CORRECTION))),
            units => Ok(Self(units)),
        }
    }
}

impl PartialSchema for Correction {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Integer))
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(-1_000_000_000_000_i64))
            .maximum(Some(AMOUNT_MAX))
            .into()
    }
}

impl ToSchema for Correction {}

impl PartialSchema for Count {
    fn schema() -> RefOr<Schema> {
        integer_schema(0, COUNT_MAX)
    }
}

impl ToSchema for Count {}

impl PartialSchema for Amount {
    fn schema() -> RefOr<Schema> {
        integer_schema(1, AMOUNT_MAX)
    }
}

impl ToSchema for Amount {}

/// Not derived, so that the limits are those of the parsers above.
fn integer_schema(minimum: u64, maximum: u64) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::Integer))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(minimum))
        .maximum(Some(maximum))
        .into()
}

/// Why a number was refused; the text is fit to show to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {0}")]
pub struct InvalidQuantity(&'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_the_same_however_it_is_written() {
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
