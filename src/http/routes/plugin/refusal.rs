//! Errors in the plugin's format.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, OpenApi, ToSchema};

use crate::http::openapi::headers::with_headers;
use crate::http::problem::Error;

/// The plugin's error format.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"error": "Organization not found"}))]
pub(in crate::http) struct PluginError {
    error: String,
}

/// Why an endpoint refused a request.
#[derive(Debug)]
pub(in crate::http) enum Refusal {
    /// The request names no organization, and the token has none.
    NoOrganization,
    /// A problem, as on every other endpoint.
    Problem(Error),
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Problem(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = |error: &str| {
            Json(PluginError {
                error: error.to_owned(),
            })
        };
        let error = match self {
            Self::NoOrganization => {
                return (StatusCode::BAD_REQUEST, body("No organization found")).into_response();
            }
            Self::Problem(error) => error,
        };
        let reason = error.reason();
        let (status, mut headers, problem) = error.parts();
        headers.remove(header::CONTENT_TYPE);
        let body = match status {
            StatusCode::UNAUTHORIZED => body("Unauthorized"),
            StatusCode::NOT_FOUND => body("Organization not found"),
            StatusCode::INTERNAL_SERVER_ERROR => body("Internal server error"),
            _ => body(&problem.in_a_line()),
        };
        let mut response = (status, headers, body).into_response();
        response.extensions_mut().insert(reason);
        response
    }
}

/// Registers the schema of refusals.
#[derive(OpenApi)]
#[openapi(components(schemas(PluginError)))]
pub(in crate::http) struct PluginSchemas;

/// The error responses of every endpoint here.
pub(in crate::http) struct PluginRefusals;

impl IntoResponses for PluginRefusals {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        [
            ("400", "A field is invalid, or no organization is named."),
            ("401", "Missing or invalid credentials."),
            ("403", "Insufficient permissions."),
            ("404", "Unknown organization."),
            ("413", "The body is too large."),
            ("415", "The body is not declared as JSON."),
            ("422", "The organization has too many meters."),
            ("500", "Internal error."),
            ("503", "Redis, Postgres or the auth server is unavailable."),
        ]
        .map(|(status, description)| {
            let content = Content::new(Some(Ref::from_schema_name(PluginError::name())));
            let response = ResponseBuilder::new()
                .description(description)
                .content("application/json", content);
            let response = match status {
                "401" => with_headers(response, &["Retry-After", "WWW-Authenticate"]),
                "503" => with_headers(response, &["Retry-After"]),
                _ => response.into(),
            };
            (status.to_owned(), response)
        })
        .into()
    }
}
