//! Fine-tuning and evaluating a [`Classifier`](crate::model::Classifier).
//!
//! Read in this order: [`fit`] (the loop), [`schedule`], `order` (batches), `encode` (rows to tokens and targets), `ahead` (which
//! does so in the background), `augment`, `loss`, `pull` (proximal terms),
//! `optimizer`, [`evaluate`], [`metrics`], `entities` and [`scores`], `early_stopping`, `checkpoint`, [`cross`] (cross-validation), [`tune`], [`confident`] (wrong
//! labels).

mod ahead;
mod augment;
mod checkpoint;
pub mod confident;
pub mod cross;
mod early_stopping;
mod encode;
mod entities;
mod error;
mod evaluate;
mod fit;
mod gradients;
mod loss;
mod loss_scale;
pub mod metrics;
mod optimizer;
mod order;
mod progress;
mod pull;
pub mod schedule;
pub mod scores;
pub mod tune;

pub use checkpoint::Checkpoints;
pub use cross::{CrossValidation, cross_validate};
pub use early_stopping::{EarlyStopping, EpochScores};
pub(crate) use encode::text;
pub use error::FinetuneError;
pub use evaluate::{Prediction, evaluate, evaluate_scores, evaluate_sums, predict, respond};
pub use fit::{FitReport, Plan, fit, fit_best, fit_saved};
pub use gradients::gradient_norm;
pub use metrics::{Evaluation, LabelScore};
pub use optimizer::Optimizer;
pub use progress::{Observer, Progress, Silent};
pub use scores::Scores;
