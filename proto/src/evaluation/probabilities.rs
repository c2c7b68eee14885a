//! How sure a classifier is: counts of its probabilities, which add up over sites as the rest of an evaluation does.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::v1;

/// Bins of a label's histogram. They have equal widths in ln(p / (1 − p)), since a fine-tuned model's probabilities lie near 0
/// and 1.
const BINS: usize = 1024;

/// The histogram ends at this and at its negative; what is beyond is in the last bins.
const LOGIT_MAX: f64 = 16.0;

/// Bins of the calibration error, of equal widths in the probability.
const CALIBRATION_BINS: usize = 15;

/// Sums over rows of which each has one label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probabilities {
    labels: usize,
    /// Rows by place: for each label those that have it by the bin of its probability, then those that do not.
    histograms: BTreeMap<usize, u64>,
    /// Of each bin of the highest probability the sum of (right − probability).
    gaps: Vec<f64>,
}

impl Probabilities {
    /// No rows yet.
    pub fn new(labels: usize) -> Self {
        Self { labels, histograms: BTreeMap::new(), gaps: vec![0.0; CALIBRATION_BINS] }
    }

    fn place(label: usize, has: bool, bin: usize) -> usize {
        (2 * label + usize::from(!has)) * BINS + bin
    }

    /// The places of a label, to the last one there is.
    fn bins(label: usize, has: bool) -> RangeInclusive<usize> {
        Self::place(label, has, 0)..=Self::place(label, has, BINS - 1)
    }

    /// Counts a row: the probability of each label, the label that is predicted, and the one that it has.
    pub fn add(&mut self, probabilities: &[f64], predicted: usize, truth: usize) {
        for (label, p) in probabilities.iter().enumerate().take(self.labels) {
            let logit = (p / (1.0 - p)).ln().clamp(-LOGIT_MAX, LOGIT_MAX);
            let bin = ((logit + LOGIT_MAX) / (2.0 * LOGIT_MAX) * BINS as f64) as usize;
            *self.histograms.entry(Self::place(label, label == truth, bin.min(BINS - 1))).or_default() += 1;
        }
        let best = probabilities.get(predicted).copied().unwrap_or_default();
        let bin = ((best * CALIBRATION_BINS as f64).ceil() as usize).clamp(1, CALIBRATION_BINS) - 1;
        self.gaps[bin] += f64::from(u8::from(predicted == truth)) - best;
    }

    /// Adds those of other rows; `false`, and nothing, where they are of another number of labels.
    #[must_use]
    pub(super) fn merge(&mut self, other: &Self) -> bool {
        if self.labels != other.labels {
            return false;
        }
        for (place, count) in &other.histograms {
            let sum = self.histograms.entry(*place).or_default();
            *sum = sum.saturating_add(*count);
        }
        self.gaps.iter_mut().zip(&other.gaps).for_each(|(sum, more)| *sum += more);
        true
    }

    /// The unweighted mean of the labels' areas under the receiver operating characteristic, each label against the others:
    /// `Σ_b pos_b (neg_<b + ½ neg_b) / (P N)`, off by `½ Σ_b pos_b neg_b / (P N)` at most. `None` where no label has one.
    pub fn macro_auroc(&self) -> Option<f64> {
        let seen: BTreeSet<usize> = self.histograms.keys().map(|place| place / (2 * BINS)).collect();
        let areas: Vec<f64> = seen.into_iter().filter_map(|label| self.auroc(label)).collect();
        (!areas.is_empty()).then(|| areas.iter().sum::<f64>() / areas.len() as f64)
    }

    fn counts(&self, label: usize, has: bool) -> impl Iterator<Item = (usize, f64)> {
        let bins = Self::bins(label, has);
        let start = *bins.start();
        self.histograms.range(bins).map(move |(place, count)| (place - start, *count as f64))
    }

    fn auroc(&self, label: usize) -> Option<f64> {
        let total = |has| self.counts(label, has).map(|(_, count)| count).sum::<f64>();
        let both = total(true) * total(false);
        let mut without = self.counts(label, false).peekable();
        let (mut below, mut area) = (0.0, 0.0);
        for (bin, with) in self.counts(label, true) {
            while let Some((_, count)) = without.next_if(|(other, _)| *other < bin) {
                below += count;
            }
            let beside = without.peek().filter(|(other, _)| *other == bin).map_or(0.0, |(_, count)| *count);
            area += with * (below + beside / 2.0);
        }
        (both > 0.0).then_some(area / both)
    }

    /// The expected calibration error (Guo et al. 2017, 1706.04599, eq. 3) of the highest probability in 15 bins, over so many
    /// rows.
    pub fn calibration_error(&self, rows: u64) -> f64 {
        self.gaps.iter().map(|gap| gap.abs()).sum::<f64>() / rows.max(1) as f64
    }

