//! What is wrong with the servers that a service would use, and what to do about it.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use chrono::TimeDelta;

/// The clocks of servers and instances may differ by at most this: see `retention`.
const SKEW_MAX: TimeDelta = TimeDelta::seconds(60);

/// A difference that is worth a look.
const SKEW_USUAL: TimeDelta = TimeDelta::seconds(1);

/// A round trip beyond this is the larger part of a call.
const ROUND_TRIP_USUAL: Duration = Duration::from_millis(5);

/// How many connections an instance has to Redis at most: one to count, eight pooled, one to subscribe.
const TO_REDIS: u64 = 10;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Good,
    /// Counts may be lost, or calls delayed, in situations that are rare.
    Warning,
    /// The service does not work, or counts may be lost any time.
    Failure,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found, and what to do.
    pub text: String,
}

/// How far away a server is: the median of several round trips, and what it said was the time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Distance {
    /// How much its clock is ahead of this machine's.
    pub skew: TimeDelta,
    /// How long a round trip takes.
    pub round_trip: Duration,
}

/// What Redis says about itself.
#[derive(Debug, Clone, Default)]
pub struct RedisFacts {
    /// The fields of `INFO`.
    pub info: HashMap<String, String>,
    /// `appendfsync`; none where `CONFIG` is not permitted.
    pub append_fsync: Option<String>,
    /// `maxclients`; none where `CONFIG` is not permitted.
    pub clients_max: Option<u64>,
    /// The layout of the keys, if there are any.
    pub layout: Option<String>,
    /// The layout that this version needs.
    pub layout_needed: String,
    /// Whether the URL names a cluster.
    pub needs_cluster: bool,
    /// How far away it is.
    pub distance: Distance,
}

/// What Postgres says about itself.
#[derive(Debug, Clone, Default)]
pub struct PostgresFacts {
    /// Names and values of settings.
    pub settings: HashMap<String, String>,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// The sessions of all clients.
    pub sessions: u64,
    /// Migrations of this version that were not applied.
    pub migrations_missing: usize,
    /// How far away it is.
    pub distance: Distance,
}

/// What the service would need.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// `TALLYMAN_DATABASE_CONNECTIONS`, and one to check whether Postgres is up.
    pub database_connections: u64,
    /// File descriptors for all connections.
    pub files: u64,
    /// The hard limit on open files; none if there is none.
    pub files_max: Option<u64>,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        })
    }
}

/// Collects findings.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    /// Adds a finding: `good` if the condition holds, otherwise a problem of this severity.
    fn check(
        &mut self,
        holds: bool,
        good: impl Into<String>,
        severity: Severity,
        bad: impl Into<String>,
    ) {
        let (severity, text) = if holds {
            (Severity::Good, good.into())
        } else {
            (severity, bad.into())
        };
        self.0.push(Finding { severity, text });
    }

    /// Checks the clock and the round trip of a server.
    fn distance(&mut self, Distance { skew, round_trip }: Distance) {
        let (size, seconds) = (skew.abs(), skew.as_seconds_f64());
        let severity = if size > SKEW_MAX {
            Severity::Failure
        } else {
            Severity::Warning
        };
        self.check(
            size <= SKEW_USUAL,
            "its clock agrees with this machine's",
            severity,
            format!("its clock is {seconds:+.1} s off this machine's; synchronize both with NTP: beyond a minute counts go to wrong periods"),
        );
        let milliseconds = round_trip.as_secs_f64() * 1e3;
        self.check(
            round_trip <= ROUND_TRIP_USUAL,
            format!("a round trip takes {milliseconds:.1} ms"),
            Severity::Warning,
            format!("a round trip takes {milliseconds:.1} ms, which each call waits for; move the service and the server closer together"),
        );
    }
}

impl RedisFacts {
    fn fact(&self, name: &str) -> &str {
        self.info.get(name).map(String::as_str).unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        self.fact(name).parse().unwrap_or(0)
    }

    /// Checks version, role, eviction, persistence, memory, connections, clock and distance.
    pub fn findings(&self) -> Vec<Finding> {
        use Severity::{Failure, Warning};
        let mut found = Findings::default();
        let version = self.fact("redis_version");
        let major = version.split('.').next().and_then(|it| it.parse().ok());
        found.check(
            major.is_some_and(|major: u32| major >= 7),
            format!("version {version}"),
            Failure,
            format!("version {version}; upgrade to 7 or newer"),
        );
        let role = self.fact("role");
        found.check(
            role == "master",
            "it accepts writes",
            Failure,
            format!("it is a {role}; use the URL of the primary"),
        );
        let (good, bad) = if self.needs_cluster {
            (
                "it is a node of a cluster",
                "it is no node of a cluster; remove cluster=true from the URL",
            )
        } else {
            (
                "it is a single server",
                "it is a node of a cluster; add ?cluster=true to the URL",
            )
        };
        let is_clustered = self.number("cluster_enabled") == 1;
        found.check(is_clustered == self.needs_cluster, good, Failure, bad);
        let policy = self.fact("maxmemory_policy");
        found.check(
            policy == "noeviction",
            "it evicts nothing",
            Failure,
            format!("maxmemory-policy is {policy}, which may drop counts; set it to noeviction"),
        );
        if let Some(layout) = &self.layout {
            found.check(
                *layout == self.layout_needed,
                "its keys are laid out as this version needs",
                Failure,
                format!("its keys are laid out as {layout}, this version needs {}; docs/operations.md says what to do", self.layout_needed),
            );
        }
        self.check_persistence(&mut found);
        self.check_memory(&mut found);
        if let Some(most) = self.clients_max {
            let (used, free) = (
                self.number("connected_clients"),
                most.saturating_sub(self.number("connected_clients")),
            );
            found.check(
                free >= TO_REDIS.saturating_mul(2),
                format!("{used} of {most} connections are used"),
                Warning,
                format!("{used} of {most} connections are used, and an instance needs up to {TO_REDIS}; raise maxclients"),
            );
        }
        found.distance(self.distance);
        found.0
    }

