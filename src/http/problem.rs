//! Errors on the wire: RFC 9457 problem details. The only owner of status codes.

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
use crate::admin;
use crate::auth;
use crate::domain::ids::METERS_MAX;
use crate::domain::input::quoted;
use crate::domain::precondition::PreconditionFailed;
use crate::failure::Failure;
use crate::postgres;
use crate::redis;
use crate::usage;
use crate::usage::Decided;
use crate::usage::history;

/// Everything that a request can be answered with but success; one variant for each problem type.
#[derive(Debug, Clone)]
pub(super) enum Error {
    /// Not JSON, or not what this endpoint takes at all.
    MalformedRequest(String),
    /// One field is at fault.
    InvalidField {
        /// A JSON pointer into the body.
        pointer: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No credentials, or unknown ones.
    Unauthenticated,
    /// The credentials do not suffice.
    Forbidden(&'static str),
    /// There is no such thing.
    NotFound(&'static str),
    /// The thing is there, the method is not.
    MethodNotAllowed,
    /// The state is another one than `If-Match` or `If-None-Match` demands; nothing was changed.
    PreconditionFailed,
    /// Others depend on its being as it is.
    Conflict(String),
    /// The body has not arrived in time.
    RequestTimeout,
    /// The body has more bytes than the call takes.
    PayloadTooLarge(usize),
    /// The URI is longer than any call needs.
    UriTooLong,
    /// The head of the request is larger than any call needs.
    HeadTooLarge,
    /// The body is not declared as JSON, or is coded.
    UnsupportedMediaType(&'static str),
    /// The same key came with another payload before.
    IdempotencyKeyReused,
    /// A counter would pass 2^53 − 1.
    CounterOverflow(String),
    /// The event is older than any period takes, or too far ahead.
    TimestampOutOfRange(String),
    /// The organization has as many meters as it may have.
    TooManyMeters(String),
    /// The organization's limit refused; nothing was counted.
    LimitExceeded {
        /// What `Retry-After` says, where waiting helps.
        retry_after_seconds: Option<u64>,
        /// The usage result, which the body carries too.
        usage: Box<UsageResult>,
    },
    /// Redis is away; nothing was counted.
    CounterStoreUnavailable,
    /// Postgres is away, and was needed.
    DatabaseUnavailable,
    /// The auth server is away, whose keys tell a right JWT from a wrong one.
    AuthServerUnavailable,
    /// Too much at once; nothing was counted.
    Overloaded,
    /// The same, and what it is too much of.
    Busy(&'static str),
    /// Redis may or may not have counted.
    OutcomeUnknown,
    /// A defect; the cause is in the log.
    Internal,
    /// Any of these, and what only the log is told of it.
    Caused(Box<Error>, String),
}

/// What the log says of a problem; travels with the response.
#[derive(Debug, Clone)]
pub(super) struct Reason {
    /// The problem's.
    pub(super) code: &'static str,
    /// What went wrong behind it.
    pub(super) error: Option<String>,
}

/// The media type of every problem.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// What was wrong (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// `urn:tallyman:problem:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// The code in words.
    pub(super) title: &'static str,
    /// The status of the response.
    status: u16,
    /// What is to be said of this occurrence, for people.
    detail: String,
    /// The kind of problem; stable, for programs.
    pub(super) code: &'static str,
    /// The field at fault, where it is one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// Of what the limit refused; see [`Error::LimitExceeded`].
    #[serde(flatten)]
    #[schema(ignore)]
    usage: Option<Box<UsageResult>>,
}

impl Problem {
    /// All that people need of it, for where there is one text.
    pub(super) fn in_a_line(&self) -> String {
        match self.errors.first() {
            Some(field) => format!("{}: {}", field.pointer, self.detail),
            None => self.detail.clone(),
        }
    }
}

/// A field, and what is wrong with it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FieldError {
    /// A JSON pointer into the body, or `/` and the name of a query parameter.
    pointer: String,
    detail: String,
}

/// How long a caller waits before asking again after an outage, s.
const OUTAGE_RETRY_SECONDS: u64 = 1;

impl Error {
    /// A handler has panicked; what it said is on standard error.
    pub(super) fn panicked() -> Self {
        Self::Caused(
            Box::new(Self::Internal),
            "a handler has panicked".to_owned(),
        )
    }

    /// A refusal of a consume.
    pub(super) fn limit_exceeded(
        decided: &Decided,
        usage: UsageResult,
        now: DateTime<Utc>,
    ) -> Self {
        Self::LimitExceeded {
            retry_after_seconds: decided.granted_from.map(|at| seconds(at - now)),
            usage: Box::new(usage),
        }
    }

    /// What went wrong behind it, which only the log is told.
    pub(super) fn cause(&self) -> Option<&str> {
        match self {
            Self::Caused(_, cause) => Some(cause),
            _ => None,
        }
    }

    /// What is the same in every occurrence: status, code and title.
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn class(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::MalformedRequest(_) => (
                StatusCode::BAD_REQUEST,
                "malformed_request",
                "Malformed request",
            ),
            Self::InvalidField { .. } => {
                (StatusCode::BAD_REQUEST, "invalid_field", "Invalid field")
            }
            Self::Unauthenticated => (
                StatusCode::UNAUTHORIZED,
                "unauthenticated",
                "Unauthenticated",
            ),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", "Forbidden"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found", "Not found"),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "Method not allowed",
            ),
            Self::PreconditionFailed => (
                StatusCode::PRECONDITION_FAILED,
                "precondition_failed",
                "Precondition failed",
            ),
            Self::Conflict(_) => (StatusCode::CONFLICT, "conflict", "Conflict"),
            Self::RequestTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                "Request timeout",
            ),
            Self::UriTooLong => (StatusCode::URI_TOO_LONG, "uri_too_long", "URI too long"),
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head_too_large",
                "Head too large",
            ),
            Self::PayloadTooLarge(_) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "payload_too_large",
                "Payload too large",
            ),
            Self::UnsupportedMediaType(_) => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "Unsupported media type",
            ),
            Self::IdempotencyKeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "Idempotency key reused",
            ),
            Self::CounterOverflow(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "counter_overflow",
                "Counter overflow",
            ),
            Self::TimestampOutOfRange(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "timestamp_out_of_range",
                "Timestamp out of range",
            ),
            Self::TooManyMeters(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "too_many_meters",
                "Too many meters",
            ),
            Self::LimitExceeded { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "limit_exceeded",
                "Limit exceeded",
            ),
            Self::CounterStoreUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "counter_store_unavailable",
                "Counter store unavailable",
            ),
            Self::DatabaseUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "database_unavailable",
                "Database unavailable",
            ),
            Self::AuthServerUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "auth_server_unavailable",
                "Auth server unavailable",
            ),
            Self::Overloaded | Self::Busy(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Overloaded")
            }
            Self::OutcomeUnknown => (
                StatusCode::GATEWAY_TIMEOUT,
                "outcome_unknown",
                "Outcome unknown",
            ),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "Internal error",
            ),
            Self::Caused(problem, _) => problem.class(),
        }
    }

    /// What is to be said of this occurrence, to the caller.
    fn detail(&self) -> Cow<'_, str> {
        match self {
            Self::MalformedRequest(detail)
            | Self::InvalidField { detail, .. }
            | Self::Conflict(detail)
            | Self::TimestampOutOfRange(detail) => detail.into(),
            Self::Forbidden(detail)
            | Self::NotFound(detail)
            | Self::Busy(detail)
            | Self::UnsupportedMediaType(detail) => (*detail).into(),
            Self::Unauthenticated => {
                "send a valid key as `Authorization: Bearer tm_…`, or a JWT where one will do".into()
            }
            Self::MethodNotAllowed => "this path has other methods; see the Allow header".into(),
            Self::PreconditionFailed => {
                "the present state is not the one that If-Match or If-None-Match demands; nothing was changed".into()
            }
            Self::RequestTimeout => {
                "the body did not arrive in time; nothing was counted".into()
            }
            Self::UriTooLong => "the URI is longer than 65534 bytes".into(),
            Self::HeadTooLarge => "the head of the request has too many headers, or too large ones".into(),
            Self::PayloadTooLarge(max) => {
                format!("the body must have at most {max} bytes; send less at once").into()
            }
            Self::IdempotencyKeyReused => {
                "this Idempotency-Key was used for another request, whose answer stands; this one was not carried out: \
                 send it under a key of its own".into()
            }
            Self::CounterOverflow(meter) => {
                format!("the count of {meter} would pass 2^53 - 1; nothing was counted").into()
            }
            Self::TooManyMeters(meter) => format!(
                "an organization has at most {METERS_MAX} meters, and {meter} would be one more; nothing was counted"
            )
            .into(),
            Self::LimitExceeded { .. } => {
                "the organization's limit does not allow this; nothing was counted".into()
            }
            Self::CounterStoreUnavailable => {
                "the counter store cannot be reached; nothing was counted".into()
            }
            Self::DatabaseUnavailable => {
                "the database is needed for this and cannot be reached; nothing was counted".into()
            }
            Self::AuthServerUnavailable => {
                "the keys of the auth server are needed for this token and cannot be fetched".into()
            }
            Self::Overloaded => "the service has more to do than it can; nothing was counted".into(),
            Self::OutcomeUnknown => {
                "the counter store did not answer; repeat the request with the same Idempotency-Key".into()
            }
            Self::Internal => {
                "something is wrong in the service; the request id leads to the cause in its log".into()
            }
            Self::Caused(problem, _) => problem.detail(),
        }
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            Self::LimitExceeded {
                retry_after_seconds,
                ..
            } => *retry_after_seconds,
            Self::CounterStoreUnavailable
            | Self::DatabaseUnavailable
            | Self::AuthServerUnavailable
            | Self::Overloaded
            | Self::Busy(_) => Some(OUTAGE_RETRY_SECONDS),
            Self::Caused(problem, _) => problem.retry_after_seconds(),
            _ => None,
        }
    }
}

