//! `fedtune-client tune`: settings that suit the data.

use super::output::{out, outln};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use fedtune_config::Job;
use fedtune_config::job::Trainable;
use fedtune_config::site::Duplicates;
use serde_json::{Value, json};

use super::columns::check;
use super::finetune::fraction;
use super::model_folder::folder;
use super::progress::Display;
use super::training::{Training, duplicates, suited_rate, treat};
use super::{CliError, Output, processor, table};
use crate::data::{self, TargetReader};
use crate::finetune::tune::{Halving, Part, Ranges, Rung, Trial, Tuned, successive_halving};

const EXAMPLES: &str = "\
Examples:
  Nine draws near the defaults; three of them with three times the steps, one with those of the whole job:
    fedtune-client tune --model all-MiniLM-L6-v2 --train train.csv --out best.toml

  The same around the settings of a job, also of which part is trained:
    fedtune-client tune --model all-MiniLM-L6-v2 --train train.csv --job job.toml --trainables full last-2 lora \\
        --learning-rates 1e-5..1e-3 --batch-sizes 16,32 --ranks 4,8,16 --trials 27 --halvings 3 --out best.toml

  What it writes is a job:
    fedtune-client finetune --model all-MiniLM-L6-v2 --train train.csv --job best.toml --out tuned
    fedtune-server job submit best.toml

Trials that score best on held-out rows by the job's evaluation.metric go on to the next rung, where they are trained from the
base model on with more steps. Choosing among many makes the score of the best one too good: judge it on a test file.";

/// How far from the rate in the middle rates are drawn.
const SPREAD: f64 = 5.0;

/// Greatest learning rate of a job.
const RATE_MAX: f64 = 10.0;

/// Find a learning rate, a batch size, and what to train, by successive halving.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Folder of the pre-trained model, or its name on a hub (with `--features hub`); takes the place of the job's model.path.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// CSV or JSONL file to train and validate on.
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Share of the rows, above 0 and less than 0.9, to hold out and score trials on.
    #[arg(long, value_name = "FRACTION", default_value = "0.2", value_parser = fraction)]
    validation: f64,
    /// Settings to draw.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    trials: u32,
    /// How often the better ones are chosen; 0 trains all trials in full.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=12))]
    halvings: u32,
    /// One in so many is chosen, and trained with so many times the steps.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=10))]
    factor: u32,
    /// Learning rates to draw from, least..greatest; else from a fifth to five times the job's, or of what suits the part.
    #[arg(long, value_name = "LOW..HIGH", value_parser = rates)]
    learning_rates: Option<(f64, f64)>,
    /// Batch sizes to draw from; else half, whole and double the job's.
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch_sizes: Vec<u32>,
    /// Ranks of adapters to draw from; else half, whole and double the job's.
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=4096))]
    ranks: Vec<u32>,
    /// What may be trained, each as --trainable has it; else what the job trains.
    #[arg(long, value_name = "PART", num_args = 1..)]
    trainables: Vec<Trainable>,
    #[command(flatten)]
    training: Training,
    /// Rows whose text (but for case and white space) and label stand in an earlier row: keep or remove.
    #[arg(long, value_name = "WHAT", default_value = "keep", value_parser = duplicates())]
    duplicates: Duplicates,
    /// CPU threads; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// File for the best job.
    #[arg(long, value_name = "JOB.toml")]
    out: PathBuf,
    /// How results are printed.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

fn rates(text: &str) -> Result<(f64, f64), String> {
    let rate = |text: &str| text.trim().parse::<f64>().ok().filter(|rate| *rate > 0.0 && *rate <= RATE_MAX);
    let (low, high) = text.split_once("..").unwrap_or((text, text));
    match (rate(low), rate(high)) {
        (Some(low), Some(high)) if low <= high => Ok((low, high)),
        _ => Err(format!("expected two numbers above 0 and at most {RATE_MAX}, the smaller first, such as 1e-5..1e-3")),
    }
}

