//! Fine-tuning and evaluating a [`Classifier`](crate::model::Classifier).
//!
//! Read in this order: [`fit`] (the loop), [`schedule`], `order` (batches), `loss`, `pull` (proximal terms), `optimizer`,
//! [`evaluate`], [`metrics`] and `early_stopping`.

mod early_stopping;
mod error;
mod evaluate;
mod fit;
mod gradients;
mod loss;
pub mod metrics;
mod optimizer;
mod order;
mod progress;
mod pull;
pub mod schedule;

pub use early_stopping::{EarlyStopping, Scores};
pub use error::FinetuneError;
pub use evaluate::{evaluate, logits};
pub use fit::{FitReport, Plan, fit, fit_best};
pub use gradients::gradient_norm;
pub use metrics::{Evaluation, LabelScore};
pub use optimizer::Optimizer;
pub use progress::{Observer, Progress, Silent};
