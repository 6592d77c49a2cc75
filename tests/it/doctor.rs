//! `tallyman doctor`: what it finds, and how it ends.

use std::process::Output;

use tallyman::config::Servers;
use tokio::process::Command;

use crate::support::World;

async fn doctor(servers: &Servers) -> Output {
    doctor_with(servers, &[]).await
}

async fn doctor_with(servers: &Servers, variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tallyman"))
        .arg("doctor")
        .env_clear()
        .envs(variables.iter().copied())
        .env("TALLYMAN_REDIS_URL", &servers.redis_url)
        .env("TALLYMAN_DATABASE_URL", &servers.database_url)
        .output()
        .await
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn each_server_and_the_machine_are_checked() {
    let world = World::new().await;
    let output = doctor(&world.servers()).await;
    let found = text(&output.stdout);
    for line in [
        "Redis\n  ok       version ",
        "  ok       it accepts writes\n",
        "  ok       it evicts nothing\n",
        "  warning  it has no append-only file, so that a crash loses what was counted",
        "  warning  it has no maxmemory",
        "connections are used\n",
        "  ok       its clock agrees with this machine's\n",
        "Postgres\n  ok       version 1",
        "  ok       its schema is that of this version\n",
        // The tests' Postgres is not durable.
        "  failure  fsync is off, so that a crash may destroy the database; turn it on\n",
        "This machine\n",
        "files may be open",
    ] {
        assert!(found.contains(line), "{line}: {found}");
    }
    assert_eq!(output.status.code(), Some(1), "{found}");
    assert!(text(&output.stderr).contains("failure"), "{output:?}");
}

#[tokio::test]
async fn a_schema_that_is_missing_and_keys_of_another_layout_are_failures() {
    let world = World::new().await;
    let () = world.redis_command(&["SET", "tm:{00}:layout", "2"]).await;
    sqlx::query("drop table _sqlx_migrations")
        .execute(&world.postgres().await)
        .await
        .unwrap();
    let output = doctor(&world.servers()).await;
    let found = text(&output.stdout);
    assert!(
        found.contains("failure  its keys are laid out as 2"),
        "{found}"
    );
    assert!(
        found.contains("migrations are missing; run tallyman migrate"),
        "{found}"
    );
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_is_a_failure_that_tells_no_secret() {
    let servers = Servers {
        redis_url: "redis://:hunter2@127.0.0.1:1".to_owned(),
        database_url: "postgres://tallyman:hunter2@127.0.0.1:1/tallyman".to_owned(),
    };
    let output = doctor(&servers).await;
    let found = text(&output.stdout);
    assert_eq!(
        found.matches("failure  it cannot be asked: ").count(),
        2,
        "{found}"
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(!(found + &text(&output.stderr)).contains("hunter2"));
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_a_failure() {
    let world = World::new().await;
    let files = [
        ("TALLYMAN_TLS_CERTIFICATE", "/nowhere/certificate.pem"),
        ("TALLYMAN_TLS_KEY", "/nowhere/key.pem"),
    ];
    let output = doctor_with(&world.servers(), &files).await;
    let found = text(&output.stdout);
    let line = "  failure  TALLYMAN_TLS_CERTIFICATE cannot be used: /nowhere/certificate.pem: ";
    assert!(found.contains(line), "{found}");
}
