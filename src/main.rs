//! The `hookgate` command: arguments in, exit code out.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

/// A tenth less CPU than the system's in what a webhook takes, a fifth less with thousands of connections: bench/NOTES.md.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    cli::run(cli::Arguments::parse())
}
