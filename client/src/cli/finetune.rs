//! `fedtune-client finetune`: the whole budget of a job, locally.

use super::output::outln;
use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use fedtune_config::site::Duplicates;
use serde_json::json;

use super::model_folder::folder;
use super::progress::Display;
use super::training::{Training, duplicates, treat};
use super::{CliError, Output, prepare_out, processor, table};
use crate::data::{self, TargetReader};
use crate::finetune::{self, Checkpoints, EarlyStopping, Plan};
use crate::model::{Classifier, ModelSpec};

const EXAMPLES: &str = "\
Examples:
  Three epochs with the defaults, labels taken from the file:
    fedtune-client finetune --model all-MiniLM-L6-v2 --train train.csv --test test.csv --out tuned

  With the settings of a job (its rounds become one run of rounds.count x epochs):
    fedtune-client finetune --model all-MiniLM-L6-v2 --train train.csv --job job.toml --out tuned --output json

  Until three epochs in a row bring nothing new on a tenth of the rows:
    fedtune-client finetune --model all-MiniLM-L6-v2 --train train.csv --validation 0.1 --patience 3 --out tuned

  So that it can be interrupted, and go on when the same command is given again:
    fedtune-client finetune --model all-MiniLM-L6-v2 --train train.csv --checkpoint saved --checkpoint-steps 50 --out tuned

  The similarity of two sentences, a number:
    fedtune-client finetune --model all-MiniLM-L6-v2 --task text-regression --pair-column text_pair --train sts.csv --out tuned

  Images, from a Parquet file or from a folder with one folder for each label:
    fedtune-client finetune --model resnet-18 --task image-classification --train cells.parquet --out tuned

  The rows of a table, for whose columns a model is made first:
    fedtune-client new-table-model --train patients.csv --label outcome --out risk
    fedtune-client finetune --model risk --train patients.csv --label-column outcome --out tuned

CSV files have a header line and the columns `text` and `label`; JSONL files have an object with these keys on each
line. Other tasks read other columns: several labels (`labels`, with `|` between them or as a JSON list), words and their
labels (`tokens` and `labels`, lists, so JSONL only), prompts and responses (`prompt` and `response`), encoded
images and their labels (`image` and `label`; a number is a name where the Parquet file has names), the columns that a model
of tables names and `label`. The model is a folder in Hugging Face layout: config.json, tokenizer.json (preprocessor_config.json for
images), model.safetensors. What is written to
--out has the same layout and loads in transformers with AutoModelForSequenceClassification, ...TokenClassification,
...CausalLM or ...ImageClassification; with trainable = \"lora\" it
is a folder of adapters for peft, which `fedtune-client merge` makes a whole model.";

