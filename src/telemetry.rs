//! Logging.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::LogConfig;

/// Starts logging to standard error. The first call counts; later ones change nothing.
pub fn start(config: &LogConfig) {
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let _ = if config.json {
        // Flat, so that a line's own values are found at its top; what surrounds it is in `span`.
        subscriber
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init()
    } else {
        subscriber.try_init()
    };
}
