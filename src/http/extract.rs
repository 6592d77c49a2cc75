//! Extractors for JSON bodies, queries and headers. Every rejection is a problem.

use std::fmt;
use std::marker::PhantomData;

use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::request::Parts;
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};

use super::body::{Text, read};
use super::parse;
use super::problem::Error;
use super::state::State;
use crate::domain::input::{self, Instant};

/// The largest body of any call but a batch, bytes.
pub(super) const BODY_MAX: usize = 64 * 1024;

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// A JSON body. The types refuse unknown fields.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<State> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &State) -> Result<Self, Error> {
        let (parts, body) = request.into_parts();
        let (media_type, text) = receive(&parts, body, state).await?;
        media_type?.must_be_json()?;
        parse::json(&text).map(Self)
    }
}

impl<T: DeserializeOwned> OptionalFromRequest<State> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &State) -> Result<Option<Self>, Error> {
        let (parts, body) = request.into_parts();
        let (media_type, text) = receive(&parts, body, state).await?;
        if text.is_empty() {
            return Ok(None);
        }
        media_type?.must_be_json()?;
        parse::json(&text).map(|body| Some(Self(body)))
    }
}

/// A JSON body on the hot path. Only for types that refuse by themselves what [`parse::json`] checks: names that are
/// given twice, and U+0000.
#[derive(Debug)]
pub(super) struct HotBody<T>(pub(super) T);

impl<T: DeserializeOwned> HotBody<T> {
    /// Reads the body of a request with these parts.
    pub(super) async fn receive(
        parts: &Parts,
        body: axum::body::Body,
        state: &State,
    ) -> Result<Self, Error> {
        let (media_type, text) = receive(parts, body, state).await?;
        media_type?.must_be_json()?;
        from_json(&text).map(Self)
    }
}

/// Marks a request whose query [`Query`] has parsed.
#[derive(Debug, Clone, Copy)]
struct QueryParsed;

/// Reads a body, and refuses a query that nothing has parsed.
async fn receive(
    parts: &Parts,
    body: axum::body::Body,
    state: &State,
) -> Result<(Result<MediaType, Error>, Text), Error> {
    let parsed = parts.extensions.get::<QueryParsed>().is_some();
    let query = parts.uri.query().filter(|_| !parsed).unwrap_or_default();
    if let Some((name, _)) = form_urlencoded::parse(query.as_bytes()).next() {
        return Err(Error::MalformedRequest(format!(
            "this takes no query parameters; put {} in the JSON body",
            input::quoted(&name)
        )));
    }
    let media_type = MediaType::of(&parts.headers);
    Ok((media_type, read(parts, body, BODY_MAX, state).await?))
}

/// Parses straight into the type; parses again, strictly, to explain a failure.
pub(super) fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    match serde_json::from_slice(text) {
        Ok(Object(value)) => Ok(value),
        Err(_) => parse::json(text),
    }
}

/// A JSON object. Without this, `serde_json` also takes an array of the fields' values for a struct.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// The query's parameters. The types refuse unknown ones.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<State> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        parts.extensions.insert(QueryParsed);
        parse::query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// Refuses a query, so that a misspelled URL is not ignored.
#[derive(Debug)]
pub(super) struct NoQuery;

impl FromRequestParts<State> for NoQuery {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        match parts.uri.query() {
            None | Some("") => Ok(Self),
            Some(query) => Err(Error::MalformedRequest(format!(
                "this takes no query parameters; got {}",
                input::quoted(query)
            ))),
        }
    }
}

/// Deserializes an instant, rounded up to a whole millisecond, the resolution of every stored instant.
pub(super) fn instant<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<DateTime<Utc>>, D::Error> {
    let instant: DateTime<Utc> = input::required::<Instant, D>(deserializer)?;
    let whole = instant.trunc_subsecs(3);
    if instant == whole {
        return Ok(Some(whole));
    }
    Ok(whole.checked_add_signed(TimeDelta::milliseconds(1)))
}

/// The declared media type of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MediaType {
    /// One JSON value.
    Json,
    /// One JSON value a line.
    NdJson,
    /// Something else, or none.
    Other,
}

impl MediaType {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let mut codings = headers.get_all(CONTENT_ENCODING).iter();
        if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(Error::UnsupportedMediaType(
                "send the body without Content-Encoding: compressed bodies are not supported",
            ));
        }
        let declared = single_header(headers, &CONTENT_TYPE)?;
        // Nearly always, and so without looking for parameters.
        if declared.is_some_and(|it| it == "application/json") {
            return Ok(Self::Json);
        }
        let declared = declared
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let media_type = declared.split(';').next().unwrap_or_default().trim();
        Ok(if media_type.eq_ignore_ascii_case("application/json") {
            Self::Json
        } else if media_type.eq_ignore_ascii_case("application/x-ndjson") {
            Self::NdJson
        } else {
            Self::Other
        })
    }

    fn must_be_json(self) -> Result<(), Error> {
        match self {
            Self::Json => Ok(()),
            Self::NdJson | Self::Other => Err(Error::UnsupportedMediaType(
                "send the body as Content-Type: application/json",
            )),
        }
    }
}

/// A header that may be sent once.
pub(super) fn single_header<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Error> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Error::MalformedRequest(format!(
            "the header {name} is given more than once; send it once"
        ))),
        (value, None) => Ok(value),
    }
}

/// Describes an optional header of requests.
pub(super) fn header_parameter(name: &str, description: &str, schema: ObjectBuilder) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

/// How much of a response the caller wants (RFC 7240).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preference {
    /// All of it.
    Full,
    /// The status and the headers.
    Minimal,
}

/// The value of a preference. Unknown preferences are ignored, and the first of several with one name counts.
pub(super) fn preference<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let preferences = headers.get_all(PREFER).iter();
    let first = preferences
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|preference| preference.split(';').next()?.split_once('='))
        .find(|(given, _)| given.trim().eq_ignore_ascii_case(name));
    first.map(|(_, value)| value.trim().trim_matches('"'))
}

impl FromRequestParts<State> for Preference {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        Ok(match preference(&parts.headers, "return") {
            Some(value) if value.eq_ignore_ascii_case("minimal") => Self::Minimal,
            _ => Self::Full,
        })
    }
}

impl IntoParams for Preference {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let preferences = ObjectBuilder::new()
            .schema_type(Type::String)
            .examples(["return=minimal"]);
        let description = "With `return=minimal` a 200 becomes a 204, and a 429 has no body: the headers tell the result. \
            With `wait=2` the request is answered within 2 seconds. Unknown preferences are ignored.";
        vec![header_parameter("Prefer", description, preferences)]
    }
}
