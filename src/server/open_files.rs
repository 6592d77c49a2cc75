//! The limit on open files, which bounds the number of connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// File descriptors for everything but clients and Postgres: Redis, webhooks, the auth server, listeners.
const OTHERS: usize = 128;

/// Accepted even if the limit leaves no room.
const CONNECTIONS_MIN: usize = 16;

/// How many file descriptors are needed for this many connections, and how many there may be; none without a limit.
pub fn files_needed(connections: usize, to_postgres: u32) -> (u64, Option<u64>) {
    let others = OTHERS.saturating_add(usize::try_from(to_postgres).unwrap_or(usize::MAX));
    let needed = u64::try_from(connections.saturating_add(others)).unwrap_or(u64::MAX);
    (needed, getrlimit(Resource::Nofile).maximum)
}

/// Raises the soft limit on open files as far as this many connections need and the hard limit allows. Returns the
/// number of connections that there is room for, and logs a warning if that is fewer.
pub fn make_room(connections: usize, to_postgres: u32) -> usize {
    let others = OTHERS.saturating_add(usize::try_from(to_postgres).unwrap_or(usize::MAX));
    let (needed, _) = files_needed(connections, to_postgres);
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current else {
        return connections;
    };
    let raised = limit.maximum.map_or(needed, |max| needed.min(max));
    let new = Rlimit {
        current: Some(raised),
        ..limit
    };
    let is_raised = raised > current && setrlimit(Resource::Nofile, new).is_ok();
    let allowed = if is_raised { raised } else { current };
    let room = usize::try_from(allowed).unwrap_or(usize::MAX);
    let room = room.saturating_sub(others).max(CONNECTIONS_MIN);
    if room < connections {
        tracing::warn!(
            open_files = allowed,
            connections = room,
            "the limit on open files (ulimit -n) leaves room for fewer connections than TALLYMAN_CONNECTIONS"
        );
    }
    room.min(connections)
}
