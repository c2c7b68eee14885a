//! Why fine-tuning ended early.

use std::path::PathBuf;

use fedtune_config::job::Precision;

use crate::data::DataError;
use crate::model::ModelError;

/// Fine-tuning or evaluation that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum FinetuneError {
    /// Nothing to train on.
    #[error("there is no row to {purpose}; expected at least one")]
    NoRows {
        /// What the rows are for.
        purpose: &'static str,
    },
    /// Rows of another kind of task than the model's.
    #[error(
        "the rows are of another kind of task than the model was made for; give rows of its kind, or fine-tune a model for theirs"
    )]
    OtherTargets,
    /// L2-SP without anything that it could hold.
    #[error(
        "training.l2_sp holds trained tensors near the base model, but with training.trainable = \"{trainable}\" none of \
         them comes from there; set it to 0, or train more"
    )]
    NothingPretrained {
        /// What is trained.
        trainable: String,
    },
    /// Probing without a head to train.
    #[error(
        "training.probe trains the head alone at first, but training.trainable = \"{trainable}\" names no tensor of it; \
         name some (such as \"classifier.*\"), or leave training.probe out"
    )]
    NothingToProbe {
        /// What is trained.
        trainable: String,
    },
    /// More folds than there are rows to put into them.
    #[error(
        "the rows can be put into {found} folds, found {folds}; rows of one text or one group stay together. Ask for fewer \
         folds, or give more rows"
    )]
    TooFewForFolds {
        /// Folds that have a row.
        found: usize,
        /// Folds asked for.
        folds: usize,
    },
    /// More trials than there are settings to try.
    #[error(
        "the ranges hold {found} different settings, fewer than {trials} trials; ask for fewer trials, or give wider ranges"
    )]
    TooFewSettings {
        /// Settings that were found.
        found: usize,
        /// Trials asked for.
        trials: usize,
    },
    /// A checkpoint that cannot be used or written.
    #[error("{} {message}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What was found, and what to do next.
        message: String,
    },
    /// An image that could be decoded when it was checked, and cannot now.
    #[error("an image cannot be used any more: {0}; leave the files as they are until the end")]
    Image(String),
    /// The observer asked to stop.
    #[error("cancelled after step {step}")]
    Cancelled {
        /// Steps done.
        step: usize,
    },
    /// The loss or the gradient is no longer a number.
    #[error(
        "training diverged: {what} is {value} at step {step} with learning rate {learning_rate:e}; lower \
         training.learning_rate, or raise training.warmup{}", narrow(*precision)
    )]
    Diverged {
        /// Loss or gradient norm.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The step, counted from 0 inside this round.
        step: usize,
        /// The learning rate there.
        learning_rate: f64,
        /// The precision of products.
        precision: Precision,
    },
    /// A file whose rows are read when they are needed.
    #[error(transparent)]
    Data(Box<DataError>),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

fn narrow(precision: Precision) -> &'static str {
    match precision {
        Precision::F16 => ", or set training.precision to \"bf16\" or \"f32\", which have numbers above 65504",
        Precision::F32 | Precision::Bf16 => "",
    }
}

impl From<DataError> for FinetuneError {
    fn from(error: DataError) -> Self {
        Self::Data(Box::new(error))
    }
}

impl From<candle_core::Error> for FinetuneError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}
