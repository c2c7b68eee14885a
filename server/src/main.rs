//! `fedtune-server`: the command line, thin.

use std::process::ExitCode;

// One arena that gives unused pages back at once (its settings stand in .cargo/config.toml): what many transfers have
// used is there for the aggregation, so that the peak does not grow with the number of sites.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match fedtune_server::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = fedtune_proto::channel::chain(error.as_ref());
            eprintln!("error: {}", fedtune_proto::channel::explained(&text));
            fedtune_server::exit::code(&error)
        }
    }
}
