//! Aggregation: streaming passes over the updates' bytes, window by window, in site order, into the next state.
//!
//! Read in this order: `rules` (how the updates become one, by weights and distances), `geometry` (the distances, in a pass
//! of their own), `combine` (the updates of a window made one), `step` (how the state moves by it), `difference` (what of
//! it is sent to who has the state before).
//!
//! Memory is bounded by the number of windows in flight, not by the number of sites or the size of the model, and the
//! result is the same bit for bit whatever order the updates came in.

mod check;
mod combine;
mod decode;
mod difference;
mod geometry;
mod rules;
mod step;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::thread::available_parallelism;

use bytes::Bytes;
use fedtune_config::job::Aggregation;
use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::layout::Layout;
use futures::{Stream, StreamExt, TryStreamExt, stream};

pub use check::{Bounds, Rejection, check_state, check_update};
pub use decode::decode;
pub use difference::difference;
pub use rules::weights;

use crate::round::After;
use crate::store::artifacts::{Opened, Writer};
use crate::store::{Artifacts, StoreError};
use combine::Combination;
use geometry::Distances;
use step::Step;

/// Bytes that are held for one window in flight, of all updates and whatever else; the more sites, the shorter a window.
const WINDOW_BYTES: u64 = 8 << 20;

/// What is taken off for the connection of each site, which holds buffers meanwhile, so that the peak does not grow with
/// their number.
const CONNECTION_BYTES: u64 = 160 << 10;

/// A window is cut at multiples of this.
const WINDOW_UNIT: u64 = 4 << 10;

/// Most windows in flight.
const WINDOWS_MAX: usize = 8;

/// An update that passed [`check_update`], with its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighted {
    /// The update.
    pub update: ArtifactRef,
    /// A positive integer, see [`weights`].
    pub weight: u64,
    /// What the update is multiplied by before anything else; 1 unless it is late.
    pub scale: f64,
}

impl Weighted {
    /// One that is not late.
    pub fn new(update: ArtifactRef, weight: u64) -> Self {
        Self { update, weight, scale: 1.0 }
    }
}

/// What a round's updates are applied to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// The state.
    pub state: ArtifactRef,
    /// The server optimiser's moments, in the layout of the state; none before its first step.
    pub moments: Vec<ArtifactRef>,
    /// The number of the step, counted from 1.
    pub step: u32,
}

/// What becomes of the new files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep<'a> {
    /// They are stored; staged under names that begin with this.
    All(&'a str),
    /// Only their digests are wanted.
    Nothing,
}

/// Aggregation failed; the state is as it was.
#[derive(Debug, thiserror::Error)]
pub enum AggregateError {
    /// Storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The rule cannot combine these updates.
    #[error("{0}")]
    Rule(String),
}

/// Combines the updates, keyed by site, by the job's rule, and moves the state by its strategy: for "fedavg" and "mean"
/// `next = fl32(state + η sum(n_k delta_k) / sum(n_k))` (McMahan et al. 2017, 1602.05629).
///
/// Every value is computed in f64 over the sites in the order of their names, with integer weights and one division, and
/// rounded to f32 once.
///
/// # Errors
/// Storage failed, or the rule needs more updates; the state is as it was.
pub async fn aggregate(
    artifacts: &Artifacts,
    aggregation: &Aggregation,
    before: &Before,
    updates: &BTreeMap<String, Weighted>,
    keep: Keep<'_>,
) -> Result<After, AggregateError> {
    let pass = Pass::new(artifacts, before, updates).await?;
    let weights: Vec<u64> = updates.values().map(|weighted| weighted.weight).collect();
    let distances = match rules::needs(aggregation.rule) {
        Some(with_median) => Some(pass.distances(with_median).await?),
        None => None,
    };
    let combination = rules::combination(aggregation, &weights, distances.as_ref()).map_err(AggregateError::Rule)?;
    let scaled = |(share, weighted): (Option<f64>, &Weighted)| share.map(|share| share * weighted.scale);
    let shares = combination.shares(updates.len()).into_iter().zip(updates.values()).map(scaled);
    let shares = updates.keys().cloned().zip(shares).collect();
    let step = Step::new(aggregation, before.step);
    let (state, moments) = pass.apply(combination, step, &before.moments, keep).await?;
    Ok(After { state, difference: None, moments, shares })
}

/// The same windows of the state and of every update.
#[derive(Debug, Clone)]
struct Pass {
    artifacts: Artifacts,
    state: Opened,
    digest: Digest,
    layout: Arc<Layout>,
    /// Every update, in site order, where its data starts, and its scale.
    sources: Arc<[(Opened, u64, f64)]>,
}

impl Pass {
    async fn new(
        artifacts: &Artifacts,
        before: &Before,
        updates: &BTreeMap<String, Weighted>,
    ) -> Result<Self, StoreError> {
        let layout = Arc::new(artifacts.layout(before.state).await?);
        let mut sources = Vec::with_capacity(updates.len());
        for weighted in updates.values() {
            let start = artifacts.layout(weighted.update).await?.data_start;
            let update = artifacts.open_artifact(weighted.update.digest).await?;
            sources.push((update, start, weighted.scale));
        }
        let digest = before.state.digest;
        let state = artifacts.open_artifact(digest).await?;
        Ok(Self { artifacts: artifacts.clone(), state, digest, layout, sources: sources.into() })
    }

