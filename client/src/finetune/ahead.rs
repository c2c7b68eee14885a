//! Reading and preparing the next batches while one is computed.

use std::sync::mpsc::SyncSender;

use fedtune_config::job::Training;

use super::encode::{Changes, Prepared, prepare, targets};
use super::error::FinetuneError;
use super::fit::Plan;
use super::order::Batches;
use crate::data::Rows;
use crate::data::image::{Augmentation, Use};
use crate::model::{Classifier, Targets};

/// Batches that may wait until they are computed.
pub(super) const AHEAD: usize = 4;

/// The rows of a step, made ready for the network.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) rows: Vec<u32>,
    pub(super) prepared: Prepared,
    pub(super) targets: Targets,
    /// Whether an epoch ends with it.
    pub(super) ends_epoch: bool,
}

/// Sends the batches of all steps in turn, and ends early after an error or when nobody wants more. `rows` are not empty.
pub(super) fn send_batches(
    classifier: &Classifier,
    rows: &Rows,
    training: &Training,
    plan: Plan,
    out: &SyncSender<Result<Batch, FinetuneError>>,
) {
    let augmentation = training.augmentation.as_ref().map(Augmentation::from);
    let mut steps = 0;
    for epoch in 0.. {
        let batches = Batches::of(rows.len(), |row| rows.length(row), training, plan.round, epoch);
        let mut batches = batches.iter().peekable();
        while let Some(batch) = batches.next() {
            if steps == plan.steps {
                return;
            }
            steps += 1;
            let ends_epoch = batches.peek().is_none() || steps == plan.steps;
            let at =
                |row: u32| Use { seed: training.seed, round: plan.round, step: steps as u64 - 1, row: u64::from(row) };
            let batch = ready(classifier, rows, batch, augmentation.as_ref(), at).map(|(prepared, targets)| Batch {
                rows: batch.to_vec(),
                prepared,
                targets,
                ends_epoch,
            });
            let failed = batch.is_err();
            if out.send(batch).is_err() || failed {
                return;
            }
        }
    }
}

fn ready(
    classifier: &Classifier,
    rows: &Rows,
    batch: &[u32],
    augmentation: Option<&Augmentation>,
    at: impl Fn(u32) -> Use,
) -> Result<(Prepared, Targets), FinetuneError> {
    let places = || batch.iter().map(|row| *row as usize);
    let changes =
        augmentation.map(|augmentation| Changes { augmentation, uses: batch.iter().map(|row| at(*row)).collect() });
    let prepared = prepare(classifier, &rows.contents(places())?, changes.as_ref())?;
    let targets = targets(classifier.network().objective(), &prepared, places().map(|row| rows.target(row)))?;
    Ok((prepared, targets))
}
