//! `fedtune-client finetune`: the whole budget of a job, locally.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use fedtune_config::Job;
use serde_json::json;

use super::progress::Display;
use super::{CliError, Output, processor, table};
use crate::data::{self, Columns, LabelMap};
use crate::finetune::{self, EarlyStopping, Plan};
use crate::model::{Classifier, ModelSpec};

const EXAMPLES: &str = "\
Examples:
  Three epochs with the defaults, labels taken from the file:
    fedtune-client finetune --model all-MiniLM-L6-v2 --train train.csv --test test.csv --out tuned

  With the settings of a job (its rounds become one run of rounds.count x epochs):
    fedtune-client finetune --model all-MiniLM-L6-v2 --train train.csv --job job.toml --out tuned --output json

  Until three epochs in a row bring nothing new on a tenth of the rows:
    fedtune-client finetune --model all-MiniLM-L6-v2 --train train.csv --validation 0.1 --patience 3 --out tuned

CSV files have a header line and the columns `text` and `label`; JSONL files have an object with these keys on each
line. The model is a folder in Hugging Face layout: config.json, tokenizer.json, model.safetensors. What is written to
--out has the same layout and loads in transformers with AutoModelForSequenceClassification; with trainable = \"lora\" it
is a folder of adapters for peft, which `fedtune-client merge` makes a whole model.";

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
    /// Share of the training rows, above 0 and less than 0.9, to hold out. The model is scored on them after every epoch by
    /// the job's evaluation.metric, and kept as it was when it was best.
    #[arg(long, value_name = "FRACTION", value_parser = fraction)]
    validation: Option<f64>,
    /// With --validation: end after so many epochs without a better one; 0 never ends early.
    #[arg(long, value_name = "EPOCHS", default_value_t = 0, requires = "validation")]
    patience: usize,
    /// Settings; without it every default applies, with the labels found in the training file and a learning rate that
    /// suits the model (1e-4 up to a hidden size of 512, else 5e-5).
    #[arg(long, value_name = "JOB.toml")]
    job: Option<PathBuf>,
    /// Column with the text, where it differs from the job's (default `text`).
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,
    /// Column with the label, where it differs from the job's (default `label`).
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Seed of new weights, shuffling and dropout, in place of the job's.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
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
        let job = self.job()?;
        let columns = self.columns(&job);
        let labels = LabelMap::new(&job.task.labels, &BTreeMap::new())?;
        // Everything that can be wrong with the input is found before the first step.
        let (rows, report) = data::read(&self.train, &columns, &labels)?;
        eprintln!("{report}");
        let test = self.test.as_ref().map(|path| data::read(path, &columns, &labels)).transpose()?;
        if let Some((_, report)) = &test {
            eprintln!("{report}");
        }
        let (rows, validation) = data::split(rows, self.validation.unwrap_or(0.0));
        let batch_size = job.training.batch_size;
        let stopping = match self.validation {
            Some(_) => Some(EarlyStopping::new(&validation, batch_size, self.patience, &job.evaluation)?),
            None => None,
        };
        let mut classifier = Classifier::load(&self.model, &ModelSpec::from(&job), &device)?;
        prepare_out(&self.out, &[&self.model])?;

        let steps = job.training.steps_per_round(rows.len()).saturating_mul(job.rounds.count as usize);
        let plan = Plan { first_step: 0, steps, total_steps: steps, round: 1 };
        let mut display = Display::new("training");
        let fit = match stopping {
            Some(stopping) => finetune::fit_best(&mut classifier, &rows, &job.training, plan, stopping, &mut display)?,
            None => finetune::fit(&mut classifier, &rows, &job.training, plan, &mut display)?,
        };
        classifier.save(&self.out)?;
        let evaluation = match &test {
            Some((rows, _)) => {
                Some(finetune::evaluate(&classifier, rows, batch_size, &mut Display::new("evaluating"))?)
            }
            None => None,
        };
        match self.output {
            Output::Text => {
                if let Some(evaluation) = &evaluation {
                    println!("{}\n", table::text(evaluation, &job.task.labels));
                }
                if let Some(scores) = &fit.validation
                    && let Some(best) = scores.best()
                {
                    println!(
                        "kept epoch {} of {}: accuracy {:.4}, macro F1 {:.4}, loss {:.4} on {} held-out rows",
                        scores.best_epoch,
                        scores.epochs.len(),
                        best.accuracy(),
                        best.macro_f1(),
                        best.loss(),
                        best.examples
                    );
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
                    "evaluation": found.map(table::totals),
                    "per_label": found.map(|e| table::per_label(e, &job.task.labels)),
                    "confusion": found.map(table::confusion),
                    "validation": fit.validation.as_ref().map(|v| v.epochs.iter().map(table::totals).collect::<Vec<_>>()),
                    "best_epoch": fit.validation.as_ref().map(|v| v.best_epoch),
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

    fn job(&self) -> Result<Job, CliError> {
        let mut job = match &self.job {
            Some(path) => fedtune_config::load::<Job>(path)?,
            None => {
                let labels = Vec::new();
                let mut job = Job::classify("local", &self.model, labels);
                job.task.labels = data::labels_in(&self.train, &self.columns(&job))?;
                // 128 is the default; a smaller model has fewer positions, which loading reports.
                job
            }
        };
        job.model.path.clone_from(&self.model);
        if let Some(seed) = self.seed {
            job.training.seed = seed;
        }
        Ok(job)
    }

    fn columns(&self, job: &Job) -> Columns {
        Columns {
            text: self.text_column.clone().unwrap_or_else(|| job.task.text_column.clone()),
            label: self.label_column.clone().unwrap_or_else(|| job.task.label_column.clone()),
        }
    }
}

/// Makes the folder for a model before the work, so that hours of it are not lost to a wrong path. It must be none of
/// `inputs`.
pub(super) fn prepare_out(out: &Path, inputs: &[&Path]) -> Result<(), CliError> {
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

fn fraction(text: &str) -> Result<f64, String> {
    let found = text.parse::<f64>().ok().filter(|fraction| *fraction > 0.0 && *fraction < 0.9);
    found.ok_or_else(|| "expected a number above 0 and less than 0.9".into())
}
