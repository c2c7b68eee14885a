//! Metrics of a classifier, all from a confusion matrix, so that evaluations of several sites can be added.

use serde::{Deserialize, Serialize};

use crate::model::ops::row_loss;

/// Counts over labelled rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Rows.
    pub examples: u64,
    /// Sum of the rows' cross-entropy, in nats.
    pub loss_sum: f64,
    /// `labels × labels` counts, row by row: the row is the true label, the column the predicted one.
    pub confusion: Vec<u64>,
}

/// Scores of one label; a quotient with denominator 0 counts as 0, as in scikit-learn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LabelScore {
    /// Share of the rows predicted as this label that have it.
    pub precision: f64,
    /// Share of the rows with this label that are predicted so.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// Rows with this label.
    pub support: u64,
}

impl Evaluation {
    /// No rows yet.
    pub fn new(labels: usize) -> Self {
        Self { examples: 0, loss_sum: 0.0, confusion: vec![0; labels * labels] }
    }

    /// Number of labels.
    pub fn labels(&self) -> usize {
        self.confusion.len().isqrt()
    }

    /// Counts a row; a label or a number of logits outside this evaluation's labels is passed over.
    pub fn add(&mut self, logits: &[f32], label: usize) {
        let labels = self.labels();
        if label >= labels || logits.len() != labels {
            return;
        }
        self.examples += 1;
        self.loss_sum += row_loss(logits, label);
        self.confusion[label * labels + predicted(logits)] += 1;
    }

    /// Adds another evaluation; one of other labels is refused and gives `false`.
    #[must_use]
    pub fn merge(&mut self, other: &Self) -> bool {
        if self.confusion.len() != other.confusion.len() {
            return false;
        }
        self.examples += other.examples;
        self.loss_sum += other.loss_sum;
        for (sum, other) in self.confusion.iter_mut().zip(&other.confusion) {
            *sum += other;
        }
        true
    }

    /// Share of rows predicted rightly.
    pub fn accuracy(&self) -> f64 {
        let labels = self.labels();
        let right = (0..labels).map(|label| self.confusion[label * labels + label]).sum();
        ratio(right, self.examples)
    }

    /// Unweighted mean of the labels' F1 (scikit-learn's `f1_score(average="macro", zero_division=0)` over all labels).
    pub fn macro_f1(&self) -> f64 {
        let scores = self.per_label();
        if scores.is_empty() { 0.0 } else { scores.iter().map(|score| score.f1).sum::<f64>() / scores.len() as f64 }
    }

    /// Mean cross-entropy.
    pub fn loss(&self) -> f64 {
        if self.examples == 0 { 0.0 } else { self.loss_sum / self.examples as f64 }
    }

    /// Scores of every label, in order.
    pub fn per_label(&self) -> Vec<LabelScore> {
        let labels = self.labels();
        let count = |truth: usize, predicted: usize| self.confusion[truth * labels + predicted];
        (0..labels)
            .map(|label| {
                let right = count(label, label);
                let support = (0..labels).map(|predicted| count(label, predicted)).sum();
                let claimed: u64 = (0..labels).map(|truth| count(truth, label)).sum();
                LabelScore {
                    precision: ratio(right, claimed),
                    recall: ratio(right, support),
                    f1: ratio(2 * right, support + claimed),
                    support,
                }
            })
            .collect()
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The index of the largest logit, the first among equals.
pub fn predicted(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best
}

/// Softmax of a row of logits.
pub fn probabilities(logits: &[f32]) -> Vec<f64> {
    (0..logits.len()).map(|label| (-row_loss(logits, label)).exp()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_agree_with_scikit_learn() {
        // y_true = [0,0,0,1,1,2], y_pred = [0,0,1,1,1,0]: f1 = [2/3, 0.8, 0].
        let mut evaluation = Evaluation::new(3);
        for (truth, predicted) in [(0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (2, 0)] {
            let mut logits = [0.0; 3];
            logits[predicted] = 1.0;
            evaluation.add(&logits, truth);
        }
        assert!((evaluation.accuracy() - 4.0 / 6.0).abs() < 1e-12);
        assert!((evaluation.macro_f1() - (2.0 / 3.0 + 0.8) / 3.0).abs() < 1e-12);
        let third = evaluation.per_label()[2];
        assert_eq!((third.precision, third.recall, third.f1, third.support), (0.0, 0.0, 0.0, 1));
        let mut twice = evaluation.clone();
        assert!(twice.merge(&evaluation));
        assert!((twice.accuracy() - evaluation.accuracy()).abs() < 1e-12 && twice.examples == 12);
        assert!(!twice.merge(&Evaluation::new(2)));
    }

    #[test]
    fn probabilities_add_up_even_for_extreme_logits() {
        for logits in [[1.0, 2.0, 3.0], [1e4, -1e4, 0.0]] {
            assert!((probabilities(&logits).iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }
}
