//! The training loop.

use std::ops::ControlFlow;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use candle_core::{Tensor, Var};
use fedtune_config::job::Training;

use super::ahead::{AHEAD, Batch, send_batches};
use super::checkpoint::{Checkpoints, Position};
use super::early_stopping::{EarlyStopping, EpochScores};
use super::encode::Prepared;
use super::error::FinetuneError;
use super::gradients::{self, gradient_norm};
use super::loss::loss;
use super::loss_scale::LossScale;
use super::optimizer::Optimizer;
use super::progress::{Observer, Progress};
use super::pull::Pulls;
use super::{augment, order, schedule};
use crate::data::Rows;
use crate::model::network::Pass;
use crate::model::{Classifier, DropoutStream, Encoded, Loss, Role, Targets};

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
    /// How many of them an earlier run had done, from whose checkpoint this one went on.
    pub resumed_steps: usize,
    /// Distinct rows trained on.
    pub examples: u64,
    /// Mean loss over the steps, without the terms of `proximal` and `l2_sp`.
    pub train_loss: f64,
    /// Wall time of this run.
    pub seconds: f64,
    /// Rows trained on a second, each time a row is used.
    pub rows_per_second: f64,
    /// How the epochs did on validation rows; `None` without early stopping.
    pub validation: Option<EpochScores>,
}

/// Trains in place. The optimiser starts fresh; the same arguments give the same bits on the processor.
///
/// # Errors
/// No rows, rows that cannot be read again, divergence, cancellation, or a failure of the device. After an error the model
/// is somewhere between start and end.
pub fn fit(
    classifier: &mut Classifier,
    rows: &Rows,
    training: &Training,
    plan: Plan,
    observer: &mut dyn Observer,
) -> Result<FitReport, FinetuneError> {
    classifier.set_recompute(training.recompute)?;
    run(classifier, rows, training, plan, Extras::default(), observer)
}

/// As [`fit`] or [`fit_best`], but writes checkpoints, and goes on from the one that is there. The bits are those of a run that nothing
/// disturbed. The classifier is as it was when that run began.
///
/// # Errors
/// As [`fit`]; also when the checkpoint is damaged, or of another run, or cannot be written.
pub fn fit_saved(
    classifier: &mut Classifier,
    rows: &Rows,
    training: &Training,
    plan: Plan,
    stopping: Option<EarlyStopping<'_>>,
    checkpoints: &Checkpoints,
    observer: &mut dyn Observer,
) -> Result<FitReport, FinetuneError> {
    classifier.set_recompute(training.recompute)?;
    let extras = Extras { stopping, checkpoints: Some(checkpoints) };
    run(classifier, rows, training, plan, extras, observer)
}

/// As [`fit`], but scores the model after every epoch, ends when it has not become better for some time, and leaves it as
/// it was when it was best.
///
/// # Errors
/// As [`fit`]; also when there is no row to validate on.
pub fn fit_best(
    classifier: &mut Classifier,
    rows: &Rows,
    training: &Training,
    plan: Plan,
    stopping: EarlyStopping<'_>,
    observer: &mut dyn Observer,
) -> Result<FitReport, FinetuneError> {
    classifier.set_recompute(training.recompute)?;
    run(classifier, rows, training, plan, Extras { stopping: Some(stopping), ..Extras::default() }, observer)
}

/// What a run may do between its steps.
#[derive(Default)]
struct Extras<'a> {
    stopping: Option<EarlyStopping<'a>>,
    checkpoints: Option<&'a Checkpoints>,
}

