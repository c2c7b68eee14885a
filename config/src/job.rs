//! `job.toml`: what the operator asks for, as data. Its canonical text is what sites see and policies judge.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Problems;
use crate::load::Document;
use crate::units::Span;

pub use admission::{Admission, Copies};
pub use aggregation::{Aggregation, Rule, Strategy, Weighting};
pub use evaluation::{Evaluation, Evaluator, Metric};
pub use suggested::{TABLE_MODEL, suggested_kind, suggested_learning_rate};
pub use task::{PROMPT, RESPONSE, Reads, Task, TaskKind};
pub use training::{
    Alteration, Augmentation, ClassWeights, Eda, LocalWork, Lora, Optimizer, Precision, Schedule, Trainable, Training,
};

mod admission;
mod aggregation;
mod evaluation;
mod suggested;
mod task;
mod training;

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

/// Who takes part in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cohort {
    /// Every training site that is online when the round opens.
    All,
    /// So many of them, drawn by the job's seed and the round.
    Count(usize),
}

impl Serialize for Cohort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Count(count) => serializer.serialize_u64(*count as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Cohort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Cohort;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("\"all\" or a number of sites")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cohort, E> {
                match text {
                    "all" => Ok(Cohort::All),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Cohort, E> {
                Ok(Cohort::Count(usize::try_from(count).unwrap_or(usize::MAX)))
            }
            fn visit_i64<E: de::Error>(self, count: i64) -> Result<Cohort, E> {
                match u64::try_from(count) {
                    Ok(count) => self.visit_u64(count),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(count), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// How many rounds, with whom, how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rounds {
    /// Number of rounds.
    pub count: u32,
    /// Who takes part.
    pub cohort: Cohort,
    /// A round starts when so many training sites (or the cohort, if that is a larger number) are online, and counts when
    /// so many updates are in.
    pub quorum: usize,
    /// How long a round waits for its updates once it is open. A site that is still moving bytes or taking steps
    /// is waited for; one that is silent is not.
    pub deadline: Span,
    /// How often a round below quorum is tried before the job fails.
    pub attempts: u32,
}

impl Default for Rounds {
    fn default() -> Self {
        Self { count: 3, cohort: Cohort::All, quorum: 2, deadline: Span::seconds(2 * 3600), attempts: 3 }
    }
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
        self.aggregation.complete();
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
        let Rounds { count, cohort, quorum, deadline, attempts } = &self.rounds;
        range(p, "rounds.count", *count, 1, 100_000);
        range(p, "rounds.quorum", *quorum, 1, 100_000);
        range(p, "rounds.attempts", *attempts, 1, 1_000);
        p.check(deadline.0.as_secs() >= 1, "rounds.deadline", || format!("found {deadline}; expected at least \"1s\""));
        if let Cohort::Count(cohort) = cohort {
            p.check(cohort >= quorum, "rounds.cohort", || {
                format!("found {cohort}; expected at least rounds.quorum, which is {quorum}")
            });
        }
        self.admission.validate(p);
        self.aggregation.validate(p, &self.rounds);
        self.evaluation.validate(p, &self.task);
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
