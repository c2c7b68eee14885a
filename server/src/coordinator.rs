//! The driver of the round machine: one task that owns the sessions and the jobs. Every event goes through the machine,
//! the new state is stored, and only then do its effects run and its callers get an answer.
//!
//! Jobs run one at a time, in the order they came.

mod handle;
mod sessions;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fedtune_config::job::{self, Copies, Download, Job, TaskKind};
use fedtune_config::server::{Limits, Sessions as SessionTimes};
use fedtune_proto::delta::{self, Codec};
use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::evaluation::Form;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

pub use handle::{Answer, Expected, Handle, Permit, Rejected};
pub use sessions::{About, Directive, Task};
pub use snapshot::{Activity, JobSnapshot, Overview, SiteSnapshot};

use crate::aggregate::{self, AggregateError, Before, Bounds, Keep, Weighted};
use crate::metrics::Metrics;
use crate::pki::{Identity, Role};
use crate::round::{Effect, Event, Fault, Machine, Outcome, Phase, RoundRecord, Trainee, Turn, Work, World};
use crate::store::records::{JobRecord, JobStatus};
use crate::store::{Artifacts, Records, StoreError};
use handle::Request;
use sessions::Sessions;

const REQUESTS_MAX: usize = 256;

/// The task's own state.
struct Coordinator {
    records: Records,
    artifacts: Artifacts,
    limits: Limits,
    sessions: Sessions,
    /// The job that runs, and what its sites are doing.
    active: Option<Active>,
    metrics: Metrics,
    /// The aggregator is about to stop. The job stays where it is: that its sites are away now says nothing.
    draining: bool,
    /// Counts visible changes.
    changes: watch::Sender<u64>,
    /// For events of its own making.
    own: mpsc::WeakSender<Request>,
    /// Events whose transition could not be stored yet, and nobody else repeats.
    unstored: VecDeque<Event>,
}

struct Active {
    record: JobRecord,
    job: Job,
    activity: BTreeMap<String, Activity>,
}

/// Opens the records, resumes the running job, and starts the coordinator.
///
/// # Errors
/// Storage failed.
pub async fn start(
    records: Records,
    artifacts: Artifacts,
    limits: Limits,
    times: SessionTimes,
    metrics: Metrics,
) -> Result<Handle, StoreError> {
    let (sender, mut receiver) = mpsc::channel(REQUESTS_MAX);
    let (changes, changed) = watch::channel(0);
    let tick = times.heartbeat.0.min(Duration::from_secs(1));
    let mut coordinator = Coordinator {
        records,
        artifacts,
        limits,
        sessions: Sessions::new(times),
        active: None,
        metrics,
        draining: false,
        changes,
        own: sender.downgrade(),
        unstored: VecDeque::new(),
    };
    coordinator.next_job().await?;
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                request = receiver.recv() => match request {
                    Some(request) => coordinator.serve(request).await,
                    // Every handle is gone: the aggregator is shutting down.
                    None => return,
                },
                _ = ticks.tick() => coordinator.tick().await,
            }
        }
    });
    Ok(Handle::new(sender, changed))
}

