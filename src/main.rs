//! The executable: parses arguments, and calls the library.

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use tallyman::cli::{self, Command};
use tallyman::logging;

/// Counts what organizations use and stops them where their plan ends.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// Requests allocate much that lives for microseconds.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match cli::run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // One line, causes included; a backtrace helps nobody who only mistyped a setting.
        Err(error) => {
            logging::last_words(format!("error: {}", cli::readable(&error)));
            ExitCode::FAILURE
        }
    }
}
