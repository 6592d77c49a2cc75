//! Filters of the templates: `{{ count|number }}`. A page imports this module.

#![expect(
    unreachable_pub,
    clippy::inline_always,
    clippy::unnecessary_wraps,
    clippy::unused_self,
    reason = "the macro makes a type and methods for each function"
)]

use askama::{Result, Values};

use super::format;

/// A whole number, behind any number of references.
pub(super) trait Whole {
    /// Whether it is negative, and its distance from 0.
    fn parts(&self) -> (bool, u64);
}

impl Whole for u64 {
    fn parts(&self) -> (bool, u64) {
        (false, *self)
    }
}

impl Whole for i64 {
    fn parts(&self) -> (bool, u64) {
        (*self < 0, self.unsigned_abs())
    }
}

impl<T: Whole> Whole for &T {
    fn parts(&self) -> (bool, u64) {
        (*self).parts()
    }
}

/// All digits, in groups of three.
#[askama::filter_fn]
pub(super) fn number(count: impl Whole, _: &dyn Values) -> Result<String> {
    let (is_negative, distance) = count.parts();
    let digits = format::number(distance);
    Ok(if is_negative {
        format!("−{digits}")
    } else {
        digits
    })
}
