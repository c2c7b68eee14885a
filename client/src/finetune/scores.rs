//! What outputs are worth as ranks and as probabilities. These measures need every row's outputs, so unlike an
//! [`Evaluation`](super::Evaluation) those of several sites do not add up.

use serde::Serialize;

use super::metrics::{Form, predicted, probabilities};
use crate::data::Target;

/// Bins of the calibration error.
const BINS: usize = 15;

/// Measures over rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Scores {
    /// For each label the area under the receiver operating characteristic of its probability against all other labels:
    /// the chance that a row with the label scores above one without, ties counted half. `None` where all rows have the
    /// label, or none has. Empty where rows have no labels.
    pub auroc: Vec<Option<f64>>,
    /// The others by name; see [`Self::of`].
    pub measures: Vec<(&'static str, Option<f64>)>,
}

impl Scores {
    /// Of rows of outputs, and the rows' targets; as many of both.
    /// - One label a row: `macro_auroc`, the unweighted mean of the areas that there are, and `calibration_error`, the
    ///   expected calibration error (Guo et al. 2017, 1706.04599, eq. 3) of the highest probability in 15 bins of equal
    ///   width: the mean distance of a bin's accuracy from its mean probability, by its share of the rows.
    /// - Sets of labels: `macro_auroc`.
    /// - Numbers: `spearman`, the correlation of ranks, those of equal numbers averaged.
    pub fn of(form: Form, outputs: &[Vec<f32>], truth: &[Target]) -> Self {
        match form {
            Form::Classes(labels) => {
                let truth: Vec<usize> =
                    truth.iter().map(|target| if let Target::Class(label) = target { *label } else { 0 }).collect();
                let shares: Vec<Vec<f64>> = outputs.iter().map(|logits| probabilities(logits)).collect();
                let auroc = areas(labels, |label| {
                    shares.iter().zip(&truth).map(|(shares, truth)| (shares[label], *truth == label)).collect()
                });
                let best = outputs.iter().zip(&shares).zip(&truth).map(|((logits, shares), truth)| {
                    let best = predicted(logits);
                    (shares.get(best).copied().unwrap_or(0.0), best == *truth)
                });
                let calibration = ("calibration_error", Some(calibration_error(best)));
                Self { measures: vec![("macro_auroc", mean(&auroc)), calibration], auroc }
            }
            Form::Sets(labels) => {
                let has = |target: &Target, label: usize| target.borrowed().labels().any(|has| has == label);
                // Probabilities rise with logits, so their ranks are the same.
                let auroc = areas(labels, |label| {
                    let rows = outputs.iter().zip(truth);
                    rows.map(|(logits, target)| (f64::from(logits[label]), has(target, label))).collect()
                });
                Self { measures: vec![("macro_auroc", mean(&auroc))], auroc }
            }
            Form::Values => {
                let rows = outputs.iter().zip(truth).filter_map(|(outputs, target)| match (&outputs[..], target) {
                    ([output], Target::Value(value)) => Some((f64::from(*output), f64::from(*value))),
                    _ => None,
                });
                let (said, truth): (Vec<f64>, Vec<f64>) = rows.unzip();
                let measures = vec![("spearman", correlation(&ranks(&said), &ranks(&truth)))];
                Self { auroc: Vec::new(), measures }
            }
            Form::Tags(_) | Form::NextToken => Self::default(),
        }
    }

    /// The measure of a name, if there is one.
    pub fn measure(&self, name: &str) -> Option<f64> {
        self.measures.iter().find(|(found, _)| *found == name).and_then(|(_, value)| *value)
    }
}

fn areas(labels: usize, rows: impl Fn(usize) -> Vec<(f64, bool)>) -> Vec<Option<f64>> {
    (0..labels).map(|label| auroc(rows(label))).collect()
}

fn mean(areas: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = areas.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

/// The rank of each number, counted from 1; equal ones have the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let (mut ranks, mut below) = (vec![0.0; values.len()], 0.0);
    for ties in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let size = ties.len() as f64;
        ties.iter().for_each(|place| ranks[*place] = below + (size + 1.0) / 2.0);
        below += size;
    }
    ranks
}

/// Pearson's correlation; `None` where one of the two is always the same.
fn correlation(one: &[f64], other: &[f64]) -> Option<f64> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let (one_mean, other_mean) = (mean(one), mean(other));
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        one.iter().zip(other).map(|(x, y)| f(x - one_mean, y - other_mean)).sum()
    };
    let spread = sum(&|x, _| x * x).sqrt() * sum(&|_, y| y * y).sqrt();
    (spread > 0.0).then(|| sum(&|x, y| x * y) / spread)
}

/// The Mann–Whitney statistic by mid-ranks, exact; each row's score and whether it is positive.
fn auroc(mut rows: Vec<(f64, bool)>) -> Option<f64> {
    let positives = rows.iter().filter(|row| row.1).count() as f64;
    let negatives = rows.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut rank_sum) = (0.0, 0.0);
    for ties in rows.chunk_by(|a, b| a.0 == b.0) {
        let size = ties.len() as f64;
        // Ranks are counted from 1.
        rank_sum += ties.iter().filter(|row| row.1).count() as f64 * (below + (size + 1.0) / 2.0);
        below += size;
    }
    Some((rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives))
}

