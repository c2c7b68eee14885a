//! `job.toml`: what the operator asks for, as data. Its canonical text is what sites see and policies judge.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Problems;
use crate::load::Document;
use crate::units::Span;

pub use training::{
    ClassWeights, LocalWork, Lora, Optimizer, Precision, Schedule, Trainable, Training, suggested_learning_rate,
};

mod training;

/// Most labels of a job; a confusion matrix has the square of it, and must fit a message.
const LABELS_MAX: usize = 1000;

/// The longest accepted name of a job or label, in bytes.
const MAX_NAME: usize = 200;

/// A federated fine-tuning job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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

/// The kind of task. More kinds come with the fine-tuning engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// One label for each text.
    TextClassification,
}

/// What is learnt from which columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// The kind of task.
    pub kind: TaskKind,
    /// Every label, in the order of the classifier's outputs.
    pub labels: Vec<String>,
    /// The column with the text, unless a site maps another.
    #[serde(default = "default_text_column")]
    pub text_column: String,
    /// The column with the label, unless a site maps another.
    #[serde(default = "default_label_column")]
    pub label_column: String,
    /// Longest sequence in tokens, special tokens counted; longer texts are cut.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
}

fn default_text_column() -> String {
    "text".into()
}
fn default_label_column() -> String {
    "label".into()
}
fn default_max_length() -> usize {
    128
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

/// The rule that turns the updates of a round into the next state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Weighted mean of the deltas (McMahan et al. 2017, 1602.05629).
    Fedavg,
}

/// The weight of a site's update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// By the number of examples it trained on.
    Examples,
    /// The same for every site.
    Uniform,
}

/// How updates become the next state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aggregation {
    /// The rule.
    pub strategy: Strategy,
    /// The weights.
    pub weighting: Weighting,
}

impl Default for Aggregation {
    fn default() -> Self {
        Self { strategy: Strategy::Fedavg, weighting: Weighting::Examples }
    }
}

/// Who evaluates a new state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evaluator {
    /// The sites whose role is `evaluator`, each on its test file.
    Evaluator,
    /// The sites that trained, each on its validation split.
    Sites,
    /// Nobody; the last state counts as best.
    None,
}

/// What is compared between rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of examples labelled rightly; larger is better.
    Accuracy,
    /// Unweighted mean of the labels' F1; larger is better.
    MacroF1,
    /// Mean cross-entropy; smaller is better.
    Loss,
}

/// Who evaluates each state, which counts as best, and when to stop early.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluation {
    /// Who evaluates.
    pub by: Evaluator,
    /// What decides which state is best.
    pub metric: Metric,
    /// Stop after so many rounds without a better state; 0 never stops early.
    pub patience: u32,
    /// A state is better when the metric improves by more than this.
    pub min_delta: f64,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { by: Evaluator::Evaluator, metric: Metric::Accuracy, patience: 0, min_delta: 0.0 }
    }
}

impl Job {
    /// A job with every default, for these labels on this base model; the learning rate is the one that suits the
    /// model's width ([`suggested_learning_rate`]).
    pub fn classify(name: &str, model: &Path, labels: Vec<String>) -> Self {
        let training = Training { learning_rate: suggested_learning_rate(model), ..Training::default() };
        Self {
            name: name.into(),
            model: Model { path: model.to_path_buf() },
            task: Task {
                kind: TaskKind::TextClassification,
                labels,
                text_column: default_text_column(),
                label_column: default_label_column(),
                max_length: default_max_length(),
            },
            training,
            rounds: Rounds::default(),
            aggregation: Aggregation::default(),
            evaluation: Evaluation::default(),
        }
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
        self.validate_task(p);
        self.training.validate(p, self.task.labels.len());
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
        let min_delta = self.evaluation.min_delta;
        p.check(min_delta.is_finite() && min_delta >= 0.0, "evaluation.min_delta", || {
            format!("found {min_delta}; expected 0 or more")
        });
    }

    fn resolve(&mut self, folder: &Path) {
        self.model.path = folder.join(&self.model.path);
    }
}

impl Job {
    fn validate_task(&self, p: &mut Problems) {
        let Task { kind: TaskKind::TextClassification, labels, text_column, label_column, max_length } = &self.task;
        p.check((2..=LABELS_MAX).contains(&labels.len()), "task.labels", || {
            format!("found {} labels; expected 2 to {LABELS_MAX}", labels.len())
        });
        let mut seen = BTreeSet::new();
        for (i, label) in labels.iter().enumerate() {
            let field = format!("task.labels[{i}]");
            p.check(!label.trim().is_empty() && label.len() <= MAX_NAME, &field, || {
                format!("found {label:?}; expected 1 to {MAX_NAME} bytes")
            });
            p.check(seen.insert(label), &field, || format!("found {label:?} a second time; every label stands once"));
        }
        p.check(!text_column.is_empty(), "task.text_column", || "is empty; expected a column name".into());
        p.check(!label_column.is_empty(), "task.label_column", || "is empty; expected a column name".into());
        p.check(text_column != label_column, "task.label_column", || {
            format!("found {label_column:?}, which is the text column too; expected another column")
        });
        range(p, "task.max_length", *max_length, 4, 8192);
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
