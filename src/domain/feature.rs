//! Features: named values of a plan or an organization.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// The value of a feature.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Feature {
    /// On or off.
    Switch(bool),
    /// A quantity, such as a number of seats.
    Number(serde_json::Number),
    /// A choice, such as a support tier.
    Text(String),
}

impl<'de> Deserialize<'de> for Feature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;

        impl Visitor<'_> for Value {
            type Value = Feature;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, a number or a string")
            }

            fn visit_bool<E>(self, on: bool) -> Result<Feature, E> {
                Ok(Feature::Switch(on))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Feature, E> {
                Ok(Feature::Number(number.into()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Feature, E> {
                Ok(Feature::Number(number.into()))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Feature, E> {
                let finite = serde_json::Number::from_f64(number);
                finite
                    .map(Feature::Number)
                    .ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
            }

            fn visit_str<E>(self, text: &str) -> Result<Feature, E> {
                Ok(Feature::Text(text.to_owned()))
            }
        }

        deserializer.deserialize_any(Value)
    }
}

impl PartialSchema for Feature {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::from_iter([
                Type::Boolean,
                Type::Number,
                Type::String,
            ]))
            .description(Some("On or off, a quantity, or a choice."))
            .into()
    }
}

impl ToSchema for Feature {}

impl Feature {
    /// Whether it is on: `true`, a number other than 0, a text that is not empty.
    pub fn is_enabled(&self) -> bool {
        match self {
            Self::Switch(on) => *on,
            Self::Number(number) => number.as_f64() != Some(0.0),
            Self::Text(text) => !text.is_empty(),
        }
    }
}

/// Features by name.
pub type Features = BTreeMap<String, Feature>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_on_unless_it_is_off_zero_or_empty() {
        for (json, enabled) in [
            ("true", true),
            ("false", false),
            ("3", true),
            ("-0.5", true),
            ("0", false),
            ("0.0", false),
            (r#""email""#, true),
            (r#""""#, false),
        ] {
            let feature: Feature = serde_json::from_str(json).unwrap();
            assert_eq!(feature.is_enabled(), enabled, "{json}");
        }
    }
}
