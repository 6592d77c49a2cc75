//! Failures of statements, by how the caller can react.

use std::fmt;
use std::sync::Arc;

/// What a statement returns.
pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// A statement that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Postgres is unreachable or overloaded; a retry is safe.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// The row has moved to a newer generation than the caller's.
    #[error("the count has moved to a newer generation")]
    NewerGeneration,
    /// The caller's policy is older than the row's, or than the organization's deletion.
    #[error("the count has seen a newer policy")]
    OlderPolicy,
    /// The organization already has the maximum number of meters.
    #[error("the organization has as many meters as it may have")]
    TooManyMeters,
    /// The plan does not exist.
    #[error("there is no plan {0}")]
    NoSuchPlan(String),
    /// A row holds a value that this code never writes.
    #[error("the database holds a corrupt row: {0}")]
    Inconsistent(String),
    /// Anything else; a defect.
    #[error(transparent)]
    Other(Arc<sqlx::Error>),
}

impl Error {
    pub(super) fn corrupt_row(error: impl fmt::Display) -> Self {
        Self::Inconsistent(error.to_string())
    }

    pub(super) fn no_defaults() -> Self {
        Self::corrupt_row("no defaults were published; start the service once")
    }

    /// Whether a statement has waited for a lock for too long.
    pub(super) fn is_lock_timeout(&self) -> bool {
        let Self::Unavailable(error) = self else {
            return false;
        };
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code);
        code.as_deref() == Some("55P03")
    }

    /// Whether a single row of several may have caused it, so that a retry without that row may succeed.
    pub fn may_be_of_one(&self) -> bool {
        !matches!(self, Self::Unavailable(_))
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(Arc::new(error)),
            sqlx::Error::Database(database)
                if database.constraint() == Some("organizations_plan_fkey") =>
            {
                Self::NoSuchPlan(String::new())
            }
            // By SQLSTATE class: connection, authorization, invalid catalog, transaction rollback, resources, operator
            // intervention; a read-only transaction and a lock timeout.
            sqlx::Error::Database(database) => {
                match database.code().as_deref().map(|code| code.split_at(2)) {
                    Some(
                        ("08" | "28" | "3D" | "40" | "53" | "57", _)
                        | ("25", "006")
                        | ("55", "P03"),
                    ) => Self::Unavailable(Arc::new(error)),
                    _ => Self::Other(Arc::new(error)),
                }
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Self::corrupt_row(error),
            _ => Self::Other(Arc::new(error)),
        }
    }
}
