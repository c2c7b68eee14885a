//! What is kept of a round.

use std::collections::BTreeMap;

use fedtune_proto::digest::ArtifactRef;
use serde::{Deserialize, Serialize};

/// One site's update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteShare {
    /// `after - before`.
    pub update: ArtifactRef,
    /// Distinct examples trained on; the update's weight.
    pub examples: u64,
    /// Mean training loss over the steps.
    pub train_loss: f64,
    /// Time the fine-tuning took.
    pub train_seconds: f64,
    /// Artifact bytes the site sent for this round.
    pub bytes_up: u64,
    /// Artifact bytes the site received for this round.
    pub bytes_down: u64,
}

/// Sums of an evaluation; those of several sites add up exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationSums {
    /// Number of examples.
    pub examples: u64,
    /// Sum of cross-entropies, in nats.
    pub loss_sum: f64,
    /// labels x labels, row = true label.
    pub confusion: Vec<u64>,
}

impl EvaluationSums {
    /// Share of examples on the diagonal; 0 without examples.
    pub fn accuracy(&self) -> f64 {
        let labels = self.labels();
        let right: u64 = (0..labels).map(|i| self.confusion[i * labels + i]).sum();
        if self.examples == 0 { 0.0 } else { right as f64 / self.examples as f64 }
    }

    /// Unweighted mean over labels of F1 = 2 TP / (2 TP + FP + FN), 0 for a label that never occurs.
    pub fn macro_f1(&self) -> f64 {
        let labels = self.labels();
        let f1 = |label: usize| {
            let right = self.confusion[label * labels + label];
            let truly: u64 = (0..labels).map(|other| self.confusion[label * labels + other]).sum();
            let said: u64 = (0..labels).map(|other| self.confusion[other * labels + label]).sum();
            let both = truly.saturating_add(said);
            if both == 0 { 0.0 } else { 2.0 * right as f64 / both as f64 }
        };
        if labels == 0 { 0.0 } else { (0..labels).map(f1).sum::<f64>() / labels as f64 }
    }

    /// Mean cross-entropy; 0 without examples.
    pub fn loss(&self) -> f64 {
        if self.examples == 0 { 0.0 } else { self.loss_sum / self.examples as f64 }
    }

    fn labels(&self) -> usize {
        self.confusion.len().isqrt()
    }
}

/// A committed round: its manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// The round, from 1.
    pub round: u32,
    /// The attempt that counted, from 1.
    pub attempt: u32,
    /// When it opened, in milliseconds since 1970.
    pub opened_ms: u64,
    /// The state it started from.
    pub base: Option<ArtifactRef>,
    /// The state it made.
    pub state: ArtifactRef,
    /// Whose updates counted.
    pub sites: BTreeMap<String, SiteShare>,
    /// Whose answers did not, with the reason.
    pub problems: BTreeMap<String, String>,
    /// What each evaluating site found.
    pub evaluations: BTreeMap<String, EvaluationSums>,
    /// Time of the strategy's pass.
    pub aggregate_seconds: f64,
    /// From opening to evaluation.
    pub wall_seconds: f64,
}

impl RoundRecord {
    /// The sum of all evaluations.
    pub fn evaluation(&self) -> Option<EvaluationSums> {
        self.evaluations.values().cloned().reduce(|mut sum, next| {
            sum.examples = sum.examples.saturating_add(next.examples);
            sum.loss_sum += next.loss_sum;
            for (total, part) in sum.confusion.iter_mut().zip(next.confusion) {
                *total = total.saturating_add(part);
            }
            sum
        })
    }
}

/// The best round so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The round.
    pub round: u32,
    /// Its accuracy, if it was evaluated.
    pub accuracy: Option<f64>,
    /// The job's metric, larger is better.
    pub score: Option<f64>,
}
