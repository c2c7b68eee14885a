//! The round machine: `(state, event, world) -> (state, effects)`, pure. It reads no clock, no network and no storage;
//! the driver in [`crate::coordinator`] does, stores each new state, and then carries the effects out.
//!
//! ```text
//! Initializing ─→ Gathering ─→ Training ─→ Aggregating ─→ Evaluating ─┬→ Gathering of the next round
//!                     ↑             │ below quorum                    └→ Ended
//!                     └─────────────┘ (next attempt, or Ended: failed)
//! ```

pub mod admission;
mod answers;
mod collapse;
mod event;
mod late;
mod phase;
mod plan;
mod record;
mod settling;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use fedtune_proto::digest::{ArtifactRef, Digest};
use serde::{Deserialize, Serialize};

pub use event::{Effect, Event, Fault, Turn, Work, World};
pub use late::Late;
pub use phase::{Course, Judge, Outcome, Phase, Trainee};
pub use plan::Plan;
pub use record::{After, Best, Difference, RoundRecord, SiteShare, Stale};

/// A job in progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// What the job asks for.
    pub plan: Plan,
    /// Where it stands.
    pub phase: Phase,
    /// The latest state; `None` until a site has made the first one.
    pub state: Option<ArtifactRef>,
    /// What a site that has the state before can make it of.
    #[serde(default)]
    pub difference: Option<Difference>,
    /// The server optimiser's moments that belong to the state.
    #[serde(default)]
    pub moments: Vec<ArtifactRef>,
    /// The best round so far.
    pub best: Option<Best>,
    /// What a collapse is seen by, and taken back to.
    #[serde(default)]
    pub course: Course,
    /// Sites that refused this job, with their reason; they are not asked again.
    pub refused: BTreeMap<String, String>,
    /// Who works outside the open round.
    #[serde(default)]
    pub late: BTreeMap<String, Late>,
    /// How many updates of each site were refused or left out.
    #[serde(default)]
    pub strikes: BTreeMap<String, u32>,
    /// Why no round is opened, while that is so. What was begun goes on.
    #[serde(default)]
    pub paused: Option<String>,
    /// The site that made the first state.
    pub initializer: Option<String>,
}

impl Machine {
    /// A job at its beginning.
    pub fn new(plan: Plan) -> Self {
        let phase = Phase::Initializing { attempt: 0, site: None, asked_ms: 0, heard_ms: 0, problems: BTreeMap::new() };
        Self {
            plan,
            phase,
            state: None,
            difference: None,
            moments: Vec::new(),
            best: None,
            course: Course::default(),
            refused: BTreeMap::new(),
            late: BTreeMap::new(),
            strikes: BTreeMap::new(),
            paused: None,
            initializer: None,
        }
    }

