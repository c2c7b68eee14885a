//! `fedtune-server`: the command line, thin.

use std::process::ExitCode;

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
