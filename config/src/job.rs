//! `job.toml`: what the operator asks for, as data. Its canonical text is what sites see and policies judge.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use class_weights::ClassWeights;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Problems;
use crate::load::Document;
use crate::units::Span;

mod class_weights;

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

/// Which tensors are trained; the others stay as they are in the base model and are never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trainable {
    /// Every tensor.
    Full,
    /// Pooler and classifier only.
    Head,
    /// Pooler, classifier and the last so many encoder layers.
    Last(usize),
    /// Pooler, classifier and low-rank adapters beside some dense layers; see [`Lora`].
    Lora,
}

impl fmt::Display for Trainable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => out.write_str("full"),
            Self::Head => out.write_str("head"),
            Self::Last(layers) => write!(out, "last-{layers}"),
            Self::Lora => out.write_str("lora"),
        }
    }
}

impl FromStr for Trainable {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "full" => Ok(Self::Full),
            "head" => Ok(Self::Head),
            "lora" => Ok(Self::Lora),
            _ => text
                .strip_prefix("last-")
                .and_then(|layers| layers.parse().ok())
                .filter(|layers| *layers > 0)
                .map(Self::Last)
                .ok_or_else(|| {
                    format!("found {text:?}; expected \"full\", \"head\", \"lora\" or \"last-N\" with N of at least 1")
                }),
        }
    }
}

impl Serialize for Trainable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Trainable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The numbers that the products of dense layers are made of. Weights, sums, and everything else are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 24 bits of precision.
    #[default]
    F32,
    /// 8 bits of precision: inputs and weights of a product are rounded, its sums are not. Fast on processors with AMX.
    Bf16,
}

/// Low-rank adaptation (Hu et al. 2021, 2106.09685): a frozen dense layer `W` gets `alpha / rank * B A` beside it, and
/// only `A` `[rank, in]` and `B` `[out, rank]` are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank of the adapters.
    pub rank: usize,
    /// Their weight, times the rank.
    pub alpha: f64,
    /// Dropout probability of what goes into an adapter.
    pub dropout: f64,
    /// The dense layers, by the last parts of their names, as peft has it: `query`, `attention.output.dense`;
    /// `all-linear` means every dense layer of the encoder. Empty: queries and values.
    pub targets: Vec<String>,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, dropout: 0.05, targets: Vec::new() }
    }
}

/// The optimiser of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019, 1711.05101).
    Adamw,
    /// Stochastic gradient descent with momentum and decoupled weight decay (SGDW of the same paper).
    Sgd,
}

/// How the learning rate goes after warm-up, over the job's global steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays at the peak.
    Constant,
    /// Falls in a straight line to zero.
    Linear,
    /// Falls along half a cosine to zero.
    Cosine,
}

