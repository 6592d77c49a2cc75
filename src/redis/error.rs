//! Failures of Redis, by what a caller can do about them.

use ::redis::{ErrorKind, RedisError};

/// Why a call to Redis has failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Nothing was executed; trying again later is safe.
    #[error("Redis is unavailable: {0}")]
    Unavailable(String),
    /// The key is on another server, or is being moved there; nothing was executed, and the topology is read again.
    #[error("the keys are on another server: {0}")]
    Redirected(String),
    /// The connection broke before the reply came; the call may have been executed.
    #[error("Redis did not reply: {0}")]
    Unknown(String),
    /// Too many calls are waiting; nothing was executed.
    #[error("too many calls are waiting to be counted")]
    Overloaded,
    /// The server cannot be trusted with counts; its configuration must be changed.
    #[error("Redis cannot be used: {0}")]
    Unfit(String),
    /// A part of a cluster has failed; what concerned another part may have been executed.
    #[error("{0}")]
    Part(Box<Self>),
    /// A key or a reply is corrupt: these scripts never produce it.
    #[error("Redis has corrupt data: {0}")]
    Inconsistent(String),
}

impl Error {
    /// Whether one corrupt key or one server may be the cause, so that the other calls may succeed without it.
    pub fn may_be_of_one(&self) -> bool {
        matches!(self, Self::Inconsistent(_) | Self::Part(_))
    }

    /// The error of calls to several servers of which one has failed.
    pub(super) fn of_part(self) -> Self {
        Self::Part(Box::new(self))
    }

    /// Whether the connection that produced this must be replaced.
    pub(super) fn breaks_connection(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        let errors = error.clone().into_server_errors();
        // The commands of a pipeline or an aborted transaction fail for the same reason.
        if let Some((_, first)) = errors.as_deref().and_then(|errors| errors.first()) {
            let text = format!("{} {}", first.code(), first.details().unwrap_or_default());
            return match first.code() {
                "ASK" | "MOVED" | "TRYAGAIN" => Self::Redirected(text),
                code if is_refusal(code) => Self::Unavailable(text),
                _ => Self::Inconsistent(text),
            };
        }
        let text = error.to_string();
        match error.kind() {
            ErrorKind::Client
            | ErrorKind::InvalidClientConfig
            | ErrorKind::AuthenticationFailed => Self::Unavailable(text),
            ErrorKind::Io | ErrorKind::Parse => Self::Unknown(text),
            _ => Self::Inconsistent(text),
        }
    }
}

/// Whether the server refuses commands because of its state, before it executes any.
fn is_refusal(code: &str) -> bool {
    matches!(
        code,
        "BUSY"
            | "CLUSTERDOWN"
            | "LOADING"
            | "MASTERDOWN"
            | "MISCONF"
            | "NOAUTH"
            | "NOPERM"
            | "NOREPLICAS"
            | "NOSCRIPT"
            | "OOM"
            | "READONLY"
            | "WRONGPASS"
    )
}
