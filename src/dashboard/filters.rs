//! Filters of the templates: `{{ count|number }}`. A page imports this module.

use std::borrow::Borrow;

use askama::{Result, Values};

use super::format;

/// All digits, in groups of three.
#[askama::filter_fn]
pub(super) fn number(count: impl Borrow<u64>, _: &dyn Values) -> Result<String> {
    Ok(format::number(*count.borrow()))
}
