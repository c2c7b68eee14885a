//! Ending when validation rows say that more epochs do not help.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::Tensor;
use fedtune_config::job::Metric;

use super::error::FinetuneError;
use super::evaluate::evaluate;
use super::metrics::Evaluation;
use super::progress::Silent;
use crate::data::Rows;
use crate::model::Classifier;

/// Scores every epoch and keeps the best one's weights.
#[derive(Debug)]
pub struct EarlyStopping<'a> {
    rows: &'a Rows,
    batch_size: usize,
    patience: usize,
    metric: Metric,
    min_delta: f64,
    epochs: Vec<Evaluation>,
    best: Option<Best>,
}

#[derive(Debug)]
struct Best {
    epoch: usize,
    score: f64,
    weights: BTreeMap<String, Tensor>,
}

/// How the epochs did on the validation rows.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct EpochScores {
    /// Each epoch's, in order.
    pub epochs: Vec<Evaluation>,
    /// The epoch whose weights were kept, counted from 1.
    pub best_epoch: usize,
}

impl EpochScores {
    /// The epoch whose weights were kept.
    pub fn best(&self) -> Option<&Evaluation> {
        self.best_epoch.checked_sub(1).and_then(|index| self.epochs.get(index))
    }
}

impl<'a> EarlyStopping<'a> {
    /// Ends after `patience` epochs without a better one, never for 0. `criteria` are what is compared and the least
    /// improvement.
    ///
    /// # Errors
    /// No rows.
    pub fn new(
        rows: &'a Rows,
        batch_size: usize,
        patience: usize,
        criteria: (Metric, f64),
    ) -> Result<Self, FinetuneError> {
        if rows.is_empty() {
            return Err(FinetuneError::NoRows { purpose: "validate on" });
        }
        let (metric, min_delta) = criteria;
        Ok(Self { rows, batch_size, patience, metric, min_delta, epochs: Vec::new(), best: None })
    }

    /// Scores the model; [`ControlFlow::Break`] when it is time to end.
    pub(super) fn epoch_done(&mut self, classifier: &Classifier) -> Result<ControlFlow<()>, FinetuneError> {
        let evaluation = evaluate(classifier, self.rows, self.batch_size, &mut Silent)?;
        let score = evaluation.measure(self.metric.name()).map_or(f64::NAN, |value| self.metric.score(value));
        // What is not a number is worse than any.
        let score = score.max(f64::NEG_INFINITY);
        self.epochs.push(evaluation);
        let epoch = self.epochs.len();
        if self.best.as_ref().is_none_or(|best| score > best.score + self.min_delta) {
            let trained = classifier.network().parameters().iter().filter(|(_, parameter)| parameter.trained);
            let weights = trained
                .map(|(name, parameter)| Ok((name.clone(), parameter.var.as_detached_tensor().copy()?)))
                .collect::<Result<_, candle_core::Error>>()?;
            self.best = Some(Best { epoch, score, weights });
        }
        let waited = self.best.as_ref().map_or(0, |best| epoch - best.epoch);
        Ok(if self.patience > 0 && waited >= self.patience {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    }

    /// Puts the best epoch's weights back; `None` when there was no epoch.
    pub(super) fn restore_best(self, classifier: &Classifier) -> Result<Option<EpochScores>, FinetuneError> {
        let Some(best) = self.best else { return Ok(None) };
        for (name, weights) in &best.weights {
            if let Some(parameter) = classifier.network().parameters().get(name) {
                parameter.var.set(weights)?;
            }
        }
        Ok(Some(EpochScores { epochs: self.epochs, best_epoch: best.epoch }))
    }
}
