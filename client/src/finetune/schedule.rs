//! The learning rate at each global step of a job, by the formulas of transformers' `get_*_schedule_with_warmup`.

use fedtune_config::job::{Schedule, Training};

/// The learning rate of a step (counted from 0) of `total` steps.
pub fn learning_rate(training: &Training, step: usize, total: usize) -> f64 {
    let warmup = (training.warmup * total as f64).ceil() as usize;
    training.learning_rate * factor(training.schedule, step, warmup, total)
}

/// Whether a step (counted from 0) of `total` steps is one of `training.probe`, in which the head alone is trained (Kumar et
/// al. 2022, 2202.10054).
pub fn probing(training: &Training, step: usize, total: usize) -> bool {
    step < (training.probe * total as f64).ceil() as usize
}

/// From 0 to 1: how much of the peak.
fn factor(schedule: Schedule, step: usize, warmup: usize, total: usize) -> f64 {
    if step < warmup {
        return step as f64 / warmup.max(1) as f64;
    }
    let left = total.saturating_sub(warmup).max(1) as f64;
    match schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => total.saturating_sub(step) as f64 / left,
        Schedule::Cosine => {
            let progress = ((step - warmup) as f64 / left).min(1.0);
            0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn training(schedule: Schedule, warmup: f64) -> Training {
        Training { schedule, warmup, learning_rate: 1.0, ..Training::default() }
    }

    #[test]
    fn values_agree_with_transformers() {
        // get_linear_schedule_with_warmup(optimizer, 2, 10) and its cosine sister.
        let linear = training(Schedule::Linear, 0.2);
        let cosine = training(Schedule::Cosine, 0.2);
        for (step, expected) in [(0, 0.0), (1, 0.5), (2, 1.0), (6, 0.5), (9, 0.125)] {
            assert!((learning_rate(&linear, step, 10) - expected).abs() < 1e-12, "linear at {step}");
        }
        for (step, expected) in [(1, 0.5), (2, 1.0), (4, 0.853_553_390_593), (6, 0.5), (9, 0.038_060_233_744)] {
            assert!((learning_rate(&cosine, step, 10) - expected).abs() < 1e-9, "cosine at {step}");
        }
        assert!((learning_rate(&training(Schedule::Constant, 0.2), 9, 10) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn probing_is_a_share_of_the_steps_of_all_rounds() {
        let found = |probe, total| {
            let training = Training { probe, ..Training::default() };
            (0..total).filter(|step| probing(&training, *step, total)).count()
        };
        assert_eq!([found(0.0, 10), found(0.2, 10), found(0.25, 10), found(0.9, 10)], [0, 2, 3, 9]);
    }

    proptest! {
        #[test]
        fn the_rate_stays_between_zero_and_the_peak(step in 0usize..2000, total in 1usize..1000, warmup in 0.0..=1.0f64) {
            for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
                let rate = learning_rate(&training(schedule, warmup), step, total);
                prop_assert!((0.0..=1.0).contains(&rate), "{schedule:?} {rate}");
            }
        }
    }
}
