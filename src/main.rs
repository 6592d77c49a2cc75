//! The executable: calls the library.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use tallyman::{cli, logging};

/// Requests make many short-lived allocations.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        // One line with all causes, without a backtrace: most errors are mistyped settings.
        Err(error) => {
            logging::print_error(format!("error: {}", cli::readable(&error)));
            ExitCode::FAILURE
        }
    }
}