/// Of each row's highest probability and whether that label is right.
fn calibration_error(rows: impl Iterator<Item = (f64, bool)>) -> f64 {
    // Of each bin the sum of (right − probability): its rows cancel out of share and means.
    let (mut gaps, mut count) = ([0.0; BINS], 0u64);
    for (probability, right) in rows {
        let bin = ((probability * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        gaps[bin] += f64::from(u8::from(right)) - probability;
        count += 1;
    }
    gaps.iter().map(|gap| gap.abs()).sum::<f64>() / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_area_agrees_with_scikit_learn() {
        // roc_auc_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) is 0.75, the example of its documentation.
        assert_eq!(auroc(vec![(0.1, false), (0.4, false), (0.35, true), (0.8, true)]), Some(0.75));
        // Positives 0, 1, 1, 2 of a histogram, negatives 2, 1, 1, 0.
        let rows = [(0, 0, 2), (1, 1, 1), (2, 1, 1), (3, 2, 0)];
        let rows = rows.iter().flat_map(|(score, positive, negative)| {
            let positive = std::iter::repeat_n((f64::from(*score), true), *positive);
            positive.chain(std::iter::repeat_n((f64::from(*score), false), *negative))
        });
        assert_eq!(auroc(rows.collect()), Some(0.875));
        assert_eq!(auroc(vec![(0.5, true), (0.5, false)]), Some(0.5));
        assert_eq!(auroc(vec![(0.5, true)]), None);
    }

    #[test]
    fn the_mean_is_over_labels_that_rows_tell_apart() {
        let logits = [vec![2.0, 1.0, 0.0], vec![0.0, 3.0, 0.0], vec![1.0, 0.0, 0.0]];
        let scores = Scores::of(Form::Classes(3), &logits, &[0, 1, 0].map(Target::Class));
        assert_eq!(scores.auroc, [Some(1.0), Some(1.0), None]);
        assert_eq!(scores.measure("macro_auroc"), Some(1.0));
        assert_eq!(Scores::of(Form::Classes(3), &[], &[]).measure("macro_auroc"), None);
        let sets = [vec![0, 2], vec![1], vec![2]].map(Target::Set);
        let scores = Scores::of(Form::Sets(3), &[vec![2.0, 1.0, 0.0], vec![3.0, 3.0, 0.0], vec![1.0, 0.0, 0.0]], &sets);
        assert_eq!(scores.auroc, [Some(0.5), Some(1.0), Some(0.5)]);
    }

    #[test]
    fn the_correlation_of_ranks_agrees_with_scipy() {
        let spearman = |said: &[f32], truth: &[f32]| {
            let outputs: Vec<Vec<f32>> = said.iter().map(|value| vec![*value]).collect();
            let truth: Vec<Target> = truth.iter().map(|value| Target::Value(*value)).collect();
            Scores::of(Form::Values, &outputs, &truth).measure("spearman")
        };
        // spearmanr([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) of scipy's documentation.
        let found = spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0]);
        assert!(found.is_some_and(|found| (found - 0.820_782_681_668_123_1).abs() < 1e-12), "{found:?}");
        let found = spearman(&[1.0, 10.0, 100.0], &[-3.0, -2.0, 0.0]);
        assert!(found.is_some_and(|found| (found - 1.0).abs() < 1e-12), "{found:?}");
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn the_calibration_error_is_the_gap_of_probability_and_accuracy() {
        // One bin: mean probability 0.95, accuracy 0.5. Another: 0.55 against 1.
        let rows = [(0.94, true), (0.96, false), (0.55, true), (0.55, true)];
        let expected = 0.5 * 0.45 + 0.5 * 0.45;
        assert!((calibration_error(rows.into_iter()) - expected).abs() < 1e-12);
        assert!(calibration_error([(1.0, true), (1.0, true)].into_iter()) == 0.0);
        assert!(calibration_error(std::iter::empty()) == 0.0);
    }

    proptest! {
        #[test]
        fn the_area_is_the_share_of_pairs_in_order(rows in proptest::collection::vec((0u8..6, any::<bool>()), 1..60)) {
            let rows: Vec<(f64, bool)> = rows.into_iter().map(|(score, positive)| (f64::from(score), positive)).collect();
            let (mut won, mut pairs) = (0.0, 0.0);
            for positive in rows.iter().filter(|row| row.1) {
                for negative in rows.iter().filter(|row| !row.1) {
                    pairs += 1.0;
                    won += if positive.0 > negative.0 { 1.0 } else if positive.0 == negative.0 { 0.5 } else { 0.0 };
                }
            }
            match auroc(rows) {
                None => prop_assert!(pairs == 0.0),
                Some(found) => prop_assert!((found - won / pairs).abs() < 1e-12),
            }
        }
    }
}
