//! The `Idempotency-Key` header, and responses that repeat an earlier one.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use xxhash_rust::xxh3::xxh3_64;

use super::extract::{header_parameter, single_header};
use super::problem::Error;
use super::state::State;
use crate::domain::ids::IdempotencyKey;
use crate::domain::input;
use crate::postgres::idempotency::IdempotencyUse;

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// The caller's idempotency key, if there is one.
#[derive(Debug)]
pub(super) struct Idempotency(pub(super) Option<IdempotencyKey>);

impl Idempotency {
    /// Refuses a key; for calls whose response holds a secret.
    pub(super) fn refuse(self) -> Result<(), Error> {
        match self.0 {
            Some(_) => Err(Error::MalformedRequest(
                "this takes no Idempotency-Key, because the secret in its response is not stored"
                    .to_owned(),
            )),
            None => Ok(()),
        }
    }

    /// The idempotency record of this request, under the organization's or the caller's `scope`. A retry must have the
    /// same payload.
    pub(super) fn record(self, scope: &str, payload: &str) -> Option<IdempotencyUse> {
        self.0.map(|key| IdempotencyUse {
            scope: scope.to_owned(),
            key,
            fingerprint: format!("{:016x}", xxh3_64(payload.as_bytes())),
        })
    }
}

impl FromRequestParts<State> for Idempotency {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Error> {
        let Some(value) = single_header(&parts.headers, &HEADER)? else {
            return Ok(Self(None));
        };
        let text = String::from_utf8_lossy(value.as_bytes());
        match text.parse() {
            Ok(key) => Ok(Self(Some(key))),
            Err(rule) => Err(Error::MalformedRequest(format!(
                "Idempotency-Key {rule}; got {}",
                input::quoted(&text)
            ))),
        }
    }
}

impl IntoParams for Idempotency {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        // Spaces around the value of a header are not part of it.
        let key = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[!-~]([ -~]{0,253}[!-~])?$"));
        let description = "Makes retries safe, such as `order-42`: a retry with the same key within 24 hours (a setting) gets the first \
            final response again and counts nothing. Keys are scoped to the organization. \
            A different request with the same key is 422.";
        vec![header_parameter("Idempotency-Key", description, key)]
    }
}

/// Marks a response that an earlier request with the same key has had.
pub(super) fn mark_replayed(headers: &mut HeaderMap, replayed: bool) {
    if replayed {
        let replayed = HeaderValue::from_static("true");
        headers.insert("idempotent-replayed", replayed);
    }
}

/// A response, marked where it is a replay.
pub(super) fn replayable(response: impl IntoResponse, replayed: bool) -> Response {
    let mut response = response.into_response();
    mark_replayed(response.headers_mut(), replayed);
    response
}