    /// What a site sent, if it goes together with its confusion matrix of so many rows.
    pub(super) fn checked(wire: v1::ProbabilitySums, confusion: &[u64], rows: u64) -> Result<Self, String> {
        let labels = confusion.len().isqrt();
        let v1::ProbabilitySums { places, counts, gaps } = wire;
        let rising = places.is_sorted_by(|one, next| one < next);
        let last = places.last().is_none_or(|last| (*last as usize) < 2 * labels * BINS);
        if places.len() != counts.len() || !rising || !last {
            return Err("the histograms of probabilities are not of the task's labels".into());
        }
        // As much as a row can be off, and rounding.
        let most = rows as f64 * (1.0 + 1e-9);
        let all = gaps.iter().map(|gap| gap.abs()).sum::<f64>();
        if gaps.len() != CALIBRATION_BINS || !(0.0..=most).contains(&all) {
            return Err(format!("the sums of calibration are not {CALIBRATION_BINS} of what {rows} rows can have"));
        }
        let histograms = places.into_iter().map(|place| place as usize).zip(counts).collect();
        let found = Self { labels, histograms, gaps };
        for (label, row) in confusion.chunks(labels.max(1)).enumerate() {
            let counted = |has| sum(found.histograms.range(Self::bins(label, has)).map(|(_, count)| *count));
            let with = sum(row.iter().copied());
            if counted(true) != with || counted(false) != with.and_then(|with| rows.checked_sub(with)) {
                return Err(format!("the histograms of label {label} do not add up to the {rows} examples claimed"));
            }
        }
        Ok(found)
    }
}

/// `None` beyond what a count holds.
fn sum(mut counts: impl Iterator<Item = u64>) -> Option<u64> {
    counts.try_fold(0, u64::checked_add)
}

impl From<Probabilities> for v1::ProbabilitySums {
    fn from(sums: Probabilities) -> Self {
        // Every place of a job's labels fits: a confusion matrix of them would not go into a message long before.
        let (places, counts) = sums.histograms.into_iter().map(|(place, count)| (place as u32, count)).unzip();
        Self { places, counts, gaps: sums.gaps }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two labels by the probability of the second.
    fn of(rows: &[(f64, bool)]) -> Probabilities {
        let mut sums = Probabilities::new(2);
        for (p, positive) in rows {
            sums.add(&[1.0 - p, *p], usize::from(*p > 0.5), usize::from(*positive));
        }
        sums
    }

    fn exact(rows: &[(f64, bool)]) -> f64 {
        let (mut area, mut pairs) = (0.0, 0.0);
        for (with, _) in rows.iter().filter(|row| row.1) {
            for (without, _) in rows.iter().filter(|row| !row.1) {
                pairs += 1.0;
                area += if with > without {
                    1.0
                } else if with == without {
                    0.5
                } else {
                    0.0
                };
            }
        }
        area / pairs
    }

    #[test]
    fn the_area_is_that_of_the_reference() {
        // Positives [0, 1, 1, 2] and negatives [2, 1, 1, 0] in four bins.
        let bins = [0.1, 0.3, 0.6, 0.9];
        let mut rows = Vec::new();
        for (bin, (with, without)) in [(0, 2), (1, 1), (1, 1), (2, 0)].into_iter().enumerate() {
            rows.extend((0..with).map(|_| (bins[bin], true)));
            rows.extend((0..without).map(|_| (bins[bin], false)));
        }
        assert_eq!(of(&rows).macro_auroc(), Some(0.875));
        assert_eq!(of(&[(0.5, true)]).macro_auroc(), None);
        assert_eq!(of(&[(1.0, true), (0.0, false)]).macro_auroc(), Some(1.0));
    }

    #[test]
    fn a_record_of_places_that_no_label_has_does_no_harm() {
        let text = format!(
            r#"{{"labels": 2, "histograms": {{"{}": 3, "{}": 4}}, "gaps": [0.5]}}"#,
            usize::MAX,
            usize::MAX / 2
        );
        let sums: Probabilities = serde_json::from_str(&text).unwrap();
        assert_eq!(sums.macro_auroc(), None);
    }

    #[test]
    fn the_calibration_error_is_the_gap_of_probability_and_accuracy() {
        let sums = of(&[(0.9, true), (0.9, false), (0.65, true)]);
        assert!((sums.calibration_error(3) - (0.8 + 0.35) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn sums_that_do_not_go_together_are_refused() {
        let sums = of(&[(0.9, true), (0.2, false), (0.7, false)]);
        let confusion = [1, 1, 0, 1];
        let wire = v1::ProbabilitySums::from(sums.clone());
        assert_eq!(Probabilities::checked(wire.clone(), &confusion, 3).unwrap(), sums);
        type Change = fn(&mut v1::ProbabilitySums);
        let changes: [Change; 8] = [
            |wire| wire.counts[0] += 1,
            |wire| wire.counts[0] = u64::MAX,
            |wire| _ = wire.counts.pop(),
            |wire| wire.places.swap(0, 1),
            |wire| *wire.places.last_mut().unwrap() = u32::MAX,
            |wire| wire.gaps[0] = f64::NAN,
            |wire| _ = wire.gaps.pop(),
            |wire| wire.gaps.fill(1.0),
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let mut wire = wire.clone();
            change(&mut wire);
            assert!(Probabilities::checked(wire, &confusion, 3).is_err(), "change {i}");
        }
        assert!(Probabilities::checked(wire, &[2, 0, 0, 1], 3).is_ok(), "what is predicted is not in the histograms");
    }

    proptest! {
        #[test]
        fn sums_of_parts_are_those_of_all_and_near_the_exact_area(
            rows in proptest::collection::vec((0.0_f64..1.0, any::<bool>()), 2..60),
            cut in 0_usize..60,
        ) {
            let cut = cut.min(rows.len());
            let (all, mut parts) = (of(&rows), of(&rows[..cut]));
            prop_assert!(parts.merge(&of(&rows[cut..])));
            prop_assert_eq!(&parts.histograms, &all.histograms);
            prop_assert!((parts.calibration_error(7) - all.calibration_error(7)).abs() < 1e-12);
            if let Some(area) = all.auroc(1) {
                // Rows of one bin count as ties.
                prop_assert!((area - exact(&rows)).abs() < 0.15);
            }
        }
    }
}
