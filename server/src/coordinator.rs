//! The driver of the round machine: one task that owns the sessions and the jobs. Every event goes through the machine,
//! the new state is stored, and only then do its effects run and its callers get an answer.
//!
//! Jobs run side by side, up to a number, and take turns at the sites they share: who has waited longest goes first.

mod handle;
mod sessions;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fedtune_config::job::{self, Copies, Download, Job, TaskKind};
use fedtune_config::server::{Limits, Sessions as SessionTimes};
use fedtune_proto::delta::{self, Codec};
use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::evaluation::Form;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{Instrument, error, info, warn};

pub use handle::{Answer, Expected, Handle, Permit, Rejected};
pub use sessions::{About, Directive, Task};
pub use snapshot::{Activity, JobSnapshot, Overview, SiteSnapshot};

use crate::aggregate::{self, AggregateError, Before, Bounds, Keep, Weighted};
use crate::metrics::Metrics;
use crate::pki::{Identity, Role};
use crate::round::{Effect, Event, Fault, Machine, Outcome, Phase, RoundRecord, Turn, Work, World};
use crate::store::records::{JobRecord, JobStatus};
use crate::store::{Artifacts, Records, StoreError};
use crate::traces::Rounds;
use handle::Request;
use sessions::Sessions;

const REQUESTS_MAX: usize = 256;

/// The task's own state.
struct Coordinator {
    records: Records,
    artifacts: Artifacts,
    limits: Limits,
    sessions: Sessions,
    /// The jobs that run, by id, and what their sites are doing.
    active: BTreeMap<String, Active>,
    /// How often a job was given sites; a job's own number tells whose turn it is.
    turns: u64,
    /// One pass at a time, so that memory does not grow with the number of jobs.
    passes: Arc<Semaphore>,
    metrics: Metrics,
    rounds: Rounds,
    /// The aggregator is about to stop. The job stays where it is: that its sites are away now says nothing.
    draining: bool,
    /// Counts visible changes.
    changes: watch::Sender<u64>,
    /// For events of its own making.
    own: mpsc::WeakSender<Request>,
    /// Events whose transition could not be stored yet, and nobody else repeats.
    unstored: VecDeque<(String, Event)>,
}

struct Active {
    record: JobRecord,
    job: Job,
    /// When it was last given sites, on the coordinator's count.
    served: u64,
    activity: BTreeMap<String, Activity>,
}

