//! Why a request was not decided, or usage or history not read.

use crate::failure::Failure;
use crate::redis;

/// The most rows of a history whose gaps are filled with zeros.
pub(super) const FILLED_MAX: usize = 50_000;

/// Why there is no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A failure that use cases share.
    #[error(transparent)]
    Failure(Failure),
    /// Redis did not reply to the counting itself: it may have been counted.
    #[error("the counter store did not say whether it has counted: {0}")]
    OutcomeUnknown(String),
    /// The event is older than any period accepts, or too far in the future.
    #[error("the timestamp must be at most {0} hours ago and 5 minutes ahead")]
    TimestampOutOfRange(i64),
    /// The history would be too long with its gaps filled.
    #[error("with zeros this would be more than {FILLED_MAX} rows; ask for less at once")]
    TooManyRows,
}

impl<E: Into<Failure>> From<E> for Error {
    fn from(failure: E) -> Self {
        Self::Failure(failure.into())
    }
}

impl Error {
    /// Whether Redis is down, and nothing else is wrong.
    pub(super) fn is_counter_outage(&self) -> bool {
        use redis::Error::{Redirected, Unavailable, Unknown};
        matches!(
            self,
            Self::Failure(Failure::Redis(Redirected(_) | Unavailable(_) | Unknown(_)))
        )
    }

    /// Whether the keys are being moved to another server, and nothing was counted.
    pub(super) fn is_redirection(&self) -> bool {
        matches!(
            self,
            Self::Failure(Failure::Redis(redis::Error::Redirected(_)))
        )
    }
}
