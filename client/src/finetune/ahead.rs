//! Reading and preparing the next batches while one is computed.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::mpsc::SyncSender;

use fedtune_config::job::Training;

use super::augment;
use super::encode::{Changes, Prepared, prepare, targets};
use super::error::FinetuneError;
use super::fit::Plan;
use super::order;
use crate::data::image::{Augmentation, Use};
use crate::data::{Content, Rows};
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

/// Sends the batches of the steps of a plan behind those that are `done`, in turn, and ends early after an error or when
/// nobody wants more. `rows` are not empty.
pub(super) fn send_batches(
    classifier: &Classifier,
    rows: &Rows,
    training: &Training,
    plan: Plan,
    done: usize,
    out: &SyncSender<Result<Batch, FinetuneError>>,
) {
    let augmentation = training.augmentation.as_ref().map(Augmentation::from);
    order::each_step(rows, training, plan.round, |step, batch, ends| {
        if step >= plan.steps {
            return ControlFlow::Break(());
        }
        if step < done {
            return ControlFlow::Continue(());
        }
        let alter = |row: &u32, content| augment::alter(content, training, plan.round, step as u64, u64::from(*row));
        let at = |row: &u32| Use { seed: training.seed, round: plan.round, step: step as u64, row: u64::from(*row) };
        let changes =
            augmentation.as_ref().map(|augmentation| Changes { augmentation, uses: batch.iter().map(at).collect() });
        let batch = ready(classifier, rows, batch, alter, changes.as_ref()).map(|(prepared, targets)| Batch {
            rows: batch.to_vec(),
            prepared,
            targets,
            ends_epoch: ends || step + 1 == plan.steps,
        });
        let failed = batch.is_err();
        match out.send(batch) {
            Ok(()) if !failed => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    });
}

/// The rows of a batch as the model takes them, and their targets. `alter` may change contents, `changes` images.
fn ready<'a>(
    classifier: &Classifier,
    rows: &'a Rows,
    batch: &[u32],
    alter: impl Fn(&u32, Cow<'a, Content>) -> Cow<'a, Content>,
    changes: Option<&Changes<'_>>,
) -> Result<(Prepared, Targets), FinetuneError> {
    let places = || batch.iter().map(|row| *row as usize);
    let contents: Vec<_> =
        batch.iter().zip(rows.contents(places())?).map(|(row, content)| alter(row, content)).collect();
    let prepared = prepare(classifier, &contents, changes)?;
    let targets = targets(classifier, &prepared, places().map(|row| rows.target(row)))?;
    Ok((prepared, targets))
}
