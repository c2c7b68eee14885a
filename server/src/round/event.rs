//! What goes into the machine, and what comes out.

use std::collections::BTreeSet;

use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::evaluation::Evaluation;
use serde::{Deserialize, Serialize};

use super::admission::LeftOut;
use super::{After, Outcome, RoundRecord, SiteShare};

/// A unit of work at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Work {
    /// Make the first state.
    Initialize,
    /// Fine-tune.
    Train,
    /// Score.
    Evaluate,
}

/// One turn of work: with the job it names everything a site sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Turn {
    /// Which work.
    pub work: Work,
    /// The round; 0 for the first state.
    pub round: u32,
    /// The attempt.
    pub attempt: u32,
}

/// What a failure says of the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It could not, this time.
    Failed,
    /// It will not; asking again is useless.
    Refused,
    /// What it sent is not what it should be.
    Quarantined,
}

/// What the machine sees of the world at an event.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// Training sites with an open session.
    pub trainers: BTreeSet<String>,
    /// Evaluators with an open session.
    pub evaluators: BTreeSet<String>,
    /// Training sites that are enrolled, with a session or without.
    pub enrolled: BTreeSet<String>,
    /// Whether any evaluator is enrolled at all.
    pub evaluator_enrolled: bool,
    /// Sites and evaluators that are at work for another job, or that it is another job's turn to have.
    pub busy: BTreeSet<String>,
}

impl World {
    /// Training sites that are there, or may come.
    pub fn sites(&self) -> impl Iterator<Item = &String> {
        self.enrolled.union(&self.trainers)
    }

    /// Training sites that are online and not busy.
    pub fn free(&self) -> impl Iterator<Item = &String> {
        self.trainers.difference(&self.busy)
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time passed, or the sites online changed.
    Tick,
    /// The aggregator started again: sites get their time anew, an interrupted pass runs again.
    Resumed,
    /// A site opened a session; it is told again what it has to do.
    Joined(String),
    /// A site gave a sign of progress.
    Progress(String, Turn),
    /// A site could not do its work, or its result was quarantined.
    Failed {
        /// The site.
        site: String,
        /// The work.
        turn: Turn,
        /// Why.
        reason: String,
        /// Whose fault it is.
        fault: Fault,
    },
    /// The first state is stored.
    Initialized {
        /// The site.
        site: String,
        /// The work.
        turn: Turn,
        /// The state.
        state: ArtifactRef,
    },
    /// An update was checked and stored.
    Updated {
        /// The site.
        site: String,
        /// The work.
        turn: Turn,
        /// The update.
        share: SiteShare,
    },
    /// The pass is done.
    Aggregated {
        /// The round.
        round: u32,
        /// Its attempt.
        attempt: u32,
        /// What came of it.
        after: After,
        /// How long the pass took.
        seconds: f64,
    },
    /// The pass failed; the state is as it was, and the round is tried again.
    AggregationFailed(String),
    /// A site scored the state.
    Evaluated {
        /// The site.
        site: String,
        /// The work.
        turn: Turn,
        /// What it found.
        sums: Evaluation,
    },
    /// The operator wants it to wait.
    Pause,
    /// The operator wants it to go on.
    Resume,
    /// The operator wants no more of it.
    Cancel,
}

/// What the driver has to do, after it has stored the new state.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Give a site its work.
    Offer(String, Turn),
    /// Tell a site that its work is not wanted any more.
    Withdraw(String, Turn, String),
    /// Tell a site why what it did does not count.
    Notify(String, Turn, String),
    /// Count an update that was left out, for monitoring.
    Count(LeftOut),
    /// Run the strategy's pass over these updates, on top of the machine's state.
    Aggregate,
    /// Store a round, or store it again with its evaluation.
    Record(Box<RoundRecord>),
    /// The job is over.
    End(Outcome),
}
