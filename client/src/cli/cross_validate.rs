//! `fedtune-client cross-validate`: how good a model becomes on data like this, without a test file.

use super::output::outln;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use fedtune_config::site::Duplicates;
use serde_json::{Value, json};

use super::model_folder::folder;
use super::progress::Display;
use super::training::{Training, duplicates, treat};
use super::{CliError, Output, processor, table};
use crate::data::{self, Columns, TargetReader};
use crate::finetune::cross::{FoldReport, spread};
use crate::finetune::cross_validate;

const EXAMPLES: &str = "\
Examples:
  fedtune-client cross-validate --model all-MiniLM-L6-v2 --train train.csv --folds 5
  fedtune-client cross-validate --model all-MiniLM-L6-v2 --train notes.csv --group-column patient --trainable head --output json
  fedtune-client cross-validate --model all-MiniLM-L6-v2 --task text-regression --train scores.csv

Each fold is scored by a model that was fine-tuned on the others, from the base model on. Folds have the same shares of
the labels (of the rarest label of each row where there are several, of each tenth of numbers); rows of one text or one group are in one fold.";

/// Fine-tune a model once for each fold of a file, and score the fold.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Folder of the pre-trained model, or its name on a hub (with `--features hub`).
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// CSV or JSONL file with rows of the task, such as text and label.
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
    pub(super) fn run(mut self) -> Result<(), CliError> {
        self.model = folder(&self.model)?;
        let device = processor(self.threads)?;
        let (job, columns) = self.training.job(&self.model, &self.train)?;
        let columns = Columns { group: self.group_column, ..columns };
        let targets = TargetReader::new(&job.task, &BTreeMap::new())?;
        let (rows, mut report) = data::read(&self.train, &columns, &targets)?;
        let rows = treat(self.duplicates, rows, &mut report);
        eprintln!("{report}");
        let (folds, sampling) = (self.folds as usize, self.training.sampling());
        let found = cross_validate(&self.model, &job, &device, &rows, folds, sampling, Display::new)?;
        let measures = measures(&found.folds);
        match self.output {
            Output::Text => outln!("{}", text(&found.folds, &measures)),
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
                outln!("{document}");
            }
        }
        Ok(())
    }
}

/// Every measure that a fold has, in the order of the first fold that has it.
fn measures(folds: &[FoldReport]) -> Vec<Measure> {
    let of = |fold: &FoldReport| -> Vec<(&'static str, Option<f64>)> {
        let counted = fold.evaluation.measures().into_iter().map(|(name, value)| (name, Some(value)));
        // The loss comes last.
        let (loss, counted): (Vec<_>, Vec<_>) = counted.partition(|(name, _)| *name == "loss");
        counted.into_iter().chain(fold.scores.measures.clone()).chain(loss).collect()
    };
    let found: Vec<_> = folds.iter().map(of).collect();
    let mut names: Vec<&'static str> = Vec::new();
    for (name, _) in found.iter().flatten() {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let value = |fold: &Vec<(&'static str, Option<f64>)>, name| {
        fold.iter().find(|(found, _)| *found == name).and_then(|(_, value)| *value)
    };
    names.into_iter().map(|name| (name, found.iter().map(|fold| value(fold, name)).collect())).collect()
}

fn text(folds: &[FoldReport], measures: &[Measure]) -> String {
    let widths: Vec<usize> = measures.iter().map(|(name, _)| table::title(name).len().max(7)).collect();
    let mut out = String::from("fold   rows");
    // Writing to a string does not fail.
    for (width, (name, _)) in widths.iter().zip(measures) {
        let _ = write!(out, "  {:>width$}", table::title(name));
    }
    out.push('\n');
    for (place, fold) in folds.iter().enumerate() {
        let _ = write!(out, "{:4}  {:5}", place + 1, fold.evaluation.examples);
        for (width, (_, values)) in widths.iter().zip(measures) {
            let _ = write!(out, "  {:>width$}", table::share(values[place]));
        }
        out.push('\n');
    }
    let spreads: Vec<Option<(f64, f64)>> = measures.iter().map(|(_, values)| spread(values)).collect();
    let rows: u64 = folds.iter().map(|fold| fold.evaluation.examples).sum();
    for (name, part) in [("mean", 0), ("± sd", 1)] {
        let _ = if part == 0 { write!(out, "{name:>4}  {rows:5}") } else { write!(out, "{name:>4}  {:5}", "") };
        for (width, spread) in widths.iter().zip(&spreads) {
            let value = spread.map(|(mean, deviation)| if part == 0 { mean } else { deviation });
            let _ = write!(out, "  {:>width$}", table::share(value));
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}
