//! `fedtune-client`: the site's program. Everything is in the library; this picks the allocator and the exit code.

use std::process::ExitCode;

use clap::Parser;
use fedtune_client::cli::Cli;
use fedtune_client::exit::Exit;

// Training allocates and frees the same large buffers every step; the system's allocator gives them back each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => Exit::Done.into(),
        Err(error) => {
            eprintln!("error: {error}");
            error.exit().into()
        }
    }
}
