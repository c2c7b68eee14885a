//! Fine-tuning and evaluating a [`Classifier`](crate::model::Classifier).
//!
//! Read in this order: [`fit`] (the loop), [`schedule`], `order` (shuffling), `augment`, `adamw`, [`evaluate`], [`metrics`] and
//! [`scores`], [`cross`] (cross-validation), [`confident`] (wrong labels).

mod adamw;
mod augment;
pub mod confident;
pub mod cross;
mod error;
mod evaluate;
mod fit;
pub mod metrics;
mod order;
mod progress;
pub mod schedule;
pub mod scores;

pub use adamw::{AdamW, gradient_norm};
pub use cross::{CrossValidation, cross_validate};
pub use error::FinetuneError;
pub use evaluate::{evaluate, evaluate_scores, logits};
pub use fit::{FitReport, Plan, fit};
pub use metrics::{Evaluation, LabelScore};
pub use progress::{Observer, Progress, Silent};
pub use scores::Scores;
