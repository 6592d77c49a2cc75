//! The executable of the load and audit tool.

use std::io::stdout;
use std::process::ExitCode;

use clap::Parser as _;
use mimalloc::MiMalloc;
use tallyman_bench::Arguments;

/// The same as the service's, so that the no-op server does not differ from it.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match tallyman_bench::run(Arguments::parse(), &mut stdout()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
