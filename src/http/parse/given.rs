//! The deserializer of given values.

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::fault::Fault;
use super::json::Json;
use crate::domain::input::quoted;

/// A parameter of a query, with each value that it was given.
pub(super) type Parameter = (String, Vec<String>);

/// A value to deserialize.
#[derive(Debug, Clone, Copy)]
pub(super) enum Given<'a> {
    Json(&'a Json),
    /// A whole query.
    Query(&'a [Parameter]),
    /// The values of one parameter. The type decides whether that is a text, a number or a list.
    Values(&'a [String]),
}

impl<'a> Given<'a> {
    pub(super) fn read<T: DeserializeOwned>(self) -> Result<T, Fault> {
        T::deserialize(self).map_err(|fault| fault.given(|| self.shown()))
    }

    /// The value, for an error.
    fn shown(self) -> String {
        match self {
            Self::Json(Json::Null) => "null".to_owned(),
            Self::Json(Json::Bool(value)) => value.to_string(),
            Self::Json(Json::Number(number)) => number.to_string(),
            Self::Json(Json::Text(text)) => quoted(text),
            Self::Json(Json::Array(_)) => "an array".to_owned(),
            Self::Json(Json::Object(_)) => "an object".to_owned(),
            Self::Query(_) => "a query".to_owned(),
            Self::Values([value]) if value.contains(' ') => {
                let hint = "in a query a + stands for a space, and is itself written %2B";
                format!("{} ({hint})", quoted(value))
            }
            Self::Values([value]) => quoted(value),
            Self::Values(values) => format!("{} values", values.len()),
        }
    }

    fn visit<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Json(Json::Null) => visitor.visit_unit(),
            Self::Json(Json::Bool(value)) => visitor.visit_bool(*value),
            Self::Json(Json::Number(number)) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Self::Json(Json::Text(text)) => visitor.visit_borrowed_str(text),
            Self::Json(Json::Array(items)) => {
                let items = items.iter().map(Given::Json);
                visitor.visit_seq(Items(items.enumerate()))
            }
            Self::Json(Json::Object(members)) => {
                let members = members.iter();
                visitor.visit_map(Members::new(
                    members.map(|(name, value)| (name.as_str(), Given::Json(value))),
                ))
            }
            Self::Query(parameters) => {
                let parameters = parameters.iter();
                visitor.visit_map(Members::new(
                    parameters.map(|(name, values)| (name.as_str(), Given::Values(values))),
                ))
            }
            Self::Values([value]) => visitor.visit_borrowed_str(value),
            Self::Values(_) => Err(Fault::new("must be given once")),
        }
    }

    fn visit_number<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Self::Values([value]) = self else {
            return self.visit(visitor);
        };
        match (value.parse::<u64>(), value.parse::<i64>()) {
            (Ok(number), _) => visitor.visit_u64(number),
            (_, Ok(number)) => visitor.visit_i64(number),
            _ => self.visit(visitor),
        }
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.visit_number(visitor)
        })*
    };
}

/// Faults get the given value where a member, an item or the whole is read.
impl<'de> Deserializer<'de> for Given<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.visit(visitor)
    }

    numbers!(
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
    );

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Values([value]) if value == "true" => visitor.visit_bool(true),
            Self::Values([value]) if value == "false" => visitor.visit_bool(false),
            Self::Json(Json::Bool(value)) => visitor.visit_bool(*value),
            _ => Err(Fault::new("must be true or false")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Json(Json::Null) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Values(values) => {
                let values = values.iter().map(std::slice::from_ref);
                visitor.visit_seq(Items(values.map(Given::Values).enumerate()))
            }
            Self::Json(Json::Array(_)) => self.visit(visitor),
            _ => Err(Fault::new("must be an array")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Json(Json::Object(_)) | Self::Query(_) => self.visit(visitor),
            _ => Err(Fault::new("must be an object")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self {
            Self::Json(Json::Text(word)) | Self::Values([word]) => {
                visitor.visit_enum(StrDeserializer::new(word))
            }
            _ => Err(de::Error::unknown_variant("", variants)),
        }
    }

    forward_to_deserialize_any! {
        f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// The items of an array.
struct Items<I>(I);

impl<'de, I: Iterator<Item = (usize, Given<'de>)>> SeqAccess<'de> for Items<I> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        let Some((index, item)) = self.0.next() else {
            return Ok(None);
        };
        seed.deserialize(item)
            .map(Some)
            .map_err(|fault: Fault| fault.given(|| item.shown()).within(index))
    }
}

/// The members of an object.
struct Members<'de, I> {
    rest: I,
    /// The member whose name was read last.
    current: Option<(&'de str, Given<'de>)>,
}

impl<I> Members<'_, I> {
    fn new(rest: I) -> Self {
        Self {
            rest,
            current: None,
        }
    }
}

impl<'de, I: Iterator<Item = (&'de str, Given<'de>)>> MapAccess<'de> for Members<'de, I> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        self.current = self.rest.next();
        let Some((name, _)) = self.current else {
            return Ok(None);
        };
        let key = seed
            .deserialize(StrDeserializer::new(name))
            .map_err(|fault: Fault| {
                // An unknown member's fault has its name already.
                if fault.pointer.is_empty() {
                    fault.given(|| quoted(name)).within(name)
                } else {
                    fault
                }
            });
        key.map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let Some((name, value)) = self.current else {
            return Err(Fault::new("has no value"));
        };
        seed.deserialize(value)
            .map_err(|fault: Fault| fault.given(|| value.shown()).within(name))
    }
}
