//! Values that deployment files repeat from the code and that could diverge.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tallyman::config::Servers;

use crate::support::World;

fn source(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The text between the first occurrences of two markers.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap();
    rest.split_once(after).unwrap().0
}

/// All names of variables (`TALLYMAN_…`) in a text.
fn variables(text: &str) -> BTreeSet<&str> {
    let ends = |c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    text.match_indices("TALLYMAN_")
        .map(|(at, _)| text[at..].split(ends).next().unwrap())
        .collect()
}

#[test]
fn one_version_of_rust_is_named_everywhere() {
    let manifest = source("Cargo.toml");
    let version = between(&manifest, "rust-version = \"", "\"");
    assert_eq!(
        between(&source("Dockerfile"), "FROM rust:", "-slim"),
        version
    );
    let contributing = source("CONTRIBUTING.md");
    assert_eq!(between(&contributing, "Rust ", " or newer"), version);
}

#[test]
fn the_settings_of_the_image_and_of_compose_exist() {
    let help = Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .args(["serve", "--help"])
        .env_clear()
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let settings = variables(&help);
    for file in ["Dockerfile", "docker-compose.yml"] {
        let text = source(file);
        let named = variables(&text);
        assert!(!named.is_empty(), "{file}");
        let unknown: Vec<_> = named.difference(&settings).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn compose_waits_long_enough_for_a_stop() {
    let compose = source("docker-compose.yml");
    let seconds = |before: &str, after: &str| -> u32 {
        between(&compose, before, after).trim().parse().unwrap()
    };
    let shutdown = seconds("TALLYMAN_SHUTDOWN_SECONDS: \"", "\"");
    let drain = seconds("TALLYMAN_DRAIN_SECONDS: \"", "\"");
    assert!(seconds("stop_grace_period: ", "s\n") > drain + 2 * shutdown + 1);
}

#[test]
fn the_image_is_built_from_every_included_file() {
    let (ignored, dockerfile) = (source(".dockerignore"), source("Dockerfile"));
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "lua",
        "assets",
        "templates",
        "migrations",
        "src",
        "servers",
        "bench",
    ] {
        let admitted = ignored.lines().any(|line| line == format!("!{part}"));
        assert!(admitted, ".dockerignore keeps {part} out");
        let copied = dockerfile
            .lines()
            .any(|line| line.starts_with("COPY ") && line.split(' ').any(|word| word == part));
        assert!(copied, "the Dockerfile does not copy {part}");
    }
}

/// Connects as a Redis user with only these permissions.
#[tokio::test]
async fn the_documented_redis_permissions_suffice() {
    let world = World::new().await;
    let manual = source("docs/operations.md");
    let permissions = between(&manual, "ACL SETUSER ", "\n");
    let mut words = vec!["ACL", "SETUSER"];
    words.extend(permissions.split(' '));
    let _: String = world.redis_command(&words).await;
    let servers = world.servers();
    let service = world
        .instance_with(Servers {
            redis_url: format!("{}&user=tallyman&pass=PASSWORD", servers.redis_url),
            ..servers
        })
        .await;
    service
        .settings("org_1", json!({"resetPeriod": "daily"}))
        .await;
    service.limits("org_1", json!({"api": {"limit": 50}})).await;
    service.track("org_1", 5).await;
    assert_eq!(service.try_consume("org_1", "api", 46).await.status, 429);
    let refund = json!({"organizationId": "org_1"});
    assert_eq!(service.http.post("/v1/refund", refund).await.status, 200);
    let path = "/v1/organizations/org_1";
    let adjust = json!({"amount": 3, "reason": "a test"});
    for (rest, body) in [("adjust", adjust), ("reset", json!({}))] {
        let path = format!("{path}/{rest}");
        let answer = service.http.post_once(&path, rest, body).await;
        assert_eq!(answer.status, 200, "{rest}");
    }
    service.flush().await;
    service.app.policies.sweep_once().await.unwrap();
    service.app.periods.sweep_once().await.unwrap();
    service.app.state.auth.sweep_once().await.unwrap();
    service.app.garbage_collector.collect_once().await.unwrap();
    service.app.flusher.flush_once().await.unwrap();
    for read in ["/usage", "/limits"] {
        assert_eq!(service.http.get(&format!("{path}{read}")).await.status, 200);
    }
    assert_eq!(service.http.get("/v1/verify").await.status, 200);
    assert_eq!(service.http.delete(path).await.status, 200);
    assert_eq!(service.track("org_1", 1).await, 1);

    let user = ["ACL", "DRYRUN", "tallyman"];
    for forbidden in [
        &["SET", "other:key", "1"][..],
        &["CONFIG", "GET", "maxmemory"],
        &["FLUSHALL"],
        &["KEYS", "*"],
        &["SCRIPT", "FLUSH"],
        &["ACL", "LIST"],
    ] {
        let answer: String = world.redis_command(&[&user[..], forbidden].concat()).await;
        assert_ne!(answer, "OK", "{forbidden:?}");
    }
}
