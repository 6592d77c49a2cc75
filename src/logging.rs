//! Logging to standard error, through a queue, so that no request waits for the reader of the log.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::config::LogConfig;
use crate::metrics;

/// Capacity of the queue, in lines. More are dropped and counted.
const LINES_MAX: usize = 8192;

/// How long the end of the process waits for the queue to be written.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// The log. Dropping it writes the lines in the queue, as long as they are read.
#[derive(Debug)]
pub struct Log(Option<WorkerGuard>);

impl Drop for Log {
    fn drop(&mut self) {
        let writer = self.0.take();
        within(DRAIN_TIME_MAX, move || drop(writer));
    }
}

/// Starts logging to standard error. Only the first call has an effect.
pub fn start(config: &LogConfig) -> Log {
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(stderr());
    let dropped = writer.error_counter();
    let lines = fmt::layer()
        .with_ansi(stderr().is_terminal())
        .with_writer(writer);
    let lines = if config.json {
        // Flat: an event's fields are top-level members, those of its span are in `span`.
        let json = lines.json().flatten_event(true).with_span_list(false);
        json.boxed()
    } else {
        lines.boxed()
    };
    let subscriber = tracing_subscriber::registry().with(config.filter.clone());
    if subscriber.with(lines).try_init().is_ok() {
        metrics::watch_log(dropped);
    }
    Log(Some(guard))
}

/// Logs panics. By default they are written to standard error, which may block.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, message, "panicked");
    }));
}

/// Writes a line to standard error, unless that blocks for too long.
pub fn print_error(line: String) {
    within(DRAIN_TIME_MAX, move || {
        let _ = writeln!(stderr(), "{line}");
    });
}

/// Runs work that may block forever on another thread, and waits for it for a limited time.
fn within(time_max: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = channel();
    thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    let _ = is_done.recv_timeout(time_max);
}
