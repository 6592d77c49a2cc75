//! Failures of Redis, by what a caller can do about them.

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

/// Why a call to Redis has failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Nothing was executed; trying again later is safe.
    #[error("Redis is unavailable: {0}")]
    Unavailable(String),
    /// The connection broke before the reply came; the call may have been executed.
    #[error("Redis did not reply: {0}")]
    Unknown(String),
    /// Too many calls are waiting; nothing was executed.
    #[error("too many calls are waiting to be counted")]
    Overloaded,
    /// The server cannot be trusted with counts; its configuration must be changed.
    #[error("Redis cannot be used: {0}")]
    Unfit(String),
    /// A key or a reply is corrupt: these scripts never produce it.
    #[error("Redis has corrupt data: {0}")]
    Inconsistent(String),
}

impl Error {
    /// Whether one corrupt key may be the cause, so that the other calls may succeed without it.
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
        // In a pipeline, only the errors of single commands have a code.
        let errors = error.into_server_errors();
        let code = errors.as_deref().and_then(|errors| errors.first());
        let code = code.map(|(_, error)| error.code());
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
            // Refused before the script started: out of memory, snapshot failed, another script is running.
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
