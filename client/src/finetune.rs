//! Fine-tuning and evaluating a [`Classifier`](crate::model::Classifier).
//!
//! Read in this order: [`fit`] (the loop), [`schedule`], `order` (shuffling), `adamw`, [`evaluate`] and [`metrics`].

mod adamw;
mod error;
mod evaluate;
mod fit;
pub mod metrics;
mod order;
mod progress;
pub mod schedule;

pub use adamw::{AdamW, gradient_norm};
pub use error::FinetuneError;
pub use evaluate::{evaluate, logits};
pub use fit::{FitReport, Plan, fit};
pub use metrics::{Evaluation, LabelScore};
pub use progress::{Observer, Progress, Silent};
