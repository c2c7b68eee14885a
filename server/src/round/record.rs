//! What is kept of a round.

use std::collections::BTreeMap;

use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::evaluation::Evaluation;
use serde::{Deserialize, Serialize};

/// That an update was not made for the round it counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stale {
    /// The round it was made for.
    pub round: u32,
    /// The attempt; 0 for work that began before that round.
    pub attempt: u32,
    /// How many rounds the state it started from is behind.
    pub rounds: u32,
}

/// One site's update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteShare {
    /// `after - before`.
    pub update: ArtifactRef,
    /// Distinct examples trained on; the update's weight.
    pub examples: u64,
    /// Euclidean norm of the update; less than 0 where a program that did not know it wrote the record.
    #[serde(default = "unknown_norm")]
    pub norm: f64,
    /// What the site sent, of which the update was decoded; `None` where it sent the update itself.
    #[serde(default)]
    pub sent: Option<ArtifactRef>,
    /// Where it is late.
    #[serde(default)]
    pub stale: Option<Stale>,
    /// What compression lost, as a share of the norm.
    #[serde(default)]
    pub relative_error: f64,
    /// When it came, in milliseconds since 1970.
    #[serde(default)]
    pub received_ms: u64,
    /// Mean training loss over the steps.
    pub train_loss: f64,
    /// Time the fine-tuning took.
    pub train_seconds: f64,
    /// Artifact bytes the site sent for this round.
    pub bytes_up: u64,
    /// Artifact bytes the site received for this round.
    pub bytes_down: u64,
}

fn unknown_norm() -> f64 {
    -1.0
}

impl SiteShare {
    /// An update that was checked, of which nothing else is known.
    pub fn new(update: ArtifactRef, examples: u64, norm: f64) -> Self {
        Self {
            update,
            examples,
            norm,
            sent: None,
            stale: None,
            relative_error: 0.0,
            received_ms: 0,
            train_loss: 0.0,
            train_seconds: 0.0,
            bytes_up: 0,
            bytes_down: 0,
        }
    }
}

impl SiteShare {
    /// The round and attempt that it was made for, if it counts in this one.
    pub fn made_for(&self, round: u32, attempt: u32) -> (u32, u32) {
        self.stale.map_or((round, attempt), |stale| (stale.round, stale.attempt))
    }

    /// What it is multiplied by: `1 / √(1 + τ)` (Nguyen et al. 2022, 2106.06639).
    pub fn staleness_weight(&self) -> f64 {
        self.stale.map_or(1.0, |stale| 1.0 / (1.0 + f64::from(stale.rounds)).sqrt())
    }
}

/// What a state can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The difference between the two states.
    pub artifact: ArtifactRef,
    /// The earlier of them.
    pub before: ArtifactRef,
}

/// What came of the updates of a round.
#[derive(Debug, Clone, PartialEq)]
pub struct After {
    /// The next state.
    pub state: ArtifactRef,
    /// Its difference to the state before, where sites are to have it.
    pub difference: Option<ArtifactRef>,
    /// The server optimiser's moments that belong to it.
    pub moments: Vec<ArtifactRef>,
    /// The share of each site's update in the combined one; `None` where every value has its own.
    pub shares: BTreeMap<String, Option<f64>>,
}

/// A committed round: its manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// The round, from 1.
    pub round: u32,
    /// The attempt that counted, from 1.
    pub attempt: u32,
    /// When it opened, in milliseconds since 1970.
    pub opened_ms: u64,
    /// The state it started from.
    pub base: Option<ArtifactRef>,
    /// The round that made that state, where it is not the one before.
    #[serde(default)]
    pub from: Option<u32>,
    /// Rounds before it that were taken back.
    #[serde(default)]
    pub undone: u32,
    /// The state it made.
    pub state: ArtifactRef,
    /// Its difference to `base`, where sites were to have it.
    #[serde(default)]
    pub difference: Option<ArtifactRef>,
    /// The server optimiser's moments that belong to it.
    #[serde(default)]
    pub moments: Vec<ArtifactRef>,
    /// The share of each site's update in the combined one; `None` where every value has its own.
    #[serde(default)]
    pub shares: BTreeMap<String, Option<f64>>,
    /// Whose updates counted.
    pub sites: BTreeMap<String, SiteShare>,
    /// Whose answers did not, with the reason.
    pub problems: BTreeMap<String, String>,
    /// Whose updates count, but are remarkable, with the reason.
    #[serde(default)]
    pub flags: BTreeMap<String, String>,
    /// What each evaluating site found.
    pub evaluations: BTreeMap<String, Evaluation>,
    /// Time of the strategy's pass.
    pub aggregate_seconds: f64,
    /// From opening to evaluation.
    pub wall_seconds: f64,
}

impl RoundRecord {
    /// The step of the server's optimiser that made the state, from 1 on.
    pub fn step(&self) -> u32 {
        self.round.saturating_sub(self.undone)
    }

    /// The sum of all evaluations; one of another form than the first's, which the edge refuses, does not count.
    pub fn evaluation(&self) -> Option<Evaluation> {
        self.evaluations.values().cloned().reduce(|mut sum, next| {
            let _ = sum.merge(&next);
            sum
        })
    }
}

/// The best round so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The round.
    pub round: u32,
    /// The job's metric, larger is better.
    pub score: Option<f64>,
}