impl Coordinator {
    async fn serve(&mut self, request: Request) {
        match request {
            Request::OpenSession { identity, about, reply } => {
                let opened = self.open_session(identity, about).await;
                let _ = reply.send(opened);
            }
            Request::CloseSession { site, session } => {
                if self.sessions.close(&site, session) {
                    info!(site, "session closed");
                    self.apply_logged(Event::Tick).await;
                }
            }
            Request::Heartbeat { site, session, reply } => {
                let _ = reply.send(self.sessions.heard(&site, &session));
            }
            Request::Progress { site, session, job, turn, activity, reply } => {
                let known = self.sessions.heard(&site, &session);
                if known && self.is_active(&job) {
                    let before = self.active.as_mut().and_then(|active| active.activity.insert(site.clone(), activity));
                    // Only a step is a sign of progress; saying the same again is not.
                    if before.is_none_or(|before| before.turn != turn || activity.done > before.done) {
                        self.apply_logged(Event::Progress(site, turn)).await;
                    }
                    self.changed();
                }
                let _ = reply.send(known);
            }
            Request::Moving { site } => {
                let turn = self.active.as_ref().and_then(|active| active.record.machine.work_of(&site));
                if let Some(turn) = turn {
                    self.apply_logged(Event::Progress(site, turn)).await;
                }
            }
            Request::Expect { site, job, turn, reply } => {
                let _ = reply.send(self.expect(&site, &job, turn).await);
            }
            Request::Report { site, job, turn, event, recipe, reply } => {
                let _ = reply.send(self.report(&site, &job, turn, event, recipe).await);
            }
            Request::Permit { identity, permit, reply } => {
                let _ = reply.send(self.permits(&identity, permit).await);
            }
            Request::Aggregated { job, event } => {
                // The pass is repeated after a start; a round committed now would find nobody to score it.
                if self.is_active(&job) && !self.draining {
                    if let Event::AggregationFailed(reason) = &event {
                        warn!(job, round = self.turn().1, reason, "the pass failed");
                    }
                    self.apply_logged(event).await;
                }
            }
            Request::Submit { record, reply } => {
                let mut stored = self.records.add_job(&record).await;
                if stored.is_ok() && self.active.is_none() && !self.draining {
                    stored = self.next_job().await;
                }
                self.changed();
                let _ = reply.send(stored);
            }
            Request::Pause { job, reply } => {
                let _ = reply.send(self.pause(&job).await);
            }
            Request::Resume { job, reply } => {
                let _ = reply.send(self.resume(&job).await);
            }
            Request::Cancel { job, reply } => {
                let _ = reply.send(self.cancel(&job).await);
            }
            Request::Jobs { reply } => {
                let _ = reply.send(self.records.jobs().await);
            }
            Request::Show { job, reply } => {
                let _ = reply.send(self.show(&job).await);
            }
            Request::Sites { reply } => {
                let sites = self.records.sites().await;
                let _ = reply.send(sites.map(|sites| self.sessions.snapshot(sites)));
            }
            Request::Drain { reply } => {
                self.draining = true;
                self.sessions.close_all("the aggregator is stopping; connect again");
                let _ = reply.send(());
            }
            Request::Overview { reply } => {
                let _ = reply.send(self.overview());
            }
        }
    }

    async fn tick(&mut self) {
        for site in self.sessions.expire() {
            warn!(site, "session closed: the site was silent too long");
        }
        if self.active.is_none()
            && !self.draining
            && let Err(e) = self.next_job().await
        {
            error!("the next job cannot start: {e}");
        }
        while let Some(event) = self.unstored.pop_front() {
            if let Err(e) = self.apply(event.clone()).await {
                let (job, round) = self.turn();
                error!(job, round, "a transition still cannot be stored: {e}");
                self.unstored.push_front(event);
                return;
            }
        }
        if !self.draining {
            self.apply_logged(Event::Tick).await;
        }
    }

    async fn open_session(&mut self, identity: Identity, about: About) -> Result<sessions::Opened, Rejected> {
        if self.draining {
            return Err(Rejected::Stopping);
        }
        let enrolled = self.records.sites().await?;
        if !enrolled.contains(&identity) {
            return Err(Rejected::Refused(format!(
                "{} {:?} is not enrolled here; the operator enrols it with `fedtune-server site add {}`",
                identity.role, identity.name, identity.name
            )));
        }
        let site = identity.name.clone();
        info!(site, role = identity.role.as_str(), program = about.program, "session opened");
        let opened = self.sessions.open(identity, about);
        let task = self.own.clone();
        let (sender, session) = (opened.sender.clone(), opened.session.clone());
        let name = site.clone();
        tokio::spawn(async move {
            sender.closed().await;
            if let Some(own) = task.upgrade() {
                let _ = own.send(Request::CloseSession { site: name, session }).await;
            }
        });
        self.apply_logged(Event::Joined(site.clone())).await;
        let works = self.active.as_ref().is_some_and(|active| active.record.machine.work_of(&site).is_some());
        if !works {
            // What it may have begun before the link broke is not wanted any more.
            self.sessions.send(&site, Directive::WithdrawAll);
        }
        Ok(opened)
    }

