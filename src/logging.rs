//! Logging: through a queue, so that nothing waits for whoever reads the log.

use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::LogConfig;
use crate::metrics;

/// How many lines wait to be written at most; more are dropped, and counted.
const LINES_MAX: usize = 8192;

/// How long the end of the process waits for what is still to be written.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The log. When it is dropped, lines that wait are written, as far as somebody reads them.
#[derive(Debug)]
pub struct Log(Option<WorkerGuard>);

impl Drop for Log {
    fn drop(&mut self) {
        let writer = self.0.take();
        within(LAST_WORDS, move || drop(writer));
    }
}

/// Starts logging to standard error. The first call counts; later ones change nothing.
pub fn start(config: &LogConfig) -> Log {
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    let subscriber = fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(writer);
    let started = if config.json {
        // Flat, so that a line's own values are found at its top; what surrounds it is in `span`.
        subscriber
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init()
    } else {
        subscriber.try_init()
    };
    if started.is_ok() {
        metrics::watch_log(dropped);
    }
    Log(Some(guard))
}

/// Has panics told in the log: by themselves they go to standard error, whether or not anybody reads it.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("not a text");
        tracing::error!(place, message, "something has panicked");
    }));
}

/// Writes a line to standard error, if somebody reads it.
pub fn last_words(line: String) {
    within(LAST_WORDS, move || {
        let _ = writeln!(std::io::stderr(), "{line}");
    });
}

/// Does what may block for ever, and waits for it for a while.
fn within(patience: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = channel();
    thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    let _ = is_done.recv_timeout(patience);
}
