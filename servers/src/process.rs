//! Child processes that do not outlive this one, and their logs.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

/// How long a server may take to stop.
pub(crate) const STOP_TIME_MAX: Duration = Duration::from_secs(30);

const START_TIME_MAX: Duration = Duration::from_mins(1);
const PREDECESSOR_TIME_MAX: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Run by `sh`: starts a watcher in the background and then becomes the program itself, so that the
/// child's process id is the program's. The watcher reads from a pipe that only the parent holds open and
/// never writes to. When the parent ends, for whatever reason, the read returns and the watcher
/// signals the program.
const WATCHED: &str = r#"
signal=$1; shift
exec 3<&0
( { read -r _ <&3; kill -s "$signal" $$ 2>/dev/null; } & )
exec "$@" </dev/null 3<&-
"#;

/// A command for [`Process::spawn`] that runs `program` and sends it `signal` when this process ends or drops the
/// [`Process`].
pub fn watched(program: &Path, signal: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", WATCHED, "sh", signal]).arg(program);
    // A process group of its own: Ctrl-C must not stop a server that the service still flushes to.
    command.process_group(0).stdin(Stdio::piped());
    command
}

/// A child process that does not outlive this value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
    /// The watcher's pipe.
    lifeline: ChildStdin,
    log: Arc<Log>,
}

impl Process {
    /// Starts a [`watched`] command that writes to this log.
    pub fn spawn(mut command: Command, log: Arc<Log>) -> Result<Self> {
        let cannot = || format!("cannot start {}", log.name);
        let output = || log.file.try_clone().with_context(cannot);
        command.stdout(output()?).stderr(output()?);
        let mut child = command.spawn().with_context(cannot)?;
        let lifeline = child.stdin.take().with_context(cannot)?;
        let pid = child.id().with_context(cannot)?;
        Ok(Self {
            child,
            pid,
            lifeline,
            log,
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until `probe` succeeds. Fails if the process ends first or takes too long.
    pub async fn ready(&mut self, mut probe: impl AsyncFnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + START_TIME_MAX;
        let name = self.log.name;
        while let Err(error) = probe().await {
            if self.child.try_wait()?.is_some() {
                bail!("{name} does not start: {}", self.log.last_line());
            }
            if Instant::now() >= deadline {
                let last = self.log.last_line();
                bail!("{name} is not ready after {START_TIME_MAX:?} ({error}): {last}");
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Waits until the process ends on its own.
    pub async fn ended(mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Waits until the process ends on its own, and returns the reason as an error.
    pub async fn died(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => anyhow!(
                "{} ended ({status}): {}",
                self.log.name,
                self.log.last_line()
            ),
            Err(error) => anyhow!(error).context(format!("cannot watch {}", self.log.name)),
        }
    }

    /// Sends the signal of [`watched`] and waits. Kills the process and returns none if that takes
    /// too long.
    pub async fn stop(mut self, time_max: Duration) -> Option<ExitStatus> {
        drop(self.lifeline);
        if let Ok(status) = timeout(time_max, self.child.wait()).await {
            return status.ok();
        }
        tracing::warn!(server = self.log.name, "did not stop in time and is killed");
        let _ = self.child.kill().await;
        None
    }

    /// Sends another signal, such as `STOP`.
    pub async fn signal(&self, signal: &str) -> Result<()> {
        // A shell's own `kill`: the program may not be installed.
        let sent = Command::new("/bin/sh")
            .args(["-c", r#"kill -s "$1" "$2""#, "sh", signal])
            .arg(self.pid.to_string())
            .status()
            .await?;
        if !sent.success() {
            bail!("cannot send {signal} to {}", self.log.name);
        }
        Ok(())
    }

    /// Kills the process with SIGKILL.
    pub async fn kill(mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill().await;
    }
}

/// The output of a directory's process, and the lock of the directory: the process and its
/// children inherit the locked file, so the lock lasts exactly as long as any of them, and no process
/// id has to be guessed.
#[derive(Debug)]
pub struct Log {
    name: &'static str,
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens `dir/name.log`, truncated and locked. Waits for a predecessor that is still stopping.
    pub async fn open(dir: &Path, name: &'static str) -> Result<Arc<Self>> {
        let path = dir.join(name).with_extension("log");
        let cannot = || format!("cannot open {}", path.display());
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(cannot)?;
        let deadline = Instant::now() + PREDECESSOR_TIME_MAX;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    sleep(POLL_INTERVAL).await;
                }
                Err(TryLockError::WouldBlock) => {
                    bail!("another {name} still runs in {}", dir.display())
                }
                Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
            }
        }
        file.set_len(0).with_context(cannot)?;
        Ok(Arc::new(Self { name, path, file }))
    }

    /// The line that most likely explains a failure, and the path of the log.
    pub fn last_line(&self) -> String {
        let text = fs::read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().rev().map(str::trim);
        let mut lines = lines.filter(|line| !line.is_empty());
        // Postgres logs more lines after the fatal one.
        let fatal = lines.clone().find(|line| line.contains("FATAL: "));
        let line = fatal.or_else(|| lines.next()).unwrap_or("no output");
        format!("{line} (in {})", self.path.display())
    }
}
