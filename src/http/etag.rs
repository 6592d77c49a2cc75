//! Answers that tell a state with a version: the version is their `ETag`.

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::problem::Error;
use crate::domain::precondition::{EntityTag, Preconditions};

/// A state, and the version that names it.
#[derive(Debug)]
pub(super) struct Tagged<T> {
    pub(super) version: u64,
    pub(super) state: T,
}

impl<T: Serialize> Tagged<T> {
    /// The answer to whoever reads the state, and may have it already.
    pub(super) fn unless_known(self, conditions: &Preconditions) -> Result<Response, Error> {
        let version = Some(self.version);
        if conditions.is_known(version) {
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
