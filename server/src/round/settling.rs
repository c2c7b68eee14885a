//! What follows by itself from where a job stands: who is asked, whether a round closes, what comes after it.

use std::collections::BTreeMap;

use fedtune_config::job::{BelowQuorum, Evaluator, OnCollapse};

use super::admission::{self, Verdict};
use super::collapse::ROLL_BACKS;
use super::{
    Effect, Judge, Machine, Outcome, Phase, SILENT, SiteShare, Trainee, Turn, Work, World, late, seconds_between, told,
};

/// Why an answer is not waited for although the site is not silent.
pub(super) const OVERDUE: &str = "gave no answer within rounds.limit";

impl Machine {
    /// Everything that follows by itself from where the machine stands, until it has to wait.
    pub(super) fn settle(&mut self, world: &World, effects: &mut Vec<Effect>) {
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
        let Phase::Initializing { attempt, site, asked_ms, heard_ms, problems } = &mut self.phase else { return };
        if let Some(asked) = site {
            let silent = self.plan.silent(*heard_ms, world);
            let over = self.plan.over(*asked_ms, world);
            if !silent && !over {
                return;
            }
            problems.insert(asked.clone(), if silent { SILENT } else { OVERDUE }.into());
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
        let known = || world.sites().chain(&world.evaluators);
        let refuse = known().next().is_some() && known().all(|name| self.refused.contains_key(name));
        let awaited = world.evaluator_enrolled && world.evaluators.is_empty();
        if *attempt >= self.plan.attempts || (refuse && !awaited) {
            let reason = format!("no site could make the first state: {}", told(problems));
            return self.end(Outcome::Failed(reason), "", effects);
        }
        if let Some(candidate) = candidate {
            *site = Some(candidate.clone());
            (*asked_ms, *heard_ms) = (world.now_ms, world.now_ms);
            let turn = Turn { work: Work::Initialize, round: 0, attempt: *attempt };
            effects.push(Effect::Offer(candidate.clone(), turn));
        }
    }

    fn settle_gathering(&mut self, world: &World, effects: &mut Vec<Effect>) {
        let Phase::Gathering { round, attempt } = self.phase else { return };
        let willing = self.willing(world);
        let (needed, left) = self.needed(world);
        if willing.len() < needed {
            // Whoever else is enrolled will not; who is only away is waited for.
            if left < self.plan.quorum && world.sites().count() >= self.plan.quorum {
                let reason = format!("too few sites are left for round {round}: {}", told(&self.refused));
                match self.plan.below_quorum {
                    BelowQuorum::Fail => self.end(Outcome::Failed(reason), "", effects),
                    BelowQuorum::Pause => self.paused = Some(reason),
                }
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
        let late: Vec<String> = self.late.keys().filter(|site| self.is_late(site)).cloned().collect();
        let Phase::Training { round, attempt, opened_ms, sites } = &mut self.phase else { return };
        let late = late.iter().filter(|site| !sites.contains_key(*site)).count();
        let turn = Turn { work: Work::Train, round: *round, attempt: *attempt };
        for (name, site) in sites.iter_mut() {
            if matches!(site, Trainee::Working(heard) if self.plan.silent(*heard, world)) {
                effects.push(Effect::Withdraw(name.clone(), turn, SILENT.into()));
                *site = Trainee::Out(SILENT.into());
            }
        }
        // Those that would be left out do not close a round.
        let updates = sites.iter().filter_map(|(name, site)| match site {
            Trainee::Done(share) => Some((name.clone(), share.clone())),
            _ => None,
        });
        let updates: BTreeMap<String, SiteShare> = updates.collect();
        let done = updates.len() - admission::compare(&self.plan.admission, &updates).left_out.len();
        let over = self.plan.over(*opened_ms, world);
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
    pub(super) fn again(&mut self, round: u32, attempt: u32, reason: String, effects: &mut Vec<Effect>) {
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
        let Phase::Evaluating { record, sites, since_ms } = &mut self.phase else { return };
        let turn = Turn { work: Work::Evaluate, round: record.round, attempt: record.attempt };
        if sites.is_empty() && self.plan.by == Evaluator::Evaluator {
            *sites = self.plan.judges(record, world).into_iter().map(|site| (site, Judge::Waiting)).collect();
            if sites.is_empty() {
                // One that is enrolled may be on its way back, as after a restart.
                if world.evaluator_enrolled && !self.plan.silent(*since_ms, world) {
                    return;
                }
                record.problems.insert("evaluation".into(), "no site of role evaluator is online".into());
            }
        }
        let over = self.plan.over(*since_ms, world);
        for (name, site) in sites.iter_mut() {
            if over && *site == Judge::Waiting {
                *site = Judge::Out(OVERDUE.into());
            }
            if *site == Judge::Waiting && !world.busy.contains(name) {
                effects.push(Effect::Offer(name.clone(), turn));
                *site = Judge::Working(world.now_ms);
            }
            let Judge::Working(heard) = site else { continue };
            let silent = self.plan.silent(*heard, world);
            if silent || over {
                let reason = if silent { SILENT } else { OVERDUE };
                effects.push(Effect::Withdraw(name.clone(), turn, reason.into()));
                *site = Judge::Out(reason.into());
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
            self.course.best_undone = record.undone;
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
}
