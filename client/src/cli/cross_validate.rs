//! `fedtune-client cross-validate`: how good a model becomes on data like this, without a test file.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use fedtune_config::site::Duplicates;
use serde_json::{Value, json};

use super::progress::Display;
use super::training::{Training, duplicates, treat};
use super::{CliError, Output, processor, table};
use crate::data::{self, Columns, LabelMap};
use crate::finetune::cross::{FoldReport, spread};
use crate::finetune::cross_validate;

const EXAMPLES: &str = "\
Examples:
  fedtune-client cross-validate --model all-MiniLM-L6-v2 --train train.csv --folds 5
  fedtune-client cross-validate --model all-MiniLM-L6-v2 --train notes.csv --group-column patient --trainable head --output json

Each fold is scored by a model that was fine-tuned on the others, from the base model on. Folds have the same shares of
the labels; rows of one text or one group are in one fold.";

/// Fine-tune a model once for each fold of a labelled file, and score the fold.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Folder of the pre-trained model.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// CSV or JSONL file with text and label.
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Number of folds.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = folds())]
    folds: u32,
    /// Column whose equal values (a subject's number) keep rows in one fold.
    #[arg(long, value_name = "NAME")]
    group_column: Option<String>,
    /// Rows whose text (but for case and white space) and label stand in an earlier row.
    #[arg(long, value_name = "WHAT", default_value = "keep", value_parser = duplicates())]
    duplicates: Duplicates,
    #[command(flatten)]
    training: Training,
    /// CPU threads; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// How results are printed.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// A number of folds.
pub(super) fn folds() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(2..=100)
}

/// A measure and its value in each fold.
type Measure = (&'static str, Vec<Option<f64>>);

impl Arguments {
    pub(super) fn run(self) -> Result<(), CliError> {
        let device = processor(self.threads)?;
        let (job, columns) = self.training.job(&self.model, &self.train)?;
        let columns = Columns { group: self.group_column, ..columns };
        let labels = LabelMap::new(&job.task.labels, &BTreeMap::new())?;
        let (rows, mut report) = data::read(&self.train, &columns, &labels)?;
        let rows = treat(self.duplicates, rows, &mut report);
        eprintln!("{report}");
        let (folds, sampling) = (self.folds as usize, self.training.sampling());
        let found = cross_validate(&self.model, &job, &device, &rows, folds, sampling, Display::new)?;
        let measures = measures(&found.folds);
        match self.output {
            Output::Text => println!("{}", text(&found.folds, &measures)),
            Output::Json => {
                let folds = found.folds.iter().map(|fold| {
                    json!({
                        "train_examples": fold.fit.examples,
                        "train_loss": fold.fit.train_loss,
                        "train_seconds": fold.fit.seconds,
                        "evaluation": table::totals(&fold.evaluation, &fold.scores),
                        "per_label": table::per_label(&fold.evaluation, &fold.scores, &job.task.labels),
                        "confusion": table::confusion(&fold.evaluation),
                    })
                });
                let spread = measures.iter().map(|(name, values)| {
                    let spread = spread(values).map(|(mean, deviation)| json!({"mean": mean, "sd": deviation}));
                    ((*name).to_owned(), json!(spread))
                });
                let document = json!({
                    "model": self.model,
                    "labels": job.task.labels,
                    "folds": folds.collect::<Value>(),
                    "spread": Value::Object(spread.collect()),
                });
                println!("{document}");
            }
        }
        Ok(())
    }
}

fn measures(folds: &[FoldReport]) -> Vec<Measure> {
    let of = |value: &dyn Fn(&FoldReport) -> Option<f64>| folds.iter().map(value).collect();
    vec![
        ("accuracy", of(&|fold| Some(fold.evaluation.accuracy()))),
        ("macro_f1", of(&|fold| Some(fold.evaluation.macro_f1()))),
        ("macro_auroc", of(&|fold| fold.scores.macro_auroc)),
        ("calibration_error", of(&|fold| Some(fold.scores.calibration_error))),
        ("loss", of(&|fold| Some(fold.evaluation.loss()))),
    ]
}

fn text(folds: &[FoldReport], measures: &[Measure]) -> String {
    let mut out = String::from("fold   rows  accuracy  macro F1    AUROC      ECE     loss\n");
    // Writing to a string does not fail.
    for (place, fold) in folds.iter().enumerate() {
        let _ = write!(out, "{:4}  {:5}", place + 1, fold.evaluation.examples);
        for (width, (_, values)) in WIDTHS.iter().zip(measures) {
            let _ = write!(out, "  {:>width$}", table::share(values[place]));
        }
        out.push('\n');
    }
    let spreads: Vec<Option<(f64, f64)>> = measures.iter().map(|(_, values)| spread(values)).collect();
    let rows: u64 = folds.iter().map(|fold| fold.evaluation.examples).sum();
    for (name, part) in [("mean", 0), ("± sd", 1)] {
        let _ = if part == 0 { write!(out, "{name:>4}  {rows:5}") } else { write!(out, "{name:>4}  {:5}", "") };
        for (width, spread) in WIDTHS.iter().zip(&spreads) {
            let value = spread.map(|(mean, deviation)| if part == 0 { mean } else { deviation });
            let _ = write!(out, "  {:>width$}", table::share(value));
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}

/// Of the table's columns for the measures.
const WIDTHS: [usize; 5] = [8, 8, 7, 7, 7];
