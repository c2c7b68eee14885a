//! `fedtune-client finetune`: the whole budget of a job, locally.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use fedtune_config::site::Duplicates;
use serde_json::json;

use super::progress::Display;
use super::training::{Training, duplicates, treat};
use super::{CliError, Output, processor, table};
use crate::data::{self, LabelMap};
use crate::finetune::{self, Plan};
use crate::model::{Classifier, ModelSpec};

const EXAMPLES: &str = "\
Examples:
  Three epochs with the defaults, labels taken from the file:
    fedtune-client finetune --model all-MiniLM-L6-v2 --train train.csv --test test.csv --out tuned

  With the settings of a job (its rounds become one run of rounds.count x epochs):
    fedtune-client finetune --model all-MiniLM-L6-v2 --train train.csv --job job.toml --out tuned --output json

CSV files have a header line and the columns `text` and `label`; JSONL files have an object with these keys on each
line. The model is a folder in Hugging Face layout: config.json, tokenizer.json, model.safetensors. What is written to
--out has the same layout and loads in transformers with AutoModelForSequenceClassification.";

/// Fine-tune a model on a labelled file, on this machine alone.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Folder of the pre-trained model; takes the place of the job's model.path.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// CSV or JSONL file to train on.
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// CSV or JSONL file to evaluate on at the end.
    #[arg(long, value_name = "FILE")]
    test: Option<PathBuf>,
    #[command(flatten)]
    training: Training,
    /// Training rows whose text (but for case and white space) and label stand in an earlier row.
    #[arg(long, value_name = "WHAT", default_value = "keep", value_parser = duplicates())]
    duplicates: Duplicates,
    /// CPU threads; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Folder for the fine-tuned model.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How results are printed.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

impl Arguments {
    pub(super) fn run(self) -> Result<(), CliError> {
        let device = processor(self.threads)?;
        let (job, columns) = self.training.job(&self.model, &self.train)?;
        let labels = LabelMap::new(&job.task.labels, &BTreeMap::new())?;
        // Everything that can be wrong with the input is found before the first step.
        let (mut rows, mut report) = data::read(&self.train, &columns, &labels)?;
        treat(self.duplicates, &mut rows, &mut report);
        eprintln!("{report}");
        let test = self.test.as_ref().map(|path| data::read(path, &columns, &labels)).transpose()?;
        if let Some((_, report)) = &test {
            eprintln!("{report}");
        }
        let rows = self.training.sampling().apply(rows, job.training.seed);
        let mut classifier = Classifier::load(&self.model, &ModelSpec::from(&job), &device)?;
        self.prepare_out()?;

        let steps = job.training.steps_per_round(rows.len()).saturating_mul(job.rounds.count as usize);
        let plan = Plan { first_step: 0, steps, total_steps: steps, round: 1 };
        let fit = finetune::fit(&mut classifier, &rows, &job.training, plan, &mut Display::new("training"))?;
        classifier.save(&self.out)?;
        let evaluation = match &test {
            Some((rows, _)) => {
                let batch_size = job.training.batch_size;
                Some(finetune::evaluate_scores(&classifier, rows, batch_size, &mut Display::new("evaluating"))?)
            }
            None => None,
        };
        match self.output {
            Output::Text => {
                if let Some((evaluation, scores)) = &evaluation {
                    println!("{}\n", table::text(evaluation, scores, &job.task.labels));
                }
                println!(
                    "{} steps on {} rows in {:.1} s ({:.1} rows/s), mean training loss {:.4}\nwritten to {}",
                    fit.steps,
                    fit.examples,
                    fit.seconds,
                    fit.rows_per_second,
                    fit.train_loss,
                    self.out.display()
                );
            }
            Output::Json => {
                let found = evaluation.as_ref();
                let document = json!({
                    "model": self.out,
                    "evaluation": found.map(|(evaluation, scores)| table::totals(evaluation, scores)),
                    "per_label": found.map(|(evaluation, scores)| {
                        table::per_label(evaluation, scores, &job.task.labels)
                    }),
                    "confusion": found.map(|(evaluation, _)| table::confusion(evaluation)),
                    "train_loss": fit.train_loss,
                    "train_seconds": fit.seconds,
                    "train_examples": fit.examples,
                    "steps": fit.steps,
                });
                println!("{document}");
            }
        }
        Ok(())
    }

    /// Makes the folder before training, so that hours of work are not lost to a wrong path.
    fn prepare_out(&self) -> Result<(), CliError> {
        let failed = |source| CliError::Write { path: self.out.clone(), source };
        std::fs::create_dir_all(&self.out).map_err(failed)?;
        let same = self.out.canonicalize().map_err(failed)? == self.model.canonicalize().unwrap_or_default();
        if same {
            return Err(CliError::Usage(format!(
                "--out is the folder of the base model ({}); give another one, so that the base model stays",
                self.out.display()
            )));
        }
        tempfile::tempfile_in(&self.out).map_err(failed)?;
        Ok(())
    }
}
