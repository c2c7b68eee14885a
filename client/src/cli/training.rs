//! What the commands that train have in common: how, and on which columns.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use fedtune_config::Job;
use fedtune_config::job::{Reads, Task, TaskKind, Trainable, suggested_kind, suggested_learning_rate};
use fedtune_config::site::{Duplicates, OVERSAMPLE_MAX};

use super::CliError;
use super::columns::{ColumnNames, check};
use crate::data::{self, Columns, DataReport, Renamed, Rows, Sampling};
use crate::model::taken_by;

/// A learning rate for a new head on a model that stays as it is.
const HEAD_LEARNING_RATE: f64 = 1e-3;

/// A learning rate for adapters, which begin at zero.
const LORA_LEARNING_RATE: f64 = 5e-4;

/// How a model is fine-tuned: a job, and what takes the place of its fields.
#[derive(Debug, Args)]
pub(super) struct Training {
    /// Settings; without it every default applies, with the labels found in the training file and a learning rate that
    /// suits the model (1e-4 up to a hidden size of 512, else 5e-5; 1e-3 for the head alone,
    /// 5e-4 for lora; 1e-3 for tables, 1e-2 for linear models of them).
    #[arg(long, value_name = "JOB.toml")]
    pub(super) job: Option<PathBuf>,
    /// What is learnt, where no job says: text-classification (one label for each text), multi-label-classification (any
    /// number of them), text-regression (a number), token-classification (a label for each word), causal-lm (the response
    /// to each prompt), image-classification (one label for each image), table-classification or table-regression (a label
    /// or a number for each row of a table). Without it what the model can do: image-classification, causal-lm or what a
    /// model of tables was made for, and text-classification for encoders.
    #[arg(long, value_name = "KIND", conflicts_with = "job")]
    task: Option<TaskKind>,
    #[command(flatten)]
    columns: ColumnNames,
    /// What is trained, in place of the job's: full, head, last-N, lora, or patterns of tensors' names with commas between.
    #[arg(long, value_name = "PART")]
    trainable: Option<Trainable>,
    /// Peak learning rate, in place of the job's.
    #[arg(long, value_name = "RATE", value_parser = learning_rate)]
    learning_rate: Option<f64>,
    /// Passes over the training rows in all, in place of the job's rounds and epochs (default 3, for tables 21).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    epochs: Option<u32>,
    /// Longest sequence in tokens, in place of the job's (default 128).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..=8192))]
    pub(super) max_length: Option<u32>,
    /// Train on at most so many rows of each label.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    per_label: Option<u32>,
    /// Repeat the rows of rare labels until they are as many as those of the most frequent, at most so many times as many.
    #[arg(long, value_name = "TIMES", value_parser = oversample)]
    oversample: Option<f64>,
    /// Seed of new weights, shuffling, dropout and folds, in place of the job's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: Option<u64>,
}

/// A peak learning rate where nobody chose one.
pub(super) fn suited_rate(trainable: &Trainable, model: &Path) -> f64 {
    match trainable {
        Trainable::Head if suggested_kind(model).reads() != Reads::Tables => HEAD_LEARNING_RATE,
        Trainable::Lora => LORA_LEARNING_RATE,
        _ => suggested_learning_rate(model),
    }
}

fn learning_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate <= 10.0 => Ok(rate),
        _ => Err("expected a number above 0 and at most 10".into()),
    }
}

fn oversample(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(times) if (1.0..=OVERSAMPLE_MAX).contains(&times) => Ok(times),
        _ => Err(format!("expected a number from 1 to {OVERSAMPLE_MAX}")),
    }
}

/// Reads `keep` or `remove`.
pub(super) fn duplicates() -> impl TypedValueParser<Value = Duplicates> {
    PossibleValuesParser::new(["keep", "remove"]).map(|text| match text.as_str() {
        "remove" => Duplicates::Remove,
        _ => Duplicates::Keep,
    })
}

/// The rows, without duplicates where that is asked for.
pub(super) fn treat(duplicates: Duplicates, rows: Rows, report: &mut DataReport) -> Rows {
    match duplicates {
        Duplicates::Keep => rows,
        Duplicates::Remove => report.remove_duplicates(&rows),
    }
}

impl Training {
    /// The job to do with this model, and the columns; labels that no job gives are those of the training file.
    pub(super) fn job(&self, model: &Path, train: &Path) -> Result<(Job, Columns), CliError> {
        let mut job = self.base_job(model)?;
        let columns = self.columns(&job)?;
        if self.job.is_none() {
            job.task.labels = data::labels_in(train, &columns, &job.task)?;
        }
        check(&job)?;
        Ok((job, columns))
    }

    /// The same, without the labels where no job gives them.
    pub(super) fn base_job(&self, model: &Path) -> Result<Job, CliError> {
        let mut job = match &self.job {
            Some(path) => fedtune_config::load::<Job>(path)?,
            None => {
                let kind = self.task.unwrap_or_else(|| match model.as_os_str().is_empty() {
                    true => TaskKind::TextClassification,
                    false => suggested_kind(model),
                });
                Job::new("local", model, Task::new(kind, Vec::new()))
            }
        };
        self.columns.apply(&mut job.task);
        job.model.path = model.to_path_buf();
        if let Some(trainable) = &self.trainable {
            job.training.trainable = trainable.clone();
            job.training.lora = job.training.lora.filter(|_| *trainable == Trainable::Lora);
            if self.job.is_none() {
                job.training.learning_rate = suited_rate(trainable, model);
            }
        }
        if let Some(rate) = self.learning_rate {
            job.training.learning_rate = rate;
        }
        if let Some(epochs) = self.epochs {
            (job.training.epochs, job.training.steps, job.rounds.count) = (Some(epochs as usize), None, 1);
        }
        if let Some(length) = self.max_length {
            let reads = job.task.kind.reads();
            if reads != Reads::Texts {
                let message = format!("--max-length cuts texts, and the task here reads {reads}; leave it out");
                return Err(CliError::Usage(message));
            }
            job.task.max_length = length as usize;
        }
        if let Some(seed) = self.seed {
            job.training.seed = seed;
        }
        Ok(job)
    }

    /// The columns, without a group; those of a table are the model's.
    pub(super) fn columns(&self, job: &Job) -> Result<Columns, CliError> {
        Ok(taken_by(&job.model.path, Columns::of(&job.task, &Renamed::default()))?)
    }

    /// Which rows are trained on.
    pub(super) fn sampling(&self) -> Sampling {
        let whole = Sampling::default();
        Sampling {
            per_label: self.per_label.map(|count| count as usize),
            oversample: self.oversample.unwrap_or(whole.oversample),
        }
    }

    /// An option that only training makes use of, if one is given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let given = [
            (self.trainable.is_some(), "--trainable"),
            (self.learning_rate.is_some(), "--learning-rate"),
            (self.epochs.is_some(), "--epochs"),
            (self.per_label.is_some(), "--per-label"),
            (self.oversample.is_some(), "--oversample"),
            (self.seed.is_some(), "--seed"),
        ];
        given.iter().find(|(given, _)| *given).map(|(_, name)| *name)
    }
}
