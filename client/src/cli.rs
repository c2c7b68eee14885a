//! The command line: one module per command, each with its arguments and what it does.

mod check;
mod columns;
mod cross_validate;
mod error;
mod evaluate;
mod finetune;
mod merge;
mod model_folder;
mod new_table_model;
mod output;
mod personalize;
mod picture;
mod predict;
mod progress;
mod run;
mod table;
mod training;
mod tune;

use std::path::Path;

use clap::{Parser, Subcommand, ValueEnum};
use fedtune_config::site::Device as DeviceConfig;

pub use error::CliError;

/// The site's program of a fedtune federation: fine-tunes a pre-trained model on data that stays here.
///
/// All but `run` work on this machine alone and need no aggregator.
#[derive(Debug, Parser)]
#[command(name = "fedtune-client", version, after_help = crate::exit::HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Arguments),
    CrossValidate(cross_validate::Arguments),
    Finetune(finetune::Arguments),
    Evaluate(evaluate::Arguments),
    Merge(merge::Arguments),
    NewTableModel(new_table_model::Arguments),
    Personalize(personalize::Arguments),
    Predict(predict::Arguments),
    Run(run::Arguments),
    Tune(tune::Arguments),
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// [`CliError`] says what went wrong and knows its exit code.
    pub fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::Check(arguments) => arguments.run(),
            Command::CrossValidate(arguments) => arguments.run(),
            Command::Finetune(arguments) => arguments.run(),
            Command::Evaluate(arguments) => arguments.run(),
            Command::Merge(arguments) => arguments.run(),
            Command::NewTableModel(arguments) => arguments.run(),
            Command::Personalize(arguments) => arguments.run(),
            Command::Predict(arguments) => arguments.run(),
            Command::Run(arguments) => arguments.run(),
            Command::Tune(arguments) => arguments.run(),
        }
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables for people.
    Text,
    /// The last line of standard output is one JSON object.
    Json,
}

/// Opens the processor with so many threads.
fn processor(threads: usize) -> Result<candle_core::Device, CliError> {
    Ok(crate::device::open(&DeviceConfig { threads, ..DeviceConfig::default() })?)
}

/// Makes the folder for a model before the work, so that hours of it are not lost to a wrong path. It must be none of
/// `inputs`.
fn prepare_out(out: &Path, inputs: &[&Path]) -> Result<(), CliError> {
    let failed = |source| CliError::Write { path: out.to_path_buf(), source };
    std::fs::create_dir_all(out).map_err(failed)?;
    let place = out.canonicalize().map_err(failed)?;
    if let Some(input) = inputs.iter().find(|input| input.canonicalize().is_ok_and(|input| input == place)) {
        return Err(CliError::Usage(format!(
            "--out is the folder {}, which is read; give another one, so that what is there stays",
            input.display()
        )));
    }
    tempfile::tempfile_in(out).map_err(failed)?;
    Ok(())
}
