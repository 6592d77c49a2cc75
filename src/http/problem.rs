//! Errors of the API: RFC 9457 problem details, and the only place that chooses status codes.

use std::borrow::Cow;
use std::fmt::Write as _;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::rate_limit::seconds;
use super::usage_result::UsageResult;
use crate::domain::ids::METERS_MAX;
use crate::usage::Decided;

/// Every unsuccessful response; one variant for each problem type.
#[derive(Debug, Clone)]
pub(super) enum Error {
    /// Not JSON, or parameters or headers that the operation does not take.
    MalformedRequest(String),
    /// One field is invalid.
    InvalidField {
        /// A JSON pointer into the body, or `/` and the name of a parameter.
        pointer: String,
        /// What is valid, and what was given.
        detail: String,
    },
    /// No credentials, or unknown ones.
    Unauthenticated,
    /// Unknown credentials, after too many of them from the same address.
    TooManyFailedAuthentications {
        /// For `Retry-After`.
        retry_after_seconds: u64,
    },
    /// The credentials lack a permission.
    Forbidden(&'static str),
    /// The resource does not exist.
    NotFound(&'static str),
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// `If-Match` or `If-None-Match` does not hold; nothing was changed.
    PreconditionFailed,
    /// Other resources depend on this one.
    Conflict(String),
    /// The body did not arrive in time.
    RequestTimeout,
    /// The body has more bytes than this.
    PayloadTooLarge(usize),
    /// The URI is longer than any call needs.
    UriTooLong,
    /// The head of the request is larger than any call needs.
    HeadTooLarge,
    /// The body is not declared as JSON, or is compressed.
    UnsupportedMediaType(&'static str),
    /// The idempotency key was used with another payload.
    IdempotencyKeyReused,
    /// A counter would pass 2^53 − 1.
    CounterOverflow(String),
    /// The event is older than any open period, or too far ahead.
    TimestampOutOfRange(String),
    /// The organization has the maximum number of meters.
    TooManyMeters(String),
    /// The organization's limit refused; nothing was counted.
    LimitExceeded {
        /// For `Retry-After`, where waiting helps.
        retry_after_seconds: Option<u64>,
        /// The usage result, a part of the body.
        usage: Box<UsageResult>,
    },
    /// Redis is unavailable; nothing was counted.
    CounterStoreUnavailable,
    /// Postgres is unavailable, and was needed.
    DatabaseUnavailable,
    /// The auth server is unavailable, whose keys verify JWTs.
    AuthServerUnavailable,
    /// Too much load, and of what; nothing was counted.
    Overloaded(&'static str),
    /// Redis may or may not have counted.
    OutcomeUnknown,
    /// There was no answer in time; the request may or may not have been executed.
    DeadlineExceeded,
    /// A defect; the cause is in the log.
    Internal,
    /// Any of these, with a cause for the log alone.
    Caused(Box<Error>, String),
}

/// What the request log says of a problem; travels with the response.
#[derive(Debug, Clone)]
pub(super) struct Reason {
    /// The problem's code.
    pub(super) code: &'static str,
    /// The cause.
    pub(super) error: Option<String>,
}

/// The media type of every problem.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// An error (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// `urn:tallyman:problem:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// The code in words.
    pub(super) title: String,
    /// The status of the response.
    status: u16,
    /// An explanation of this occurrence, for people.
    detail: String,
    /// The problem type; stable, for programs.
    pub(super) code: &'static str,
    /// The invalid field, if there is one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// Of a refused consume.
    #[serde(flatten)]
    #[schema(ignore)]
    usage: Option<Box<UsageResult>>,
}

impl Problem {
    /// The detail, with the field it is about.
    pub(super) fn in_a_line(&self) -> String {
        match self.errors.first() {
            Some(field) => format!("{}: {}", field.pointer, self.detail),
            None => self.detail.clone(),
        }
    }
}

/// An invalid field.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FieldError {
    /// A JSON pointer into the body, or `/` and the name of a parameter.
    pointer: String,
    detail: String,
}

/// `Retry-After` during an outage, s.
const OUTAGE_RETRY_SECONDS: u64 = 1;

impl Error {
    /// Too much load in general.
    pub(super) const OVERLOADED: Self =
        Self::Overloaded("the service is overloaded; nothing was counted");

    /// A handler panicked; its message is on standard error.
    pub(super) fn panicked() -> Self {
        Self::Caused(Box::new(Self::Internal), "a handler panicked".to_owned())
    }

    /// A refused consume.
    pub(super) fn limit_exceeded(
        decided: &Decided,
        usage: UsageResult,
        now: DateTime<Utc>,
    ) -> Self {
        Self::LimitExceeded {
            retry_after_seconds: decided.earliest_grant.map(|at| seconds(at - now)),
            usage: Box::new(usage),
        }
    }

    /// The cause, for the log alone.
    pub(super) fn cause(&self) -> Option<&str> {
        match self {
            Self::Caused(_, cause) => Some(cause),
            _ => None,
        }
    }

    /// The status and the code, the same in every occurrence.
    fn class(&self) -> (u16, &'static str) {
        match self {
            Self::MalformedRequest(_) => (400, "malformed_request"),
            Self::InvalidField { .. } => (400, "invalid_field"),
            Self::Unauthenticated => (401, "unauthenticated"),
            // Not 429, which means that a limit of the organization denied the call.
            Self::TooManyFailedAuthentications { .. } => (401, "too_many_failed_authentications"),
            Self::Forbidden(_) => (403, "forbidden"),
            Self::NotFound(_) => (404, "not_found"),
            Self::MethodNotAllowed => (405, "method_not_allowed"),
            Self::RequestTimeout => (408, "request_timeout"),
            Self::Conflict(_) => (409, "conflict"),
            Self::PreconditionFailed => (412, "precondition_failed"),
            Self::PayloadTooLarge(_) => (413, "payload_too_large"),
            Self::UriTooLong => (414, "uri_too_long"),
            Self::UnsupportedMediaType(_) => (415, "unsupported_media_type"),
            Self::IdempotencyKeyReused => (422, "idempotency_key_reused"),
            Self::CounterOverflow(_) => (422, "counter_overflow"),
            Self::TimestampOutOfRange(_) => (422, "timestamp_out_of_range"),
            Self::TooManyMeters(_) => (422, "too_many_meters"),
            Self::LimitExceeded { .. } => (429, "limit_exceeded"),
            Self::HeadTooLarge => (431, "head_too_large"),
            Self::Internal => (500, "internal"),
            Self::CounterStoreUnavailable => (503, "counter_store_unavailable"),
            Self::DatabaseUnavailable => (503, "database_unavailable"),
            Self::AuthServerUnavailable => (503, "auth_server_unavailable"),
            Self::Overloaded(_) => (503, "overloaded"),
            Self::OutcomeUnknown => (504, "outcome_unknown"),
            Self::DeadlineExceeded => (504, "deadline_exceeded"),
            Self::Caused(problem, _) => problem.class(),
        }
    }

    /// The explanation of this occurrence.
    fn detail(&self) -> Cow<'_, str> {
        match self {
            Self::MalformedRequest(detail)
            | Self::InvalidField { detail, .. }
            | Self::Conflict(detail)
            | Self::TimestampOutOfRange(detail) => detail.into(),
            Self::PayloadTooLarge(max) => {
                format!("the body must have at most {max} bytes; send less at once").into()
            }
            Self::CounterOverflow(meter) => {
                format!("the count of {meter} would pass 2^53 - 1; nothing was counted").into()
            }
            Self::TooManyMeters(meter) => format!(
                "an organization has at most {METERS_MAX} meters, and {meter} would be one more; nothing was counted"
            )
            .into(),
            Self::Caused(problem, _) => problem.detail(),
            _ => self.fixed_detail().into(),
        }
    }

    /// The explanation, where it does not depend on the request.
    fn fixed_detail(&self) -> &'static str {
        match self {
            Self::Forbidden(detail)
            | Self::NotFound(detail)
            | Self::Overloaded(detail)
            | Self::UnsupportedMediaType(detail) => detail,
            Self::Unauthenticated => {
                "send a valid key as `Authorization: Bearer tm_…`, or a JWT where one is accepted"
            }
            Self::TooManyFailedAuthentications { .. } => {
                "this key is not accepted, and too many keys from this address were not; correct the key, and wait"
            }
            Self::MethodNotAllowed => "this path has other methods; see the Allow header",
            Self::PreconditionFailed => {
                "the current state does not match If-Match or If-None-Match; nothing was changed"
            }
            Self::RequestTimeout => "the body did not arrive in time; nothing was counted",
            Self::UriTooLong => "the URI is longer than 65534 bytes",
            Self::HeadTooLarge => "the request has too many headers, or too large ones",
            Self::IdempotencyKeyReused => {
                "this Idempotency-Key was used for a different request; this one was not executed: send it with a new key"
            }
            Self::LimitExceeded { .. } => {
                "the organization's limit does not allow this; nothing was counted"
            }
            Self::CounterStoreUnavailable => {
                "the counter store cannot be reached; nothing was counted"
            }
            Self::DatabaseUnavailable => {
                "the database is needed for this and cannot be reached; nothing was counted"
            }
            Self::AuthServerUnavailable => {
                "the keys of the auth server are needed for this token and cannot be fetched"
            }
            Self::OutcomeUnknown => {
                "the counter store did not reply; retry with the same Idempotency-Key"
            }
            Self::DeadlineExceeded => {
                "the request was not answered in time, and may have been executed; repeat it, a call that counts with the same \
                 Idempotency-Key"
            }
            _ => "internal error; the log has the cause under this request id",
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            Self::LimitExceeded {
                retry_after_seconds,
                ..
            } => *retry_after_seconds,
            Self::TooManyFailedAuthentications {
                retry_after_seconds,
            } => Some(*retry_after_seconds),
            _ if self.class().0 == 503 => Some(OUTAGE_RETRY_SECONDS),
            _ => None,
        }
    }