    /// The running job and the round it is in, for log lines.
    fn turn(&self) -> (Option<&str>, Option<u32>) {
        let Some(active) = &self.active else { return (None, None) };
        (Some(&active.record.id), round_of(&active.record.machine.phase))
    }

    fn is_active(&self, job: &str) -> bool {
        self.active.as_ref().is_some_and(|active| active.record.id == job)
    }

    async fn world(&self) -> Result<World, StoreError> {
        Ok(World {
            now_ms: now_ms(),
            trainers: self.sessions.online(Role::Site),
            evaluators: self.sessions.online(Role::Evaluator),
            evaluator_enrolled: self.records.sites().await?.iter().any(|site| site.role == Role::Evaluator),
        })
    }

    /// What a result of this turn would be checked against, or the answer it has had already.
    async fn expect(&self, site: &str, job: &str, turn: Turn) -> Result<handle::Expected, StoreError> {
        let stale = |reason: String| handle::Expected::Answered(Answer { accepted: false, reason });
        let active = self.active.as_ref().filter(|active| active.record.id == job);
        let stored;
        let machine = match active {
            Some(active) => &active.record.machine,
            None => match self.find(job).await {
                Ok(record) => {
                    stored = record;
                    &stored.machine
                }
                Err(Rejected::Store(e)) => return Err(e),
                Err(unknown) => return Ok(stale(unknown.to_string())),
            },
        };
        if let Some(active) = active.filter(|_| machine.work_of(site) == Some(turn)) {
            return Ok(handle::Expected::Open {
                state: machine.state,
                form: form(&active.job.task),
                bounds: Bounds {
                    examples: self.limits.examples_per_update.min(self.sessions.examples(site).unwrap_or(u64::MAX)),
                    norm: active.job.admission.norm_max.unwrap_or(f64::INFINITY),
                },
                codec: codec(&active.job),
            });
        }
        let accepted = handle::Expected::Answered(Answer { accepted: true, reason: "it is stored already".into() });
        if turn.work == Work::Initialize {
            let own = machine.initializer.as_deref() == Some(site);
            return Ok(if own { accepted } else { stale("the first state was made by another site".into()) });
        }
        if let Phase::Evaluating { record, sites, .. } = &machine.phase
            && turn.work == Work::Evaluate
            && (record.round, record.attempt) == (turn.round, turn.attempt)
            && matches!(sites.get(site), Some(crate::round::Judge::Done(_)))
        {
            return Ok(accepted);
        }
        if let Phase::Training { round, attempt, sites, .. } = &machine.phase
            && (*round, *attempt) == (turn.round, turn.attempt)
        {
            return Ok(match sites.get(site) {
                Some(Trainee::Done(_)) => accepted,
                Some(Trainee::Out(reason)) => stale(reason.clone()),
                _ => stale(format!("{site} is not in the cohort of round {round}")),
            });
        }
        if let Phase::Aggregating { round, attempt, updates, .. } = &machine.phase
            && (*round, *attempt) == (turn.round, turn.attempt)
            && updates.contains_key(site)
        {
            return Ok(accepted);
        }
        let rounds = self.records.rounds(job).await?;
        let counted = rounds.iter().any(|record| {
            (record.round, record.attempt) == (turn.round, turn.attempt)
                && match turn.work {
                    Work::Evaluate => record.evaluations.contains_key(site),
                    _ => record.sites.contains_key(site),
                }
        });
        Ok(if counted {
            accepted
        } else {
            stale(format!("round {} attempt {} does not wait for {site} any more", turn.round, turn.attempt))
        })
    }

