//! `tallyman dev`: the executable, its exit codes and its output.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tallyman_servers::{PostgresOptions, PostgresServer, RedisOptions, RedisServer};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::support::{Http, Receiver};

/// Upper bound for each step; reaching it fails the test.
const TIMEOUT: Duration = Duration::from_mins(5);

#[tokio::test]
async fn the_next_start_finds_the_data_and_the_key() {
    let dir = TempDir::new().unwrap();
    let first = Dev::start(dir.path()).await;
    assert_eq!(first.consume().await["current"], 1);
    let key = first.key.clone();
    assert_eq!(first.interrupt().await, Some(0));
    let key_file = dir.path().join("admin-key");
    assert_eq!(
        fs::metadata(&key_file).unwrap().permissions().mode() & 0o777,
        0o600
    );

    let second = Dev::start(dir.path()).await;
    assert_eq!(second.key, key);
    assert_eq!(second.key, fs::read_to_string(&key_file).unwrap().trim());
    assert_eq!(second.consume().await["current"], 2);
    assert_eq!(second.interrupt().await, Some(0));
}

#[tokio::test]
async fn a_newcomer_sees_a_webhook_arrive_on_their_own_machine() {
    let dir = TempDir::new().unwrap();
    let dev = Dev::start(dir.path()).await;
    let receiver = Receiver::new().await;
    let request = json!({"url": receiver.url});
    let webhook = dev.http().post("/v1/webhooks", request).await.body;
    let test = format!("/v1/webhooks/{}/test", webhook["id"].as_str().unwrap());
    dev.http().send(Method::POST, &test, &[], None).await;
    let waiting = receiver.until(|all| !all.is_empty());
    let arrived = timeout(TIMEOUT, waiting)
        .await
        .expect("the delivery arrives");
    assert_eq!(arrived[0].signed_by(webhook["secret"].as_str().unwrap()), 1);
    assert_eq!(dev.interrupt().await, Some(0));
}

#[tokio::test]
async fn a_demo_fills_it_once_with_usage_in_which_redis_and_postgres_agree() {
    let dir = TempDir::new().unwrap();
    let dev = Dev::start(dir.path()).await;
    let demo = || {
        let mut command = Command::new(BINARY);
        command.args(["demo", "--data-dir"]).arg(dir.path());
        command
    };
    let filled = timeout(TIMEOUT, demo().output()).await.unwrap().unwrap();
    let text = String::from_utf8(filled.stdout).unwrap();
    assert!(text.contains("200 organizations"), "{text}");
    let http = dev.http();
    let full = "/v1/organizations?state=exceeded&sort=-percentage";
    let full = http.get(full).await.body;
    assert!(full["data"].as_array().unwrap().len() > 1, "{full}");
    let webhooks = http.get("/v1/webhooks").await.body;
    for webhook in webhooks["data"].as_array().unwrap() {
        assert_ne!(webhook["lastSuccessAt"], Value::Null, "{webhook}");
    }
    let verified = http.get("/v1/verify").await;
    assert_eq!(verified.body["data"], json!([]), "{}", verified.body);
    let line = one_line_error(&mut demo()).await;
    assert!(
        line.contains("the demo is in this service already"),
        "{line}"
    );
    assert_eq!(dev.interrupt().await, Some(0));
}

#[tokio::test]
async fn an_api_key_that_postgres_does_not_know_is_replaced() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("admin-key"), "tm_of_another_database\n").unwrap();
    let dev = Dev::start(dir.path()).await;
    assert_ne!(dev.key, "tm_of_another_database");
    assert_eq!(dev.consume().await["current"], 1);
    assert_eq!(dev.interrupt().await, Some(0));
}

#[tokio::test]
async fn servers_stop_when_their_parent_is_killed_and_the_next_start_recovers() {
    let dir = TempDir::new().unwrap();
    let mut first = Dev::start(dir.path()).await;
    assert_eq!(first.consume().await["current"], 1);
    first.child.kill().await.unwrap();

    until_servers_stopped(dir.path()).await;
    assert!(
        !dir.path().join("postgres/postmaster.pid").exists(),
        "Postgres was not stopped cleanly"
    );

    let second = Dev::start(dir.path()).await;
    assert_eq!(second.consume().await["current"], 2);
    assert_eq!(second.interrupt().await, Some(0));
}

#[tokio::test]
async fn a_second_instance_on_the_same_directory_is_refused_in_one_line() {
    let dir = TempDir::new().unwrap();
    let first = Dev::start(dir.path()).await;
    let line = one_line_error(&mut command(dir.path())).await;
    assert!(line.contains("another `tallyman dev` is running"), "{line}");
    assert_eq!(first.consume().await["current"], 1);
    assert_eq!(first.interrupt().await, Some(0));
}

#[tokio::test]
async fn a_taken_port_is_a_one_line_error() {
    let dir = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let line = one_line_error(
        Command::new(BINARY)
            .args(["dev", "--listen", &address, "--data-dir"])
            .arg(dir.path()),
    )
    .await;
    assert!(
        line.contains(&address) && line.contains("--listen"),
        "{line}"
    );
}

#[tokio::test]
async fn a_missing_server_is_a_one_line_error() {
    let dir = TempDir::new().unwrap();
    // In an empty directory, because `tallyman dev` also searches the working directory for the servers
    // that `scripts/setup` downloads.
    let line = one_line_error(
        command(&dir.path().join("data"))
            .env("PATH", "")
            .current_dir(dir.path()),
    )
    .await;
    assert!(
        line.contains("redis-server") && line.contains("make dev"),
        "{line}"
    );
}

