//! The problems that the use cases' errors become. A problem that is not the caller's fault keeps its cause for the log.

use super::problem::Error;
use super::rate_limit::seconds;
use crate::admin;
use crate::auth;
use crate::domain::input::quoted;
use crate::domain::precondition::PreconditionFailed;
use crate::failure::Failure;
use crate::postgres;
use crate::redis;
use crate::usage;

/// A problem with a cause: the log gets the cause, the caller the request id.
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
            Failure::Contended => Self::OVERLOADED,
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
        redis::Error::Unavailable(_)
        | redis::Error::Redirected(_)
        | redis::Error::Part(_)
        | redis::Error::Unknown(_)
        | redis::Error::Unfit(_) => Error::CounterStoreUnavailable,
        redis::Error::Overloaded => Error::OVERLOADED,
        redis::Error::Inconsistent(_) => Error::Internal,
    }
}

fn from_postgres(error: &postgres::Error) -> Error {
    match error {
        postgres::Error::Unavailable(_) => Error::DatabaseUnavailable,
        postgres::Error::NewerGeneration
        | postgres::Error::OlderPolicy
        | postgres::Error::TooManyMeters => Error::OVERLOADED,
        _ => Error::Internal,
    }
}

impl From<usage::Error> for Error {
    fn from(error: usage::Error) -> Self {
        match error {
            usage::Error::Failure(failure) => failure.into(),
            usage::Error::OutcomeUnknown(_) => caused(Self::OutcomeUnknown, &error),
            usage::Error::TimestampOutOfRange(_) => Self::TimestampOutOfRange(error.to_string()),
            usage::Error::TooManyRows => Self::InvalidField {
                pointer: "/fill".to_owned(),
                detail: error.to_string(),
            },
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

impl From<auth::Error> for Error {
    fn from(error: auth::Error) -> Self {
        match error {
            // A key that cannot be looked up is not invalid.
            auth::Error::Failure(_) => caused(Self::DatabaseUnavailable, &error),
            auth::Error::AuthServer(_) => caused(Self::AuthServerUnavailable, &error),
        }
    }
}

impl From<auth::Refused> for Error {
    fn from(refused: auth::Refused) -> Self {
        match refused {
            auth::Refused::Invalid => Self::Unauthenticated,
            auth::Refused::TooManyFailures { wait } => Self::TooManyFailedAuthentications {
                retry_after_seconds: seconds(wait),
            },
        }
    }
}
