//! The HTTP API as the key of a viewer sees it, called without a network.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::http::LocalCaller;

/// Larger than any response that a page asks for.
const RESPONSE_MAX: usize = 16 * 1024 * 1024;

/// What RFC 3986 leaves alone in a segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Encodes a segment of a path, or the value of a query.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// The API, called by one viewer.
#[derive(Debug, Clone)]
pub(super) struct Api {
    routes: Router,
    caller: LocalCaller,
}

/// A page of a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List<T> {
    pub(super) data: Vec<T>,
    pub(super) next_cursor: Option<String>,
}

/// A successful response.
#[derive(Debug)]
pub(super) struct Answer {
    /// The JSON body; null without one.
    pub(super) body: Value,
}

/// A response with an error.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) status: StatusCode,
    /// The problem document.
    pub(super) problem: Value,
}

impl Failed {
    /// The error that a page cannot explain.
    pub(super) fn internal(reason: impl std::fmt::Display) -> Self {
        tracing::error!(%reason, "a page cannot be shown");
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            problem: Value::Null,
        }
    }

    /// What a form refuses itself, in the words of the API.
    pub(super) fn invalid(pointer: &str, detail: &str) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            problem: json!({"errors": [{"pointer": pointer, "detail": detail}]}),
        }
    }

    /// What is wrong, in a sentence.
    pub(super) fn detail(&self) -> String {
        let first = &self.problem["errors"][0]["detail"];
        let detail = first.as_str().or(self.problem["detail"].as_str());
        detail.unwrap_or("something went wrong").to_owned()
    }

    /// Whether Postgres was needed, and is away.
    pub(super) fn is_database_away(&self) -> bool {
        self.problem["code"] == "database_unavailable"
    }

    /// Whether another administrator has changed meanwhile what a form changes.
    pub(super) fn is_conflict(&self) -> bool {
        self.status == StatusCode::PRECONDITION_FAILED
    }

    /// The field at fault, as a JSON pointer such as `/limits/api/limit`; empty if it is none.
    pub(super) fn pointer(&self) -> &str {
        self.problem["errors"][0]["pointer"]
            .as_str()
            .unwrap_or_default()
    }
}

/// None while Postgres is away: a page shows the rest.
pub(super) fn unless_away<T>(read: Result<T, Failed>) -> Result<Option<T>, Failed> {
    match read {
        Err(failed) if failed.is_database_away() => Ok(None),
        other => other.map(Some),
    }
}

impl Api {
    pub(super) fn new(routes: Router, caller: LocalCaller) -> Self {
        Self { routes, caller }
    }

    /// GETs a resource. The path includes the query; see [`encode`].
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failed> {
        let answer = self.send(Method::GET, path, &[], None).await?;
        serde_json::from_value(answer.body)
            .map_err(|error| Failed::internal(format!("{path}: {error}")))
    }

    /// GETs a resource of this media type, whose body is read while it arrives.
    pub(super) async fn open(&self, path: &str, accept: &str) -> Result<Body, Failed> {
        let request = Request::get(path)
            .header(ACCEPT, accept)
            .body(Body::empty());
        let response = self.call(request.map_err(Failed::internal)?).await?;
        Ok(response.into_body())
    }

    /// Sends a request, with headers such as `If-Match` and a JSON body.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer, Failed> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = request.body(body).map_err(Failed::internal)?;
        let body = json(self.call(request).await?).await?;
        Ok(Answer { body })
    }

    /// The successful response to a request.
    async fn call(&self, mut request: Request<Body>) -> Result<Response, Failed> {
        self.caller.sign(request.extensions_mut());
        let response = self.routes.clone().oneshot(request).await;
        let response = response.map_err(Failed::internal)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let problem = json(response).await?;
        Err(Failed { status, problem })
    }
}

/// The JSON body of a response; null without one.
async fn json(response: Response) -> Result<Value, Failed> {
    let bytes = to_bytes(response.into_body(), RESPONSE_MAX).await;
    let bytes = bytes.map_err(Failed::internal)?;
    Ok(serde_json::from_slice(&bytes).unwrap_or_default())
}
