//! Conditional requests: a state's version is its `ETag`.

use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::header::{ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};

use super::extract::header_parameter;
use super::problem::Error;
use super::state::State;
use crate::domain::input;
use crate::domain::precondition::{EntityTag, Preconditions};

/// A state and its version.
#[derive(Debug)]
pub(super) struct Tagged<T> {
    pub(super) version: u64,
    pub(super) state: T,
}

impl<T: Serialize> Tagged<T> {
    /// The response to a read: 304 where `If-None-Match` names this version.
    pub(super) fn unless_known(self, conditions: &Preconditions) -> Result<Response, Error> {
        let version = Some(self.version);
        if conditions.is_not_modified(version) {
            let tag = EntityTag(self.version).to_string();
            return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
        }
        conditions.check(version)?;
        Ok(self.into_response())
    }
}

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let tag = EntityTag(self.version).to_string();
        ([(ETAG, tag)], Json(self.state)).into_response()
    }
}

/// `If-Match` and `If-None-Match`.
#[derive(Debug)]
pub(super) struct Conditions(pub(super) Preconditions);

impl FromRequestParts<State> for Conditions {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        let if_match = list(&parts.headers, &IF_MATCH)?;
        let if_none_match = list(&parts.headers, &IF_NONE_MATCH)?;
        Preconditions::parse(if_match.as_deref(), if_none_match.as_deref())
            .map(Self)
            .map_err(|error| {
                let given = [if_match, if_none_match].into_iter().flatten();
                let given = given.collect::<Vec<_>>().join(" and ");
                Error::MalformedRequest(format!(
                    "If-Match and If-None-Match {error}; got {}",
                    input::quoted(&given)
                ))
            })
    }
}

/// A list header; several headers of one name are one list.
fn list(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Error> {
    let values = headers.get_all(name).iter();
    let values: Vec<&str> = values
        .map(|value| value.to_str())
        .collect::<Result<_, _>>()
        .map_err(|_| Error::MalformedRequest(format!("{name} is not text")))?;
    Ok((!values.is_empty()).then(|| values.join(",")))
}

impl IntoParams for Conditions {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let parameter = |name, description| {
            let tags = ObjectBuilder::new().schema_type(Type::String);
            header_parameter(name, description, tags.examples(["\"17\""]))
        };
        vec![
            parameter(
                "If-Match",
                "Entity tags, or `*`: the state must have one of these tags, or must exist; else 412.",
            ),
            parameter(
                "If-None-Match",
                "Entity tags, or `*`: the state must have none of these tags, or must not exist; else 412, or 304 for a GET.",
            ),
        ]
    }
}