    /// What `work` makes of each window, in the order of the windows; they are worked on concurrently. For each value of a
    /// window it holds one of each update and so many `beside`, of four bytes.
    fn windows<T, F, W>(&self, beside: usize, work: W) -> impl Stream<Item = Result<T, StoreError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
        W: Fn(Self, Range<u64>) -> F,
    {
        let (start, end) = (self.layout.data_start, self.layout.file_bytes);
        let connections = self.sources.len() as u64 * CONNECTION_BYTES;
        // Of very many sites windows would have no length.
        let windows = WINDOW_BYTES - connections.min(WINDOW_BYTES / 2);
        let share = windows / (self.sources.len() + beside) as u64;
        let length = (share / WINDOW_UNIT * WINDOW_UNIT).max(WINDOW_UNIT);
        let in_flight = available_parallelism().map_or(1, usize::from).min(WINDOWS_MAX);
        let windows = (start..end).step_by(usize::try_from(length).unwrap_or(1));
        stream::iter(windows.map(move |at| at..end.min(at + length)))
            .map(move |window| {
                // A task of its own, so that windows are worked on by all cores.
                let task = tokio::spawn(work(self.clone(), window));
                async move { task.await.unwrap_or_else(|e| Err(StoreError::Interrupted(e.to_string()))) }
            })
            .buffered(in_flight)
    }

    /// The window of every update.
    async fn updates(&self, window: Range<u64>) -> Result<Vec<Vec<f32>>, StoreError> {
        let offset = window.start - self.layout.data_start;
        let length = window.end - window.start;
        let mut updates = Vec::with_capacity(self.sources.len());
        for (update, start, scale) in self.sources.iter() {
            let from = start + offset;
            let mut values = floats(&update.read(from..from + length).await?);
            if *scale != 1.0 {
                values.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
            }
            updates.push(values);
        }
        Ok(updates)
    }

    async fn distances(&self, with_median: bool) -> Result<Distances, StoreError> {
        let nothing = Distances::new(self.sources.len(), with_median);
        // The bytes that values are read from.
        let seen = self.windows(1, |pass, window| {
            let mut distances = nothing.clone();
            async move {
                distances.see(&pass.updates(window).await?);
                Ok(distances)
            }
        });
        let all = nothing.clone();
        seen.try_fold(all, |mut all, distances| async move {
            all.merge(&distances);
            Ok(all)
        })
        .await
    }

    /// Writes the next state and the next moments.
    async fn apply(
        &self,
        combination: Combination,
        step: Step,
        moments: &[ArtifactRef],
        keep: Keep<'_>,
    ) -> Result<(ArtifactRef, Vec<ArtifactRef>), StoreError> {
        let header = self.state.read(0..self.layout.data_start).await?;
        let mut opened = Vec::new();
        for moment in moments {
            opened.push(self.artifacts.open_artifact(moment.digest).await?);
        }
        let moments: Arc<[Opened]> = opened.into();
        let mut writers = Vec::new();
        for name in std::iter::once("state".to_owned()).chain((0..step.moments()).map(|i| format!("moment-{i}"))) {
            let mut writer = match keep {
                Keep::All(staging) => Writer::create(&self.artifacts, &format!("{staging}.{name}")).await?,
                Keep::Nothing => Writer::nowhere(),
            };
            writer.append(header.clone()).await?;
            writers.push(writer);
        }
        let combination = Arc::new(combination);
        // The combined values in f64, those of the state and of each moment, and the bytes that are read or written.
        let beside = 4 + 2 * step.moments();
        let moved = self.windows(beside, |pass, window| {
            let (combination, moments) = (combination.clone(), moments.clone());
            async move { pass.moved(&combination, step, &moments, window).await }
        });
        tokio::pin!(moved);
        while let Some(windows) = moved.try_next().await? {
            for (writer, window) in writers.iter_mut().zip(windows) {
                writer.append(window.into()).await?;
            }
        }
        let mut written = Vec::with_capacity(writers.len());
        for writer in writers {
            written.push(writer.finish(&self.artifacts).await?);
        }
        let moments = written.split_off(1);
        Ok((written[0], moments))
    }

    /// A window of the next state, and of each moment.
    async fn moved(
        &self,
        combination: &Combination,
        step: Step,
        moments: &[Opened],
        window: Range<u64>,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let combined = combine::combine(combination, &self.updates(window.clone()).await?);
        let mut state = floats(&self.state.read(window.clone()).await?);
        let mut next_moments = Vec::with_capacity(step.moments());
        for i in 0..step.moments() {
            next_moments.push(match moments.get(i) {
                // Moments have the header of the state they belong to.
                Some(moment) => floats(&moment.read(window.clone()).await?),
                None => vec![step.start(i); state.len()],
            });
        }
        step.take(&mut state, &mut next_moments, &combined);
        let all = std::iter::once(&state).chain(&next_moments);
        if !all.clone().flatten().all(|value| value.is_finite()) {
            return Err(StoreError::Unsound {
                digest: self.digest,
                reason: "with these updates added it has a value that is not finite".into(),
            });
        }
        Ok(all.map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect())
    }
}

fn floats(bytes: &Bytes) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
}

#[cfg(test)]
mod tests;
