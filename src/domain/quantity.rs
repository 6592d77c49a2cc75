//! Quantities: how much one call counts, and how much a counter can hold.

use serde::{Deserialize, Serialize};

/// The most that a counter can hold: 2^53 − 1, the largest integer that Lua, JavaScript, JSON and
/// Postgres' bigint all represent exactly. Lua and SQL repeat this constant.
pub const COUNT_MAX: u64 = (1 << 53) - 1;

/// The most that one call may count: 10^12.
pub const AMOUNT_MAX: u64 = 1_000_000_000_000;

/// Units counted in one period, or the limit that they are held against: 0 to [`COUNT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
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
#[serde(try_from = "u64", into = "u64")]
pub struct Amount(u64);

impl Amount {
    /// What a call counts unless it says otherwise.
    pub const ONE: Self = Self(1);

    /// The number of units.
    pub fn get(self) -> u64 {
        self.0
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

/// Why a number was refused; the text is fit to show to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidQuantity(&'static str);
