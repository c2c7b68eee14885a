//! Scoring rows.

use std::ops::ControlFlow;
use std::time::Instant;

use super::error::FinetuneError;
use super::metrics::Evaluation;
use super::progress::{Observer, Progress};
use super::scores::Scores;
use crate::data::Row;
use crate::model::Classifier;

/// Logits of each text, `labels` values each, in evaluation mode and in order.
///
/// # Errors
/// Cancellation, or a failure of the device.
pub fn logits(
    classifier: &Classifier,
    texts: &[&str],
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<Vec<f32>>, FinetuneError> {
    let batch_size = batch_size.max(1);
    let started = Instant::now();
    let steps = texts.len().div_ceil(batch_size);
    let network = classifier.network();
    let mut all = Vec::with_capacity(texts.len());
    for (step, texts) in texts.chunks(batch_size).enumerate() {
        let tokens = classifier.tokenize(texts)?;
        let batch = network.batch(&tokens.iter().collect::<Vec<_>>());
        all.extend(network.logits(&batch)?.to_vec2::<f32>()?);
        let progress = Progress {
            step: step + 1,
            steps,
            loss: f64::NAN,
            examples_per_second: all.len() as f64 / started.elapsed().as_secs_f64().max(1e-9),
            learning_rate: 0.0,
        };
        if let ControlFlow::Break(()) = observer.step(progress) {
            return Err(FinetuneError::Cancelled { step: step + 1 });
        }
    }
    Ok(all)
}

/// Scores labelled rows.
///
/// # Errors
/// No rows, cancellation, or a failure of the device.
pub fn evaluate(
    classifier: &Classifier,
    rows: &[Row],
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<Evaluation, FinetuneError> {
    Ok(counted(classifier, rows, batch_size, observer)?.0)
}

/// Scores labelled rows, and tells what the probabilities are worth.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_scores(
    classifier: &Classifier,
    rows: &[Row],
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<(Evaluation, Scores), FinetuneError> {
    let (evaluation, logits) = counted(classifier, rows, batch_size, observer)?;
    let truth: Vec<usize> = rows.iter().map(|row| row.label).collect();
    Ok((evaluation, Scores::of(&logits, &truth)))
}

fn counted(
    classifier: &Classifier,
    rows: &[Row],
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<(Evaluation, Vec<Vec<f32>>), FinetuneError> {
    if rows.is_empty() {
        return Err(FinetuneError::NoRows { purpose: "evaluate on" });
    }
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let mut evaluation = Evaluation::new(classifier.labels().len());
    let logits = logits(classifier, &texts, batch_size, observer)?;
    logits.iter().zip(rows).for_each(|(logits, row)| evaluation.add(logits, row.label));
    Ok((evaluation, logits))
}
