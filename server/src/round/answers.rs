//! What sites answer, and what a pass gives, goes into the state of a job.

use std::collections::BTreeMap;

use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::evaluation::Evaluation;

use super::{
    After, Difference, Effect, Fault, Judge, Machine, Phase, RoundRecord, SiteShare, Trainee, Turn, Work, World,
    seconds_between,
};

impl Machine {
    pub(super) fn resumed(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        for late in self.late.values_mut().filter(|late| matches!(late.answer, Trainee::Working(_))) {
            late.answer = Trainee::Working(now_ms);
        }
        match &mut self.phase {
            Phase::Initializing { asked_ms, heard_ms, .. } => (*asked_ms, *heard_ms) = (now_ms, now_ms),
            Phase::Training { sites, .. } => {
                for site in sites.values_mut().filter(|site| matches!(site, Trainee::Working(_))) {
                    *site = Trainee::Working(now_ms);
                }
            }
            Phase::Evaluating { sites, since_ms, .. } => {
                *since_ms = now_ms;
                for site in sites.values_mut().filter(|site| matches!(site, Judge::Working(_))) {
                    *site = Judge::Working(now_ms);
                }
            }
            Phase::Aggregating { .. } => effects.push(Effect::Aggregate),
            Phase::Gathering { .. } | Phase::Ended(_) => {}
        }
    }

    pub(super) fn heard(&mut self, from: &str, turn: Turn, now_ms: u64) {
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

    pub(super) fn failed(&mut self, from: &str, turn: Turn, reason: String, fault: Fault) {
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
    pub(super) fn strike(&mut self, site: &str, reason: &str) {
        let strikes = self.strikes.entry(site.to_owned()).or_default();
        *strikes += 1;
        let most = self.plan.admission.strikes;
        if most > 0 && *strikes >= most {
            let reason = format!("suspended after {strikes} updates that do not count; of the last: {reason}");
            self.refused.insert(site.to_owned(), reason);
        }
    }

    pub(super) fn initialized(&mut self, from: &str, turn: Turn, state: ArtifactRef) {
        if self.work_of(from) == Some(turn) && turn.work == Work::Initialize {
            self.state = Some(state);
            self.initializer = Some(from.to_owned());
            self.phase = Phase::Gathering { round: 1, attempt: 1 };
        }
    }

    pub(super) fn updated(&mut self, from: &str, turn: Turn, share: SiteShare) {
        if self.work_of(from) != Some(turn) {
            return;
        }
        if self.is_late(from) {
            self.late_updated(from, share);
        } else if let Phase::Training { sites, .. } = &mut self.phase {
            sites.insert(from.to_owned(), Trainee::Done(share));
        }
    }

    pub(super) fn aggregated(
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
            undone: self.course.undone,
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

    pub(super) fn aggregation_failed(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        let Phase::Aggregating { round, attempt, .. } = self.phase else { return };
        self.again(round, attempt, format!("the updates of round {round} could not be aggregated: {reason}"), effects);
    }

    pub(super) fn evaluated(&mut self, from: &str, turn: Turn, sums: Evaluation) {
        if self.work_of(from) != Some(turn) {
            return;
        }
        if let Phase::Evaluating { sites, .. } = &mut self.phase {
            sites.insert(from.to_owned(), Judge::Done(sums));
        }
    }
}
