//! The driver of the round machine: one task that owns the sessions and the jobs. Every event goes through the machine,
//! the new state is stored, and only then do its effects run and its callers get an answer.
//!
//! Jobs run side by side, up to a number, and take turns at the sites they share: who has waited longest goes first.

mod answers;
mod counted;
mod handle;
mod operating;
mod sessions;
mod snapshot;
mod transition;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fedtune_config::job::Job;
use fedtune_config::server::{Limits, Sessions as SessionTimes};
use fedtune_proto::digest::{ArtifactRef, Digest};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{error, info, warn};

pub use handle::{Answer, Expected, Handle, Permit, Rejected};
pub use sessions::{About, Directive, Task};
pub use snapshot::{Activity, JobSnapshot, Overview, SiteSnapshot};

use crate::metrics::Metrics;
use crate::pki::{Identity, Role};
use crate::round::{Event, Phase, Turn, World};
use crate::store::records::{JobRecord, JobStatus};
use crate::store::{Artifacts, Records, StoreError};
use crate::traces::Rounds;
use counted::Counted;
use handle::Request;
use sessions::Sessions;

const REQUESTS_MAX: usize = 256;

/// The longest time from tick to tick.
const TICK_MAX: Duration = Duration::from_secs(1);

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
    /// When sessions were last looked at.
    ticked: Instant,
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
    /// What each site has begun to store for its turn.
    uploads: BTreeMap<String, (Turn, BTreeSet<Digest>)>,
    /// `None` until it is asked for.
    counted: Option<Counted>,
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
    let tick = times.heartbeat.0.min(TICK_MAX);
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
        ticked: Instant::now(),
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
                _ = ticks.tick() => {
                    // What was said before is heard before anybody counts as silent or late.
                    for _ in 0..receiver.len() {
                        let Ok(request) = receiver.try_recv() else { break };
                        coordinator.serve(request).await;
                    }
                    coordinator.tick().await;
                }
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
        // Held up by storage, say: signs of life wait in the queue meanwhile.
        let now = Instant::now();
        let deaf = now.duration_since(self.ticked).saturating_sub(TICK_MAX);
        self.ticked = now;
        self.sessions.excuse(deaf, now);
        for site in self.sessions.expire(now) {
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
        let enrolled = self.records.sites().await?;
        let mut world = World {
            now_ms: steady_ms(),
            trainers: self.sessions.online(Role::Site),
            evaluators: self.sessions.online(Role::Evaluator),
            evaluator_enrolled: enrolled.iter().any(|site| site.role == Role::Evaluator),
            enrolled: enrolled.into_iter().filter(|site| site.role == Role::Site).map(|site| site.name).collect(),
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
                    self.active.insert(
                        id.clone(),
                        Active {
                            record,
                            job,
                            served: self.turns,
                            activity: BTreeMap::new(),
                            uploads: BTreeMap::new(),
                            counted: None,
                        },
                    );
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

/// Milliseconds since 1970, by a clock that nobody sets while this program runs: deadlines count on it.
pub(crate) fn steady_ms() -> u64 {
    static BEGAN: LazyLock<(Instant, u64)> = LazyLock::new(|| (Instant::now(), now_ms()));
    let since = u64::try_from(BEGAN.0.elapsed().as_millis()).unwrap_or(u64::MAX);
    BEGAN.1.saturating_add(since)
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
