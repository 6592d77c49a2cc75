//! The Better Auth plugin's client, in its own process.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::Http;

/// Upper bound for one call; reaching it fails the test.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A running client. Dropping it stops the process.
pub struct PluginClient {
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl PluginClient {
    /// Starts a client of the same service with this credential.
    pub fn start(http: &Http, credential: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
        let mut child = Command::new("node")
            .args(["usage-client.mjs", &http.base, credential])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
        }
    }

    /// Calls a function of the client and returns its result.
    pub async fn call(&mut self, function: &str, argument: Value) -> Value {
        let line = format!("{}\n", json!([function, argument]));
        self.stdin.write_all(line.as_bytes()).await.unwrap();
        let line = timeout(TIMEOUT, self.stdout.next_line()).await;
        let line = line
            .expect("the client replies in time")
            .unwrap()
            .expect("the client runs");
        serde_json::from_str(&line).unwrap()
    }
}
