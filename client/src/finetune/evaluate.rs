//! Scoring rows.

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use candle_core::{Device, Tensor};

use super::encode::{prepare, targets};
use super::error::FinetuneError;
use super::metrics::{self, Evaluation, Form, Probabilities, predicted};
use super::progress::{Observer, Progress};
use super::scores::Scores;
use crate::data::{Content, Rows, Target, TargetRef};
use crate::model::network::{Input, Network};
use crate::model::ops::read_values;
use crate::model::{Classifier, Objective, Response, Targets};

/// What a model says of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Prediction {
    /// Its outputs: a logit for each label, or the number.
    Outputs(Vec<f32>),
    /// The label of each word; `None` for words that are cut off.
    Tags(Vec<Option<usize>>),
    /// The response to a prompt.
    Response(Response),
}

/// The responses to prompts, which are contents of one text, of at most `most` tokens each; in order.
///
/// # Errors
/// The model does not continue texts, contents of another kind; cancellation, or a failure of the device.
pub fn respond(
    classifier: &Classifier,
    contents: &[Content],
    most: usize,
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<Prediction>, FinetuneError> {
    let prompt = |content: &'_ Content| match content {
        Content::Text(prompt) => Ok(prompt.clone()),
        _ => Err(FinetuneError::OtherTargets),
    };
    let prompts = contents.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
    let mut all = Vec::with_capacity(prompts.len());
    each_batch(prompts.len(), batch_size, observer, |places| {
        let prompts: Vec<&str> = prompts[places].iter().map(String::as_str).collect();
        all.extend(classifier.respond(&prompts, most)?.into_iter().map(Prediction::Response));
        Ok(())
    })?;
    Ok(all)
}

