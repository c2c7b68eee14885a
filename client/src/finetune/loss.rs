//! The loss that a job asks for, made for a site's rows.

use fedtune_config::job::{ClassWeights, Training};

use crate::data::{Rows, TargetRef};
use crate::model::Loss;

/// The job's loss for these training rows.
pub(super) fn loss(rows: &Rows, labels: usize, training: &Training) -> Loss {
    let mut counts = vec![0; labels];
    for label in rows.targets().flat_map(TargetRef::labels) {
        // A label beyond the classifier's is refused when its batch comes.
        if let Some(count) = counts.get_mut(label) {
            *count += 1;
        }
    }
    Loss {
        offset: logit_offset(&counts, training),
        class_weights: match &training.class_weights {
            None => Vec::new(),
            Some(ClassWeights::List(weights)) => weights.clone(),
            Some(ClassWeights::Balanced) => balanced(&counts),
        },
        label_smoothing: training.label_smoothing,
        focal_gamma: training.focal_gamma,
        divisor: None,
    }
}

/// Logit adjustment (Menon et al. 2021, 2007.07314, eq. 10): `τ·log(π_c / ρ_c)` for each label. π are the shares of the
/// labels in these rows, one row added to each so that an absent label has a share; ρ are the shares that the model is for,
/// `label_shares`, or 1 for each label where there are none. Empty for τ = 0.
fn logit_offset(counts: &[usize], training: &Training) -> Vec<f32> {
    let strength = training.logit_adjustment;
    if strength == 0.0 {
        return Vec::new();
    }
    let counts: Vec<f64> = counts.iter().map(|count| *count as f64 + 1.0).collect();
    let total: f64 = counts.iter().sum();
    let aim_total: f64 = training.label_shares.iter().sum();
    let aim = |label: usize| training.label_shares.get(label).map_or(1.0, |share| share / aim_total);
    counts.iter().enumerate().map(|(i, count)| (strength * (count / total / aim(i)).ln()) as f32).collect()
}

/// scikit-learn's `compute_class_weight("balanced")`: `rows / (labels · rows of the label)` over the labels that occur. The
/// others have weight 0; a site has nothing to say of them, not even by label smoothing.
fn balanced(counts: &[usize]) -> Vec<f64> {
    let rows: usize = counts.iter().sum();
    let present = counts.iter().filter(|count| **count > 0).count();
    let weight = |count: usize| if count == 0 { 0.0 } else { rows as f64 / (present * count) as f64 };
    counts.iter().copied().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Row, Target};

    fn rows() -> Rows {
        [0, 0, 0, 2].into_iter().map(|label| Row { target: Target::Class(label), ..Row::default() }).collect()
    }

    #[test]
    fn the_logit_offset_is_the_log_share_of_each_label_against_the_share_aimed_at() {
        let offset = |logit_adjustment, label_shares: &[f64]| {
            let label_shares = label_shares.into();
            loss(&rows(), 3, &Training { logit_adjustment, label_shares, ..Training::default() }).offset
        };
        assert!(offset(0.0, &[]).is_empty());
        let own = [4.0_f32 / 7.0, 1.0 / 7.0, 2.0 / 7.0];
        let plain = own.map(|share| 0.5 * share.ln());
        // Counts do as well as shares.
        let aimed = [own[0] / 0.5, own[1] / 0.25, own[2] / 0.25].map(f32::ln);
        for (offset, expected) in [(offset(0.5, &[]), plain), (offset(1.0, &[6.0, 3.0, 3.0]), aimed)] {
            for (found, expected) in offset.into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
        }
    }

    #[test]
    fn balanced_weights_make_the_labels_of_a_site_count_alike() {
        let weights = |class_weights| {
            let training = Training { class_weights: Some(class_weights), ..Training::default() };
            loss(&rows(), 3, &training).class_weights
        };
        let balanced = weights(ClassWeights::Balanced);
        // compute_class_weight("balanced", classes=[0, 2], y=[0, 0, 0, 2])
        assert_eq!(balanced, [4.0 / 6.0, 0.0, 2.0]);
        assert_eq!(weights(ClassWeights::List(vec![1.0, 2.0, 3.0])), [1.0, 2.0, 3.0]);
        assert_eq!(loss(&rows(), 3, &Training::default()), Loss::default());
    }
}
