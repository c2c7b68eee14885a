//! `fedtune-client merge`: adapters and their base model as one whole model.

use super::output::outln;
use std::path::PathBuf;

use clap::Args;

use super::model_folder::folder;
use super::{CliError, prepare_out, processor};
use crate::model::Classifier;

const EXAMPLES: &str = "\
Example:
  fedtune-client merge --adapters adapters --base all-MiniLM-L6-v2 --out model

The adapters are a folder in peft's layout, as `fedtune-client finetune` and `fedtune-server model export` write it for
trainable = \"lora\". What is written to --out loads in transformers with AutoModelForSequenceClassification.";

/// Add adapters to their base model.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Folder of the adapters.
    #[arg(long, value_name = "DIR")]
    adapters: PathBuf,
    /// Folder of the base model they were trained on.
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// Folder for the whole model.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Arguments {
    pub(super) fn run(mut self) -> Result<(), CliError> {
        self.base = folder(&self.base)?;
        prepare_out(&self.out, &[&self.adapters, &self.base])?;
        let classifier = Classifier::load_exported(&self.adapters, Some(&self.base), &processor(0)?)?;
        classifier.save(&self.out)?;
        outln!("written to {}", self.out.display());
        Ok(())
    }
}
