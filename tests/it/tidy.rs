//! The house's own rules, read from its sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What npm and the tests generate.
const GENERATED: [&str; 4] = ["node_modules", "dist", "screenshots", "openapi.ts"];

/// All files under a folder of this repository whose names end so, without generated ones.
pub fn files(folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut folders) = (Vec::new(), vec![root.join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if GENERATED.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == extension) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty());
    found.sort();
    found
}

/// A file of this repository.
pub fn source(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_load_tool_and_the_server_launcher_use_nothing_of_the_library() {
    for folder in ["bench", "servers"] {
        for (path, text) in files(folder, "rs") {
            assert!(!text.contains("tallyman::"), "{}", path.display());
        }
    }
}

#[test]
fn the_domain_is_pure() {
    for (path, text) in files("src/domain", "rs") {
        for forbidden in [
            "async ", ".await", "tokio", "sqlx", "redis::", "axum", "std::fs", "std::net",
            "std::env", "Utc::now",
        ] {
            assert!(
                !text.contains(forbidden),
                "{} has {forbidden}",
                path.display()
            );
        }
    }
}

#[test]
fn only_the_redis_module_speaks_redis_and_only_the_postgres_module_speaks_sql() {
    for (path, text) in files("src", "rs") {
        let path = path.to_str().unwrap();
        // Elsewhere `redis::` is our own module, which its users import.
        if !path.starts_with("src/redis/") && !text.contains("crate::redis") {
            assert!(!text.contains("redis::"), "{path} speaks Redis");
        }
        if !path.starts_with("src/postgres/") {
            assert!(!text.contains("sqlx::"), "{path} speaks SQL");
        }
    }
}

#[test]
fn the_executable_only_calls_the_library() {
    let length = source("src/main.rs").lines().count();
    assert!(length <= 90, "src/main.rs has {length} lines");
}

#[test]
fn every_source_opens_with_what_it_is_for() {
    for folder in ["src", "servers", "bench", "tests"] {
        for (path, text) in files(folder, "rs") {
            assert!(text.starts_with("//! "), "{}", path.display());
        }
    }
}

#[test]
fn every_script_opens_with_its_contract() {
    for (path, text) in files("lua", "lua") {
        // What scripts have in common.
        let common = [
            "counter.lua",
            "organization.lua",
            "data_set.lua",
            "batch.lua",
        ];
        if common.iter().any(|name| path.ends_with(name)) {
            continue;
        }
        // What only reads, or makes room, must say so, or a Redis without room refuses it.
        let opening = if text.contains("\n  Nothing is written.\n") {
            "#!lua flags=no-writes\n--[[\n"
        } else if text.contains("\n  Nothing takes more memory than before.\n") {
            "#!lua flags=allow-oom\n--[[\n"
        } else {
            "#!lua\n--[[\n"
        };
        let rest = text.strip_prefix(opening);
        let comment = rest.and_then(|rest| rest.split_once("\n]]\n"));
        let (comment, _) = comment.unwrap_or_else(|| panic!("{}", path.display()));
        let purpose = comment.lines().next().unwrap();
        assert!(purpose.len() > 20, "{}", path.display());
        let mut last = 0;
        for part in ["\n\nKEYS", "\n\nARGV", "\n\nReturns", "\n\nInvariants\n"] {
            let at = comment.find(part);
            let at = at.unwrap_or_else(|| panic!("{} lacks {}", path.display(), part.trim()));
            assert!(
                at > last,
                "{}: {} is out of order",
                path.display(),
                part.trim()
            );
            last = at;
        }
    }
}

#[test]
fn every_script_is_a_pure_function_of_its_arguments_and_the_keyspace() {
    let list = source("lua/README.md");
    for (path, text) in files("lua", "lua") {
        for forbidden in [
            "'TIME'",
            "math.random",
            "os.",
            "'KEYS'",
            "'SCAN'",
            "redis.pcall",
        ] {
            assert!(
                !text.contains(forbidden),
                "{} has {forbidden}",
                path.display()
            );
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            list.contains(&format!("`{name}`")),
            "lua/README.md does not list {name}"
        );
    }
}

#[test]
fn the_maximum_count_is_the_same_everywhere() {
    let ceiling = tallyman::domain::quantity::COUNT_MAX.to_string();
    assert!(source("lua/counter.lua").contains(&format!("local COUNT_MAX <const> = {ceiling}\n")));
    let mut checks = 0;
    for (path, text) in files("migrations", "sql") {
        for (at, _) in text.match_indices("between 0 and ") {
            let rest = &text[at + "between 0 and ".len()..];
            let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
            assert_eq!(number, ceiling, "{}", path.display());
            checks += 1;
        }
    }
    assert_eq!(checks, 6);
    for (path, text) in files("lua", "lua") {
        let other = text
            .split(|c: char| !c.is_ascii_digit())
            .find(|number| number.len() == 16 && *number != ceiling);
        assert_eq!(other, None, "{}", path.display());
    }
}

#[test]
fn no_test_sleeps() {
    let sleep = concat!("slee", "p(");
    for (path, text) in files("tests", "rs") {
        if !path.starts_with("tests/it/support") {
            assert!(
                !text.contains(sleep),
                "{} waits for time to pass",
                path.display()
            );
        }
    }
}

#[test]
fn nothing_is_left_for_later() {
    let later = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    let sources = [
        ("src", "rs"),
        ("servers", "rs"),
        ("bench", "rs"),
        ("tests", "rs"),
        ("lua", "lua"),
        ("migrations", "sql"),
        ("packages", "ts"),
        ("packages", "tsx"),
        ("packages", "js"),
        ("packages", "css"),
        ("examples", "js"),
        ("examples", "jsx"),
    ];
    for (path, text) in sources
        .iter()
        .flat_map(|(folder, extension)| files(folder, extension))
    {
        for word in later {
            assert!(!text.contains(word), "{} has a {word}", path.display());
        }
    }
}

#[test]
fn every_setting_is_a_variable_that_help_lists() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .args(["serve", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let config = files("src/config", "rs").into_iter().map(|(_, text)| text);
    let settings: String = config.chain([source("src/cli/mod.rs")]).collect();
    let variables: BTreeSet<&str> = settings
        .match_indices("env = \"")
        .filter_map(|(at, found)| settings[at + found.len()..].split('"').next())
        // Releases do not have it.
        .filter(|variable| *variable != "TALLYMAN_CLOCK_OFFSET_SECONDS")
        .collect();
    assert!(variables.len() > 15);
    for variable in variables {
        let flag = variable.strip_prefix("TALLYMAN_").unwrap();
        let flag = format!("--{}", flag.to_lowercase().replace('_', "-"));
        // Secrets are listed without their value.
        let listed = ["=", "]"]
            .iter()
            .any(|end| help.contains(&format!("[env: {variable}{end}")));
        assert!(listed, "{variable} is not in --help");
        assert!(help.contains(&flag), "{flag} is not in --help");
    }
}

#[test]
fn every_migration_names_its_constraints_and_tables_say_what_they_are() {
    for (path, text) in files("migrations", "sql") {
        let code: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("--"))
            .collect::<Vec<_>>()
            .join("\n");
        for (at, kind) in ["primary key", "foreign key", " check (", "unique ("]
            .iter()
            .flat_map(|kind| code.match_indices(kind))
        {
            let line = code[..at].rsplit('\n').next().unwrap();
            let line = line.trim_start();
            assert!(
                line.trim_start_matches("add ").starts_with("constraint "),
                "{}: {line}{kind}",
                path.display()
            );
        }
        for (at, found) in code.match_indices("create table ") {
            let name = code[at + found.len()..].split_whitespace().next().unwrap();
            let described = [
                format!("comment on table {name} is"),
                format!("comment on column {name}."),
            ];
            assert!(
                described.iter().any(|it| code.contains(it)),
                "{name} has no comment"
            );
        }
    }
}

#[test]
fn every_document_is_present() {
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "LICENSE",
        "lua/README.md",
        "migrations/README.md",
    ] {
        assert!(source(document).len() > 200, "{document}");
    }
}
