//! Facts that the files of the deployment repeat, and that could come to differ.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

fn source(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What stands between two texts, the first time that they occur.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap();
    rest.split_once(after).unwrap().0
}

/// Every `TALLYMAN_…` in a text.
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
fn compose_waits_for_a_stop_as_long_as_it_may_take() {
    let compose = source("docker-compose.yml");
    let seconds = |before: &str, after: &str| -> u32 {
        between(&compose, before, after).trim().parse().unwrap()
    };
    let shutdown = seconds("TALLYMAN_SHUTDOWN_SECONDS: \"", "\"");
    assert!(seconds("stop_grace_period: ", "s\n") > 2 * shutdown);
}

#[test]
fn the_image_is_built_from_all_that_sources_include() {
    let (ignored, dockerfile) = (source(".dockerignore"), source("Dockerfile"));
    for part in ["Cargo.toml", "Cargo.lock", "lua", "migrations", "src"] {
        let admitted = ignored.lines().any(|line| line == format!("!{part}"));
        assert!(admitted, ".dockerignore keeps {part} out");
        let copied = dockerfile
            .lines()
            .any(|line| line.starts_with("COPY ") && line.split(' ').any(|word| word == part));
        assert!(copied, "the Dockerfile does not copy {part}");
    }
}
