//! What can go wrong with Postgres, by what a caller can do about it.

use std::sync::Arc;

/// A statement that has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Postgres cannot be reached or is too busy; trying again later is safe.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// The caller knew an older generation than the one that the row has moved to.
    #[error("the count has moved to a newer generation")]
    NewerGeneration,
    /// The caller knew an older policy than the one that the row has seen, or than the organization's deletion.
    #[error("the count has seen a newer policy")]
    OlderPolicy,
    /// The organization has as many meters as it may have.
    #[error("the organization has as many meters as it may have")]
    TooManyMeters,
    /// An organization cannot be on a plan that is not there.
    #[error("there is no plan {0}")]
    NoSuchPlan(String),
    /// A row holds something that this code never writes.
    #[error("the database holds a corrupt row: {0}")]
    Inconsistent(String),
    /// Anything else; a defect.
    #[error(transparent)]
    Other(Arc<sqlx::Error>),
}

impl Error {
    /// Whether one of several rows may be to blame, so that the others may fare better without it.
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
            // Connection, authorization, resources, operator intervention, a lock that does not come, and what a
            // repetition cures.
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
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                Self::Inconsistent(error.to_string())
            }
            _ => Self::Other(Arc::new(error)),
        }
    }
}
