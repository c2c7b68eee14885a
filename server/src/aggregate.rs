//! Aggregation: one streaming pass over the updates' bytes, window by window, in site order, into the next state.
//!
//! Memory is bounded by the number of windows in flight, not by the number of sites or the size of the model, and the
//! result is the same bit for bit whatever order the updates came in.

mod check;

use std::collections::BTreeMap;
use std::ops::Range;
use std::thread::available_parallelism;

use bytes::Bytes;
use fedtune_proto::digest::ArtifactRef;
use futures::{StreamExt, TryStreamExt, stream};

pub use check::{Rejection, check_state, check_update};

use crate::store::artifacts::Writer;
use crate::store::{Artifacts, StoreError};

/// Bytes of one window of the state; 4 times as many are held per window in flight.
const WINDOW_BYTES: u64 = 512 << 10;

/// Most windows in flight.
const WINDOWS_MAX: usize = 8;

/// An update that passed [`check_update`], with its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weighted {
    /// The update.
    pub update: ArtifactRef,
    /// A positive integer: its examples, or 1.
    pub weight: u64,
}

/// Federated averaging (McMahan et al. 2017, 1602.05629) on deltas: `next = state + sum(n_k * delta_k) / sum(n_k)`.
///
/// Each coordinate is summed in f64 over the sites in the order of their names, with integer weights and one division
/// at the end, then added to the state and rounded to f32 once. `updates` is keyed by site.
///
/// # Errors
/// Storage failed; the state is as it was.
pub async fn fedavg(
    artifacts: &Artifacts,
    state: ArtifactRef,
    updates: &BTreeMap<String, Weighted>,
    staging_name: &str,
) -> Result<ArtifactRef, StoreError> {
    let layout = artifacts.layout(state).await?;
    let mut sources = Vec::with_capacity(updates.len());
    for weighted in updates.values() {
        let start = artifacts.layout(weighted.update).await?.data_start;
        sources.push((*weighted, start));
    }
    let total: u64 = updates.values().map(|weighted| weighted.weight).sum();

    let mut writer = Writer::create(artifacts, staging_name).await?;
    writer.append(&artifacts.read(state.digest, 0..layout.data_start).await?).await?;

    let windows = windows(layout.data_start..layout.file_bytes);
    let in_flight = available_parallelism().map_or(1, usize::from).min(WINDOWS_MAX);
    let mut folded = stream::iter(windows)
        .map(|window| {
            let (artifacts, sources) = (artifacts.clone(), sources.clone());
            // A task of its own, so that windows are folded on all cores.
            let task = tokio::spawn(async move {
                let offset = window.start - layout.data_start;
                let length = window.end - window.start;
                let mut sum = vec![0_f64; usize::try_from(length / 4).unwrap_or(0)];
                for (Weighted { update, weight }, start) in sources {
                    let from = start + offset;
                    add(&mut sum, &artifacts.read(update.digest, from..from + length).await?, weight as f64);
                }
                let bytes = artifacts.read(state.digest, window).await?;
                apply(&bytes, &sum, total as f64).ok_or_else(|| StoreError::Unsound {
                    digest: state.digest,
                    reason: "with these updates added it has a value that is not finite".into(),
                })
            });
            async move { task.await.map_err(std::io::Error::other) }
        })
        .buffered(in_flight);
    while let Some(window) =
        folded.try_next().await.map_err(|source| StoreError::File { path: staging_name.into(), source })?
    {
        writer.append(&window?).await?;
    }
    writer.finish(artifacts).await
}

fn windows(all: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = all.end;
    (all.start..end)
        .step_by(usize::try_from(WINDOW_BYTES).unwrap_or(1))
        .map(move |start| start..end.min(start + WINDOW_BYTES))
}

/// `sum += weight * delta`.
fn add(sum: &mut [f64], delta: &Bytes, weight: f64) {
    for (sum, delta) in sum.iter_mut().zip(delta.as_chunks::<4>().0) {
        *sum += weight * f64::from(f32::from_le_bytes(*delta));
    }
}

/// `fl32(state + sum / total)`; `None` if a value is not finite.
fn apply(state: &Bytes, sum: &[f64], total: f64) -> Option<Vec<u8>> {
    let mut next = Vec::with_capacity(state.len());
    let mut finite = true;
    for (state, sum) in state.as_chunks::<4>().0.iter().zip(sum) {
        let value = (f64::from(f32::from_le_bytes(*state)) + sum / total) as f32;
        finite &= value.is_finite();
        next.extend_from_slice(&value.to_le_bytes());
    }
    finite.then_some(next)
}

#[cfg(test)]
mod tests;