    fn check_persistence(&self, found: &mut Findings) {
        use Severity::{Failure, Warning};
        let appends = self.number("aof_enabled") == 1;
        found.check(
            appends,
            "it appends every write to a file",
            Warning,
            "it has no append-only file, so that a crash loses what was counted since the last flush, up to some seconds; set \
             appendonly yes",
        );
        if let Some(sync) = self.append_fsync.as_deref().filter(|_| appends) {
            found.check(
                sync != "no",
                format!("it syncs that file ({sync})"),
                Warning,
                "appendfsync is no, so that a crash of the machine loses up to half a minute; set it to everysec",
            );
        }
        let failed: Vec<&str> = ["aof_last_write_status", "rdb_last_bgsave_status"]
            .into_iter()
            .filter(|name| self.fact(name) == "err")
            .collect();
        found.check(
            failed.is_empty(),
            "its last writes to disk succeeded",
            Failure,
            format!(
                "{} failed; look at its log and at the disk",
                failed.join(" and ")
            ),
        );
    }

    fn check_memory(&self, found: &mut Findings) {
        let (used, most) = (self.number("used_memory"), self.number("maxmemory"));
        let mebibytes = |bytes: u64| bytes >> 20;
        if most == 0 {
            found.check(
                false,
                "",
                Severity::Warning,
                "it has no maxmemory, so that the system kills it when memory runs out; set it below the machine's memory",
            );
        } else {
            let text = format!("it uses {} of {} MiB", mebibytes(used), mebibytes(most));
            found.check(
                used.saturating_mul(5) <= most.saturating_mul(4),
                text.clone(),
                Severity::Warning,
                format!("{text}; at the limit every call that counts fails: raise maxmemory"),
            );
        }
    }
}

impl PostgresFacts {
    fn setting(&self, name: &str) -> &str {
        self.settings
            .get(name)
            .map(String::as_str)
            .unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        self.setting(name).parse().unwrap_or(0)
    }

    /// Checks version, role, durability, schema, connections, clock and distance.
    pub fn findings(&self, needs: &Needs) -> Vec<Finding> {
        use Severity::{Failure, Warning};
        let mut found = Findings::default();
        let version = self.setting("server_version");
        found.check(
            self.number("server_version_num") >= 150_000,
            format!("version {version}"),
            Failure,
            format!("version {version}; upgrade to 15 or newer"),
        );
        found.check(
            !self.in_recovery && self.setting("default_transaction_read_only") != "on",
            "it accepts writes",
            Failure,
            "it is read-only; use the URL of the primary, and a role that may write",
        );
        let encoding = self.setting("server_encoding");
        found.check(
            encoding == "UTF8",
            "its encoding is UTF8",
            Failure,
            format!("its encoding is {encoding}; create the database with UTF8"),
        );
        found.check(
            self.migrations_missing == 0,
            "its schema is that of this version",
            Failure,
            format!(
                "{} migrations are missing; run tallyman migrate",
                self.migrations_missing
            ),
        );
        for name in ["fsync", "full_page_writes"] {
            found.check(
                self.setting(name) != "off",
                format!("{name} is on"),
                Failure,
                format!("{name} is off, so that a crash may destroy the database; turn it on"),
            );
        }
        found.check(
            self.setting("synchronous_commit") != "off",
            "commits are durable",
            Warning,
            "synchronous_commit is off, so that a crash may lose changes that were confirmed; turn it on",
        );
        found.check(
            self.setting("autovacuum") != "off",
            "autovacuum is on",
            Warning,
            "autovacuum is off, so that tables grow with every flush; turn it on",
        );
        let most = self
            .number("max_connections")
            .saturating_sub(self.number("superuser_reserved_connections"));
        let free = most.saturating_sub(self.sessions);
        found.check(
            free >= needs.database_connections,
            format!("{} of {most} connections are used", self.sessions),
            Warning,
            format!(
                "{} of {most} connections are used, and an instance needs {}; raise max_connections, or lower \
                 TALLYMAN_DATABASE_CONNECTIONS",
                self.sessions, needs.database_connections
            ),
        );
        found.distance(self.distance);
        found.0
    }
}

impl Needs {
    /// Checks this machine.
    pub fn findings(&self) -> Vec<Finding> {
        let mut found = Findings::default();
        let needed = self.files;
        match self.files_max {
            Some(most) => found.check(
                most >= needed,
                format!("up to {most} files may be open, {needed} are needed"),
                Severity::Warning,
                format!("up to {most} files may be open, and TALLYMAN_CONNECTIONS needs {needed}; raise the hard limit (ulimit -Hn)"),
            ),
            None => found.check(true, "any number of files may be open", Severity::Good, ""),
        }
        found.0
    }
}

#[cfg(test)]
mod tests;