    async fn report(
        &mut self,
        site: &str,
        job: &str,
        turn: Turn,
        event: Event,
        recipe: Option<String>,
    ) -> Result<Answer, StoreError> {
        // The world may have moved while the bytes were checked.
        if let handle::Expected::Answered(answer) = self.expect(site, job, turn).await? {
            return Ok(answer);
        }
        let event = match self.replay(job, &event).await? {
            Some(reason) => Event::Failed { site: site.to_owned(), turn, reason, fault: Fault::Quarantined },
            None => event,
        };
        let quarantined = match &event {
            Event::Failed { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        if let (Some(recipe), Some(active)) = (recipe, &mut self.active) {
            active.record.recipe = Some(recipe);
        }
        self.apply(event).await?;
        match quarantined {
            Some(reason) => {
                warn!(site, job, round = turn.round, reason, "a result does not count");
                Ok(Answer { accepted: false, reason })
            }
            None => Ok(Answer { accepted: true, reason: String::new() }),
        }
    }

    /// Why an update is none of this round: it counted in an earlier one.
    async fn replay(&self, job: &str, event: &Event) -> Result<Option<String>, StoreError> {
        let counts_copies = self.active.as_ref().is_none_or(|active| active.job.admission.copies == Copies::Count);
        let Event::Updated { share, .. } = event else { return Ok(None) };
        if counts_copies || share.norm == 0.0 {
            return Ok(None);
        }
        let rounds = self.records.rounds(job).await?;
        let earlier = rounds.iter().find_map(|record| {
            let (site, _) = record.sites.iter().find(|(_, earlier)| earlier.update.digest == share.update.digest)?;
            Some((record.round, site))
        });
        Ok(earlier
            .map(|(round, site)| format!("the update is the one that {site} sent in round {round}, byte for byte")))
    }

    async fn permits(&self, identity: &Identity, permit: Permit) -> Result<(), String> {
        let within = |size: u64, most: u64| {
            if size <= most { Ok(()) } else { Err(format!("the artifact has {size} bytes; expected at most {most}")) }
        };
        if identity.role == Role::Operator {
            return match permit {
                Permit::Read(_) => Ok(()),
                Permit::Write(size) => within(size, self.limits.artifact_bytes),
            };
        }
        if !self.records.sites().await.map_err(|e| e.to_string())?.contains(identity) {
            return Err(format!("{} is not enrolled here", identity.name));
        }
        let Some(active) = &self.active else { return Err("no job is running".into()) };
        let machine = &active.record.machine;
        match permit {
            Permit::Read(digest) => {
                let of_base = active.record.base_model.iter().any(|file| file.artifact.digest == digest);
                let of_state = machine.state.is_some_and(|state| state.digest == digest);
                let of_difference = machine.difference.is_some_and(|difference| difference.artifact.digest == digest);
                if of_base || of_state || of_difference {
                    Ok(())
                } else {
                    Err(format!("artifact {digest} is not part of the running job"))
                }
            }
            Permit::Write(size) => {
                let most = match machine.work_of(&identity.name).map(|turn| turn.work) {
                    Some(Work::Initialize) => self.limits.artifact_bytes,
                    Some(Work::Train) => match (machine.state, codec(&active.job)) {
                        (Some(state), Some(codec)) => {
                            let layout = self.artifacts.layout(state).await.map_err(|e| e.to_string())?;
                            delta::wire_bytes_max(&layout, codec)
                        }
                        // An update has the layout of the state; only the header's padding may differ.
                        (Some(state), None) => state.size + (1 << 16),
                        (None, _) => 0,
                    },
                    Some(Work::Evaluate) | None => return Err("no task of this site asks for an upload".into()),
                };
                within(size, most)
            }
        }
    }

    async fn pause(&mut self, job: &str) -> Result<(), Rejected> {
        if self.is_active(job) {
            return Ok(self.apply(Event::Pause).await?);
        }
        let mut record = self.find(job).await?;
        match record.status {
            JobStatus::Paused => Ok(()),
            JobStatus::Queued => {
                (record.machine, _) = record.machine.step(Event::Pause, &World::default());
                record.status = JobStatus::Paused;
                record.reason = record.machine.paused.clone().unwrap_or_default();
                self.records.save(&record, &[]).await?;
                self.changed();
                Ok(())
            }
            status => Err(Rejected::Refused(format!("job {} is {} already", record.id, status.as_str()))),
        }
    }

    async fn resume(&mut self, job: &str) -> Result<(), Rejected> {
        if self.is_active(job) {
            return Ok(self.apply(Event::Resume).await?);
        }
        let mut record = self.find(job).await?;
        if record.status != JobStatus::Paused {
            let status = record.status.as_str();
            return Err(Rejected::Refused(format!("job {} is {status}; only a paused one can be resumed", record.id)));
        }
        record.machine.paused = None;
        record.status = JobStatus::Queued;
        record.reason = String::new();
        self.records.save(&record, &[]).await?;
        if self.active.is_none() {
            self.next_job().await?;
        }
        self.changed();
        Ok(())
    }

    async fn cancel(&mut self, job: &str) -> Result<(), Rejected> {
        if self.is_active(job) {
            self.apply(Event::Cancel).await?;
            return Ok(());
        }
        let mut record = self.find(job).await?;
        if record.status.is_over() {
            return Err(Rejected::Refused(format!("job {} is {} already", record.id, record.status.as_str())));
        }
        record.status = JobStatus::Cancelled;
        record.reason = "cancelled while it waited".into();
        self.records.save(&record, &[]).await?;
        self.changed();
        Ok(())
    }

    async fn find(&self, job: &str) -> Result<JobRecord, Rejected> {
        let jobs = self.records.jobs().await?;
        jobs.into_iter().find(|record| record.id == job).ok_or_else(|| Rejected::Unknown(job.to_owned()))
    }

    async fn show(&self, job: &str) -> Result<JobSnapshot, Rejected> {
        let active = self.active.as_ref().filter(|active| active.record.id == job);
        let record = match active {
            Some(active) => active.record.clone(),
            None => self.find(job).await?,
        };
        let rounds = self.records.rounds(&record.id).await?;
        let activity = active.map(|active| active.activity.clone()).unwrap_or_default();
        Ok(JobSnapshot::new(record, rounds, activity))
    }

    fn overview(&self) -> Overview {
        let online: BTreeSet<String> =
            [Role::Site, Role::Evaluator].into_iter().flat_map(|role| self.sessions.online(role)).collect();
        let machine = self.active.as_ref().map(|active| &active.record.machine);
        let works = |site: &&String| machine.is_some_and(|machine| machine.work_of(site).is_some());
        Overview { working: online.iter().filter(works).cloned().collect(), online }
    }

    /// Takes up the job that was running, or the first in the queue.
    async fn next_job(&mut self) -> Result<(), StoreError> {
        loop {
            let jobs = self.records.jobs().await?;
            let running = jobs.iter().find(|job| job.status == JobStatus::Running);
            let Some(record) = running.or_else(|| jobs.iter().find(|job| job.status == JobStatus::Queued)) else {
                return Ok(());
            };
            let mut record = record.clone();
            match fedtune_config::parse::<Job>(record.id.as_ref(), &record.text, std::iter::empty()) {
                Ok(job) => {
                    info!(job = record.id, name = record.name, "job running");
                    record.status = JobStatus::Running;
                    self.active = Some(Active { record, job, activity: BTreeMap::new() });
                    return self.apply(Event::Resumed).await;
                }
                Err(e) => {
                    record.status = JobStatus::Failed;
                    record.reason = format!("this version cannot read the job: {e}");
                    error!(job = record.id, reason = record.reason, "job failed");
                    self.records.save(&record, &[]).await?;
                }
            }
        }
    }

    /// An event whose failure nobody waits to hear of; it is applied again with the next tick.
    async fn apply_logged(&mut self, event: Event) {
        if let Err(e) = self.apply(event.clone()).await {
            let (job, round) = self.turn();
            error!(job, round, "a transition could not be stored, it is tried again: {e}");
            // Signs of life come again by themselves.
            if !matches!(event, Event::Tick | Event::Progress(..)) && self.unstored.len() < REQUESTS_MAX {
                self.unstored.push_back(event);
            }
        }
    }

    /// Steps the machine, stores what it became, then carries out the effects.
    async fn apply(&mut self, event: Event) -> Result<(), StoreError> {
        let world = self.world().await?;
        let Some(active) = &mut self.active else { return Ok(()) };
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
        }
        self.metrics.transition(&active.record.machine, &record.machine, &effects);
        active.record = record;
        for effect in effects {
            self.perform(effect);
        }
        // The next tick takes up another job.
        if let Some(paused) = self.active.take_if(|active| active.record.status == JobStatus::Paused) {
            warn!(job = paused.record.id, reason = paused.record.reason, "job paused");
        }
        self.changed();
        Ok(())
    }

    fn perform(&mut self, effect: Effect) {
        let Some(active) = &mut self.active else { return };
        let job = active.record.id.clone();
        match effect {
            Effect::Offer(site, turn) => {
                info!(job, site, round = turn.round, attempt = turn.attempt, work = ?turn.work, "task offered");
                active.activity.insert(site.clone(), Activity::begun(turn));
                let machine = &active.record.machine;
                let starts = turn.work != Work::Initialize;
                let task = Task {
                    job,
                    turn,
                    job_text: active.record.text.clone(),
                    base_model: active.record.base_model.clone(),
                    state: machine.state.filter(|_| starts),
                    difference: machine.difference.filter(|_| starts),
                    learning_rate_factor: machine.course.learning_rate_factor(),
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
            Effect::Record(round) => match round.evaluation() {
                Some(sums) => info!(job, round = round.round, measures = ?sums.measures(), "round evaluated"),
                None => info!(job, round = round.round, sites = round.sites.len(), "round committed"),
            },
            Effect::Aggregate => self.aggregate(),
            Effect::End(outcome) => {
                info!(job, ?outcome, "job ended");
                self.active = None;
            }
        }
    }

    fn aggregate(&self) {
        let Some(active) = &self.active else { return };
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
                (site.clone(), Weighted { update: share.update, weight })
            })
            .collect();
        let (round, attempt, job) = (*round, *attempt, active.record.id.clone());
        let before = Before { state: *state, moments: moments.clone(), step: round };
        let (artifacts, own) = (self.artifacts.clone(), self.own.clone());
        let with_difference = active.job.updates.download == Download::Difference;
        tokio::spawn(async move {
            let began = std::time::Instant::now();
            let staging = format!("{job}-{round}-{attempt}");
            // A task of its own, so that even a panic of the pass is an event.
            let pass = tokio::spawn(async move {
                let keep = Keep::All(&staging);
                let mut after = aggregate::aggregate(&artifacts, &aggregation, &before, &weighted, keep).await?;
                let seconds = began.elapsed().as_secs_f64();
                if with_difference {
                    let staging = format!("{staging}.difference");
                    after.difference = aggregate::difference(&artifacts, before.state, after.state, &staging).await;
                }
                Ok::<_, AggregateError>((after, seconds))
            });
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

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// The round that a phase belongs to; `None` before the first and after the last.
fn round_of(phase: &Phase) -> Option<u32> {
    match phase {
        Phase::Gathering { round, .. } | Phase::Training { round, .. } | Phase::Aggregating { round, .. } => {
            Some(*round)
        }
        Phase::Evaluating { record, .. } => Some(record.round),
        _ => None,
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

/// The artifacts a base model names, checked to be here.
///
/// # Errors
/// Storage failed.
pub async fn missing(artifacts: &Artifacts, wanted: &[ArtifactRef]) -> Result<Vec<Digest>, StoreError> {
    let mut missing = Vec::new();
    for artifact in wanted {
        if artifacts.refresh(artifact.digest).await? != Some(artifact.size) {
            missing.push(artifact.digest);
        }
    }
    Ok(missing)
}

/// How the updates of a job are encoded; `None` for not at all.
fn codec(job: &Job) -> Option<Codec> {
    // Every codec that a sound job can name is one.
    job.updates.codec().and_then(|name| name.parse().ok())
}

/// What an evaluation of a task counts.
fn form(task: &job::Task) -> Form {
    let labels = task.labels.len();
    match task.kind {
        TaskKind::TextClassification | TaskKind::ImageClassification | TaskKind::TableClassification => {
            Form::Classes(labels)
        }
        TaskKind::MultiLabelClassification => Form::Sets(labels),
        TaskKind::TextRegression | TaskKind::TableRegression => Form::Values,
        TaskKind::TokenClassification => Form::Tags(labels),
        TaskKind::CausalLm => Form::NextToken,
    }
}
