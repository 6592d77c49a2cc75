//! The administrators' command line, which calls the API with a key.

use std::process::Output;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Instance, World, key_of};

/// Runs the executable with the service's URL and a key as its only environment.
async fn run(service: &Instance, key: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .args(arguments)
        .env_clear()
        .env("TALLYMAN_URL", service.http.base())
        .env("TALLYMAN_API_KEY", key)
        .output()
        .await
        .unwrap()
}

fn text(output: &[u8]) -> &str {
    std::str::from_utf8(output).unwrap()
}

/// Runs it and expects success; returns its standard output.
async fn succeed(service: &Instance, world: &World, arguments: &[&str]) -> String {
    let output = run(service, &world.key, arguments).await;
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        text(&output.stderr)
    );
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout).to_owned()
}

async fn succeed_json(service: &Instance, world: &World, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    serde_json::from_str(&succeed(service, world, &arguments).await).unwrap()
}

/// Runs it and expects a failure with one line on standard error; returns that line.
async fn fail(service: &Instance, key: &str, arguments: &[&str]) -> String {
    let output = run(service, key, arguments).await;
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    let error = text(&output.stderr);
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("error: "), "{error}");
    assert!(!error.contains(key), "{error}");
    error.trim_end().to_owned()
}

#[tokio::test]
async fn an_organization_is_shown_limited_and_reset() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    let shown = succeed(&service, &world, &["org", "show", "org_1"]).await;
    for line in [
        "settings.planId: free",
        "usage.api.current: 5",
        "usage.api.limit: 1000",
    ] {
        assert!(shown.lines().any(|it| it == line), "{shown}");
    }
    let set = [
        "org",
        "set",
        "org_1",
        "--limit",
        "api=7",
        "--limit",
        "tokens=unlimited",
    ];
    let limits = succeed_json(&service, &world, &set).await;
    assert_eq!(limits["limits"]["api"]["limit"], 7);
    assert_eq!(limits["limits"]["tokens"]["limit"], Value::Null);
    let inherit = ["org", "set", "org_1", "--limit", "api=inherited"];
    let limits = succeed_json(&service, &world, &inherit).await;
    assert_eq!(limits["limits"]["api"]["limit"], 1000);
    let daily = ["org", "set", "org_1", "--reset-period", "daily"];
    let daily = succeed_json(&service, &world, &daily).await;
    assert_eq!(daily["resetPeriod"], "daily");
    let new = [
        "org",
        "set",
        "new",
        "--create",
        "--reset-period",
        "daily",
        "--limit",
        "api=3",
    ];
    succeed(&service, &world, &new).await;
    let shown = succeed_json(&service, &world, &["org", "show", "new"]).await;
    assert_eq!(shown["settings"]["resetPeriod"], "daily");
    assert_eq!(shown["usage"]["api"]["limit"], 3);

    world.clock.advance(chrono::Duration::seconds(1));
    let reset = [
        "org", "reset", "org_1", "--meter", "api", "--reason", "goodwill",
    ];
    let reset = succeed_json(&service, &world, &reset).await;
    assert_eq!(reset["meters"]["api"]["previousCount"], 5);
    assert_eq!(service.current("org_1", "api").await, 0);
}

