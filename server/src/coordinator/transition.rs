//! A job from one state to the next: the machine steps, what it became is stored, and only then its effects run.

use std::collections::BTreeMap;

use fedtune_config::job::Download;
use tracing::{Instrument, error, info, warn};

use super::handle::Request;
use super::sessions::{Directive, Task};
use super::snapshot::Activity;
use super::{Coordinator, REQUESTS_MAX};
use crate::aggregate::{self, AggregateError, Before, Keep, Weighted};
use crate::round::{Effect, Event, Machine, Outcome, Phase, RoundRecord, Work};
use crate::store::StoreError;
use crate::store::records::{JobRecord, JobStatus};

impl Coordinator {
    /// An event whose failure nobody waits to hear of; it is applied again with the next tick.
    pub(super) async fn apply_logged(&mut self, job: &str, event: Event) {
        if let Err(e) = self.apply(job, event.clone()).await {
            error!(job, round = self.round(job), "a transition could not be stored, it is tried again: {e}");
            let again = match event {
                // Signs of life come again by themselves.
                Event::Tick | Event::Progress(..) => false,
                // Of a job there is one pass, and nobody says again what came of it.
                Event::Aggregated { .. } | Event::AggregationFailed(_) => true,
                _ => self.unstored.len() < REQUESTS_MAX,
            };
            let event = (job.to_owned(), event);
            if again && !self.unstored.contains(&event) {
                self.unstored.push_back(event);
            }
        }
    }

    /// Steps the machine of a job, stores what it became, then carries out the effects.
    pub(super) async fn apply(&mut self, job: &str, event: Event) -> Result<(), StoreError> {
        let world = self.world(job).await?;
        let Some(active) = self.active.get_mut(job) else { return Ok(()) };
        // Signs of progress only move a deadline; after a restart sites get their time anew.
        let volatile = matches!(event, Event::Progress(..));
        let before = &active.record.machine;
        let (machine, effects) = before.clone().step(event, &world);
        if machine == *before && effects.is_empty() {
            return Ok(());
        }
        let mut record = JobRecord { machine, ..active.record.clone() };
        if let (true, Some(reason)) = (record.machine.rests(), &record.machine.paused) {
            (record.status, record.reason) = (JobStatus::Paused, reason.clone());
        }
        if let Phase::Ended(outcome) = &record.machine.phase {
            (record.status, record.reason) = match outcome.clone() {
                Outcome::Completed(reason) => (JobStatus::Completed, reason),
                Outcome::Failed(reason) => (JobStatus::Failed, reason),
                Outcome::Cancelled => (JobStatus::Cancelled, "cancelled by the operator".into()),
            };
        }
        if !(volatile && effects.is_empty()) {
            let rounds: Vec<RoundRecord> = effects
                .iter()
                .filter_map(|effect| match effect {
                    Effect::Record(round) => Some((**round).clone()),
                    _ => None,
                })
                .collect();
            self.records.save(&record, &rounds).await?;
            if let Some(counted) = &mut active.counted {
                rounds.iter().for_each(|round| counted.record(round));
            }
        }
        self.metrics.transition(&active.record.machine, &record.machine, &effects);
        self.rounds.transition(&record.id, &record.machine.phase);
        active.record = record;
        if effects.iter().any(|effect| matches!(effect, Effect::Offer(_, turn) if turn.work == Work::Train)) {
            self.turns += 1;
            active.served = self.turns;
        }
        for effect in effects {
            self.perform(job, effect);
        }
        // The next tick takes up another job.
        if self.active.get(job).is_some_and(|active| active.record.status == JobStatus::Paused)
            && let Some(paused) = self.active.remove(job)
        {
            warn!(job, reason = paused.record.reason, "job paused");
        }
        self.changed();
        Ok(())
    }

