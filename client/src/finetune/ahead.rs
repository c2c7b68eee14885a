//! Reading and tokenising the next batches while one is computed.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::mpsc::SyncSender;

use fedtune_config::job::Training;

use super::augment;
use super::encode::{encode, targets};
use super::error::FinetuneError;
use super::fit::Plan;
use super::order;
use crate::data::{Content, Rows};
use crate::model::batch::Tokens;
use crate::model::{Classifier, Targets};

/// Batches that may wait until they are computed.
pub(super) const AHEAD: usize = 4;

/// The rows of a step, tokenised.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) rows: Vec<u32>,
    /// Of each of the rows.
    pub(super) tokens: Vec<Tokens>,
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
    order::each_step(rows, training, plan.round, |step, batch, ends| {
        if step >= plan.steps {
            return ControlFlow::Break(());
        }
        if step < done {
            return ControlFlow::Continue(());
        }
        let alter = |row: &u32, content| augment::alter(content, training, plan.round, step as u64, u64::from(*row));
        let batch = prepared(classifier, rows, batch, alter).map(|(tokens, targets)| Batch {
            rows: batch.to_vec(),
            tokens,
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

/// Tokens and targets of the rows of a batch, whose contents `alter` may change.
fn prepared<'a>(
    classifier: &Classifier,
    rows: &'a Rows,
    batch: &[u32],
    alter: impl Fn(&u32, Cow<'a, Content>) -> Cow<'a, Content>,
) -> Result<(Vec<Tokens>, Targets), FinetuneError> {
    let places = || batch.iter().map(|row| *row as usize);
    let contents: Vec<_> =
        batch.iter().zip(rows.contents(places())?).map(|(row, content)| alter(row, content)).collect();
    let encoded = encode(classifier, &contents)?;
    targets(classifier.network().objective(), encoded, places().map(|row| rows.target(row)))
}
