//! What the probabilities of a classifier are worth: ranking and calibration. They need every row's scores, so unlike an
//! [`Evaluation`](super::Evaluation) those of several sites do not add up.

use serde::Serialize;

use super::metrics::{predicted, probabilities};

/// Bins of the calibration error.
const BINS: usize = 15;

/// Measures over labelled rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scores {
    /// For each label the area under the receiver operating characteristic of its probability against all other labels:
    /// the chance that a row with the label scores above one without, ties counted half. `None` where all rows have the
    /// label, or none has.
    pub auroc: Vec<Option<f64>>,
    /// Unweighted mean of those that there are.
    pub macro_auroc: Option<f64>,
    /// Expected calibration error (Guo et al. 2017, 1706.04599, eq. 3) of the highest probability, in 15 bins of equal
    /// width: the mean distance of a bin's accuracy from its mean probability, by its share of the rows.
    pub calibration_error: f64,
}

impl Scores {
    /// Of rows of `labels` logits each, and the rows' labels; as many of both.
    pub fn of(logits: &[Vec<f32>], truth: &[usize]) -> Self {
        let shares: Vec<Vec<f64>> = logits.iter().map(|logits| probabilities(logits)).collect();
        let labels = logits.first().map_or(0, Vec::len);
        let auroc: Vec<Option<f64>> = (0..labels)
            .map(|label| {
                auroc(shares.iter().zip(truth).map(|(shares, truth)| (shares[label], *truth == label)).collect())
            })
            .collect();
        let known: Vec<f64> = auroc.iter().flatten().copied().collect();
        let macro_auroc = (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
        let best = logits.iter().zip(&shares).zip(truth).map(|((logits, shares), truth)| {
            let best = predicted(logits);
            (shares.get(best).copied().unwrap_or(0.0), best == *truth)
        });
        Self { auroc, macro_auroc, calibration_error: calibration_error(best) }
    }
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
        let scores = Scores::of(&logits, &[0, 1, 0]);
        assert_eq!(scores.auroc, [Some(1.0), Some(1.0), None]);
        assert_eq!(scores.macro_auroc, Some(1.0));
        assert_eq!(Scores::of(&[], &[]).macro_auroc, None);
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
