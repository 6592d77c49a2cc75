//! What any use case can fail with. A use case with errors of its own carries these in one variant.

use crate::coalescer::BatchError;
use crate::domain::ids::MeterId;
use crate::postgres;
use crate::redis;

/// A failure that use cases share.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// Redis failed.
    #[error(transparent)]
    Redis(#[from] redis::Error),
    /// Postgres failed.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// Concurrent changes defeated every retry.
    #[error("the counters kept changing under the call")]
    Contended,
    /// The organization already has the maximum number of meters.
    #[error("the organization has as many meters as it may have; {0} would be one more")]
    TooManyMeters(MeterId),
    /// The count would exceed its maximum.
    #[error("the counter of {0} would pass 2^53 - 1")]
    Overflow(MeterId),
    /// The idempotency key was used for another payload.
    #[error("this idempotency key was used for another request")]
    KeyReused,
}

impl BatchError for Failure {
    fn overloaded() -> Self {
        Self::Redis(redis::Error::Overloaded)
    }

    fn may_concern_one(&self) -> bool {
        match self {
            Self::Redis(error) => error.may_be_of_one(),
            Self::Postgres(error) => error.may_be_of_one(),
            _ => false,
        }
    }
}