#[tokio::test]
async fn a_server_that_cannot_start_prints_its_reason_in_one_line() {
    let dir = TempDir::new().unwrap();
    let options = RedisOptions {
        extra: vec!["--no-such-option".to_owned(), "1".to_owned()],
        ..RedisOptions::default()
    };
    let error = format!(
        "{:#}",
        RedisServer::start(dir.path(), &options).await.unwrap_err()
    );
    assert!(
        error.contains("redis.log") && !error.contains('\n'),
        "{error}"
    );
}

#[tokio::test]
async fn a_half_initialised_data_directory_is_recovered() {
    let dir = TempDir::new().unwrap();
    // The state after a `kill -9` during `initdb`.
    fs::create_dir_all(dir.path().join("postgres.new/base/1")).unwrap();
    fs::write(dir.path().join("postgres.new/PG_VERSION"), "15\n").unwrap();
    start_postgres(dir.path()).await.stop().await;

    // The state after a `kill -9` of a running server, if another process (here: this test) has reused its
    // process id.
    let stale = format!(
        "{}\n{}\n",
        std::process::id(),
        dir.path().join("postgres").display()
    );
    fs::write(dir.path().join("postgres/postmaster.pid"), &stale).unwrap();
    fs::write(dir.path().join("postgres/.s.PGSQL.5432.lock"), &stale).unwrap();
    start_postgres(dir.path()).await.stop().await;
}

#[tokio::test]
async fn a_killed_redis_keeps_what_it_acknowledged() {
    let dir = TempDir::new().unwrap();
    let options = RedisOptions {
        append_only: true,
        extra: vec!["--appendfsync".to_owned(), "always".to_owned()],
    };
    for expected in 1..=2 {
        let server = RedisServer::start(dir.path(), &options).await.unwrap();
        let mut connection = redis::Client::open(server.url())
            .unwrap()
            .get_multiplexed_async_connection()
            .await
            .unwrap();
        let count: i64 = redis::cmd("INCR")
            .arg("count")
            .query_async(&mut connection)
            .await
            .unwrap();
        assert_eq!(count, expected);
        server.kill().await;
    }
}

#[tokio::test]
async fn a_directory_too_deep_for_a_socket_works() {
    let dir = TempDir::new().unwrap();
    let deep = dir
        .path()
        .join("a directory with a long name & 100 % odd characters")
        .join("x".repeat(80));
    RedisServer::start(&deep, &RedisOptions::default())
        .await
        .unwrap()
        .stop()
        .await;
    start_postgres(&deep).await.stop().await;
}

const BINARY: &str = env!("CARGO_BIN_EXE_tallyman");

/// A running `tallyman dev`.
struct Dev {
    child: Child,
    url: String,
    key: String,
    /// Kept open so that the process can continue to write.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Dev {
    /// Starts it and waits until it prints its URL and its key.
    async fn start(dir: &Path) -> Self {
        // Its own process group, like a command in a terminal, so that the test's SIGINT reaches
        // only this command.
        let mut child = command(dir)
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = last_word_of_line("counts at", &mut stdout).await;
        let key = last_word_of_line("admin key", &mut stdout).await;
        Self {
            child,
            url,
            key,
            _stdout: stdout,
        }
    }

    async fn consume(&self) -> Value {
        let body = json!({"organizationId": "org_123"});
        let answer = self.http().post("/v1/consume", body).await;
        assert_eq!(answer.status, 200);
        answer.body
    }

    fn http(&self) -> Http {
        Http::new(self.url.clone(), &self.key)
    }

    /// Sends SIGINT to the process group, as Ctrl-C does; returns the exit code.
    async fn interrupt(mut self) -> Option<i32> {
        let pid = self.child.id().unwrap();
        let signal = format!("kill -s INT -- -{pid}");
        assert!(
            Command::new("sh")
                .args(["-c", &signal])
                .status()
                .await
                .unwrap()
                .success()
        );
        timeout(TIMEOUT, self.child.wait())
            .await
            .expect("the process stops in time")
            .unwrap()
            .code()
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(["dev", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir)
        .stdin(Stdio::null());
    command
}

async fn last_word_of_line(label: &str, lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    let found = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(label) {
                return line.split_whitespace().last().unwrap().to_owned();
            }
        }
        panic!("the process ended before it printed {label:?}");
    };
    timeout(TIMEOUT, found)
        .await
        .expect("the process is ready in time")
}

/// Runs a command that must fail and print one line on standard error; returns that line.
async fn one_line_error(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = timeout(TIMEOUT, command.output())
        .await
        .expect("the command ends in time")
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    );
    assert!(
        status.code().is_some_and(|code| code != 0),
        "{status}: {stderr}"
    );
    assert_eq!(stdout, "");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

/// Waits for the locks that the servers and their children hold while they run.
async fn until_servers_stopped(dir: &Path) {
    for log in ["redis.log", "postgres.log"] {
        let log = File::open(dir.join(log)).unwrap();
        let ended = tokio::task::spawn_blocking(move || log.lock());
        timeout(TIMEOUT, ended)
            .await
            .expect("the servers stop in time")
            .unwrap()
            .unwrap();
    }
}

async fn start_postgres(dir: &Path) -> PostgresServer {
    PostgresServer::start(dir, &PostgresOptions { durable: false })
        .await
        .unwrap()
}
