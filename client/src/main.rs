//! `fedtune-client`: the site's program. Everything is in the library; this picks the allocator and the exit code.

use std::process::ExitCode;

use clap::Parser;
use fedtune_client::allocator::{self, MiMalloc};
use fedtune_client::cli::Cli;
use fedtune_client::exit::Exit;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    match Cli::parse().run() {
        Ok(()) => Exit::Done.into(),
        Err(error) => {
            eprintln!("error: {error}");
            error.exit().into()
        }
    }
}