/// Opens the records, resumes the running jobs, and starts the coordinator.
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
        active: BTreeMap::new(),
        turns: 0,
        passes: Arc::new(Semaphore::new(1)),
        metrics,
        rounds: Rounds::default(),
        draining: false,
        changes,
        own: sender.downgrade(),
        unstored: VecDeque::new(),
    };
    coordinator.next_jobs().await?;
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
                    self.take_turns().await;
                }
            }
            Request::Heartbeat { site, session, reply } => {
                let _ = reply.send(self.sessions.heard(&site, &session));
            }
            Request::Progress { site, session, job, turn, activity, reply } => {
                let known = self.sessions.heard(&site, &session);
                if let Some(active) = self.active.get_mut(&job).filter(|_| known) {
                    let before = active.activity.insert(site.clone(), activity);
                    // Only a step is a sign of progress; saying the same again is not.
                    if before.is_none_or(|before| before.turn != turn || activity.done > before.done) {
                        self.apply_logged(&job, Event::Progress(site, turn)).await;
                    }
                    self.changed();
                }
                let _ = reply.send(known);
            }
            Request::Moving { site } => {
                if let Some((job, turn)) = self.work_of(&site) {
                    self.apply_logged(&job, Event::Progress(site, turn)).await;
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
                if !self.draining {
                    if let Event::AggregationFailed(reason) = &event {
                        warn!(job, round = self.round(&job), reason, "the pass failed");
                    }
                    self.apply_logged(&job, event).await;
                    self.pass_on().await;
                }
            }
            Request::Submit { record, reply } => {
                let mut stored = self.records.add_job(&record).await;
                if stored.is_ok() && !self.draining {
                    stored = self.next_jobs().await;
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
        if !self.draining
            && let Err(e) = self.next_jobs().await
        {
            error!("the next job cannot start: {e}");
        }
        while let Some((job, event)) = self.unstored.pop_front() {
            if let Err(e) = self.apply(&job, event.clone()).await {
                error!(job, round = self.round(&job), "a transition still cannot be stored: {e}");
                self.unstored.push_front((job, event));
                return;
            }
        }
        if !self.draining {
            self.take_turns().await;
        }
    }

    /// Lets every job see the world as it is now, the one that has waited longest first.
    async fn take_turns(&mut self) {
        for job in self.in_turn() {
            self.apply_logged(&job, Event::Tick).await;
        }
    }

    /// What one job has let go of, another may be waiting for.
    async fn pass_on(&mut self) {
        if self.active.len() > 1 {
            self.take_turns().await;
        }
    }

    /// The jobs that run, by when they were last given sites.
    fn in_turn(&self) -> Vec<String> {
        let mut jobs: Vec<(&u64, &String)> = self.active.iter().map(|(id, active)| (&active.served, id)).collect();
        jobs.sort();
        jobs.into_iter().map(|(_, id)| id.clone()).collect()
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
        for job in self.in_turn() {
            self.apply_logged(&job, Event::Joined(site.clone())).await;
        }
        if self.work_of(&site).is_none() {
            // What it may have begun before the link broke is not wanted any more.
            self.sessions.send(&site, Directive::WithdrawAll);
        }
        Ok(opened)
    }

    /// The round a job is in, for log lines.
    fn round(&self, job: &str) -> Option<u32> {
        self.active.get(job).and_then(|active| round_of(&active.record.machine.phase))
    }

    /// What a site has to do, and for which job. It is at work for one at a time.
    fn work_of(&self, site: &str) -> Option<(String, Turn)> {
        self.active.iter().find_map(|(id, active)| Some((id.clone(), active.record.machine.work_of(site)?)))
    }

    /// The world as a job may see it.
    async fn world(&self, job: &str) -> Result<World, StoreError> {
        let mut world = World {
            now_ms: now_ms(),
            trainers: self.sessions.online(Role::Site),
            evaluators: self.sessions.online(Role::Evaluator),
            evaluator_enrolled: self.records.sites().await?.iter().any(|site| site.role == Role::Evaluator),
            busy: BTreeSet::new(),
        };
        let mut busy = BTreeSet::new();
        let served = self.active.get(job).map_or(u64::MAX, |active| active.served);
        for (id, other) in self.active.iter().filter(|(id, _)| *id != job) {
            busy.extend(other.record.machine.working());
            if (other.served, id.as_str()) < (served, job) {
                busy.extend(other.record.machine.waits_for(&world));
            }
        }
        world.busy = busy;
        Ok(world)
    }

    /// What a result of this turn would be checked against, or the answer it has had already.
    async fn expect(&self, site: &str, job: &str, turn: Turn) -> Result<handle::Expected, StoreError> {
        let stale = |reason: String| handle::Expected::Answered(Answer { accepted: false, replayed: false, reason });
        let active = self.active.get(job);
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
                state: machine.state_for(site),
                form: form(&active.job.task),
                bounds: Bounds {
                    examples: self.limits.examples_per_update.min(self.sessions.examples(site).unwrap_or(u64::MAX)),
                    norm: active.job.admission.norm_max.unwrap_or(f64::INFINITY),
                    excluded: active.job.aggregation.exclude.clone(),
                },
                codec: codec(&active.job),
            });
        }
        let accepted = "it is stored already".to_owned();
        let accepted = handle::Expected::Answered(Answer { accepted: true, replayed: false, reason: accepted });
        match machine.answer_to(site, turn) {
            Some(Ok(())) => return Ok(accepted),
            Some(Err(reason)) => return Ok(stale(reason)),
            None => {}
        }
        let rounds = self.records.rounds(job).await?;
        let counted = rounds.iter().any(|record| {
            let made = (turn.round, turn.attempt);
            match turn.work {
                Work::Evaluate => (record.round, record.attempt) == made && record.evaluations.contains_key(site),
                _ => record.sites.get(site).is_some_and(|share| share.made_for(record.round, record.attempt) == made),
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
        let replay = self.replay(job, &event).await?;
        let replayed = replay.is_some();
        let event = match replay {
            Some(reason) => Event::Failed { site: site.to_owned(), turn, reason, fault: Fault::Quarantined },
            None => event,
        };
        let quarantined = match &event {
            Event::Failed { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        if let (Some(recipe), Some(active)) = (recipe, self.active.get_mut(job)) {
            active.record.recipe = Some(recipe);
        }
        self.apply(job, event).await?;
        self.pass_on().await;
        match quarantined {
            Some(reason) => {
                warn!(site, job, round = turn.round, reason, "a result does not count");
                Ok(Answer { accepted: false, replayed, reason })
            }
            None => Ok(Answer { accepted: true, replayed, reason: String::new() }),
        }
    }

    /// Why an update is none of this round: it counted in an earlier one.
    async fn replay(&self, job: &str, event: &Event) -> Result<Option<String>, StoreError> {
        let counts_copies = self.active.get(job).is_none_or(|active| active.job.admission.copies == Copies::Count);
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
        match permit {
            Permit::Read(digest) => {
                if self.active.values().any(|active| active.record.gives(&identity.name, digest)) {
                    Ok(())
                } else {
                    Err(format!("artifact {digest} is not part of a running job"))
                }
            }
            Permit::Write(size) => {
                let work = self.work_of(&identity.name);
                let active = work.as_ref().and_then(|(job, _)| self.active.get(job));
                let (Some((_, turn)), Some(active)) = (work, active) else {
                    return Err("no task of this site asks for an upload".into());
                };
                let most = match turn.work {
                    Work::Initialize => self.limits.artifact_bytes,
                    Work::Train => match (active.record.machine.state, codec(&active.job)) {
                        (Some(state), Some(codec)) => {
                            let layout = self.artifacts.layout(state).await.map_err(|e| e.to_string())?;
                            delta::wire_bytes_max(&layout, codec)
                        }
                        // An update has the layout of the state; only the header's padding may differ.
                        (Some(state), None) => state.size + (1 << 16),
                        (None, _) => 0,
                    },
                    Work::Evaluate => return Err("no task of this site asks for an upload".into()),
                };
                within(size, most)
            }
        }
    }

    async fn pause(&mut self, job: &str) -> Result<(), Rejected> {
        if self.active.contains_key(job) {
            self.apply(job, Event::Pause).await?;
            self.pass_on().await;
            return Ok(());
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
        if self.active.contains_key(job) {
            self.apply(job, Event::Resume).await?;
            self.pass_on().await;
            return Ok(());
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
        self.next_jobs().await?;
        self.changed();
        Ok(())
    }

    async fn cancel(&mut self, job: &str) -> Result<(), Rejected> {
        if self.active.contains_key(job) {
            self.apply(job, Event::Cancel).await?;
            self.pass_on().await;
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
        let active = self.active.get(job);
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
        let working = online.iter().filter(|site| self.work_of(site).is_some()).cloned().collect();
        Overview { working, online }
    }

    /// Takes up the jobs that were running, and the first in the queue while there is room.
    async fn next_jobs(&mut self) -> Result<(), StoreError> {
        let room = self.limits.running_jobs as usize;
        if self.active.len() >= room {
            return Ok(());
        }
        let jobs = self.records.jobs().await?;
        let of = |status: JobStatus| jobs.iter().filter(move |job| job.status == status);
        for record in of(JobStatus::Running).chain(of(JobStatus::Queued)) {
            if self.active.contains_key(&record.id) {
                continue;
            }
            // What ran when the limit was higher goes on.
            if record.status == JobStatus::Queued && self.active.len() >= room {
                break;
            }
            let mut record = record.clone();
            match fedtune_config::parse::<Job>(record.id.as_ref(), &record.text, std::iter::empty()) {
                Ok(job) => {
                    info!(job = record.id, name = record.name, "job running");
                    record.status = JobStatus::Running;
                    let id = record.id.clone();
                    self.active
                        .insert(id.clone(), Active { record, job, served: self.turns, activity: BTreeMap::new() });
                    self.apply(&id, Event::Resumed).await?;
                }
                Err(e) => {
                    record.status = JobStatus::Failed;
                    record.reason = format!("this version cannot read the job: {e}");
                    error!(job = record.id, reason = record.reason, "job failed");
                    self.records.save(&record, &[]).await?;
                }
            }
        }
        Ok(())
    }

    /// An event whose failure nobody waits to hear of; it is applied again with the next tick.
    async fn apply_logged(&mut self, job: &str, event: Event) {
        if let Err(e) = self.apply(job, event.clone()).await {
            error!(job, round = self.round(job), "a transition could not be stored, it is tried again: {e}");
            // Signs of life come again by themselves.
            if !matches!(event, Event::Tick | Event::Progress(..)) && self.unstored.len() < REQUESTS_MAX {
                self.unstored.push_back((job.to_owned(), event));
            }
        }
    }

    /// Steps the machine of a job, stores what it became, then carries out the effects.
    async fn apply(&mut self, job: &str, event: Event) -> Result<(), StoreError> {
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
        let before = Before { state: *state, moments: moments.clone(), step: round };
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
