//! What the overview says of a server that is away.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use super::types::Summary;
use crate::dashboard::format::{TimeText, time_text};

/// A server that is away, for a notice.
pub(super) struct Outage {
    pub(super) server: &'static str,
    pub(super) is_redis: bool,
    /// None until it was observed for the first time.
    pub(super) since: Option<TimeText>,
    /// What works meanwhile, and what does not.
    pub(super) effects: [&'static str; 2],
}

const REDIS: [&str; 2] = [
    "Calls that count are refused with 503 until Redis is back. What was counted after the last snapshot is in Redis alone, \
     and is known again if it comes back with its data.",
    "A change may be answered with 503 although it is saved; it then takes effect once Redis is back.",
];

const POSTGRES: [&str; 2] = [
    "Organizations that Redis knows are counted and limited as before; what was counted since the last snapshot is in Redis \
     alone until Postgres is back. Calls for other organizations are refused with 503.",
    "Nothing can be changed until then, and history, events and the audit log cannot be read.",
];

/// The servers that are away: as the summary says, and Postgres also if the list of organizations could not be read.
pub(super) fn outages(
    summary: Option<&Summary>,
    is_list_known: bool,
    now: DateTime<Utc>,
) -> Vec<Outage> {
    let since = |since: Option<DateTime<Utc>>| since.map(|at| time_text(at, now, Tz::UTC));
    let redis = since(summary.and_then(|it| it.redis_away_since));
    let postgres = since(summary.and_then(|it| it.postgres_away_since));
    let mut outages = Vec::new();
    if redis.is_some() {
        outages.push(Outage {
            server: "Redis",
            is_redis: true,
            since: redis,
            effects: REDIS,
        });
    }
    if postgres.is_some() || !is_list_known {
        outages.push(Outage {
            server: "Postgres",
            is_redis: false,
            since: postgres,
            effects: POSTGRES,
        });
    }
    outages
}
