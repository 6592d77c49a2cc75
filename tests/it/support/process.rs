//! The program itself, as whoever runs the service starts it.

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

use super::{Http, World};

/// More than any step takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running `tallyman serve`, and all that it has said.
pub struct Process {
    pub http: Http,
    /// Where it listens.
    pub address: String,
    /// Every line so far.
    pub said: Vec<String>,
    child: Child,
    /// What it says, read as it is said: a program that nobody listens to stops at a full pipe.
    lines: UnboundedReceiver<String>,
    listening: JoinHandle<()>,
    _stderr: Arc<Mutex<Lines<BufReader<ChildStderr>>>>,
}

impl Process {
    /// Starts it on a port of its own, with these variables, and waits until it serves.
    pub async fn serve(world: &World, servers: Servers, variables: &[(&str, &str)]) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_tallyman"));
        Self::start(program, world, servers, variables).await
    }

    /// The same, with so many open files at most.
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
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let (said, lines) = unbounded_channel();
        // The pipe stays open when nobody listens any more.
        let deaf = Arc::new(Mutex::new(stderr));
        let ears = Arc::clone(&deaf);
        let listening = tokio::spawn(async move {
            let mut stderr = ears.lock().await;
            while let Some(line) = stderr.next_line().await.unwrap() {
                // Nobody may be left to hear it.
                let _ = said.send(line);
            }
        });
        let mut process = Self {
            http: Http::new(String::new(), &world.key),
            address: String::new(),
            said: Vec::new(),
            child,
            lines,
            listening,
            _stderr: deaf,
        };
        let address = process.url_after("listening on ").await;
        process.http = Http::new(format!("http://{address}"), &world.key);
        process.address = address;
        process
    }

    /// The address in the line that says this and a URL.
    pub async fn url_after(&mut self, words: &str) -> String {
        let url = format!("{words}http://");
        let line = self.line(|line| line.contains(&url)).await;
        let (_, rest) = line.split_once(&url).unwrap();
        let ends = |c: char| !(c.is_ascii_alphanumeric() || ".:[]".contains(c));
        rest.split(ends).next().unwrap().to_owned()
    }

    /// The first line that is it, of those said already or yet to come.
    pub async fn line(&mut self, is_it: impl Fn(&str) -> bool) -> String {
        let mut position = 0;
        loop {
            while let Some(line) = self.said.get(position) {
                if is_it(line) {
                    return line.clone();
                }
                position += 1;
            }
            assert!(self.read().await, "it ended: {:#?}", self.said);
        }
    }

    /// Stops it as Docker does; returns its exit code and every line.
    pub async fn stop(mut self) -> (Option<i32>, Vec<String>) {
        let pid = self.child.id().unwrap().to_string();
        let kill = Command::new("kill").args(["-s", "TERM", &pid]).status();
        assert!(kill.await.unwrap().success());
        while self.read().await {}
        let status = timeout(PATIENCE, self.child.wait()).await;
        (status.expect("it goes on").unwrap().code(), self.said)
    }

    /// Hears nothing of what it says from now on, and lets it run against a full pipe.
    pub fn stop_listening(&mut self) {
        self.listening.abort();
    }

    /// Kills it as a power cut would.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Reads one line more; false at the end.
    async fn read(&mut self) -> bool {
        let line = timeout(PATIENCE, self.lines.recv()).await;
        let line = line.unwrap_or_else(|_| panic!("silence after {:#?}", self.said));
        let before = self.said.len();
        self.said.extend(line);
        self.said.len() > before
    }
}