impl Error {
    /// The response that it is.
    pub(super) fn parts(self) -> (StatusCode, HeaderMap, Problem) {
        let (status, code, _) = self.class();
        let retry_after = self.retry_after_seconds();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if code == "unauthenticated" {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        (status, headers, self.into_problem())
    }

    /// What the caller is told.
    pub(super) fn into_problem(self) -> Problem {
        if let Self::Caused(problem, _) = self {
            return problem.into_problem();
        }
        let (status, code, title) = self.class();
        let detail = self.detail().into_owned();
        let (mut errors, mut usage) = (Vec::new(), None);
        match self {
            Self::InvalidField { pointer, detail } => errors.push(FieldError { pointer, detail }),
            Self::LimitExceeded { usage: result, .. } => usage = Some(result),
            _ => {}
        }
        Problem {
            kind: format!("urn:tallyman:problem:{code}"),
            title,
            status: status.as_u16(),
            detail,
            code,
            errors,
            usage,
        }
    }
}

impl Error {
    /// What the log says of it.
    pub(super) fn reason(&self) -> Reason {
        Reason {
            code: self.class().1,
            error: self.cause().map(str::to_owned),
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

/// What is answered where there is no request yet, as it goes over the wire: HTTP/1.1 cannot be made of what came, or
/// there is no place for whoever calls.
pub fn refusal(status: u16) -> Option<String> {
    let problem = match status {
        400 => Error::MalformedRequest("this is not a request of HTTP/1.1".to_owned()),
        414 => Error::UriTooLong,
        431 => Error::HeadTooLarge,
        503 => Error::Busy("the service has as many connections as it may; nothing was counted"),
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

/// A problem whose cause is not the caller's: the log gets the cause, the caller the request id.
pub(super) fn caused(problem: Error, cause: &dyn std::error::Error) -> Error {
    Error::Caused(Box::new(problem), cause.to_string())
}

impl<E: Into<Failure>> From<E> for Error {
    fn from(failure: E) -> Self {
        let failure = failure.into();
        let problem = match &failure {
            Failure::Redis(error) => from_redis(error),
            Failure::Postgres(postgres::Error::NoSuchPlan(plan)) => {
                return Self::InvalidField {
                    pointer: "/planId".to_owned(),
                    detail: format!(
                        "must be a plan that exists, as GET /v1/plans lists them; got {}",
                        quoted(plan)
                    ),
                };
            }
            Failure::Postgres(error) => from_postgres(error),
            Failure::Contended => Self::Overloaded,
            Failure::TooManyMeters(meter) => return Self::TooManyMeters(meter.to_string()),
            Failure::Overflow(meter) => return Self::CounterOverflow(meter.to_string()),
            Failure::KeyReused => return Self::IdempotencyKeyReused,
        };
        caused(problem, &failure)
    }
}

fn from_redis(error: &redis::Error) -> Error {
    match error {
        // Counting is not safe to repeat, and reports `OutcomeUnknown` itself.
        redis::Error::Unavailable(_) | redis::Error::Unknown(_) | redis::Error::Unfit(_) => {
            Error::CounterStoreUnavailable
        }
        redis::Error::Overloaded => Error::Overloaded,
        redis::Error::Inconsistent(_) => Error::Internal,
    }
}

fn from_postgres(error: &postgres::Error) -> Error {
    match error {
        postgres::Error::Unavailable(_) => Error::DatabaseUnavailable,
        postgres::Error::NewerGeneration
        | postgres::Error::OlderPolicy
        | postgres::Error::TooManyMeters => Error::Overloaded,
        _ => Error::Internal,
    }
}

impl From<usage::Error> for Error {
    fn from(error: usage::Error) -> Self {
        match error {
            usage::Error::Failure(failure) => failure.into(),
            usage::Error::OutcomeUnknown(_) => caused(Self::OutcomeUnknown, &error),
            usage::Error::TimestampOutOfRange(_) => Self::TimestampOutOfRange(error.to_string()),
        }
    }
}

impl From<admin::Error> for Error {
    fn from(error: admin::Error) -> Self {
        match error {
            admin::Error::Invalid(admin::Invalid { pointer, detail }) => {
                Self::InvalidField { pointer, detail }
            }
            admin::Error::NotFound => Self::NotFound("there is no such organization"),
            admin::Error::NoSuchPlan => Self::NotFound("there is no such plan"),
            admin::Error::Conflict(detail) => Self::Conflict(detail),
            admin::Error::PreconditionFailed(failed) => failed.into(),
            admin::Error::Failure(failure) => failure.into(),
        }
    }
}

impl From<PreconditionFailed> for Error {
    fn from(_: PreconditionFailed) -> Self {
        Self::PreconditionFailed
    }
}

impl From<history::Error> for Error {
    fn from(error: history::Error) -> Self {
        match error {
            history::Error::Failure(failure) => failure.into(),
            history::Error::TooManyRows => Self::InvalidField {
                pointer: "/fill".to_owned(),
                detail: error.to_string(),
            },
        }
    }
}

impl From<auth::Error> for Error {
    fn from(error: auth::Error) -> Self {
        match error {
            // Whatever the reason: a key that cannot be looked up is not a wrong one.
            auth::Error::Failure(_) => caused(Self::DatabaseUnavailable, &error),
            auth::Error::AuthServer(_) => caused(Self::AuthServerUnavailable, &error),
        }
    }
}
