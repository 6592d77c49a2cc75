//! Parsing of words and of the colon-separated texts that Lua scripts and SQL share with Rust.

use std::fmt::Display;
use std::str::FromStr;

use strum::VariantArray;

use super::quantity::Count;

/// A word that is none of an enum's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {0}")]
pub struct InvalidWord(String);

/// The parse error of an enum, which lists its words: `must be hard or soft`.
pub(super) fn invalid_word<T: VariantArray + Display>(_word: &str) -> InvalidWord {
    let words: Vec<String> = T::VARIANTS.iter().map(T::to_string).collect();
    InvalidWord(match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    })
}

/// A stored text in an unknown format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("has an unknown format")]
pub struct Malformed;

/// The `N` fields of a text, separated by colons.
pub(super) fn fields<const N: usize>(text: &str) -> Result<[&str; N], Malformed> {
    let fields: Vec<&str> = text.split(':').collect();
    fields.try_into().map_err(|_| Malformed)
}

/// One field.
pub(super) fn field<T: FromStr>(text: &str) -> Result<T, Malformed> {
    text.parse().map_err(|_| Malformed)
}

/// A field that holds a count.
pub(super) fn count(text: &str) -> Result<Count, Malformed> {
    Count::try_from(field::<u64>(text)?).map_err(|_| Malformed)
}
