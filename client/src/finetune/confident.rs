//! Labels that are probably wrong, by confident learning (Northcutt et al. 2021, 1911.00068).

use super::metrics::probabilities;

/// A row whose label is probably wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Suspect {
    /// Which row.
    pub row: usize,
    /// The label it has.
    pub given: usize,
    /// The label it probably should have.
    pub suggested: usize,
    /// The probability of the label it has.
    pub given_probability: f64,
    /// The probability of the suggested label.
    pub suggested_probability: f64,
}

/// What confident learning says of a set of labels.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelErrors {
    /// Rows, the most suspicious first: where the suggested label's probability is furthest above the given one's.
    pub suspects: Vec<Suspect>,
    /// Estimated number of wrong labels: the calibrated joint of given and true label, off its diagonal, times the rows.
    pub estimated: f64,
}

/// Finds wrong labels by probabilities from a model that was not trained on the row: a row's logits, and its label.
///
/// A row counts as label j where p(j) is at least t_j, the mean of p(j) over the rows that are labelled j (eq. 2), and
/// largest among such labels (eq. 1). The rows off the diagonal of these counts are the suspects (the method
/// "C_confusion").
pub fn label_errors(logits: &[Vec<f32>], given: &[usize]) -> LabelErrors {
    let labels = logits.first().map_or(0, Vec::len);
    let shares: Vec<Vec<f64>> = logits.iter().map(|logits| probabilities(logits)).collect();
    let (mut sums, mut counts) = (vec![0.0; labels], vec![0u64; labels]);
    for (shares, given) in shares.iter().zip(given) {
        sums[*given] += shares[*given];
        counts[*given] += 1;
    }
    // A label that no row has is never suggested.
    let thresholds: Vec<f64> = sums.iter().zip(&counts).map(|(sum, count)| sum / *count as f64).collect();
    let mut joint = vec![vec![0u64; labels]; labels];
    let mut suspects = Vec::new();
    for (row, (shares, given)) in shares.iter().zip(given).enumerate() {
        let confident = (0..labels).filter(|label| shares[*label] >= thresholds[*label]);
        let Some(likely) = confident.max_by(|a, b| shares[*a].total_cmp(&shares[*b]).then(b.cmp(a))) else { continue };
        joint[*given][likely] += 1;
        if likely != *given {
            suspects.push(Suspect {
                row,
                given: *given,
                suggested: likely,
                given_probability: shares[*given],
                suggested_probability: shares[likely],
            });
        }
    }
    let margin = |suspect: &Suspect| suspect.suggested_probability - suspect.given_probability;
    suspects.sort_by(|a, b| margin(b).total_cmp(&margin(a)).then(a.row.cmp(&b.row)));
    let estimated = joint
        .iter()
        .enumerate()
        .map(|(label, row)| {
            // Calibration (eq. 3): each row of the joint is scaled to the rows that have the label.
            let confident: u64 = row.iter().sum();
            let off = confident - row[label];
            if confident == 0 { 0.0 } else { off as f64 / confident as f64 * counts[label] as f64 }
        })
        .sum();
    LabelErrors { suspects, estimated }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(shares: &[[f64; 2]]) -> Vec<Vec<f32>> {
        shares.iter().map(|row| row.iter().map(|share| share.ln() as f32).collect()).collect()
    }

    #[test]
    fn counts_and_thresholds_are_those_of_the_paper() {
        // Means: t_0 = (0.9 + 0.8 + 0.1) / 3 = 0.6, t_1 = (0.7 + 0.9 + 0.35) / 3 = 0.65.
        let shares = [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.1, 0.9], [0.65, 0.35]];
        let found = label_errors(&logits(&shares), &[0, 0, 0, 1, 1, 1]);
        let rows: Vec<(usize, usize, usize)> = found.suspects.iter().map(|s| (s.row, s.given, s.suggested)).collect();
        assert_eq!(rows, [(2, 0, 1), (5, 1, 0)]);
        assert!((found.suspects[0].suggested_probability - 0.9).abs() < 1e-6);
        assert!((found.estimated - 2.0).abs() < 1e-9, "{}", found.estimated);
    }

    #[test]
    fn rows_that_reach_no_threshold_are_spread_like_the_others() {
        // t_0 = (0.9 + 0.9 + 0.2 + 0.52) / 4 = 0.63, t_1 = 0.8: the last row of label 0 counts nowhere.
        let shares = [[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.52, 0.48], [0.2, 0.8]];
        let found = label_errors(&logits(&shares), &[0, 0, 0, 0, 1]);
        assert_eq!(found.suspects.len(), 1);
        assert!((found.estimated - 4.0 / 3.0).abs() < 1e-9, "{}", found.estimated);
        assert!(label_errors(&[], &[]).suspects.is_empty());
    }
}
