//! Reads JSON bodies and queries into types. Every refusal names the field by a pointer, and says what would do and
//! what was given.
//!
//! serde tells the error of a deserializer what was expected; a deserializer of our own keeps that together with the
//! place, where the errors of others are text. Also here, for every field of every call: no member of an object and
//! no parameter is given twice, and no text holds U+0000, which Postgres cannot store.

use std::collections::HashSet;
use std::fmt::{self, Display};

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::Number;

use super::problem::Error;
use crate::domain::input::quoted;

/// A JSON body.
pub(super) fn json<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    if text.is_empty() {
        let detail = "the body is empty; send a JSON object";
        return Err(Error::MalformedRequest(detail.to_owned()));
    }
    let json: Json = serde_json::from_slice(text)
        .map_err(|error| Error::MalformedRequest(format!("the body is not JSON: {error}")))?;
    json.check()?;
    let given = Given::Json(&json);
    Ok(T::deserialize(given).map_err(|fault| fault.given(|| given.shown()))?)
}

/// The parameters of a query.
pub(super) fn query<T: DeserializeOwned>(query: &str) -> Result<T, Error> {
    let mut parameters = Vec::<Parameter>::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name.contains('\0') || value.contains('\0') {
            return Err(Fault::null(&value).within(&name).into());
        }
        match parameters.iter_mut().find(|it| it.name == name) {
            Some(known) => known.values.push(value.into_owned()),
            None => parameters.push(Parameter {
                name: name.into_owned(),
                values: vec![value.into_owned()],
            }),
        }
    }
    let given = Given::Query(&parameters);
    Ok(T::deserialize(given).map_err(|fault| fault.given(|| given.shown()))?)
}

/// What is wrong, and where.
#[derive(Debug)]
struct Fault {
    /// A JSON pointer from what is being read.
    pointer: String,
    detail: String,
    /// Whether the detail tells what was given.
    tells_given: bool,
}

impl Fault {
    fn new(detail: impl Display) -> Self {
        Self {
            pointer: String::new(),
            detail: detail.to_string(),
            tells_given: false,
        }
    }

    fn null(text: &str) -> Self {
        let fault = Self::new("must not contain the character U+0000");
        fault.given(|| quoted(text))
    }

    /// About a member that is not there, or should not be.
    fn of_member(name: &str, detail: impl Display) -> Self {
        let fault = Self {
            tells_given: true,
            ..Self::new(detail)
        };
        fault.within(name)
    }

    /// Adds what was given, where the fault is that of this value and not of one inside.
    fn given(mut self, given: impl FnOnce() -> String) -> Self {
        if !self.tells_given {
            self.detail = format!("{}; got {}", self.detail, given());
            self.tells_given = true;
        }
        self
    }

    /// The same, seen from the value that this is a member of.
    fn within(mut self, name: &str) -> Self {
        let name = name.replace('~', "~0").replace('/', "~1");
        self.pointer.insert_str(0, &name);
        self.pointer.insert(0, '/');
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
        Self::of_member(
            name,
            format!("is unknown; known are {}", listed(known, "and")),
        )
    }

    fn missing_field(name: &'static str) -> Self {
        Self::of_member(name, "is missing, and must be given")
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::of_member(name, "is given more than once; give it once")
    }
}

/// Words as people list them.
fn listed(words: &[&str], conjunction: &str) -> String {
    match words {
        [] => "none".to_owned(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} {conjunction} {last}", most.join(", ")),
    }
}

/// A JSON value as it was written: what a member is given twice is here twice.
#[derive(Debug)]
enum Json {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Refuses what is given twice, and U+0000.
    fn check(&self) -> Result<(), Fault> {
        match self {
            Self::Text(text) if text.contains('\0') => Err(Fault::null(text)),
            Self::Array(items) => items
                .iter()
                .enumerate()
                .try_for_each(|(index, item)| in_array(index, item.check())),
            Self::Object(members) => {
                let mut names = HashSet::new();
                members.iter().try_for_each(|(name, value)| {
                    if name.contains('\0') {
                        return Err(Fault::null(name).within(name));
                    }
                    if !names.insert(name) {
                        let detail = "is given more than once; give it once";
                        return Err(Fault::of_member(name, detail));
                    }
                    value.check().map_err(|fault| fault.within(name))
                })
            }
            _ => Ok(()),
        }
    }
}

fn in_array<T>(index: usize, result: Result<T, Fault>) -> Result<T, Fault> {
    result.map_err(|fault| fault.within(&index.to_string()))
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Number::from_f64(number).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut object = Vec::new();
        while let Some(member) = members.next_entry()? {
            object.push(member);
        }
        Ok(Json::Object(object))
    }
}