impl Arguments {
    pub(super) fn run(mut self) -> Result<(), CliError> {
        self.model = folder(&self.model)?;
        let halving = self.halving()?;
        let device = processor(self.threads)?;
        let (job, columns) = self.training.job(&self.model, &self.train)?;
        let targets = TargetReader::new(&job.task, &BTreeMap::new())?;
        let (rows, mut report) = data::read(&self.train, &columns, &targets)?;
        let rows = treat(self.duplicates, rows, &mut report);
        eprintln!("{report}");
        let (rows, validation) = data::split(rows, self.validation);
        let rows = self.training.sampling().apply(rows, job.training.seed)?;
        let settings = self.ranges(&job, rows.len())?.draw(&job.training, self.trials as usize, job.training.seed)?;
        // Every trial is a job that could be sent, before any is trained.
        for training in &settings {
            check(&Job { training: training.clone(), ..job.clone() })?;
        }
        self.prepare()?;

        let (rungs, trials, metric) = (self.halvings + 1, settings.len(), job.metric().name());
        let found = successive_halving(
            &self.model,
            &job,
            &device,
            (&rows, &validation),
            settings,
            halving,
            |_, _| Display::new("training"),
            |rung, trial, found| {
                let (rung, trial) = (rung + 1, trial + 1);
                eprintln!("rung {rung} of {rungs}, trial {trial} of {trials}: {metric} {}", outcome(found, metric));
            },
        )?;
        self.write(&job, &found, validation.len())?;
        match self.output {
            Output::Text => {
                out!("{}", text(&found, metric));
                outln!(
                    "trial {} is the best on {} held-out rows\nwritten to {}",
                    found.best + 1,
                    validation.len(),
                    self.out.display()
                );
            }
            Output::Json => outln!("{}", self.json(&found, metric, validation.len())),
        }
        Ok(())
    }

    fn halving(&self) -> Result<Halving, CliError> {
        let Self { trials, halvings, factor, .. } = *self;
        match factor.checked_pow(halvings).filter(|least| *least <= trials) {
            Some(_) => Ok(Halving { halvings, factor: factor as usize }),
            None => Err(CliError::Usage(format!(
                "{trials} trials cannot be cut to one in {factor} {halvings} times over; give at least {}, or fewer halvings",
                u64::from(factor).pow(halvings)
            ))),
        }
    }

    /// What is drawn from, for a job and a number of training rows.
    fn ranges(&self, job: &Job, rows: usize) -> Result<Ranges, CliError> {
        let own = &job.training;
        let mut trainables = self.trainables.clone();
        if trainables.is_empty() {
            trainables.push(own.trainable.clone());
        }
        let lora = trainables.contains(&Trainable::Lora);
        if !lora && !self.ranks.is_empty() {
            return Err(CliError::Usage(
                "--ranks is of adapters, and nothing that is to be trained has any; give --trainables lora".into(),
            ));
        }
        let around = |value: usize| vec![(value / 2).max(1), value, value.saturating_mul(2)];
        let mut batch_sizes: Vec<usize> = self.batch_sizes.iter().map(|size| *size as usize).collect();
        if let Some(size) = batch_sizes.iter().find(|size| **size > rows) {
            return Err(CliError::Usage(format!(
                "--batch-sizes has {size}, but there are {rows} rows to train on; give sizes up to that"
            )));
        }
        if batch_sizes.is_empty() {
            batch_sizes = around(own.batch_size);
            batch_sizes.retain(|size| *size == own.batch_size || (own.accumulate..=rows).contains(size));
        }
        let mut ranks: Vec<usize> = self.ranks.iter().map(|rank| *rank as usize).collect();
        if ranks.is_empty() && lora {
            ranks = around(own.lora.clone().unwrap_or_default().rank);
        }
        for list in [&mut batch_sizes, &mut ranks] {
            list.sort_unstable();
            list.dedup();
        }
        let part = |trainable: Trainable| {
            let middle = match trainable == own.trainable {
                true => own.learning_rate,
                false => suited_rate(&trainable, &self.model),
            };
            let learning_rates = self.learning_rates.unwrap_or((middle / SPREAD, (middle * SPREAD).min(RATE_MAX)));
            Part { trainable, learning_rates }
        };
        Ok(Ranges { parts: trainables.into_iter().map(part).collect(), batch_sizes, ranks })
    }

