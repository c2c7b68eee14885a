//! The training loop.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::Instant;

use fedtune_config::job::{Optimizer, Training};

use super::adamw::{AdamW, gradient_norm};
use super::error::FinetuneError;
use super::progress::{Observer, Progress};
use super::{augment, order, schedule};
use crate::data::Row;
use crate::model::{Classifier, DropoutStream};

/// Which part of a job's steps to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Global number of the first step; places it in the schedule.
    pub first_step: usize,
    /// Steps to do.
    pub steps: usize,
    /// Steps of the whole job.
    pub total_steps: usize,
    /// Round, counted from 1; with the seed it decides shuffling and dropout.
    pub round: u32,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FitReport {
    /// Optimiser steps.
    pub steps: usize,
    /// Distinct rows trained on.
    pub examples: u64,
    /// Mean loss over the steps.
    pub train_loss: f64,
    /// Wall time, tokenising included.
    pub seconds: f64,
    /// Rows trained on a second, each time a row is used.
    pub rows_per_second: f64,
}

/// Trains in place. The optimiser starts fresh; the same arguments give the same bits on the processor.
///
/// # Errors
/// No rows, divergence, cancellation, or a failure of the device. After an error the model is somewhere between start
/// and end.
pub fn fit(
    classifier: &mut Classifier,
    rows: &[Row],
    training: &Training,
    plan: Plan,
    observer: &mut dyn Observer,
) -> Result<FitReport, FinetuneError> {
    if rows.is_empty() {
        return Err(FinetuneError::NoRows { purpose: "train on" });
    }
    let started = Instant::now();
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let tokens = classifier.tokenize(&texts)?;
    let network = classifier.network();
    let offset = logit_offset(rows, classifier.labels().len(), training);
    let mut optimizer = match training.optimizer {
        Optimizer::Adamw => AdamW::new(training.weight_decay),
    };
    let (mut loss_sum, mut used) = (0.0, 0usize);
    // A row that is repeated to weigh more is still one example.
    let mut examples = HashSet::new();
    let (mut epoch, mut remaining) = (0, Vec::new());
    for step in 0..plan.steps {
        if remaining.is_empty() {
            remaining = order::shuffled(rows.len(), training.seed, plan.round, epoch);
            // Batches are taken from the end.
            remaining.reverse();
            epoch += 1;
        }
        let chosen = remaining.split_off(remaining.len().saturating_sub(training.batch_size.max(1)));
        let thinned: Vec<_> = chosen
            .iter()
            .rev()
            .map(|row| augment::drop_tokens(&tokens[*row], training, plan.round, step as u64, *row as u64))
            .collect();
        let sequences: Vec<_> = thinned.iter().map(AsRef::as_ref).collect();
        let labels: Vec<u32> = chosen.iter().rev().map(|row| rows[*row].label as u32).collect();
        let dropout = DropoutStream {
            probability: classifier.dropout(),
            seed: training.seed,
            round: plan.round,
            step: step as u64,
        };
        let pass = network.gradients(&network.batch(&sequences), &labels, &offset, Some(dropout))?;
        let learning_rate = schedule::learning_rate(training, plan.first_step + step, plan.total_steps);
        let diverged = |what, value| FinetuneError::Diverged { what, value, step, learning_rate };
        if !pass.loss.is_finite() {
            return Err(diverged("the loss", pass.loss));
        }
        let norm = gradient_norm(&pass.gradients)?;
        if !norm.is_finite() {
            return Err(diverged("the gradient's norm", norm));
        }
        // torch.nn.utils.clip_grad_norm_
        let clip = if training.clip_norm > 0.0 { (training.clip_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        optimizer.step(network.parameters(), &pass.gradients, learning_rate, clip)?;
        loss_sum += pass.loss;
        used += labels.len();
        examples.extend(chosen.iter().map(|row| (rows[*row].line, rows[*row].text.as_str())));
        let progress = Progress {
            step: step + 1,
            steps: plan.steps,
            loss: pass.loss,
            examples_per_second: used as f64 / started.elapsed().as_secs_f64().max(1e-9),
            learning_rate,
        };
        if let ControlFlow::Break(()) = observer.step(progress) {
            return Err(FinetuneError::Cancelled { step: step + 1 });
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(FitReport {
        steps: plan.steps,
        examples: examples.len() as u64,
        train_loss: if plan.steps == 0 { 0.0 } else { loss_sum / plan.steps as f64 },
        seconds,
        rows_per_second: used as f64 / seconds.max(1e-9),
    })
}

/// Logit adjustment (Menon et al. 2021, 2007.07314, eq. 10): `τ·log(π_c / ρ_c)` for each label. π are the shares of the
/// labels in these rows, one row added to each so that an absent label has a share; ρ are the shares that the model is for,
/// `label_shares`, or 1 for each label where there are none. Empty for τ = 0.
fn logit_offset(rows: &[Row], labels: usize, training: &Training) -> Vec<f32> {
    let strength = training.logit_adjustment;
    if strength == 0.0 {
        return Vec::new();
    }
    let mut counts = vec![1.0; labels];
    rows.iter().for_each(|row| counts[row.label] += 1.0);
    let total: f64 = counts.iter().sum();
    let aim_total: f64 = training.label_shares.iter().sum();
    let aim = |label: usize| training.label_shares.get(label).map_or(1.0, |share| share / aim_total);
    counts.iter().enumerate().map(|(i, count)| (strength * (count / total / aim(i)).ln()) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logit_offset_is_the_log_share_of_each_label_against_the_share_aimed_at() {
        let rows: Vec<Row> = [0, 0, 0, 2].map(|label| Row { label, ..Row::default() }).into();
        let training = |logit_adjustment, label_shares: &[f64]| Training {
            logit_adjustment,
            label_shares: label_shares.into(),
            ..Training::default()
        };
        assert!(logit_offset(&rows, 3, &training(0.0, &[])).is_empty());
        let own = [4.0_f32 / 7.0, 1.0 / 7.0, 2.0 / 7.0];
        let plain = own.map(|share| 0.5 * share.ln());
        // Counts do as well as shares.
        let aimed = [own[0] / 0.5, own[1] / 0.25, own[2] / 0.25].map(f32::ln);
        for (training, expected) in [(training(0.5, &[]), plain), (training(1.0, &[6.0, 3.0, 3.0]), aimed)] {
            for (found, expected) in logit_offset(&rows, 3, &training).into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
        }
    }
}
