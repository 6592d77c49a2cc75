//! Why a caller could not be authenticated.

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