/// Fine-tune a model on a file of rows, on this machine alone.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Folder of the pre-trained model, or its name on a hub (with `--features hub`); takes the place of the job's model.path.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// CSV, JSONL or Parquet file, or folder of images, to train on.
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// The same to evaluate on at the end.
    #[arg(long, value_name = "FILE")]
    test: Option<PathBuf>,
    /// Share of the training rows, above 0 and less than 0.9, to hold out. The model is scored on them after every epoch by
    /// the job's evaluation.metric, and kept as it was when it was best.
    #[arg(long, value_name = "FRACTION", value_parser = fraction)]
    validation: Option<f64>,
    /// With --validation: end after so many epochs without a better one; 0 never ends early.
    #[arg(long, value_name = "EPOCHS", default_value_t = 0, requires = "validation")]
    patience: usize,
    /// Folder for checkpoints. The same command, given again after it was interrupted, goes on from the last one and comes to
    /// the same bits; it is removed when the model is written.
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// With --checkpoint: steps between two of them.
    #[arg(long, value_name = "N", default_value_t = 100, requires = "checkpoint", value_parser = clap::value_parser!(u32).range(1..))]
    checkpoint_steps: u32,
    #[command(flatten)]
    training: Training,
    /// Training rows whose text (but for case and white space) and label stand in an earlier row: keep or remove.
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
    pub(super) fn run(mut self) -> Result<(), CliError> {
        self.model = folder(&self.model)?;
        let device = processor(self.threads)?;
        let (job, columns) = self.training.job(&self.model, &self.train)?;
        let targets = TargetReader::new(&job.task, &BTreeMap::new())?;
        // Everything that can be wrong with the input is found before the first step.
        let (rows, mut report) = data::read(&self.train, &columns, &targets)?;
        let rows = treat(self.duplicates, rows, &mut report);
        eprintln!("{report}");
        let test = self.test.as_ref().map(|path| data::read(path, &columns, &targets)).transpose()?;
        if let Some((_, report)) = &test {
            eprintln!("{report}");
        }
        let (rows, validation) = data::split(rows, self.validation.unwrap_or(0.0));
        let batch_size = job.training.batch_size;
        let criteria = (job.metric(), job.evaluation.min_delta);
        let stopping = match self.validation {
            Some(_) => Some(EarlyStopping::new(&validation, batch_size, self.patience, criteria)?),
            None => None,
        };
        let rows = self.training.sampling().apply(rows, job.training.seed)?;
        let mut classifier = Classifier::load(&self.model, &ModelSpec::from(&job), &device)?;
        prepare_out(&self.out, &[&self.model])?;

        let steps = job.training.steps_per_round(rows.len()).saturating_mul(job.rounds.count as usize);
        let plan = Plan { first_step: 0, steps, total_steps: steps, round: 1 };
        let checkpoints = match &self.checkpoint {
            Some(folder) => {
                let every = self.checkpoint_steps as usize;
                Some(Checkpoints::new(folder, every, &job, &self.model, &rows, stopping.as_ref())?)
            }
            None => None,
        };
        let (training, mut display) = (&job.training, Display::new("training"));
        let fit = match (&checkpoints, stopping) {
            (Some(checkpoints), stopping) => {
                finetune::fit_saved(&mut classifier, &rows, training, plan, stopping, checkpoints, &mut display)?
            }
            (None, Some(stopping)) => {
                finetune::fit_best(&mut classifier, &rows, training, plan, stopping, &mut display)?
            }
            (None, None) => finetune::fit(&mut classifier, &rows, training, plan, &mut display)?,
        };
        classifier.save(&self.out)?;
        if let Some(checkpoints) = checkpoints {
            checkpoints.remove()?;
        }
        let evaluation = match &test {
            Some((rows, _)) => {
                Some(finetune::evaluate_scores(&classifier, rows, batch_size, &mut Display::new("evaluating"))?)
            }
            None => None,
        };
        match self.output {
            Output::Text => {
                if let Some((evaluation, scores)) = &evaluation {
                    outln!("{}\n", table::text(evaluation, scores, &job.task.labels));
                }
                if let Some(scores) = &fit.validation
                    && let Some(best) = scores.best()
                {
                    outln!(
                        "kept epoch {} of {}: {} on {} held-out rows",
                        scores.best_epoch,
                        scores.epochs.len(),
                        table::measures(best),
                        best.examples
                    );
                }
                if fit.resumed_steps > 0 {
                    outln!("went on behind step {}, from a checkpoint", fit.resumed_steps);
                }
                outln!(
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
                    "validation": fit.validation.as_ref().map(|v| v.epochs.iter().map(table::counted).collect::<Vec<_>>()),
                    "best_epoch": fit.validation.as_ref().map(|v| v.best_epoch),
                    "train_loss": fit.train_loss,
                    "train_seconds": fit.seconds,
                    "train_examples": fit.examples,
                    "steps": fit.steps,
                    "resumed_steps": fit.resumed_steps,
                });
                outln!("{document}");
            }
        }
        Ok(())
    }
}

/// Reads a share of rows to hold out.
pub(super) fn fraction(text: &str) -> Result<f64, String> {
    let found = text.parse::<f64>().ok().filter(|fraction| *fraction > 0.0 && *fraction < 0.9);
    found.ok_or_else(|| "expected a number above 0 and less than 0.9".into())
}