    /// The parts of the response.
    pub(super) fn parts(self) -> (StatusCode, HeaderMap, Problem) {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(seconds) = self.retry_after_seconds() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        let problem = self.into_problem();
        let status = StatusCode::from_u16(problem.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        (status, headers, problem)
    }

    /// The body of the response.
    pub(super) fn into_problem(self) -> Problem {
        if let Self::Caused(problem, _) = self {
            return problem.into_problem();
        }
        let (status, code) = self.class();
        let detail = self.detail().into_owned();
        let (mut errors, mut usage) = (Vec::new(), None);
        match self {
            Self::InvalidField { pointer, detail } => errors.push(FieldError { pointer, detail }),
            Self::LimitExceeded { usage: result, .. } => usage = Some(result),
            _ => {}
        }
        Problem {
            kind: format!("urn:tallyman:problem:{code}"),
            title: title(code),
            status,
            detail,
            code,
            errors,
            usage,
        }
    }

    /// For the request log.
    pub(super) fn reason(&self) -> Reason {
        Reason {
            code: self.class().1,
            error: self.cause().map(str::to_owned),
        }
    }
}

/// The title of a problem type: its code in words.
fn title(code: &str) -> String {
    match code {
        "internal" => "Internal error".to_owned(),
        "uri_too_long" => "URI too long".to_owned(),
        _ => {
            let words = code.replace('_', " ");
            words[..1].to_ascii_uppercase() + &words[1..]
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let reason = self.reason();
        let (status, headers, problem) = self.parts();
        let mut response = (status, headers, Json(problem)).into_response();
        response.extensions_mut().insert(reason);
        response
    }
}

/// A raw HTTP/1.1 response, for connections that are refused and requests that cannot be parsed.
pub fn refusal(status: u16) -> Option<String> {
    let problem = match status {
        400 => Error::MalformedRequest("this is not an HTTP/1.1 request".to_owned()),
        414 => Error::UriTooLong,
        431 => Error::HeadTooLarge,
        503 => Error::Overloaded(
            "the service has the maximum number of connections; nothing was counted",
        ),
        _ => return None,
    };
    let (status, headers, problem) = problem.parts();
    let body = serde_json::to_string(&problem).ok()?;
    let mut text = format!("HTTP/1.1 {status}\r\n");
    for (name, value) in &headers {
        let _ = write!(text, "{name}: {}\r\n", value.to_str().ok()?);
    }
    let length = body.len();
    let _ = write!(
        text,
        "content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    Some(text)
}
