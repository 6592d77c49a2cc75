//! The error of a deserialization.

use std::fmt::{self, Display};

use serde::de::{self, Expected, Unexpected};

use crate::domain::input::quoted;
use crate::http::problem::Error;

/// What is invalid, and where.
#[derive(Debug)]
pub(super) struct Fault {
    /// A JSON pointer, relative to the value being read.
    pub(super) pointer: String,
    detail: String,
    /// Whether the detail ends with what was given.
    has_given: bool,
}

impl Fault {
    pub(super) fn new(detail: impl Display) -> Self {
        Self {
            pointer: String::new(),
            detail: detail.to_string(),
            has_given: false,
        }
    }

    /// A text with U+0000.
    pub(super) fn null(text: &str) -> Self {
        Self::new("must not contain the character U+0000").given(|| quoted(text))
    }

    /// A member that is missing, or should not be there.
    pub(super) fn member(name: &str, detail: impl Display) -> Self {
        let fault = Self {
            has_given: true,
            ..Self::new(detail)
        };
        fault.within(name)
    }

    /// Adds what was given, unless the fault is of a value inside and has it.
    pub(super) fn given(mut self, given: impl FnOnce() -> String) -> Self {
        if !self.has_given {
            self.detail = format!("{}; got {}", self.detail, given());
            self.has_given = true;
        }
        self
    }

    /// The same fault, relative to the parent of the value.
    pub(super) fn within(mut self, name: impl Display) -> Self {
        let name = name.to_string().replace('~', "~0").replace('/', "~1");
        self.pointer = format!("/{name}{}", self.pointer);
        self
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::InvalidField {
            pointer: fault.pointer,
            detail: fault.detail,
        }
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.pointer, self.detail)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(detail: T) -> Self {
        Self::new(detail)
    }

    fn invalid_type(_: Unexpected, expected: &dyn Expected) -> Self {
        Self::new(format!("must be {expected}"))
    }

    fn invalid_value(_: Unexpected, expected: &dyn Expected) -> Self {
        Self::new(format!("must be {expected}"))
    }

    fn unknown_variant(_: &str, variants: &'static [&'static str]) -> Self {
        Self::new(format!("must be {}", listed(variants, "or")))
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        let known = listed(known, "and");
        Self::member(name, format!("is unknown; known are {known}"))
    }

    fn missing_field(name: &'static str) -> Self {
        Self::member(name, "is missing, and must be given")
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::member(name, "is given more than once; give it once")
    }
}

/// Joins words as a sentence does.
fn listed(words: &[&str], conjunction: &str) -> String {
    match words {
        [] => "none".to_owned(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} {conjunction} {last}", most.join(", ")),
    }
}