    fn perform(&mut self, job: &str, effect: Effect) {
        let Some(active) = self.active.get_mut(job) else { return };
        let job = job.to_owned();
        match effect {
            Effect::Offer(site, turn) => {
                info!(job, site, round = turn.round, attempt = turn.attempt, work = ?turn.work, "task offered");
                active.activity.insert(site.clone(), Activity::begun(turn));
                let task = Task {
                    job,
                    turn,
                    job_text: active.record.text.clone(),
                    base_model: active.record.base_model.clone(),
                    state: active.record.machine.state_for(&site).filter(|_| turn.work != Work::Initialize),
                    difference: active.record.machine.difference_for(&site).filter(|_| turn.work != Work::Initialize),
                    learning_rate_factor: active.record.machine.course.learning_rate_factor(),
                };
                self.sessions.send(&site, Directive::Task(task));
            }
            Effect::Withdraw(site, turn, reason) => {
                info!(job, site, round = turn.round, reason, "task withdrawn");
                self.sessions.send(&site, Directive::Withdraw { job, turn, reason });
            }
            Effect::Notify(site, turn, reason) => {
                warn!(job, site, round = turn.round, reason, "an update does not count");
                self.sessions.send(&site, Directive::Notify { job, turn, reason });
            }
            Effect::Count(kind) => self.metrics.left_out(kind),
            Effect::Record(round) => match round.evaluation() {
                Some(sums) => info!(job, round = round.round, measures = ?sums.measures(), "round evaluated"),
                None => info!(job, round = round.round, sites = round.sites.len(), "round committed"),
            },
            Effect::Aggregate => self.aggregate(&job),
            Effect::End(outcome) => {
                info!(job, ?outcome, "job ended");
                self.active.remove(&job);
            }
        }
    }

    fn aggregate(&self, job: &str) {
        let Some(active) = self.active.get(job) else { return };
        let Machine { phase: Phase::Aggregating { round, attempt, updates, .. }, state: Some(state), moments, .. } =
            &active.record.machine
        else {
            return;
        };
        let aggregation = active.job.aggregation.clone();
        let examples = updates.iter().map(|(site, share)| (site.clone(), share.examples)).collect();
        let weights = aggregate::weights(&aggregation, &examples);
        let weighted: BTreeMap<String, Weighted> = updates
            .iter()
            .map(|(site, share)| {
                let weight = weights.get(site).copied().unwrap_or(share.examples);
                (site.clone(), Weighted { update: share.update, weight, scale: share.staleness_weight() })
            })
            .collect();
        let (round, attempt, job) = (*round, *attempt, job.to_owned());
        let before = Before {
            state: *state,
            moments: moments.clone(),
            step: round.saturating_sub(active.record.machine.course.undone),
        };
        let (artifacts, own, passes) = (self.artifacts.clone(), self.own.clone(), self.passes.clone());
        let span = self.rounds.aggregation(&job, round, attempt);
        let with_difference = active.job.updates.download == Download::Difference;
        tokio::spawn(async move {
            let _turn = passes.acquire_owned().await;
            let began = std::time::Instant::now();
            let staging = format!("{job}-{round}-{attempt}");
            // A task of its own, so that even a panic of the pass is an event.
            let pass = async move {
                let keep = Keep::All(&staging);
                let mut after = aggregate::aggregate(&artifacts, &aggregation, &before, &weighted, keep).await?;
                let seconds = began.elapsed().as_secs_f64();
                if with_difference {
                    let staging = format!("{staging}.difference");
                    after.difference = aggregate::difference(&artifacts, before.state, after.state, &staging).await;
                }
                Ok::<_, AggregateError>((after, seconds))
            };
            let pass = tokio::spawn(pass.instrument(span));
            let event = match pass.await {
                Ok(Ok((after, seconds))) => Event::Aggregated { round, attempt, after, seconds },
                Ok(Err(e)) => Event::AggregationFailed(e.to_string()),
                Err(e) => Event::AggregationFailed(e.to_string()),
            };
            if let Some(own) = own.upgrade() {
                let _ = own.send(Request::Aggregated { job, event }).await;
            }
        });
    }
}
