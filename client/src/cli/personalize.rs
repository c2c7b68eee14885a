//! `fedtune-client personalize`: the model of a federation with the tensors that stayed at this site.

use std::path::PathBuf;

use clap::Args;

use super::model_folder::folder;
use super::output::outln;
use super::{CliError, prepare_out, processor};
use crate::model::Classifier;

const EXAMPLES: &str = "\
Example:
  fedtune-client personalize --model exported --own work/own/4f1c8a02b3d95e67.safetensors --out model

For a job with `aggregation.exclude`. The model is what `fedtune-server model export` wrote, which has the excluded tensors as
they were before the first round; the file is this site's own, whose path `fedtune-client run` logs each time it is kept.";

/// Put this site's own tensors into the model of a federation.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Folder of the exported model, or of its adapters.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder of the base model, if --model is a folder of adapters.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// File of this site's own tensors.
    #[arg(long, value_name = "FILE")]
    own: PathBuf,
    /// Folder for the whole model.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Arguments {
    pub(super) fn run(mut self) -> Result<(), CliError> {
        self.base = self.base.map(|base| folder(&base)).transpose()?;
        let inputs: Vec<_> = std::iter::once(&self.model).chain(&self.base).map(PathBuf::as_path).collect();
        prepare_out(&self.out, &inputs)?;
        let mut classifier = Classifier::load_exported(&self.model, self.base.as_deref(), &processor(0)?)?;
        classifier.load_own(&self.own)?;
        classifier.save(&self.out)?;
        outln!("written to {}", self.out.display());
        Ok(())
    }
}
