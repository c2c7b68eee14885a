//! `[evaluation]`: who scores each state, which counts as best, and when to stop early.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::aggregation::{Aggregation, Strategy};
use super::task::Task;
use crate::error::Problems;

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

/// What is done when a classifier that knew something comes to predict hardly anything but one label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCollapse {
    /// The next round starts from the best state again, with half the learning rate; at the third time the job ends.
    #[default]
    RollBack,
    /// The job is paused.
    Pause,
    /// Nothing.
    GoOn,
}

/// What is compared between rounds. Which of them a task has is in [`super::TaskKind::metrics`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of rows (tokens, where tokens are predicted) labelled rightly; larger is better.
    Accuracy,
    /// Unweighted mean of the labels' F1; larger is better.
    MacroF1,
    /// F1 of all labels' decisions counted together; larger is better.
    MicroF1,
    /// Share of rows with exactly the right set of labels; larger is better.
    ExactMatch,
    /// F1 of whole entities; larger is better.
    EntityF1,
    /// Mean of what is minimised; smaller is better.
    Loss,
    /// Mean squared error; smaller is better.
    Mse,
    /// Mean absolute error; smaller is better.
    Mae,
    /// Pearson's correlation; larger is better.
    Pearson,
    /// Coefficient of determination; larger is better.
    R2,
    /// The exponential of the loss; smaller is better.
    Perplexity,
}

impl Metric {
    /// As it stands in a job and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::MacroF1 => "macro_f1",
            Self::MicroF1 => "micro_f1",
            Self::ExactMatch => "exact_match",
            Self::EntityF1 => "entity_f1",
            Self::Loss => "loss",
            Self::Mse => "mse",
            Self::Mae => "mae",
            Self::Pearson => "pearson",
            Self::R2 => "r2",
            Self::Perplexity => "perplexity",
        }
    }

    /// A value of it as a score, of which larger is better.
    pub fn score(self, value: f64) -> f64 {
        match self {
            Self::Loss | Self::Mse | Self::Mae | Self::Perplexity => -value,
            _ => value,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// Who evaluates each state, which counts as best, and when to stop early.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluation {
    /// Who evaluates.
    pub by: Evaluator,
    /// What decides which state is best; a job that names none has the first of its task's after reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Stop after so many rounds without a better state; 0 never stops early.
    pub patience: u32,
    /// A state is better when the metric improves by more than this.
    pub min_delta: f64,
    /// What is done when the model collapses.
    pub on_collapse: OnCollapse,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { by: Evaluator::Evaluator, metric: None, patience: 0, min_delta: 0.0, on_collapse: OnCollapse::RollBack }
    }
}

impl Evaluation {
    pub(super) fn validate(&self, p: &mut Problems, task: &Task, aggregation: &Aggregation) {
        let kind = task.kind;
        p.check(self.by != Evaluator::Evaluator || aggregation.exclude.is_empty(), "evaluation.by", || {
            "found \"evaluator\" beside aggregation.exclude: an evaluator has none of the tensors that sites keep; choose \
             \"sites\" or \"none\""
                .into()
        });
        p.check(self.by != Evaluator::Sites || aggregation.strategy != Strategy::Fedbuff, "evaluation.by", || {
            "found \"sites\" beside aggregation.strategy = \"fedbuff\", whose sites are always training; choose \"evaluator\" \
             or \"none\""
                .into()
        });
        if let Some(metric) = self.metric {
            let field = "evaluation.metric";
            p.check(kind.metrics().contains(&metric), field, || {
                let names: Vec<&str> = kind.metrics().iter().map(|metric| metric.name()).collect();
                format!(
                    "found \"{metric}\", which task.kind = \"{kind}\" does not have; expected one of {}",
                    names.join(", ")
                )
            });
            p.check(metric != Metric::EntityF1 || task.has_entities(), field, || {
                "found \"entity_f1\", but no label of task.labels begins with \"B-\" or \"I-\"; choose another metric"
                    .into()
            });
        }
        let min_delta = self.min_delta;
        p.check(min_delta.is_finite() && min_delta >= 0.0, "evaluation.min_delta", || {
            format!("found {min_delta}; expected 0 or more")
        });
    }
}
