//! Scoring rows.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};
use std::time::Instant;

use super::error::FinetuneError;
use super::metrics::Evaluation;
use super::progress::{Observer, Progress};
use super::scores::Scores;
use crate::data::Rows;
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
    let mut all = Vec::with_capacity(texts.len());
    let batch = |places: Range<usize>| Ok(texts[places].iter().copied().map(Cow::Borrowed).collect());
    each_batch(classifier, texts.len(), batch_size, batch, observer, |_, logits| all.extend(logits))?;
    Ok(all)
}

/// Scores labelled rows.
///
/// # Errors
/// No rows, rows that cannot be read again, cancellation, or a failure of the device.
pub fn evaluate(
    classifier: &Classifier,
    rows: &Rows,
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<Evaluation, FinetuneError> {
    let mut evaluation = Evaluation::new(classifier.labels().len());
    each_row(classifier, rows, batch_size, observer, |label, logits| evaluation.add(&logits, label))?;
    Ok(evaluation)
}

/// Scores labelled rows, and tells what the probabilities are worth.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_scores(
    classifier: &Classifier,
    rows: &Rows,
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<(Evaluation, Scores), FinetuneError> {
    let (evaluation, scores, _) = evaluate_logits(classifier, rows, batch_size, observer)?;
    Ok((evaluation, scores))
}

/// As [`evaluate_scores`], with the logits of every row.
pub(super) fn evaluate_logits(
    classifier: &Classifier,
    rows: &Rows,
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<(Evaluation, Scores, Vec<Vec<f32>>), FinetuneError> {
    let mut evaluation = Evaluation::new(classifier.labels().len());
    let mut all = Vec::with_capacity(rows.len());
    each_row(classifier, rows, batch_size, observer, |label, logits| {
        evaluation.add(&logits, label);
        all.push(logits);
    })?;
    let scores = Scores::of(&all, &rows.labels().collect::<Vec<_>>());
    Ok((evaluation, scores, all))
}

/// Calls `found` with the label and the logits of each row in order.
fn each_row(
    classifier: &Classifier,
    rows: &Rows,
    batch_size: usize,
    observer: &mut dyn Observer,
    mut found: impl FnMut(usize, Vec<f32>),
) -> Result<(), FinetuneError> {
    if rows.is_empty() {
        return Err(FinetuneError::NoRows { purpose: "evaluate on" });
    }
    let batch = |places| Ok(rows.texts(places)?);
    each_batch(classifier, rows.len(), batch_size, batch, observer, |places, logits| {
        places.zip(logits).for_each(|(row, logits)| found(rows.label(row), logits));
    })
}

/// Calls `found` with the logits of the texts of each batch of `count`, which `texts` gives.
fn each_batch<'a>(
    classifier: &Classifier,
    count: usize,
    batch_size: usize,
    texts: impl Fn(Range<usize>) -> Result<Vec<Cow<'a, str>>, FinetuneError>,
    observer: &mut dyn Observer,
    mut found: impl FnMut(Range<usize>, Vec<Vec<f32>>),
) -> Result<(), FinetuneError> {
    let batch_size = batch_size.max(1);
    let started = Instant::now();
    let network = classifier.network();
    for (step, start) in (0..count).step_by(batch_size).enumerate() {
        let places = start..(start + batch_size).min(count);
        let texts = texts(places.clone())?;
        let tokens = classifier.tokenize(&texts.iter().map(AsRef::as_ref).collect::<Vec<&str>>())?;
        let batch = network.batch(&tokens.iter().collect::<Vec<_>>());
        let done = places.end;
        found(places, network.logits(&batch)?.to_vec2::<f32>()?);
        let progress = Progress {
            step: step + 1,
            steps: count.div_ceil(batch_size),
            loss: f64::NAN,
            examples_per_second: done as f64 / started.elapsed().as_secs_f64().max(1e-9),
            learning_rate: 0.0,
        };
        if let ControlFlow::Break(()) = observer.step(progress) {
            return Err(FinetuneError::Cancelled { step: step + 1 });
        }
    }
    Ok(())
}