fn run(
    classifier: &Classifier,
    rows: &Rows,
    training: &Training,
    plan: Plan,
    Extras { mut stopping, checkpoints }: Extras<'_>,
    observer: &mut dyn Observer,
) -> Result<FitReport, FinetuneError> {
    if rows.is_empty() {
        return Err(FinetuneError::NoRows { purpose: "train on" });
    }
    let started = Instant::now();
    let mut trainer = Trainer::new(classifier, rows, training, plan)?;
    // Behind the making of the trainer, whose anchors are where the run began.
    let done = match checkpoints {
        Some(checkpoints) => checkpoints.resume(classifier, &mut trainer.optimizer, stopping.as_mut(), plan.steps)?,
        None => Position::default(),
    };
    let (Position { mut steps, mut loss_sum, scale }, mut used) = (done, 0usize);
    if let Some(scale) = scale {
        trainer.scale = scale;
    }
    // A row that is repeated to weigh more is still one example.
    let mut seen = vec![false; rows.origins()];
    order::each_step(rows, training, plan.round, |step, batch, _| {
        if step >= done.steps {
            return ControlFlow::Break(());
        }
        batch.iter().for_each(|row| seen[rows.origin(*row as usize)] = true);
        ControlFlow::Continue(())
    });
    // A run that had ended, and whose model was not saved, has nothing left to do.
    let steps_left = if stopping.as_ref().is_some_and(EarlyStopping::over) { done.steps } else { plan.steps };
    let remaining = Plan { steps: steps_left, ..plan };
    thread::scope(|scope| {
        let (out, batches) = sync_channel(AHEAD);
        scope.spawn(move || send_batches(classifier, rows, training, remaining, done.steps, &out));
        for batch in batches {
            let batch = batch?;
            let (loss, learning_rate) = trainer.step(steps, &batch)?;
            steps += 1;
            loss_sum += loss;
            used += batch.rows.len();
            batch.rows.iter().for_each(|row| seen[rows.origin(*row as usize)] = true);
            let over = match &mut stopping {
                Some(stopping) if batch.ends_epoch => stopping.epoch_done(classifier)?.is_break(),
                _ => false,
            };
            if let Some(checkpoints) = checkpoints
                && checkpoints.due(steps)
            {
                let position = Position { steps, loss_sum, scale: Some(trainer.scale) };
                // Without one the training ends as well as with it, if nothing interrupts it.
                if let Err(e) = checkpoints.save(classifier, &trainer.optimizer, stopping.as_ref(), position) {
                    tracing::warn!(step = steps, "no checkpoint: {e}");
                }
            }
            let progress = Progress {
                step: steps,
                steps: plan.steps,
                loss,
                examples_per_second: used as f64 / started.elapsed().as_secs_f64().max(1e-9),
                learning_rate,
            };
            if let ControlFlow::Break(()) = observer.step(progress) {
                return Err(FinetuneError::Cancelled { step: steps });
            }
            if over {
                break;
            }
        }
        Ok(())
    })?;
    let validation = match stopping {
        Some(stopping) => stopping.restore_best(classifier)?,
        None => None,
    };
    let seconds = started.elapsed().as_secs_f64();
    Ok(FitReport {
        steps,
        resumed_steps: done.steps,
        examples: seen.into_iter().filter(|seen| *seen).count() as u64,
        train_loss: if steps == 0 { 0.0 } else { loss_sum / steps as f64 },
        seconds,
        rows_per_second: used as f64 / seconds.max(1e-9),
        validation,
    })
}

/// What the steps of one run share.
struct Trainer<'a> {
    classifier: &'a Classifier,
    training: &'a Training,
    plan: Plan,
    loss: Loss,
    pulls: Pulls,
    optimizer: Optimizer,
    scale: LossScale,
}

impl<'a> Trainer<'a> {
    fn new(
        classifier: &'a Classifier,
        rows: &'a Rows,
        training: &'a Training,
        plan: Plan,
    ) -> Result<Self, FinetuneError> {
        let mut parameters = classifier.network().parameters().values();
        if training.probe > 0.0 && !parameters.any(|parameter| parameter.learns() && parameter.moves(true)) {
            return Err(FinetuneError::NothingToProbe { trainable: training.trainable.to_string() });
        }
        Ok(Self {
            classifier,
            training,
            plan,
            loss: loss(rows, classifier.labels().len(), training),
            pulls: Pulls::new(training, classifier)?,
            optimizer: Optimizer::new(training),
            scale: LossScale::new(training.precision),
        })
    }

