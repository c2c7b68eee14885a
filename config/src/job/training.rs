//! `[training]`: what a site trains, and how.

pub use augmentation::Augmentation;
pub use class_weights::ClassWeights;
pub use eda::{Alteration, Eda};
use serde::{Deserialize, Serialize};
pub use trainable::Trainable;

use super::task::{Reads, Task, TaskKind, unread};
use super::{range, unit};
use crate::error::Problems;

mod augmentation;
mod class_weights;
mod eda;
mod trainable;

/// The numbers that the products of dense layers are made of. Weights, sums, and everything else are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 24 bits of precision.
    #[default]
    F32,
    /// 8 bits of precision: inputs and weights of a product are rounded, its sums are not. Faster on processors with AMX,
    /// and on NVIDIA GPUs, where those of attention are rounded as well.
    Bf16,
    /// 11 bits of precision and nothing above 65504, likewise; the loss is scaled so that small gradients are not lost
    /// (Micikevicius et al. 2017, 1710.03740). For what bf16 is too coarse for; on processors it saves no time.
    F16,
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
    /// How words of a training text are moved about, drawn anew each time the text is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eda: Option<Eda>,
    /// Whether the batch norms of an image model keep the base model's running mean and variance, and go by them in training
    /// too, as suits small batches and sites that differ much.
    #[serde(skip_serializing_if = "is_false")]
    pub freeze_batch_norm: bool,
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
    /// Share of the job's global steps, the first ones, in which the head alone is trained and everything else waits
    /// (linear probing, then fine-tuning; Kumar et al. 2022, 2202.10054). 0 is none.
    pub probe: f64,
    /// Whether training keeps nothing of a layer of a transformer but its input, and computes the layer again in the
    /// backward pass: the same bits for less memory and more time.
    pub recompute: bool,
    /// How training images are changed each time they are used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub augmentation: Option<Augmentation>,
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
            eda: None,
            augmentation: None,
            freeze_batch_norm: false,
            logit_adjustment: 0.0,
            label_shares: Vec::new(),
            seed: 42,
            precision: Precision::F32,
            probe: 0.0,
            recompute: false,
            lora: None,
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
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

impl Training {
    /// Refuses what the loss or the batches of this kind of task have no place for.
    fn check_fit(&self, p: &mut Problems, kind: TaskKind) {
        let (rows, words) = (kind.has_one_label(), kind == TaskKind::TokenClassification);
        for (field, given, used) in [
            ("training.label_smoothing", self.label_smoothing != 0.0, rows || words),
            ("training.focal_gamma", self.focal_gamma != 0.0, rows || words),
            ("training.class_weights", self.class_weights.is_some(), rows || words),
            ("training.logit_adjustment", self.logit_adjustment != 0.0, rows),
            ("training.label_shares", !self.label_shares.is_empty(), rows),
            ("training.token_dropout", self.token_dropout != 0.0, kind.reads_text()),
            ("training.eda", self.eda.is_some(), kind.reads_text() && kind.has_labels()),
            // Its output layer is not new, and often is the table of words.
            ("training.probe", self.probe != 0.0, kind != TaskKind::CausalLm),
            ("training.length_grouped", self.length_grouped, kind.reads() == Reads::Texts),
            ("training.augmentation", self.augmentation.is_some(), kind.reads_images()),
            ("training.freeze_batch_norm", self.freeze_batch_norm, kind.reads_images()),
        ] {
            p.check(!given || used, field, || unread(kind));
        }
    }

    /// Tells what is wrong with it for a task.
    pub(super) fn validate(&self, p: &mut Problems, task: &Task) {
        let (t, labels) = (self, task.labels.len());
        self.check_fit(p, task.kind);
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
        if let Some(weights) = t.class_weights.as_ref().filter(|_| task.kind.has_labels()) {
            weights.validate(p, labels, t.logit_adjustment);
        }
        unit(p, "training.token_dropout", t.token_dropout, false);
        if let Some(eda) = &t.eda {
            eda.validate(p);
        }
        t.trainable.validate(p);
        unit(p, "training.probe", t.probe, false);
        p.check(t.probe == 0.0 || t.trainable != Trainable::Head, "training.probe", || {
            "stands beside training.trainable = \"head\", with which nothing but the head is trained at any time; leave \
             this out, or train more"
                .into()
        });
        if let Some(augmentation) = &t.augmentation {
            augmentation.validate(p);
        }
        unit(p, "training.logit_adjustment", t.logit_adjustment, true);
        if !t.label_shares.is_empty() && task.kind.has_one_label() {
            let shares = t.label_shares.len();
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
