//! The round machine: `(state, event, world) -> (state, effects)`, pure. It reads no clock, no network and no storage;
//! the driver in [`crate::coordinator`] does, stores each new state, and then carries the effects out.
//!
//! ```text
//! Initializing ─→ Gathering ─→ Training ─→ Aggregating ─→ Evaluating ─┬→ Gathering of the next round
//!                     ↑             │ below quorum                    └→ Ended
//!                     └─────────────┘ (next attempt, or Ended: failed)
//! ```

pub mod admission;
mod collapse;
mod event;
mod late;
mod phase;
mod plan;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use collapse::Sign;
use fedtune_config::job::{BelowQuorum, Evaluator, OnCollapse};
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::evaluation::Evaluation;
use serde::{Deserialize, Serialize};

use admission::Verdict;
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
        let phase = Phase::Initializing { attempt: 0, site: None, heard_ms: 0, problems: BTreeMap::new() };
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
                if willing.len() < self.plan.needed() { BTreeSet::new() } else { willing }
            }
            _ => BTreeSet::new(),
        }
    }

    /// Training sites that are online and have not refused this job.
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

    /// Everything that follows by itself from where the machine stands, until it has to wait.
    fn settle(&mut self, world: &World, effects: &mut Vec<Effect>) {
        self.settle_late(world, effects);
        loop {
            let before = self.phase.clone();
            if self.is_held() {
                return;
            }
            match &self.phase {
                Phase::Initializing { .. } => self.settle_initializing(world, effects),
                Phase::Gathering { .. } => self.settle_gathering(world, effects),
                Phase::Training { .. } => self.settle_training(world, effects),
                Phase::Evaluating { .. } => self.settle_evaluating(world, effects),
                Phase::Aggregating { .. } | Phase::Ended(_) => {}
            }
            if self.phase == before {
                return;
            }
        }
    }

    fn settle_initializing(&mut self, world: &World, effects: &mut Vec<Effect>) {
        let deadline = self.plan.deadline_ms;
        let Phase::Initializing { attempt, site, heard_ms, problems } = &mut self.phase else { return };
        if let Some(asked) = site {
            if world.now_ms.saturating_sub(*heard_ms) <= deadline {
                return;
            }
            problems.insert(asked.clone(), SILENT.into());
            let turn = Turn { work: Work::Initialize, round: 0, attempt: *attempt };
            effects.push(Effect::Withdraw(asked.clone(), turn, "another site makes the first state".into()));
            *site = None;
            *attempt += 1;
        }
        // An evaluator is the operator's own and idle; it goes first. A site that failed goes last.
        let online = || world.evaluators.iter().chain(&world.trainers);
        let willing = || online().filter(|name| !self.refused.contains_key(*name));
        let free = || willing().filter(|name| !world.busy.contains(*name));
        let untried = willing().find(|name| !problems.contains_key(*name)).is_some();
        let candidate = free().find(|name| !untried || !problems.contains_key(*name));
        if *attempt >= self.plan.attempts || (willing().next().is_none() && online().next().is_some()) {
            let reason = format!("no site could make the first state: {}", told(problems));
            return self.end(Outcome::Failed(reason), "", effects);
        }
        if let Some(candidate) = candidate {
            *site = Some(candidate.clone());
            *heard_ms = world.now_ms;
            let turn = Turn { work: Work::Initialize, round: 0, attempt: *attempt };
            effects.push(Effect::Offer(candidate.clone(), turn));
        }
    }

    fn settle_gathering(&mut self, world: &World, effects: &mut Vec<Effect>) {
        let Phase::Gathering { round, attempt } = self.phase else { return };
        let (willing, needed) = (self.willing(world), self.plan.needed());
        if willing.len() < needed {
            // Those who are missing are not away: they will not.
            if world.trainers.len() >= needed {
                let reason = format!("too few sites are left for round {round}: {}", told(&self.refused));
                self.end(Outcome::Failed(reason), "", effects);
            }
            return;
        }
        // All means all: who works for another job is waited for. A number of sites is drawn from those who are free.
        let everybody = self.plan.cohort.is_none() && self.plan.share.is_none();
        let busy = willing.intersection(&world.busy).count();
        if (everybody && busy > 0) || willing.len() - busy < needed {
            return;
        }
        let updates = self.late_updates(round, effects);
        let joins = |site: &String| updates.iter().any(|(late, _)| late == site);
        let free = willing.difference(&world.busy).filter(|site| !joins(site) && !self.is_late(site));
        let cohort = self.plan.draw_cohort(&free.collect::<Vec<_>>(), round, attempt);
        let turn = Turn { work: Work::Train, round, attempt };
        effects.extend(cohort.iter().map(|site| Effect::Offer(site.clone(), turn)));
        let asked = cohort.into_iter().map(|site| (site, Trainee::Working(world.now_ms)));
        let sites = asked.chain(updates.into_iter().map(|(site, share)| (site, Trainee::Done(share)))).collect();
        self.phase = Phase::Training { round, attempt, opened_ms: world.now_ms, sites };
    }

    fn settle_training(&mut self, world: &World, effects: &mut Vec<Effect>) {
        if self.plan.asynchronous {
            self.go_ahead(world, effects);
        }
        let deadline = self.plan.deadline_ms;
        let late: Vec<String> = self.late.keys().filter(|site| self.is_late(site)).cloned().collect();
        let Phase::Training { round, attempt, opened_ms, sites } = &mut self.phase else { return };
        let late = late.iter().filter(|site| !sites.contains_key(*site)).count();
        let turn = Turn { work: Work::Train, round: *round, attempt: *attempt };
        for (name, site) in sites.iter_mut() {
            if matches!(site, Trainee::Working(heard) if world.now_ms.saturating_sub(*heard) > deadline) {
                effects.push(Effect::Withdraw(name.clone(), turn, SILENT.into()));
                *site = Trainee::Out(SILENT.into());
            }
        }
        let done = sites.values().filter(|site| matches!(site, Trainee::Done(_))).count();
        let over = self.plan.limit_ms.is_some_and(|limit| world.now_ms.saturating_sub(*opened_ms) >= limit);
        let target = self.plan.closes_with(sites.len() + late);
        let closes = target.is_some_and(|target| done >= target) || (over && done >= self.plan.quorum);
        let working: BTreeMap<String, u64> = sites
            .iter()
            .filter_map(|(name, site)| match site {
                Trainee::Working(heard) => Some((name.clone(), *heard)),
                _ => None,
            })
            .collect();
        // What is late may yet make it whole.
        let waits = !working.is_empty() || (late > 0 && done < target.unwrap_or(self.plan.quorum));
        if waits && !closes {
            return;
        }
        let mut taken = std::mem::take(sites);
        let (round, attempt, opened_ms) = (*round, *attempt, *opened_ms);
        for (name, heard) in working {
            let why = self.keep_or_withdraw(&name, turn, heard, effects);
            taken.insert(name, Trainee::Out(why.into()));
        }
        let mut updates = BTreeMap::new();
        let mut problems = BTreeMap::new();
        for (name, site) in taken {
            match site {
                Trainee::Done(share) => drop(updates.insert(name, share)),
                Trainee::Out(reason) => drop(problems.insert(name, reason)),
                Trainee::Working(_) => {}
            }
        }
        let Verdict { left_out, flags } = admission::compare(&self.plan.admission, &updates);
        for (site, (kind, reason)) in left_out {
            let share = updates.remove(&site);
            let (round, attempt) = share.map_or((round, attempt), |share| share.made_for(round, attempt));
            self.strike(&site, &reason);
            effects.push(Effect::Count(kind));
            effects.push(Effect::Notify(site.clone(), Turn { round, attempt, ..turn }, reason.clone()));
            problems.insert(site, reason);
        }
        if updates.len() >= self.plan.quorum {
            if round >= self.plan.rounds {
                self.forget_late(late::NO_ROUND, effects);
            }
            effects.push(Effect::Aggregate);
            self.phase = Phase::Aggregating { round, attempt, opened_ms, updates, problems, flags };
        } else {
            let reason = format!(
                "round {round} had {} of {} updates after {attempt} attempts: {}",
                updates.len(),
                self.plan.quorum,
                told(&problems)
            );
            self.again(round, attempt, reason, effects);
        }
    }

    /// Tries a round again from the same state; after all attempts the job fails for this reason, or is paused.
    fn again(&mut self, round: u32, attempt: u32, reason: String, effects: &mut Vec<Effect>) {
        // A job that was resumed has its attempts anew.
        let exhausted = attempt.is_multiple_of(self.plan.attempts);
        if exhausted && self.plan.below_quorum == BelowQuorum::Fail {
            return self.end(Outcome::Failed(reason), "", effects);
        }
        if exhausted {
            self.paused = Some(reason);
        }
        self.phase = Phase::Gathering { round, attempt: attempt + 1 };
    }

    fn settle_evaluating(&mut self, world: &World, effects: &mut Vec<Effect>) {
        let deadline = self.plan.deadline_ms;
        let Phase::Evaluating { record, sites, since_ms } = &mut self.phase else { return };
        let turn = Turn { work: Work::Evaluate, round: record.round, attempt: record.attempt };
        if sites.is_empty() && self.plan.by == Evaluator::Evaluator {
            *sites = self.plan.judges(record, world).into_iter().map(|site| (site, Judge::Waiting)).collect();
            if sites.is_empty() {
                // One that is enrolled may be on its way back, as after a restart.
                if world.evaluator_enrolled && world.now_ms.saturating_sub(*since_ms) <= deadline {
                    return;
                }
                record.problems.insert("evaluation".into(), "no site of role evaluator is online".into());
            }
        }
        for (name, site) in sites.iter_mut() {
            if *site == Judge::Waiting && !world.busy.contains(name) {
                effects.push(Effect::Offer(name.clone(), turn));
                *site = Judge::Working(world.now_ms);
            }
            if matches!(site, Judge::Working(heard) if world.now_ms.saturating_sub(*heard) > deadline) {
                effects.push(Effect::Withdraw(name.clone(), turn, SILENT.into()));
                *site = Judge::Out(SILENT.into());
            }
        }
        if sites.values().any(|site| matches!(site, Judge::Working(_) | Judge::Waiting)) {
            return;
        }
        let mut record = record.clone();
        for (name, judge) in std::mem::take(sites) {
            match judge {
                Judge::Done(sums) => drop(record.evaluations.insert(name, sums)),
                Judge::Out(reason) => drop(record.problems.insert(name, reason)),
                Judge::Working(_) | Judge::Waiting => {}
            }
        }
        record.wall_seconds = seconds_between(record.opened_ms, world.now_ms);
        let round = record.round;
        self.best = self.plan.better(self.best, &record);
        if self.best.is_some_and(|best| best.round == round && best.score.is_some()) {
            self.course.best = Some((round, record.state, record.moments.clone()));
        }
        let collapsed = self.collapsed(&record);
        effects.push(Effect::Record(record));
        let stale = self.best.map_or(0, |best| round - best.round);
        if round >= self.plan.rounds {
            self.end(Outcome::Completed(format!("all {round} rounds are done")), "", effects);
        } else if self.plan.patience > 0 && stale >= self.plan.patience {
            let reason = format!("stopped early: no better state for {stale} rounds");
            self.end(Outcome::Completed(reason), "", effects);
        } else if collapsed && self.course.rolled_back >= ROLL_BACKS && self.plan.on_collapse == OnCollapse::RollBack {
            let reason =
                format!("stopped early: the model collapsed again after {ROLL_BACKS} returns to its best state");
            self.end(Outcome::Completed(reason), "", effects);
        } else {
            if collapsed {
                self.take_back(round, effects);
            }
            self.phase = Phase::Gathering { round: round + 1, attempt: 1 };
        }
    }

    /// Whether a classifier that had learnt something has come to predict one label, in this round and the one before.
    fn collapsed(&mut self, record: &RoundRecord) -> bool {
        match record.evaluation().and_then(|sums| collapse::sign(&sums)) {
            Some(Sign::Learnt) => (self.course.learnt, self.course.idle) = (true, 0),
            Some(Sign::Idle | Sign::OneLabel) if self.course.learnt => self.course.idle += 1,
            _ => {}
        }
        self.course.idle >= COLLAPSE_ROUNDS
    }

    fn take_back(&mut self, round: u32, effects: &mut Vec<Effect>) {
        let Some((best, state, moments)) = self.course.best.clone() else { return };
        match self.plan.on_collapse {
            OnCollapse::RollBack => {
                self.forget_late(late::NO_ROUND, effects);
                (self.state, self.moments) = (Some(state), moments);
                self.difference = None;
                self.course.from = Some(best);
                self.course.rolled_back += 1;
                self.course.idle = 0;
            }
            OnCollapse::Pause => {
                self.course.idle = 0;
                let reason = format!("the model collapsed in round {round}; its best state is that of round {best}");
                self.paused = Some(reason);
            }
            OnCollapse::GoOn => {}
        }
    }

    fn resumed(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        for late in self.late.values_mut().filter(|late| matches!(late.answer, Trainee::Working(_))) {
            late.answer = Trainee::Working(now_ms);
        }
        match &mut self.phase {
            Phase::Initializing { heard_ms, .. } => *heard_ms = now_ms,
            Phase::Training { sites, .. } => {
                for site in sites.values_mut().filter(|site| matches!(site, Trainee::Working(_))) {
                    *site = Trainee::Working(now_ms);
                }
            }
            Phase::Evaluating { sites, .. } => {
                for site in sites.values_mut().filter(|site| matches!(site, Judge::Working(_))) {
                    *site = Judge::Working(now_ms);
                }
            }
            Phase::Aggregating { .. } => effects.push(Effect::Aggregate),
            Phase::Gathering { .. } | Phase::Ended(_) => {}
        }
    }

    fn heard(&mut self, from: &str, turn: Turn, now_ms: u64) {
        if self.work_of(from) != Some(turn) {
            return;
        }
        if let Some(late) = self.late.get_mut(from).filter(|late| late.turn == turn) {
            late.answer = Trainee::Working(now_ms);
            return;
        }
        match &mut self.phase {
            Phase::Initializing { heard_ms, .. } => *heard_ms = now_ms,
            Phase::Training { sites, .. } => drop(sites.insert(from.into(), Trainee::Working(now_ms))),
            Phase::Evaluating { sites, .. } => drop(sites.insert(from.into(), Judge::Working(now_ms))),
            _ => {}
        }
    }

    fn failed(&mut self, from: &str, turn: Turn, reason: String, fault: Fault) {
        if self.work_of(from) != Some(turn) {
            return;
        }
        // A site that cannot score may train all the same.
        match fault {
            Fault::Refused if turn.work != Work::Evaluate => drop(self.refused.insert(from.to_owned(), reason.clone())),
            Fault::Quarantined if turn.work == Work::Train => self.strike(from, &reason),
            _ => {}
        }
        if let Some(late) = self.late.get_mut(from).filter(|late| late.turn == turn) {
            late.answer = Trainee::Out(reason);
            return;
        }
        match &mut self.phase {
            Phase::Initializing { site, problems, attempt, .. } => {
                *site = None;
                *attempt += 1;
                problems.insert(from.to_owned(), reason);
            }
            Phase::Training { sites, .. } => drop(sites.insert(from.into(), Trainee::Out(reason))),
            Phase::Evaluating { sites, .. } => drop(sites.insert(from.into(), Judge::Out(reason))),
            _ => {}
        }
    }

    /// Counts an update that does not count; a site with too many is suspended.
    fn strike(&mut self, site: &str, reason: &str) {
        let strikes = self.strikes.entry(site.to_owned()).or_default();
        *strikes += 1;
        let most = self.plan.admission.strikes;
        if most > 0 && *strikes >= most {
            let reason = format!("suspended after {strikes} updates that do not count; of the last: {reason}");
            self.refused.insert(site.to_owned(), reason);
        }
    }

    fn initialized(&mut self, from: &str, turn: Turn, state: ArtifactRef) {
        if self.work_of(from) == Some(turn) && turn.work == Work::Initialize {
            self.state = Some(state);
            self.initializer = Some(from.to_owned());
            self.phase = Phase::Gathering { round: 1, attempt: 1 };
        }
    }

    fn updated(&mut self, from: &str, turn: Turn, share: SiteShare) {
        if self.work_of(from) != Some(turn) {
            return;
        }
        if self.is_late(from) {
            self.late_updated(from, share);
        } else if let Phase::Training { sites, .. } = &mut self.phase {
            sites.insert(from.to_owned(), Trainee::Done(share));
        }
    }

    fn aggregated(
        &mut self,
        of_round: u32,
        of_attempt: u32,
        after: After,
        seconds: f64,
        world: &World,
        effects: &mut Vec<Effect>,
    ) {
        let Phase::Aggregating { round, attempt, opened_ms, updates, problems, flags } = &mut self.phase else {
            return;
        };
        if (*round, *attempt) != (of_round, of_attempt) {
            return;
        }
        let After { state, difference, moments, shares } = after;
        let before = self.state;
        let record = Box::new(RoundRecord {
            round: *round,
            attempt: *attempt,
            opened_ms: *opened_ms,
            base: before,
            from: self.course.from.take(),
            state,
            difference,
            moments: moments.clone(),
            shares,
            sites: std::mem::take(updates),
            problems: std::mem::take(problems),
            flags: std::mem::take(flags),
            evaluations: BTreeMap::new(),
            aggregate_seconds: seconds,
            wall_seconds: seconds_between(*opened_ms, world.now_ms),
        });
        self.state = Some(state);
        self.difference = difference.zip(before).map(|(artifact, before)| Difference { artifact, before });
        self.moments = moments;
        let judges = self.plan.judges(&record, world);
        effects.push(Effect::Record(record.clone()));
        // Those that are free are asked when this settles.
        let sites = judges.into_iter().map(|site| (site, Judge::Waiting)).collect();
        self.phase = Phase::Evaluating { record, sites, since_ms: world.now_ms };
    }

    fn aggregation_failed(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        let Phase::Aggregating { round, attempt, .. } = self.phase else { return };
        self.again(round, attempt, format!("the updates of round {round} could not be aggregated: {reason}"), effects);
    }

    fn evaluated(&mut self, from: &str, turn: Turn, sums: Evaluation) {
        if self.work_of(from) != Some(turn) {
            return;
        }
        if let Phase::Evaluating { sites, .. } = &mut self.phase {
            sites.insert(from.to_owned(), Judge::Done(sums));
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

/// Rounds in a row without knowledge that make a collapse.
const COLLAPSE_ROUNDS: u32 = 2;

/// How often a collapsed job is taken back to its best state.
const ROLL_BACKS: u32 = 2;

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
