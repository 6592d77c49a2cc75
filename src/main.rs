//! The executable: parses arguments, and calls the library.

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use tallyman::commands::{self, Command};
use tallyman::telemetry;

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
    match commands::run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // One line, causes included; a backtrace helps nobody who only mistyped a setting.
        Err(error) => {
            telemetry::last_words(format!("error: {}", commands::readable(&error)));
            ExitCode::FAILURE
        }
    }
}
