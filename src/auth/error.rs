//! Why a caller could not be authenticated.

use chrono::TimeDelta;

use crate::failure::Failure;

/// A failure of one of the servers; says nothing about the key or token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A failure that use cases share.
    #[error(transparent)]
    Failure(Failure),
    /// The auth server, whose keys verify JWTs.
    #[error("cannot fetch the keys of the auth server: {0}")]
    AuthServer(String),
}

impl<E: Into<Failure>> From<E> for Error {
    fn from(failure: E) -> Self {
        Self::Failure(failure.into())
    }
}

/// Why a key is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It does not exist, has another secret, is expired or revoked.
    Invalid,
    /// The same, after too many failures of the address: it may not even have been looked up.
    TooManyFailures {
        /// How long the address has to wait.
        wait: TimeDelta,
    },
}
