//! How many connections the process may have open files for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files for what is neither a connection of a caller nor one to Postgres: Redis, webhooks, the auth server, listeners.
const OTHERS: usize = 128;

/// Where there is hardly any room, so many connections are accepted all the same.
const CONNECTIONS_MIN: usize = 16;

/// Raises the process' own limit on open files as far as so many connections need, and the system lets it; returns how
/// many there is room for, and warns where that is fewer.
pub fn make_room(connections: usize, to_postgres: u32) -> usize {
    let besides = OTHERS.saturating_add(usize::try_from(to_postgres).unwrap_or(usize::MAX));
    let needed = u64::try_from(connections.saturating_add(besides)).unwrap_or(u64::MAX);
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current else {
        return connections;
    };
    let raised = limit.maximum.map_or(needed, |most| needed.min(most));
    let allowed = if raised > current
        && setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(raised),
                ..limit
            },
        )
        .is_ok()
    {
        raised
    } else {
        current
    };
    let room = usize::try_from(allowed).unwrap_or(usize::MAX);
    let room = room.saturating_sub(besides).max(CONNECTIONS_MIN);
    if room < connections {
        tracing::warn!(
            open_files = allowed,
            connections = room,
            "the limit on open files (ulimit -n) leaves room for fewer connections than TALLYMAN_CONNECTIONS says"
        );
    }
    room.min(connections)
}