#[tokio::test]
async fn every_failure_is_one_line_and_an_exit_code() {
    let world = World::new().await;
    let service = world.instance().await;
    service.count("org_1", "api", 5).await;
    let key = &world.key;
    let unknown = fail(&service, key, &["org", "show", "nobody"]).await;
    assert!(
        unknown.starts_with(
            "error: there is no such organization (404 Not Found, not_found, request "
        ),
        "{unknown}"
    );
    let big = fail(
        &service,
        key,
        &["org", "set", "org_1", "--limit", "api=9007199254740993"],
    )
    .await;
    assert!(
        big.contains("/api/limit ") && big.contains("invalid_field"),
        "{big}"
    );
    let nothing = fail(&service, key, &["org", "set", "org_1"]).await;
    assert!(nothing.starts_with("error: nothing to change"), "{nothing}");
    let wrong = format!("tm_{}_{}", "0".repeat(16), "1".repeat(64));
    let wrong = fail(&service, &wrong, &["verify"]).await;
    assert!(
        wrong.contains("401 Unauthorized, unauthenticated"),
        "{wrong}"
    );
    let reader = world.key_with(&["read"]).await;
    let forbidden = fail(&service, &reader, &["verify"]).await;
    assert!(
        forbidden.contains("403 Forbidden, forbidden"),
        "{forbidden}"
    );
    let unreachable = fail(&service, key, &["verify", "--url", "http://127.0.0.1:1"]).await;
    assert!(
        unreachable.starts_with("error: no response from http://127.0.0.1:1/"),
        "{unreachable}"
    );
    // Invalid arguments are refused before any request.
    for arguments in [
        &["org", "show", "a b"][..],
        &["org", "set", "org_1", "--limit", "api"],
        &["org", "set", "org_1", "--limit", "api=-1"],
        &["org", "set", "org_1", "--reset-mode", "never"],
        &["org", "adjust", "org_1", "-5"],
        &["plan", "set", "pro"],
        &["verify", "--url", "nowhere"],
    ] {
        let output = run(&service, key, arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .arg("verify")
        .env_clear()
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "error: TALLYMAN_API_KEY (--api-key) is missing\n"
    );
}

#[tokio::test]
async fn verify_exits_with_1_on_a_difference() {
    let world = World::new().await;
    let service = world.instance().await;
    for organization in ["org_1", "org_2"] {
        service.count(organization, "api", 5).await;
    }
    service.flush().await;
    let fits = succeed(&service, &world, &["verify"]).await;
    assert_eq!(fits, "2 counters of 2 organizations, no difference\n");
    let key = key_of("org_1", "api", "2031-03-01T00:00:00Z");
    world.add(&key, "used", 1).await;
    let output = run(&service, &world.key, &["verify"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "error: 2 differences in 2 counters of 2 organizations\n"
    );
    let table = text(&output.stdout);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(
        table.lines().nth(1).unwrap().starts_with("org_1 "),
        "{table}"
    );
    let output = run(&service, &world.key, &["verify", "org_1", "--json"]).await;
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["data"][0]["mismatch"], "hours");
    assert_eq!(
        (&found["organizations"], &found["counters"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        succeed_json(&service, &world, &["verify", "org_2"]).await["data"],
        json!([])
    );
}

#[tokio::test]
async fn control_characters_in_stored_text_are_escaped_for_the_terminal() {
    let world = World::new().await;
    let service = world.instance().await;
    let text = "\u{1b}[31m\u{9b}2J\u{202e}";
    let settings = json!({"metadata": {text: text}, "features": {text: text}});
    service.settings("org_1", settings.clone()).await;
    let plan = json!({"features": {text: text}});
    assert_eq!(service.http.put("/v1/plans/pro", plan).await.status, 200);
    let harmful = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    for arguments in [
        &["org", "show", "org_1"][..],
        &["org", "set", "org_1", "--reset-period", "daily"],
        &["plan", "list"],
        &["plan", "show", "pro"],
    ] {
        let shown = succeed(&service, &world, arguments).await;
        assert!(shown.contains(r"\u001b[31m\u009b2J\u202e"), "{shown:?}");
        assert!(!shown.contains(harmful), "{shown:?}");
        let json = [arguments, &["--json"]].concat();
        assert!(!succeed(&service, &world, &json).await.contains(harmful));
    }
    // JSON output keeps the stored text.
    let shown = succeed_json(&service, &world, &["org", "show", "org_1"]).await;
    assert_eq!(shown["settings"]["metadata"], settings["metadata"]);
}

#[tokio::test]
async fn a_bad_setting_is_reported_before_anything_listens() {
    for (flag, path) in [
        ("--plugin-path", "/v1"),
        ("--plugin-path", "/docs"),
        ("--plugin-path", "/a b"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_tallyman"))
            .args([
                "serve",
                "--redis-url",
                "redis://127.0.0.1:1",
                "--database-url",
                "postgres://127.0.0.1:1/x",
            ])
            .args([flag, path])
            .env_clear()
            .output()
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        assert!(
            error.starts_with("error: TALLYMAN_PLUGIN_PATH (--plugin-path) is "),
            "{error}"
        );
        assert!(
            !error.contains("listening") && !error.contains("panicked"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[tokio::test]
async fn an_invalid_argument_is_refused_with_a_valid_one() {
    let world = World::new().await;
    let service = world.instance().await;
    for (arguments, expected) in [
        (
            &["org", "adjust", "org_1", "ten", "--reason", "x"][..],
            "must be an integer from -10^12 to 10^12",
        ),
        (
            &["org", "set", "org_1", "--reset-day", "first"],
            "must be an integer from 0 to 31",
        ),
        (
            &["org", "set", "org_1", "--limit", "api=-1"],
            "UNITS must be a number from 0 to 2^53 - 1",
        ),
        (
            &["verify", "--url", "127.0.0.1:7600"],
            "such as http://127.0.0.1:7600",
        ),
        (
            &[
                "keys",
                "create",
                "--name",
                "a",
                "--scope",
                "read",
                "--expires",
                "",
            ],
            "must be an RFC 3339 date-time",
        ),
        (
            &[
                "keys",
                "create",
                "--name",
                "a",
                "--scope",
                "read",
                "--expires",
                "9999-12-31T23:59:60Z",
            ],
            "leap second",
        ),
    ] {
        let output = run(&service, &world.key, arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = text(&output.stderr);
        assert!(error.contains(expected), "{error}");
        for raw in ["invalid digit", "premature", "relative URL"] {
            assert!(!error.contains(raw), "{error}");
        }
    }
}