/// One parameter of a query, and all that it was given.
#[derive(Debug)]
struct Parameter {
    name: String,
    values: Vec<String>,
}

/// What is read: something that was given.
#[derive(Debug, Clone, Copy)]
enum Given<'a> {
    Json(&'a Json),
    /// A whole query.
    Query(&'a [Parameter]),
    /// What one parameter was given. Its type decides whether that is a text, a number or a list.
    Values(&'a [String]),
}

impl<'a> Given<'a> {
    /// As an error tells it.
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

    fn unlike(self, expected: impl Display) -> Fault {
        Fault::new(format!("must be {expected}")).given(|| self.shown())
    }

    /// Its text, if it is one.
    fn text(self) -> Option<&'a str> {
        match self {
            Self::Json(Json::Text(text)) => Some(text),
            Self::Values([value]) => Some(value),
            _ => None,
        }
    }

    /// Hands it to whoever knows what it must be.
    fn visit<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let visited = match self {
            Self::Json(Json::Null) => visitor.visit_unit(),
            Self::Json(Json::Bool(value)) => visitor.visit_bool(*value),
            Self::Json(Json::Number(number)) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Self::Json(Json::Text(text)) => visitor.visit_borrowed_str(text),
            Self::Json(Json::Array(items)) => {
                let items = items.iter().map(Given::Json).enumerate();
                visitor.visit_seq(Items(items))
            }
            Self::Json(Json::Object(members)) => {
                let members = members.iter();
                let members = members.map(|(name, value)| (name.as_str(), Given::Json(value)));
                visitor.visit_map(Members::of(members))
            }
            Self::Query(parameters) => {
                let parameters = parameters.iter();
                let parameters = parameters.map(|it| (it.name.as_str(), Given::Values(&it.values)));
                visitor.visit_map(Members::of(parameters))
            }
            Self::Values([value]) => visitor.visit_borrowed_str(value),
            Self::Values(_) => Err(Fault::new("must be given once")),
        };
        visited.map_err(|fault: Fault| fault.given(|| self.shown()))
    }

    fn visit_number<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Self::Values([value]) = self else {
            return self.visit(visitor);
        };
        let visited = match (value.parse::<u64>(), value.parse::<i64>()) {
            (Ok(number), _) => visitor.visit_u64(number),
            (_, Ok(number)) => visitor.visit_i64(number),
            _ => return self.visit(visitor),
        };
        visited.map_err(|fault: Fault| fault.given(|| self.shown()))
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.visit_number(visitor)
        })*
    };
}

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
            Self::Json(Json::Bool(_)) => self.visit(visitor),
            _ => Err(self.unlike("true or false")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Json(Json::Null) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
        .map_err(|fault| fault.given(|| self.shown()))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let visited = visitor.visit_newtype_struct(self);
        visited.map_err(|fault: Fault| fault.given(|| self.shown()))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Values(values) => {
                let values = values.iter().map(std::slice::from_ref);
                let visited = visitor.visit_seq(Items(values.map(Given::Values).enumerate()));
                visited.map_err(|fault: Fault| fault.given(|| self.shown()))
            }
            Self::Json(Json::Array(_)) => self.visit(visitor),
            _ => Err(self.unlike("an array")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Json(Json::Object(_)) | Self::Query(_) => self.visit(visitor),
            Self::Values(_) => Err(self.unlike("an object, which needs a JSON body")),
            Self::Json(_) => Err(self.unlike("an object")),
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
        let visited = match self.text() {
            Some(word) => visitor.visit_enum(StrDeserializer::new(word)),
            None => Err(de::Error::unknown_variant("", variants)),
        };
        visited.map_err(|fault: Fault| fault.given(|| self.shown()))
    }

    forward_to_deserialize_any! {
        f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// What an array holds.
struct Items<I>(I);

impl<'de, I: Iterator<Item = (usize, Given<'de>)>> SeqAccess<'de> for Items<I> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        let next = self.0.next();
        next.map(|(index, item)| {
            let read = seed.deserialize(item);
            in_array(
                index,
                read.map_err(|fault: Fault| fault.given(|| item.shown())),
            )
        })
        .transpose()
    }
}

/// What an object holds.
struct Members<'de, I> {
    rest: I,
    /// The one whose name was read.
    current: Option<(&'de str, Given<'de>)>,
}

impl<I> Members<'_, I> {
    fn of(rest: I) -> Self {
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
                // That of an unknown member names it already.
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
        // What a type makes of a value may fail after the value was read.
        seed.deserialize(value)
            .map_err(|fault: Fault| fault.given(|| value.shown()).within(name))
    }
}
