//! `fedtune-client evaluate`: a fine-tuned model on a labelled file.

use super::output::outln;
use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::columns::ColumnNames;
use super::model_folder::folder;
use super::progress::Display;
use super::{CliError, Output, picture, processor, table};
use crate::data::{self, TargetReader};
use crate::finetune;
use crate::model::Classifier;

const EXAMPLES: &str = "\
Examples:
  fedtune-client evaluate --model tuned --data test.csv
  fedtune-client evaluate --model tuned --data test.csv --confusion-png confusion.png
  fedtune-client evaluate --model tuned --data notes.jsonl --text-column sentence --label-column category --output json
  fedtune-client evaluate --model cells --data test.parquet
  fedtune-client evaluate --model risk --data patients.csv --label-column outcome
  fedtune-client evaluate --model similarity --data pairs.csv --pair-column text_pair

What is read follows from what the model was made for; it is the same as in `fedtune-client finetune --task KIND`.";

/// Evaluate a fine-tuned model on rows whose answers are known.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Folder of the fine-tuned model, or its name on a hub (with `--features hub`).
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder of the base model, where --model holds adapters.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// CSV, JSONL or Parquet file, or folder of images, with rows of the model's task, such as text and label.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    columns: ColumnNames,
    /// PNG file for a picture of the confusion matrix.
    #[arg(long, value_name = "FILE.png")]
    confusion_png: Option<PathBuf>,
    /// Rows computed together.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = super::predict::batch_size)]
    batch_size: usize,
    /// CPU threads; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// How results are printed.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

impl Arguments {
    pub(super) fn run(mut self) -> Result<(), CliError> {
        self.model = folder(&self.model)?;
        self.base = self.base.map(|base| folder(&base)).transpose()?;
        let device = processor(self.threads)?;
        let classifier = Classifier::load_exported(&self.model, self.base.as_deref(), &device)?;
        let task = self.columns.task_of(&classifier)?;
        let targets = TargetReader::new(&task, &BTreeMap::new())?;
        let (rows, report) = data::read(&self.data, &ColumnNames::of(&task, &classifier), &targets)?;
        eprintln!("{report}");
        let (evaluation, scores) =
            finetune::evaluate_scores(&classifier, &rows, self.batch_size, &mut Display::new("evaluating"))?;
        if let Some(path) = &self.confusion_png {
            if evaluation.confusion().is_none() {
                return Err(CliError::Usage("--confusion-png: this model does not choose one label of several".into()));
            }
            picture::confusion(&evaluation, classifier.labels(), path)?;
        }
        match self.output {
            Output::Text => outln!("{}", table::text(&evaluation, &scores, classifier.labels())),
            Output::Json => {
                let document = json!({
                    "model": self.model,
                    "evaluation": table::totals(&evaluation, &scores),
                    "per_label": table::per_label(&evaluation, &scores, classifier.labels()),
                    "confusion": table::confusion(&evaluation),
                });
                outln!("{document}");
            }
        }
        Ok(())
    }
}