/// What the model says of each content, in evaluation mode and in order.
///
/// # Errors
/// The model continues texts, see [`respond`]; cancellation, or a failure of the device.
pub fn predict(
    classifier: &Classifier,
    contents: &[Content],
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<Prediction>, FinetuneError> {
    let objective = classifier.network().objective();
    if objective == Objective::NextToken {
        return Err(FinetuneError::OtherTargets);
    }
    let mut all = Vec::with_capacity(contents.len());
    each_batch(contents.len(), batch_size, observer, |places| {
        let prepared = prepare(classifier, &contents[places.clone()], None)?;
        let (network, encoded) = (classifier.network(), prepared.texts());
        let input = prepared.input(network, 0..places.len())?;
        if objective != Objective::Tokens {
            all.extend(classifier.outputs(&input)?.into_iter().map(Prediction::Outputs));
            return Ok(());
        }
        // Any label does to find the words that are not cut off.
        let any = encoded.iter().map(|encoded| encoded.marks.iter().map(|mark| mark.map(|_| 0)).collect());
        let outputs = counted(network, &input, &any.collect::<Vec<_>>())?;
        let mut outputs = outputs.chunks_exact(network.outputs().max(1));
        for (content, encoded) in contents[places].iter().zip(encoded) {
            let words = if let Content::Words(words) = content { words.len() } else { 0 };
            let mut tags = vec![None; words];
            for word in encoded.marks.iter().flatten() {
                if let (Some(tag), Some(logits)) = (tags.get_mut(*word as usize), outputs.next()) {
                    *tag = Some(predicted(logits));
                }
            }
            all.push(Prediction::Tags(tags));
        }
        Ok(())
    })?;
    Ok(all)
}

/// Scores rows.
///
/// # Errors
/// No rows, rows that cannot be read again or are of another task, cancellation, or a failure of the device.
pub fn evaluate(
    classifier: &Classifier,
    rows: &Rows,
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<Evaluation, FinetuneError> {
    run(Evaluation::new(metrics::form(classifier)), classifier, rows, batch_size, observer, |_| {})
}

/// Scores rows for an aggregator, with sums of what [`evaluate_scores`] finds of classes by every row's outputs.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_sums(
    classifier: &Classifier,
    rows: &Rows,
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<Evaluation, FinetuneError> {
    let form = metrics::form(classifier);
    let mut none = Evaluation::new(form);
    if let Form::Classes(labels) = form {
        none.probabilities = Some(Probabilities::new(labels));
    }
    run(none, classifier, rows, batch_size, observer, |_| {})
}

/// Scores rows, and tells what needs every row's outputs.
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

/// As [`evaluate_scores`], with the outputs of every row; none where words or tokens are predicted.
pub(super) fn evaluate_logits(
    classifier: &Classifier,
    rows: &Rows,
    batch_size: usize,
    observer: &mut dyn Observer,
) -> Result<(Evaluation, Scores, Vec<Vec<f32>>), FinetuneError> {
    let mut all = Vec::new();
    let none = Evaluation::new(metrics::form(classifier));
    let evaluation = run(none, classifier, rows, batch_size, observer, |logits| all.push(logits))?;
    let truth: Vec<Target> = rows.targets().take(all.len()).map(TargetRef::to_owned).collect();
    let scores = Scores::of(metrics::form(classifier), &all, &truth);
    Ok((evaluation, scores, all))
}

/// Adds rows to an evaluation.
fn run(
    mut evaluation: Evaluation,
    classifier: &Classifier,
    rows: &Rows,
    batch_size: usize,
    observer: &mut dyn Observer,
    mut found: impl FnMut(Vec<f32>),
) -> Result<Evaluation, FinetuneError> {
    if rows.is_empty() {
        return Err(FinetuneError::NoRows { purpose: "evaluate on" });
    }
    let network = classifier.network();
    let (objective, outputs) = (network.objective(), network.outputs().max(1));
    each_batch(rows.len(), batch_size, observer, |places| {
        let prepared = prepare(classifier, &rows.contents(places.clone())?, None)?;
        let targets = targets(classifier, &prepared, places.clone().map(|row| rows.target(row)))?;
        let input = prepared.input(network, 0..places.len())?;
        let Targets::Tokens(tokens) = targets else {
            for (row, logits) in places.zip(classifier.outputs(&input)?) {
                metrics::add(&mut evaluation, &logits, rows.target(row));
                found(logits);
            }
            return Ok(());
        };
        let Input::Text(batch) = &input else { return Err(FinetuneError::OtherTargets) };
        if objective == Objective::NextToken {
            let counts = tokens.iter().any(|row| row.iter().skip(1).any(Option::is_some));
            let foreseen = if counts { network.foreseen(batch, &tokens)? } else { Vec::new() };
            metrics::add_foreseen(&mut evaluation, tokens.len(), &foreseen);
            return Ok(());
        }
        let logits = counted(network, &input, &tokens)?;
        let mut logits = logits.chunks_exact(outputs);
        for row in &tokens {
            let counted = row.iter().flatten().map(|label| *label as usize).zip(logits.by_ref());
            metrics::add_words(&mut evaluation, classifier.labels(), counted);
        }
        Ok(())
    })?;
    Ok(evaluation)
}

/// The outputs for the tokens that count, one after another.
fn counted(network: &Network, input: &Input, targets: &[Vec<Option<u32>>]) -> Result<Vec<f32>, FinetuneError> {
    let Input::Text(batch) = input else { return Err(FinetuneError::OtherTargets) };
    if targets.iter().flatten().all(Option::is_none) {
        return Ok(Vec::new());
    }
    let (rows, _) = batch.counted(targets, false)?;
    let logits: Tensor = network.logits_of(input, rows)?.to_device(&Device::Cpu)?.contiguous()?;
    Ok(read_values(&logits, |values| Ok(values.to_vec()))?)
}

/// Calls `compute` with the places of each batch of `count` rows.
fn each_batch(
    count: usize,
    batch_size: usize,
    observer: &mut dyn Observer,
    mut compute: impl FnMut(Range<usize>) -> Result<(), FinetuneError>,
) -> Result<(), FinetuneError> {
    let batch_size = batch_size.max(1);
    let started = Instant::now();
    for (step, start) in (0..count).step_by(batch_size).enumerate() {
        let places = start..(start + batch_size).min(count);
        let done = places.end;
        compute(places)?;
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