    /// Trains on the rows of a batch. Gives their loss and the learning rate.
    fn step(&mut self, step: usize, batch: &Batch) -> Result<(f64, f64), FinetuneError> {
        let (global, total) = (self.plan.first_step + step, self.plan.total_steps);
        let learning_rate = schedule::learning_rate(self.training, global, total);
        let probing = schedule::probing(self.training, global, total);
        let precision = self.training.precision;
        let diverged = |what, value| FinetuneError::Diverged { what, value, step, learning_rate, precision };
        let parameters = self.classifier.network().parameters();
        let statistics = match self.scale.can_fall() {
            true => self.statistics()?,
            false => Vec::new(),
        };
        let (mut pass, mut norm) = loop {
            let pass = self.pass(step, batch, probing)?;
            if pass.gradients.is_empty() {
                // No token of the batch counts.
                return Ok((0.0, learning_rate));
            }
            if !pass.loss.is_finite() {
                return Err(diverged("the loss", pass.loss));
            }
            let norm = gradient_norm(&pass.gradients)?;
            if norm.is_finite() {
                break (pass, norm);
            }
            // The rows are not lost: they are passed again, and count once in running statistics.
            if !self.scale.lower() {
                return Err(diverged("the gradient's norm", norm));
            }
            for (var, values) in &statistics {
                var.set(values)?;
            }
        };
        let factor = self.scale.factor();
        self.scale.held();
        if factor != 1.0 {
            gradients::divide(&mut pass.gradients, factor)?;
            norm /= factor;
        }
        if self.pulls.add(parameters, &mut pass.gradients, probing)? {
            norm = gradient_norm(&pass.gradients)?;
        }
        if !norm.is_finite() {
            return Err(diverged("the gradient's norm", norm));
        }
        // torch.nn.utils.clip_grad_norm_
        let limit = self.training.clip_norm;
        let clip = if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.optimizer.step(parameters, &pass.gradients, learning_rate, clip)?;
        Ok((pass.loss, learning_rate))
    }

    /// What batches change beside gradients, with copies of it as it is.
    fn statistics(&self) -> Result<Vec<(&'a Var, Tensor)>, FinetuneError> {
        let parameters = self.classifier.network().parameters().values();
        let statistics = parameters.filter(|parameter| parameter.role == Role::Statistic);
        statistics.map(|parameter| Ok((&parameter.var, parameter.var.as_detached_tensor().copy()?))).collect()
    }

    /// Loss and gradients of a batch, part by part.
    fn pass(&self, step: usize, batch: &Batch, probing: bool) -> Result<Pass, FinetuneError> {
        let network = self.classifier.network();
        let weigh = |targets: &Targets| targets.weight(network.objective(), &self.loss, network.outputs());
        let (targets, weight) = (&batch.targets, weigh(&batch.targets));
        let factor = self.scale.factor();
        let loss = Loss { divisor: Some(weight / factor), ..self.loss.clone() };
        let mut whole = Pass { loss: 0.0, gradients: Default::default(), statistics: Default::default() };
        for (part, place) in order::parts(batch.rows.len(), self.training).enumerate() {
            let targets = targets.part(place.clone());
            // Where tokens count, long prompts can leave none of a part.
            if weigh(&targets) == 0.0 {
                continue;
            }
            let input = match &batch.prepared {
                Prepared::Texts(encoded) => {
                    let rows = batch.rows[place.clone()].iter().zip(&encoded[place]);
                    let thin = |(row, encoded): (&u32, &'_ Encoded)| {
                        let round = self.plan.round;
                        augment::drop_tokens(&encoded.tokens, self.training, round, step as u64, u64::from(*row))
                            .into_owned()
                    };
                    let thinned: Vec<_> = rows.map(thin).collect();
                    network.batch(&thinned.iter().collect::<Vec<_>>())
                }
                images => images.input(network, place)?,
            };
            let dropout = DropoutStream {
                probability: self.classifier.dropout(),
                seed: self.training.seed,
                round: self.plan.round,
                step: (step * self.training.accumulate.max(1) + part) as u64,
            };
            let pass = network.gradients_while(probing, &input, &targets, &loss, Some(dropout))?;
            network.track(&pass)?;
            whole.loss += pass.loss / factor;
            if whole.gradients.is_empty() {
                whole.gradients = pass.gradients;
            } else {
                gradients::add(&mut whole.gradients, pass.gradients)?;
            }
        }
        Ok(whole)
    }
}