/// How each site fine-tunes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// Which tensors are trained.
    pub trainable: Trainable,
    /// The optimiser.
    pub optimizer: Optimizer,
    /// Momentum of [`Optimizer::Sgd`]; 0 is plain gradient descent.
    pub momentum: f64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// What the learning rate is multiplied by for each layer below the head: the last encoder layer has this times the
    /// rate, the embeddings the smallest; pooler and classifier have it in full. 1 gives all the same rate.
    pub layer_decay: f64,
    /// How the learning rate goes after warm-up.
    pub schedule: Schedule,
    /// Fraction of the job's global steps in which the learning rate rises from zero.
    pub warmup: f64,
    /// Rows per step.
    pub batch_size: usize,
    /// In how many parts a step's rows are computed, one after another: so much less memory for the same gradient, up to
    /// rounding. Dropout is drawn for each part.
    pub accumulate: usize,
    /// Whether rows of like length, in bytes of their texts, share a batch, so that little or nothing is padded.
    pub length_grouped: bool,
    /// Passes over the site's data in each round; give this or `steps`. Neither means 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Optimiser steps in each round; give this or `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Decoupled weight decay, not applied to biases and norms.
    pub weight_decay: f64,
    /// Largest L2 norm of the whole gradient; 0 turns clipping off.
    pub clip_norm: f64,
    /// Dropout probability of embeddings, attention, hidden states and classifier.
    pub dropout: f64,
    /// Strength μ of the FedProx term μ/2·|w − w_start|² in the loss (Li et al. 2018, 1812.06127), w_start being the
    /// state that the round began with (the model at the start of a local run); 0 is none.
    pub proximal: f64,
    /// Strength α of the L2-SP term α/2·|w − w_base|² in the loss (Li et al. 2018, 1802.01483), over the trained tensors
    /// that came from the base model, less the classifier; 0 is none.
    pub l2_sp: f64,
    /// Share of the target that is spread evenly over all labels (Szegedy et al. 2016, 1512.00567).
    pub label_smoothing: f64,
    /// How much rows of each label count in the loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<ClassWeights>,
    /// Focusing exponent γ of the focal loss (Lin et al. 2017, 1708.02002): each row's loss is multiplied by `(1 − p)^γ`;
    /// 0 is plain cross-entropy.
    pub focal_gamma: f64,
    /// Probability that a token of a training text is left out, drawn anew each time the text is used.
    pub token_dropout: f64,
    /// How far a site's loss allows for the labels it happens to have: this times the logarithm of each label's share is
    /// added to the logits in training. 0 is plain cross-entropy; 1 allows for them in full.
    pub logit_adjustment: f64,
    /// The shares of the labels over all sites, or counts, in the order of `task.labels`. With `logit_adjustment` a site
    /// allows for how its own shares differ from these, so that together they learn what these shares call for. Empty:
    /// all labels alike.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub label_shares: Vec<f64>,
    /// Seed of initialisation, shuffling and dropout.
    pub seed: u64,
    /// What the products of dense layers are made of.
    pub precision: Precision,
    /// The adapters, for `trainable = "lora"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            trainable: Trainable::Full,
            optimizer: Optimizer::Adamw,
            momentum: 0.0,
            learning_rate: 5e-5,
            layer_decay: 1.0,
            schedule: Schedule::Linear,
            warmup: 0.1,
            batch_size: 16,
            accumulate: 1,
            length_grouped: false,
            epochs: None,
            steps: None,
            weight_decay: 0.01,
            clip_norm: 1.0,
            dropout: 0.1,
            proximal: 0.0,
            l2_sp: 0.0,
            label_smoothing: 0.0,
            class_weights: None,
            focal_gamma: 0.0,
            token_dropout: 0.0,
            logit_adjustment: 0.0,
            label_shares: Vec::new(),
            seed: 42,
            precision: Precision::F32,
            lora: None,
        }
    }
}

/// How much a site works in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalWork {
    /// Passes over its training rows.
    Epochs(usize),
    /// Optimiser steps.
    Steps(usize),
}

impl Training {
    /// Epochs or steps, one epoch where neither is given.
    pub fn local_work(&self) -> LocalWork {
        match (self.steps, self.epochs) {
            (Some(steps), _) => LocalWork::Steps(steps),
            (None, epochs) => LocalWork::Epochs(epochs.unwrap_or(1)),
        }
    }

