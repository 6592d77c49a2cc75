//! Quantities: how much one call counts, and how much a counter can hold.

use std::fmt;

use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{KnownFormat, RefOr, Schema, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

/// The most that a counter can hold: 2^53 − 1, the largest integer that Lua, JavaScript, JSON and
/// Postgres' bigint all represent exactly. Lua and SQL repeat this constant.
pub const COUNT_MAX: u64 = (1 << 53) - 1;

/// The most that one call may count: 10^12.
pub const AMOUNT_MAX: u64 = 1_000_000_000_000;

/// Units counted in one period, or the limit that they are held against: 0 to [`COUNT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "Whole", into = "u64")]
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

impl TryFrom<Whole> for Count {
    type Error = InvalidQuantity;

    fn try_from(Whole(units): Whole) -> Result<Self, InvalidQuantity> {
        Self::try_from(units)
    }
}

impl TryFrom<u64> for Count {
    type Error = InvalidQuantity;

    fn try_from(units: u64) -> Result<Self, InvalidQuantity> {
        if units <= COUNT_MAX {
            Ok(Self(units))
        } else {
            Err(InvalidQuantity("must be an integer from 0 to 2^53 - 1"))
        }
    }
}

impl From<Count> for u64 {
    fn from(count: Count) -> Self {
        count.0
    }
}

/// Units that one call counts: 1 to [`AMOUNT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Whole", into = "u64")]
pub struct Amount(u64);

impl Amount {
    /// What a call counts unless it says otherwise.
    pub const ONE: Self = Self(1);

    /// The number of units.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl TryFrom<Whole> for Amount {
    type Error = InvalidQuantity;

    fn try_from(Whole(units): Whole) -> Result<Self, InvalidQuantity> {
        Self::try_from(units)
    }
}

impl TryFrom<u64> for Amount {
    type Error = InvalidQuantity;

    fn try_from(units: u64) -> Result<Self, InvalidQuantity> {
        if (1..=AMOUNT_MAX).contains(&units) {
            Ok(Self(units))
        } else {
            Err(InvalidQuantity("must be an integer from 1 to 10^12"))
        }
    }
}

impl From<Amount> for u64 {
    fn from(amount: Amount) -> Self {
        amount.0
    }
}

/// Units that a correction adds to a count or, below 0, gives back: never 0, and at most [`AMOUNT_MAX`] either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Signed")]
pub struct Correction(i64);

impl Correction {
    /// The number of units.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl TryFrom<Signed> for Correction {
    type Error = InvalidQuantity;

    fn try_from(Signed(units): Signed) -> Result<Self, InvalidQuantity> {
        if (1..=AMOUNT_MAX).contains(&units.unsigned_abs()) {
            Ok(Self(units))
        } else {
            Err(InvalidQuantity(
                "must be an integer from -10^12 to 10^12, and not 0",
            ))
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

/// A [`Whole`] number or the negative of one.
struct Signed(i64);

impl<'de> Deserialize<'de> for Signed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_i64(SignedVisitor)
    }
}

struct SignedVisitor;

impl Visitor<'_> for SignedVisitor {
    type Value = Signed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Signed, E> {
        Ok(Signed(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Signed, E> {
        Ok(Signed(i64::try_from(number).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Signed, E> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "whole, and between numbers where doubles are exact"
        )]
        if number.fract() == 0.0 && number.abs() <= COUNT_MAX as f64 {
            Ok(Signed(number as i64))
        } else {
            Err(E::invalid_value(Unexpected::Float(number), &self))
        }
    }
}

/// A whole number, also where it is written as `3.0`: to JSON Schema, and to languages whose numbers are
/// doubles, that is the same number.
struct Whole(u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(WholeVisitor)
    }
}

struct WholeVisitor;

impl Visitor<'_> for WholeVisitor {
    type Value = Whole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whole, E> {
        Ok(Whole(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Whole, E> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "whole, not negative, and below 2^53, where doubles are exact"
        )]
        if number.fract() == 0.0 && (0.0..=COUNT_MAX as f64).contains(&number) {
            Ok(Whole(number as u64))
        } else {
            Err(E::invalid_value(Unexpected::Float(number), &self))
        }
    }
}

impl PartialSchema for Count {
    fn schema() -> RefOr<Schema> {
        integer(0, COUNT_MAX)
    }
}

impl ToSchema for Count {}

impl PartialSchema for Amount {
    fn schema() -> RefOr<Schema> {
        integer(1, AMOUNT_MAX)
    }
}

impl ToSchema for Amount {}

/// Not derived, so that the limits are those of the parsers above.
fn integer(minimum: u64, maximum: u64) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::Integer))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(minimum))
        .maximum(Some(maximum))
        .into()
}

/// Why a number was refused; the text is fit to show to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
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
