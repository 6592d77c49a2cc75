//! What can go wrong with Redis, by what a caller can do about it.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// A call to the counter store that has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Nothing was executed; trying again later is safe.
    #[error("the counter store is unavailable: {0}")]
    Unavailable(String),
    /// The connection broke before the reply came; the call may have been executed.
    #[error("the counter store did not answer: {0}")]
    Unknown(String),
    /// More is waiting to be counted than can be soon; nothing was executed.
    #[error("too much is waiting to be counted")]
    Overloaded,
    /// The store is not one that counts can be trusted to; somebody must change its configuration.
    #[error("the counter store cannot be used: {0}")]
    Unfit(String),
    /// The store answered something that these scripts and keys never produce.
    #[error("the counter store replied something unexpected: {0}")]
    Inconsistent(String),
}

impl Error {
    /// Whether one of several keys may be to blame, so that the others may fare better without it.
    pub fn may_be_of_one(&self) -> bool {
        matches!(self, Self::Inconsistent(_))
    }

    /// Whether the connection that produced this must be replaced.
    pub(super) fn breaks_connection(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        let (text, kind) = (error.to_string(), error.kind());
        // Of a pipeline each of its errors has a code, and the whole has none.
        let answers = error.into_server_errors();
        let code = answers.as_deref().and_then(|answers| answers.first());
        let code = code.map(|(_, answer)| answer.code());
        match kind {
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::TryAgain
                | ServerErrorKind::NoPerm,
            )
            | ErrorKind::Client
            | ErrorKind::InvalidClientConfig
            | ErrorKind::AuthenticationFailed => Self::Unavailable(text),
            // Refused before the script began: out of memory, snapshotting failed, another script is stuck.
            ErrorKind::Extension
                if matches!(code, Some("OOM" | "MISCONF" | "BUSY" | "NOREPLICAS")) =>
            {
                Self::Unavailable(text)
            }
            ErrorKind::Io | ErrorKind::Parse => Self::Unknown(text),
            _ => Self::Inconsistent(text),
        }
    }
}
