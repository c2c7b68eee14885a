//! Where a job stands.

use std::collections::BTreeMap;

use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::evaluation::Evaluation;
use serde::{Deserialize, Serialize};

use super::{RoundRecord, SiteShare};

/// How the scores of a job have gone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// The best round's state with its moments, if a round was scored.
    pub best: Option<(u32, ArtifactRef, Vec<ArtifactRef>)>,
    /// Whether a round knew more than which label is most frequent.
    pub learnt: bool,
    /// Rounds in a row since then that did not.
    pub idle: u32,
    /// How often the state was taken back.
    pub rolled_back: u32,
    /// The round that the state is of, where it was taken back.
    pub from: Option<u32>,
    /// Rounds that were taken back: the server's optimiser has stepped that much less often than there were rounds.
    #[serde(default)]
    pub undone: u32,
    /// The same for the best state.
    #[serde(default)]
    pub best_undone: u32,
}

impl Course {
    /// What the learning rate is multiplied by.
    pub fn learning_rate_factor(&self) -> f64 {
        0.5_f64.powi(self.rolled_back.cast_signed())
    }
}

/// What a job waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Phase {
    /// One site makes the first state from the base model.
    Initializing {
        /// How often it has failed before.
        attempt: u32,
        /// The site that was asked, `None` while nobody is online.
        site: Option<String>,
        /// When it was asked; a job of earlier versions does not say.
        #[serde(default)]
        asked_ms: u64,
        /// When it last gave a sign.
        heard_ms: u64,
        /// Why the sites before it could not.
        problems: BTreeMap<String, String>,
    },
    /// Fewer training sites than the quorum are online.
    Gathering {
        /// The round that waits.
        round: u32,
        /// Its attempt.
        attempt: u32,
    },
    /// Sites fine-tune.
    Training {
        /// The round.
        round: u32,
        /// Its attempt.
        attempt: u32,
        /// When it opened.
        opened_ms: u64,
        /// The cohort.
        sites: BTreeMap<String, Trainee>,
    },
    /// The strategy's pass runs.
    Aggregating {
        /// The round.
        round: u32,
        /// Its attempt.
        attempt: u32,
        /// When it opened.
        opened_ms: u64,
        /// What counts.
        updates: BTreeMap<String, SiteShare>,
        /// What does not, with the reason.
        problems: BTreeMap<String, String>,
        /// What counts, but is remarkable.
        #[serde(default)]
        flags: BTreeMap<String, String>,
    },
    /// The new state is scored.
    Evaluating {
        /// The round, already committed.
        record: Box<RoundRecord>,
        /// Who scores, with what they said. Empty while no evaluator is online.
        sites: BTreeMap<String, Judge>,
        /// When the round was committed.
        since_ms: u64,
    },
    /// It is over.
    Ended(Outcome),
}

/// A site of the cohort.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Trainee {
    /// Still at it; last heard of at this time.
    Working(u64),
    /// Its update was checked and stored.
    Done(SiteShare),
    /// Its answer does not count.
    Out(String),
}

/// A site that scores a state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Judge {
    /// It has to end what it does for another job first.
    Waiting,
    /// Still at it; last heard of at this time.
    Working(u64),
    /// What it found.
    Done(Evaluation),
    /// It could not.
    Out(String),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// All rounds, or early because nothing improved.
    Completed(String),
    /// The reason.
    Failed(String),
    /// The operator's wish.
    Cancelled,
}