    /// Finds out that the job cannot be written before hours of work.
    fn prepare(&self) -> Result<(), CliError> {
        let same = |one: &Path| one.canonicalize().ok().is_some_and(|one| self.out.canonicalize().ok() == Some(one));
        if self.training.job.as_deref().is_some_and(same) {
            let message = "--out is the job, which is read; give another file, so that what is there stays";
            return Err(CliError::Usage(message.into()));
        }
        if self.out.is_dir() {
            return Err(CliError::Usage(format!("--out {} is a folder; give a file", self.out.display())));
        }
        tempfile::tempfile_in(self.folder()).map_err(|source| CliError::Write { path: self.out.clone(), source })?;
        Ok(())
    }

    fn folder(&self) -> &Path {
        self.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Writes the best trial's job, whole or not at all.
    fn write(&self, job: &Job, found: &Tuned, validated: usize) -> Result<(), CliError> {
        let failed = |source| CliError::Write { path: self.out.clone(), source };
        let mut best = Job { training: found.trials[found.best].training.clone(), ..job.clone() };
        // A job's path is relative to the job's file, which may be anywhere.
        best.model.path = self.model.canonicalize().map_err(failed)?;
        let metric = job.metric().name();
        let score = found.trials[found.best].rungs.last().map(|rung| outcome(rung, metric)).unwrap_or_default();
        let text = format!(
            "# Trial {} of {} of `fedtune-client tune`: {metric} {score}, on {validated} held-out rows.\n{}",
            found.best + 1,
            found.trials.len(),
            best.to_toml()
        );
        let mut file = tempfile::NamedTempFile::new_in(self.folder()).map_err(failed)?;
        std::io::Write::write_all(&mut file, text.as_bytes()).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&self.out).map_err(|e| failed(e.error))?;
        Ok(())
    }

    fn json(&self, found: &Tuned, metric: &str, validated: usize) -> Value {
        let trials = found.trials.iter().map(|Trial { training, rungs }| {
            json!({
                "learning_rate": training.learning_rate,
                "batch_size": training.batch_size,
                "trainable": training.trainable.to_string(),
                "rank": training.lora.as_ref().map(|lora| lora.rank),
                "rungs": rungs.iter().map(|Rung { steps, evaluation }| json!({
                    "steps": steps,
                    "evaluation": evaluation.as_ref().map(table::counted),
                })).collect::<Value>(),
            })
        });
        json!({
            "metric": metric,
            "validation_examples": validated,
            "trials": trials.collect::<Value>(),
            "best_trial": found.best + 1,
            "job": self.out,
        })
    }
}

/// What a rung gave, in a few words.
fn outcome(rung: &Rung, metric: &str) -> String {
    match &rung.evaluation {
        Some(evaluation) => format!("{} after {} steps", table::share(evaluation.measure(metric)), rung.steps),
        None => "- (diverged)".into(),
    }
}

fn text(found: &Tuned, metric: &str) -> String {
    let part = |trial: &Trial| trial.training.trainable.to_string();
    let width = found.trials.iter().map(|trial| part(trial).chars().count()).max().unwrap_or(0).max(7);
    let mut out = format!("trial  rate      batch  rank  {:width$}  {} by rung\n", "trained", table::title(metric));
    for (place, trial) in found.trials.iter().enumerate() {
        let rank = trial.training.lora.as_ref().map_or("-".into(), |lora| lora.rank.to_string());
        let rungs: Vec<String> = trial.rungs.iter().map(|rung| outcome(rung, metric)).collect();
        let best = if place == found.best { "  (best)" } else { "" };
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "{:5}  {:<8}  {:5}  {rank:>4}  {:width$}  {}{best}",
            place + 1,
            format!("{:.2e}", trial.training.learning_rate),
            trial.training.batch_size,
            part(trial),
            rungs.join(", ")
        );
    }
    out
}
