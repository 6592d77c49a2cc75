//! The `tallyman` executable, run as an operator runs it.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tallyman::config::Servers;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Http, World, signal};

/// Upper bound for each step; reaching it fails the test.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A running `tallyman serve` and its log output.
pub struct Process {
    pub http: Http,
    /// The address that it listens on.
    pub address: String,
    /// All log lines read so far.
    pub output: Vec<String>,
    child: Child,
    /// Lines read by a background task, because a full pipe would block the process.
    lines: UnboundedReceiver<String>,
    reading: JoinHandle<()>,
    _stderr: Arc<Mutex<Lines<BufReader<ChildStderr>>>>,
}

impl Process {
    /// Starts the executable on a free port with these variables, and waits until it listens.
    pub async fn serve(world: &World, servers: Servers, variables: &[(&str, &str)]) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_tallyman"));
        Self::start(program, world, servers, variables).await
    }

    /// The same with a limit on open files.
    pub async fn serve_with_files(world: &World, files: usize) -> Self {
        let mut limited = Command::new("/bin/sh");
        let script = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        limited.args(["-c", &script, env!("CARGO_BIN_EXE_tallyman")]);
        Self::start(limited, world, world.servers(), &[]).await
    }

    async fn start(
        mut program: Command,
        world: &World,
        servers: Servers,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut child = program
            .arg("serve")
            .env_clear()
            .env("TALLYMAN_REDIS_URL", servers.redis_url)
            .env("TALLYMAN_DATABASE_URL", servers.database_url)
            .env("TALLYMAN_LISTEN", "127.0.0.1:0")
            .env("TALLYMAN_DRAIN_SECONDS", "0")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, lines) = unbounded_channel();
        // Keeps the pipe open after `stop_reading`.
        let stderr_kept = Arc::new(Mutex::new(stderr));
        let reader = Arc::clone(&stderr_kept);
        let reading = tokio::spawn(async move {
            let mut stderr = reader.lock().await;
            while let Some(line) = stderr.next_line().await.unwrap() {
                // Fails only after the test has dropped the process.
                let _ = sender.send(line);
            }
        });
        let mut process = Self {
            http: Http::new(String::new(), &world.key),
            address: String::new(),
            output: Vec::new(),
            child,
            lines,
            reading,
            _stderr: stderr_kept,
        };
        let address = process.url_after("listening on ").await;
        process.http = Http::new(format!("http://{address}"), &world.key);
        process.address = address;
        process
    }

    /// The address in the first line that has these words followed by a URL.
    pub async fn url_after(&mut self, words: &str) -> String {
        let line = self
            .line(|line| line.contains(&format!("{words}http")))
            .await;
        let (_, url) = line.split_once(words).unwrap();
        let (_, rest) = url.split_once("://").unwrap();
        let ends = |c: char| !(c.is_ascii_alphanumeric() || ".:[]".contains(c));
        rest.split(ends).next().unwrap().to_owned()
    }

    /// The first line that matches, among those read already and those to come.
    pub async fn line(&mut self, matches: impl Fn(&str) -> bool) -> String {
        let mut position = 0;
        loop {
            while let Some(line) = self.output.get(position) {
                if matches(line) {
                    return line.clone();
                }
                position += 1;
            }
            assert!(self.read().await, "the process ended: {:#?}", self.output);
        }
    }

    /// Sends SIGHUP.
    pub fn hang_up(&self) {
        signal(self.child.id().unwrap(), "HUP");
    }

    /// Sends SIGTERM, as Docker does.
    pub fn terminate(&self) {
        signal(self.child.id().unwrap(), "TERM");
    }

    /// Sends SIGTERM; returns the exit code and all log lines.
    pub async fn stop(mut self) -> (Option<i32>, Vec<String>) {
        self.terminate();
        while self.read().await {}
        let status = timeout(TIMEOUT, self.child.wait()).await;
        (
            status.expect("the process stops in time").unwrap().code(),
            self.output,
        )
    }

    /// Stops reading the log, so that the process runs against a full pipe.
    pub fn stop_reading(&mut self) {
        self.reading.abort();
    }

    /// Kills the process with SIGKILL.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Reads one more line; false at the end.
    async fn read(&mut self) -> bool {
        let line = timeout(TIMEOUT, self.lines.recv()).await;
        let line = line.unwrap_or_else(|_| panic!("no further line after {:#?}", self.output));
        let before = self.output.len();
        self.output.extend(line);
        self.output.len() > before
    }
}