    /// The transition function.
    #[must_use]
    pub fn step(mut self, event: Event, world: &World) -> (Self, Vec<Effect>) {
        let mut effects = Vec::new();
        match event {
            Event::Cancel => self.end(Outcome::Cancelled, "the job was cancelled", &mut effects),
            Event::Pause if !self.is_over() => self.paused = Some("paused by the operator".into()),
            Event::Resume => self.paused = None,
            Event::Pause | Event::Tick => {}
            Event::Resumed => self.resumed(world.now_ms, &mut effects),
            Event::Joined(site) => {
                if let Some(turn) = self.work_of(&site) {
                    effects.push(Effect::Offer(site, turn));
                }
            }
            Event::Progress(site, turn) => self.heard(&site, turn, world.now_ms),
            Event::Failed { site, turn, reason, fault } => self.failed(&site, turn, reason, fault),
            Event::Initialized { site, turn, state } => self.initialized(&site, turn, state),
            Event::Updated { site, turn, share } => self.updated(&site, turn, share),
            Event::Aggregated { round, attempt, after, seconds } => {
                self.aggregated(round, attempt, after, seconds, world, &mut effects);
            }
            Event::AggregationFailed(reason) => self.aggregation_failed(&reason, &mut effects),
            Event::Evaluated { site, turn, sums } => self.evaluated(&site, turn, sums),
        }
        self.settle(world, &mut effects);
        (self, effects)
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// Whether it is paused, and all that was begun is done.
    pub fn rests(&self) -> bool {
        self.is_held() && !self.any_late()
    }

    /// Whether it opens nothing because it is paused.
    fn is_held(&self) -> bool {
        let begins = matches!(self.phase, Phase::Gathering { .. } | Phase::Initializing { site: None, .. });
        self.paused.is_some() && begins
    }

    /// The work a site has to do now, if any.
    pub fn work_of(&self, site: &str) -> Option<Turn> {
        match &self.phase {
            Phase::Initializing { attempt, site: Some(asked), .. } if asked == site => {
                Some(Turn { work: Work::Initialize, round: 0, attempt: *attempt })
            }
            Phase::Training { round, attempt, sites, .. } if matches!(sites.get(site), Some(Trainee::Working(_))) => {
                Some(Turn { work: Work::Train, round: *round, attempt: *attempt })
            }
            Phase::Evaluating { record, sites, .. } if matches!(sites.get(site), Some(Judge::Working(_))) => {
                Some(Turn { work: Work::Evaluate, round: record.round, attempt: record.attempt })
            }
            _ => self.late.get(site).filter(|_| self.is_late(site)).map(|late| late.turn),
        }
    }

    /// The state that a site's work starts from.
    pub fn state_for(&self, site: &str) -> Option<ArtifactRef> {
        match self.late.get(site).filter(|_| self.is_late(site)) {
            Some(late) => Some(late.state),
            None => self.state,
        }
    }

    /// What a site can make the state of its work of, if it has the one before; late work starts from an older one.
    pub fn difference_for(&self, site: &str) -> Option<Difference> {
        self.difference.filter(|_| self.state_for(site) == self.state)
    }

    /// Every site that has something to do.
    pub fn working(&self) -> BTreeSet<String> {
        let of_phase: Vec<&String> = match &self.phase {
            Phase::Initializing { site, .. } => site.iter().collect(),
            Phase::Training { sites, .. } => sites.keys().collect(),
            Phase::Evaluating { sites, .. } => sites.keys().collect(),
            _ => Vec::new(),
        };
        let all = of_phase.into_iter().chain(self.late.keys());
        all.filter(|site| self.work_of(site).is_some()).cloned().collect()
    }

    /// Sites that it is waiting to have; while they are busy for another job, no third one gets them.
    pub fn waits_for(&self, world: &World) -> BTreeSet<String> {
        match &self.phase {
            Phase::Evaluating { sites, .. } => {
                let waiting = sites.iter().filter(|(_, judge)| matches!(judge, Judge::Waiting));
                waiting.map(|(site, _)| site.clone()).collect()
            }
            Phase::Gathering { .. } if !self.is_held() => {
                let willing = self.willing(world);
                if willing.len() < self.needed(world).0 { BTreeSet::new() } else { willing }
            }
            _ => BTreeSet::new(),
        }
    }

    /// Training sites that are online and have not refused this job.
    /// Sites without which no round opens, and those that may come at all.
    fn needed(&self, world: &World) -> (usize, usize) {
        let left = world.sites().filter(|site| !self.refused.contains_key(*site)).count();
        (self.plan.needed(world.sites().count(), left), left)
    }

    /// Whether an update of a site is in the open round, or waits for the next one.
    pub fn holds(&self, site: &str, update: Digest) -> bool {
        let done = |trainee: Option<&Trainee>| match trainee {
            Some(Trainee::Done(share)) => Some(share.update.digest),
            _ => None,
        };
        let open = match &self.phase {
            Phase::Training { sites, .. } => done(sites.get(site)),
            Phase::Aggregating { updates, .. } => updates.get(site).map(|share| share.update.digest),
            _ => None,
        };
        open == Some(update) || done(self.late.get(site).map(|late| &late.answer)) == Some(update)
    }

    fn willing(&self, world: &World) -> BTreeSet<String> {
        world.trainers.iter().filter(|site| !self.refused.contains_key(*site)).cloned().collect()
    }

    /// What has become of a result that was accepted or is not waited for; `None` where the rounds before have to be asked.
    pub fn answer_to(&self, from: &str, turn: Turn) -> Option<Result<(), String>> {
        if turn.work == Work::Initialize {
            let own = self.initializer.as_deref() == Some(from);
            return Some(if own { Ok(()) } else { Err("the first state was made by another site".into()) });
        }
        let made = (turn.round, turn.attempt);
        if turn.work == Work::Train && self.late.get(from).is_some_and(|late| late.turn == turn) {
            return Some(match &self.late[from].answer {
                Trainee::Out(reason) => Err(reason.clone()),
                _ => Ok(()),
            });
        }
        match (&self.phase, turn.work) {
            (Phase::Evaluating { record, sites, .. }, Work::Evaluate) => {
                let done = (record.round, record.attempt) == made && matches!(sites.get(from), Some(Judge::Done(_)));
                done.then_some(Ok(()))
            }
            (Phase::Training { round, attempt, sites, .. }, Work::Train) => match sites.get(from) {
                Some(Trainee::Done(share)) if share.made_for(*round, *attempt) == made => Some(Ok(())),
                Some(Trainee::Out(reason)) if (*round, *attempt) == made => Some(Err(reason.clone())),
                None if (*round, *attempt) == made => {
                    Some(Err(format!("{from} is not in the cohort of round {round}")))
                }
                _ => None,
            },
            (Phase::Aggregating { round, attempt, updates, .. }, Work::Train) => {
                let counts = updates.get(from).is_some_and(|share| share.made_for(*round, *attempt) == made);
                counts.then_some(Ok(()))
            }
            _ => None,
        }
    }

    fn end(&mut self, outcome: Outcome, withdraw_reason: &str, effects: &mut Vec<Effect>) {
        if self.is_over() {
            return;
        }
        self.forget_late(if withdraw_reason.is_empty() { late::NO_ROUND } else { withdraw_reason }, effects);
        for site in self.working() {
            if let Some(turn) = self.work_of(&site) {
                effects.push(Effect::Withdraw(site, turn, withdraw_reason.to_owned()));
            }
        }
        self.phase = Phase::Ended(outcome.clone());
        effects.push(Effect::End(outcome));
    }
}

/// Why a site is given up.
const SILENT: &str = "gave no sign of progress within rounds.deadline";

/// Why a site is told to stop although it is not silent.
const NOT_NEEDED: &str = "the round closed with the updates it needs";

/// Sites with their reasons, in words.
fn told(problems: &BTreeMap<String, String>) -> String {
    problems.iter().map(|(site, reason)| format!("{site}: {reason}")).collect::<Vec<_>>().join("; ")
}

fn seconds_between(from_ms: u64, to_ms: u64) -> f64 {
    std::time::Duration::from_millis(to_ms.saturating_sub(from_ms)).as_secs_f64()
}
