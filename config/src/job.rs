//! `job.toml`: what the operator asks for, as data. Its canonical text is what sites see and policies judge.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Problems;
use crate::load::Document;

pub use admission::{Admission, Copies};
pub use aggregation::{Aggregation, Rule, Strategy, Weighting};
pub use evaluation::{Evaluation, Evaluator, Metric, OnCollapse};
pub use patterns::Patterns;
pub use rounds::{BelowQuorum, Cohort, Late, Rounds};
pub use suggested::{TABLE_MODEL, suggested_kind, suggested_learning_rate};
pub use task::{PROMPT, RESPONSE, Reads, Task, TaskKind};
pub use training::{
    Alteration, Augmentation, ClassWeights, Eda, LocalWork, Lora, Optimizer, Precision, Schedule, Trainable, Training,
};
pub use updates::{Compression, Download, Updates};

mod admission;
mod aggregation;
mod evaluation;
mod patterns;
mod rounds;
mod suggested;
mod task;
mod training;
mod updates;

/// The longest accepted name of a job or label, in bytes.
const MAX_NAME: usize = 200;

/// A federated fine-tuning job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Job {
    /// What people call it.
    pub name: String,
    /// The pre-trained model.
    pub model: Model,
    /// What is learnt.
    pub task: Task,
    /// How each site fine-tunes.
    #[serde(default)]
    pub training: Training,
    /// How often, with whom, how long.
    #[serde(default)]
    pub rounds: Rounds,
    /// How updates travel, and the states that come of them.
    #[serde(default)]
    pub updates: Updates,
    /// What an update must be like to count.
    #[serde(default)]
    pub admission: Admission,
    /// How updates become the next state.
    #[serde(default)]
    pub aggregation: Aggregation,
    /// Who evaluates each state, and which counts as best.
    #[serde(default)]
    pub evaluation: Evaluation,
}

/// The base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// A folder in Hugging Face layout; relative to the job's file.
    pub path: PathBuf,
}

impl Serialize for Job {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Job {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut job = Self::deserialize(deserializer)?;
        job.complete();
        Ok(job)
    }
}

impl Job {
    /// A job with every default, for this task on this base model; the learning rate is the one that suits the model's
    /// width ([`suggested_learning_rate`]), and a job on tables has more epochs.
    pub fn new(name: &str, model: &Path, task: Task) -> Self {
        let epochs = (task.kind.reads() == Reads::Tables).then_some(suggested::TABLE_EPOCHS);
        let training = Training { learning_rate: suggested_learning_rate(model), epochs, ..Training::default() };
        let mut job = Self {
            name: name.into(),
            model: Model { path: model.to_path_buf() },
            task,
            training,
            rounds: Rounds::default(),
            updates: Updates::default(),
            admission: Admission::default(),
            aggregation: Aggregation::default(),
            evaluation: Evaluation::default(),
        };
        job.complete();
        job
    }

    /// A job to tell texts of these labels apart; see [`Self::new`].
    pub fn classify(name: &str, model: &Path, labels: Vec<String>) -> Self {
        Self::new(name, model, Task::new(TaskKind::TextClassification, labels))
    }

    /// What decides which state is best.
    pub fn metric(&self) -> Metric {
        self.evaluation.metric.unwrap_or(self.task.kind.metrics()[0])
    }

    fn complete(&mut self) {
        self.evaluation.metric = Some(self.metric());
        self.updates.complete();
        self.aggregation.complete();
        self.rounds.complete(self.aggregation.strategy);
    }

    /// The canonical text: every field written out. [`crate::parse`] of it gives the same job.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field of a job has a TOML form")
    }
}

impl Document for Job {
    // A job is one text that every site sees; an environment must not change it unseen.
    const ENV_PREFIX: Option<&'static str> = None;

    fn validate(&self, problems: &mut Problems) {
        let p = problems;
        p.check(!self.name.trim().is_empty() && self.name.len() <= MAX_NAME, "name", || {
            format!("found {:?}; expected 1 to {MAX_NAME} bytes", self.name)
        });
        p.check(!self.model.path.as_os_str().is_empty(), "model.path", || {
            "is empty; expected a folder with config.json, tokenizer.json and model.safetensors".into()
        });
        self.task.validate(p);
        self.training.validate(p, &self.task);
        self.rounds.validate(p, self.aggregation.strategy);
        self.updates.validate(p, self.aggregation.rule);
        self.admission.validate(p);
        self.aggregation.validate(p, &self.rounds);
        self.evaluation.validate(p, &self.task, &self.aggregation);
    }

    fn resolve(&mut self, folder: &Path) {
        self.model.path = folder.join(&self.model.path);
    }
}

fn range<N: PartialOrd + fmt::Display>(problems: &mut Problems, field: &str, found: N, least: N, most: N) {
    problems.check(found >= least && found <= most, field, || {
        format!("found {found}; expected a whole number from {least} to {most}")
    });
}

fn unit(problems: &mut Problems, field: &str, found: f64, one_allowed: bool) {
    let fits = found >= 0.0 && (found < 1.0 || (one_allowed && found <= 1.0));
    problems.check(fits, field, || {
        format!("found {found}; expected 0 {} 1", if one_allowed { "to" } else { "or more and less than" })
    });
}
