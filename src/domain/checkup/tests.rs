//! What is found about servers and machines.

use super::*;

fn facts(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

fn redis(changed: &[(&str, &str)]) -> RedisFacts {
    let mut info = facts(&[
        ("redis_version", "7.2.4"),
        ("role", "master"),
        ("cluster_enabled", "0"),
        ("maxmemory_policy", "noeviction"),
        ("maxmemory", "1073741824"),
        ("used_memory", "1048576"),
        ("aof_enabled", "1"),
        ("aof_last_write_status", "ok"),
        ("rdb_last_bgsave_status", "ok"),
        ("connected_clients", "12"),
    ]);
    info.extend(facts(changed));
    RedisFacts {
        info,
        append_fsync: Some("everysec".to_owned()),
        clients_max: Some(10_000),
        layout: Some("3".to_owned()),
        layout_needed: "3".to_owned(),
        ..RedisFacts::default()
    }
}

fn postgres(changed: &[(&str, &str)]) -> PostgresFacts {
    let mut settings = facts(&[
        ("server_version", "15.4"),
        ("server_version_num", "150004"),
        ("server_encoding", "UTF8"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("autovacuum", "on"),
        ("max_connections", "100"),
        ("superuser_reserved_connections", "3"),
    ]);
    settings.extend(facts(changed));
    PostgresFacts {
        settings,
        sessions: 20,
        ..PostgresFacts::default()
    }
}

const NEEDS: Needs = Needs {
    database_connections: 11,
    files: 2186,
    files_max: Some(4096),
};

/// The only finding that is not good.
fn only(findings: &[Finding]) -> (Severity, &str) {
    let bad: Vec<&Finding> = findings
        .iter()
        .filter(|it| it.severity != Severity::Good)
        .collect();
    assert_eq!(bad.len(), 1, "{findings:#?}");
    (bad[0].severity, bad[0].text.as_str())
}

#[test]
fn servers_as_they_should_be_have_only_good_findings() {
    let all = [
        redis(&[]).findings(),
        postgres(&[]).findings(&NEEDS),
        NEEDS.findings(),
    ];
    let bad: Vec<Finding> = all
        .concat()
        .into_iter()
        .filter(|it| it.severity != Severity::Good)
        .collect();
    assert_eq!(bad, []);
}

#[test]
fn each_problem_of_redis_is_named_with_what_to_do() {
    use Severity::{Failure, Warning};
    for (changed, severity, text) in [
        (("redis_version", "6.2.1"), Failure, "upgrade to 7"),
        (("redis_version", "x"), Failure, "upgrade to 7"),
        (("role", "slave"), Failure, "URL of the primary"),
        (("cluster_enabled", "1"), Failure, "add ?cluster=true"),
        (
            ("maxmemory_policy", "allkeys-lru"),
            Failure,
            "set it to noeviction",
        ),
        (("aof_enabled", "0"), Warning, "set appendonly yes"),
        (
            ("aof_last_write_status", "err"),
            Failure,
            "aof_last_write_status failed",
        ),
        (
            ("rdb_last_bgsave_status", "err"),
            Failure,
            "rdb_last_bgsave_status failed",
        ),
        (("maxmemory", "0"), Warning, "no maxmemory"),
        (("used_memory", "1073741824"), Warning, "raise maxmemory"),
        (("connected_clients", "9999"), Warning, "raise maxclients"),
    ] {
        let findings = redis(&[changed]).findings();
        let found = only(&findings);
        assert!(
            found.0 == severity && found.1.contains(text),
            "{changed:?}: {found:?}"
        );
    }
    let no_sync = RedisFacts {
        append_fsync: Some("no".to_owned()),
        ..redis(&[])
    };
    assert!(only(&no_sync.findings()).1.contains("everysec"));
    let other_layout = RedisFacts {
        layout: Some("2".to_owned()),
        ..redis(&[])
    };
    assert_eq!(only(&other_layout.findings()).0, Failure);
}

#[test]
fn each_problem_of_postgres_is_named_with_what_to_do() {
    use Severity::{Failure, Warning};
    for (changed, severity, text) in [
        (("server_version_num", "140009"), Failure, "upgrade to 15"),
        (
            ("default_transaction_read_only", "on"),
            Failure,
            "read-only",
        ),
        (("server_encoding", "SQL_ASCII"), Failure, "UTF8"),
        (("fsync", "off"), Failure, "fsync is off"),
        (
            ("full_page_writes", "off"),
            Failure,
            "full_page_writes is off",
        ),
        (("synchronous_commit", "off"), Warning, "turn it on"),
        (("autovacuum", "off"), Warning, "tables grow"),
        (("max_connections", "30"), Warning, "raise max_connections"),
    ] {
        let findings = postgres(&[changed]).findings(&NEEDS);
        let found = only(&findings);
        assert!(
            found.0 == severity && found.1.contains(text),
            "{changed:?}: {found:?}"
        );
    }
    let standby = PostgresFacts {
        in_recovery: true,
        ..postgres(&[])
    };
    assert_eq!(only(&standby.findings(&NEEDS)).0, Failure);
    let old = PostgresFacts {
        migrations_missing: 2,
        ..postgres(&[])
    };
    assert!(only(&old.findings(&NEEDS)).1.contains("tallyman migrate"));
}

#[test]
fn a_clock_or_a_server_that_is_far_away_is_reported() {
    use Severity::{Failure, Warning};
    for (skew, severity) in [
        (-2, Warning),
        (59, Warning),
        (61, Failure),
        (-3600, Failure),
    ] {
        let skewed = RedisFacts {
            distance: Distance {
                skew: TimeDelta::seconds(skew),
                ..Distance::default()
            },
            ..redis(&[])
        };
        assert_eq!(only(&skewed.findings()).0, severity, "{skew}");
    }
    let far = PostgresFacts {
        distance: Distance {
            round_trip: Duration::from_millis(6),
            ..Distance::default()
        },
        ..postgres(&[])
    };
    assert!(only(&far.findings(&NEEDS)).1.contains("6.0 ms"));
    let few_files = Needs {
        files_max: Some(1024),
        ..NEEDS
    };
    assert!(only(&few_files.findings()).1.contains("ulimit -Hn"));
}