    /// Optimiser steps of one round at a site with so many training rows.
    pub fn steps_per_round(&self, rows: usize) -> usize {
        match self.local_work() {
            LocalWork::Steps(steps) => steps,
            LocalWork::Epochs(epochs) => epochs * rows.div_ceil(self.batch_size),
        }
    }
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

/// Widest model, by `hidden_size`, that counts as small.
const SMALL_HIDDEN_SIZE: u64 = 512;

/// A peak learning rate for the model in this folder, where nobody chose one: 1e-4 for encoders of a hidden size up to
/// 512, which need larger steps, and the default of [`Training`] for wider ones and for folders that cannot be read.
pub fn suggested_learning_rate(model: &Path) -> f64 {
    let text = std::fs::read_to_string(model.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    match config["hidden_size"].as_u64() {
        Some(width) if width <= SMALL_HIDDEN_SIZE => 1e-4,
        _ => Training::default().learning_rate,
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
        self.validate_training(p);
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

    fn validate_training(&self, p: &mut Problems) {
        let t = &self.training;
        p.check(
            t.learning_rate.is_finite() && t.learning_rate > 0.0 && t.learning_rate <= 10.0,
            "training.learning_rate",
            || format!("found {}; expected more than 0 and at most 10", t.learning_rate),
        );
        unit(p, "training.warmup", t.warmup, true);
        unit(p, "training.weight_decay", t.weight_decay, true);
        unit(p, "training.dropout", t.dropout, false);
        unit(p, "training.momentum", t.momentum, false);
        p.check(t.momentum == 0.0 || t.optimizer == Optimizer::Sgd, "training.momentum", || {
            "stands without training.optimizer = \"sgd\", which alone makes use of it; set that, or leave this out"
                .into()
        });
        p.check(t.layer_decay > 0.0 && t.layer_decay <= 1.0, "training.layer_decay", || {
            format!("found {}; expected more than 0 and at most 1 (no decay)", t.layer_decay)
        });
        unit(p, "training.label_smoothing", t.label_smoothing, false);
        for (field, found) in [
            ("training.clip_norm", t.clip_norm),
            ("training.focal_gamma", t.focal_gamma),
            ("training.proximal", t.proximal),
            ("training.l2_sp", t.l2_sp),
        ] {
            p.check(found.is_finite() && found >= 0.0, field, || format!("found {found}; expected 0 (off) or more"));
        }
        if let Some(weights) = &t.class_weights {
            weights.validate(p, self.task.labels.len(), t.logit_adjustment);
        }
        unit(p, "training.token_dropout", t.token_dropout, false);
        unit(p, "training.logit_adjustment", t.logit_adjustment, true);
        if !t.label_shares.is_empty() {
            let (shares, labels) = (t.label_shares.len(), self.task.labels.len());
            p.check(shares == labels, "training.label_shares", || {
                format!("found {shares} numbers; expected one for each of the {labels} labels")
            });
            p.check(
                t.label_shares.iter().all(|share| share.is_finite() && *share > 0.0),
                "training.label_shares",
                || format!("found {:?}; expected numbers above 0", t.label_shares),
            );
            p.check(t.logit_adjustment > 0.0, "training.label_shares", || {
                "stands without training.logit_adjustment, which makes use of it; set that above 0".into()
            });
        }
        if let Some(Lora { rank, alpha, dropout, targets }) = &t.lora {
            p.check(t.trainable == Trainable::Lora, "training.lora", || {
                format!(
                    "stands beside training.trainable = \"{}\"; set that to \"lora\", or leave this out",
                    t.trainable
                )
            });
            range(p, "training.lora.rank", *rank, 1, 4096);
            p.check(alpha.is_finite() && *alpha > 0.0, "training.lora.alpha", || {
                format!("found {alpha}; expected more than 0")
            });
            unit(p, "training.lora.dropout", *dropout, false);
            p.check(targets.iter().all(|target| !target.trim().is_empty()), "training.lora.targets", || {
                "has an empty name; expected names of dense layers, such as \"query\"".into()
            });
        }
        range(p, "training.batch_size", t.batch_size, 1, 65_536);
        p.check((1..=t.batch_size.max(1)).contains(&t.accumulate), "training.accumulate", || {
            format!("found {}; expected 1 (off) to training.batch_size, which is {}", t.accumulate, t.batch_size)
        });
        if let Some(epochs) = t.epochs {
            range(p, "training.epochs", epochs, 1, 10_000);
        }
        if let Some(steps) = t.steps {
            range(p, "training.steps", steps, 1, 100_000_000);
        }
        p.check(t.epochs.is_none() || t.steps.is_none(), "training.steps", || {
            "stands beside training.epochs; give one of the two".into()
        });
        // TOML integers are i64, so a larger seed could not be written back.
        p.check(i64::try_from(t.seed).is_ok(), "training.seed", || {
            format!("found {}; expected at most {}", t.seed, i64::MAX)
        });
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
