//! Cross-validation: every row is scored by a model that was not trained on it.

use std::path::Path;

use candle_core::Device;
use fedtune_config::Job;

use super::error::FinetuneError;
use super::evaluate::evaluate_logits;
use super::fit::{FitReport, Plan, fit};
use super::metrics::Evaluation;
use super::progress::Observer;
use super::scores::Scores;
use crate::data::split::folds;
use crate::data::{Rows, Sampling};
use crate::model::{Classifier, ModelSpec};

/// What one fold gave.
#[derive(Debug, Clone, PartialEq)]
pub struct FoldReport {
    /// Training on the other folds.
    pub fit: FitReport,
    /// Counts over this fold.
    pub evaluation: Evaluation,
    /// What needs every row's outputs, over this fold.
    pub scores: Scores,
}

/// What all folds gave.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossValidation {
    /// The folds in order.
    pub folds: Vec<FoldReport>,
    /// The outputs for every row by the model that was not trained on it, in the order of the rows; empty ones where words
    /// or tokens are predicted.
    pub logits: Vec<Vec<f32>>,
}

/// Fine-tunes the model in the folder `model` once for each of `count` folds on the others, with the whole budget of the
/// job, and scores the fold. Only what is trained on is sampled. Folds are stratified, and equal texts and groups stay together (see
/// [`crate::data::split::parts`]). `observer` makes a watcher for a stage, which it is told the name of.
///
/// # Errors
/// The rows cannot be put into so many folds, the model cannot be loaded, or training fails.
pub fn cross_validate<O: Observer>(
    model: &Path,
    job: &Job,
    device: &Device,
    rows: &Rows,
    count: usize,
    sampling: Sampling,
    observer: impl Fn(&'static str) -> O,
) -> Result<CrossValidation, FinetuneError> {
    let training = &job.training;
    let fold_of = folds(rows, count, training.seed);
    if let Some(empty) = (0..count).find(|fold| !fold_of.contains(fold)) {
        return Err(FinetuneError::TooFewForFolds { found: empty, folds: count });
    }
    let mut all = vec![Vec::new(); rows.len()];
    let mut reports = Vec::with_capacity(count);
    for fold in 0..count {
        let (held, others): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(|row| fold_of[*row] == fold);
        let others = sampling.apply(rows.select(others), training.seed)?;
        let mut classifier = Classifier::load(model, &ModelSpec::from(job), device)?;
        let steps = training.steps_per_round(others.len()).saturating_mul(job.rounds.count as usize);
        let plan = Plan { first_step: 0, steps, total_steps: steps, round: 1 };
        let fit = fit(&mut classifier, &others, training, plan, &mut observer("training"))?;
        let fold = rows.select(held.iter().copied());
        let (evaluation, scores, found) =
            evaluate_logits(&classifier, &fold, training.batch_size, &mut observer("evaluating"))?;
        reports.push(FoldReport { fit, evaluation, scores });
        // Words and tokens have outputs of their own, of which none are kept.
        for (row, logits) in held.into_iter().zip(found) {
            all[row] = logits;
        }
    }
    Ok(CrossValidation { folds: reports, logits: all })
}

/// Mean and standard deviation (of the sample, n − 1) of a measure over folds; `None` where a fold has none.
pub fn spread(values: &[Option<f64>]) -> Option<(f64, f64)> {
    let values: Vec<f64> = values.iter().copied().collect::<Option<_>>()?;
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (!values.is_empty()).then(|| (mean, if count > 1.0 { (squares / (count - 1.0)).sqrt() } else { 0.0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_that_of_a_sample() {
        assert_eq!(spread(&[Some(1.0), Some(2.0), Some(3.0)]), Some((2.0, 1.0)));
        assert_eq!(spread(&[Some(1.0), None]), None);
        assert_eq!(spread(&[]), None);
    }
}
