//! What a directive sets going: fetch, compute, send, report. One task at a time; it outlives a broken session, because
//! its calls are repeated until they succeed or it is withdrawn.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fedtune_proto::channel;
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::transfer::{self, TransferError};
use fedtune_proto::v1::federation_client::FederationClient;
use fedtune_proto::v1::report_result_request::Outcome;
use fedtune_proto::v1::{self, ReportProgressRequest, ReportResultRequest, Task, TaskId, TaskKind, Withdraw};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::calls::repeat;
use super::hold::Hold;
use super::outbox::{Finished, Outbox};
use super::states::{NotMade, Place, States};
use super::work::{Site, WorkError};
use crate::finetune::{Observer, Progress};

/// Least time between two reports of progress, and between two lines of the log about it.
const REPORT_EVERY: Duration = Duration::from_secs(1);
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The task in progress.
pub(super) struct Tasks {
    site: Arc<Site>,
    channel: Channel,
    session: watch::Receiver<String>,
    current: Option<Current>,
    hold: Arc<Hold>,
    /// Held by the computation in progress, so that one that was given up ends before the next begins.
    computing: Arc<Mutex<()>>,
}

struct Current {
    id: TaskId,
    state: Option<ArtifactRef>,
    cancelled: Arc<AtomicBool>,
    /// Whether the aggregator has said what becomes of its result.
    answered: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Tasks {
    pub(super) fn new(site: Arc<Site>, channel: Channel, session: watch::Receiver<String>) -> Self {
        let hold = Arc::new(Hold::of(&site.config.storage.work));
        Self { site, channel, session, current: None, hold, computing: Arc::default() }
    }

    /// Begins a task, unless it is in progress already, or was answered: an offer that crossed the answer is stale, and what
    /// compression lost of the task's update counts as kept. Another task in progress is given up.
    pub(super) fn begin(&mut self, task: Task) {
        let Some(id) = task.id.clone() else { return };
        let over = |current: &Current| current.task.is_finished() && !current.answered.load(Ordering::Acquire);
        // A malformed one is named when it is fetched.
        let state = task.state.as_ref().and_then(|state| ArtifactRef::try_from(state).ok());
        if self.current.as_ref().is_some_and(|current| current.id == id && current.state == state && !over(current)) {
            return;
        }
        self.stop();
        info!(job = id.job, round = id.round, attempt = id.attempt, kind = id.kind().as_str_name(), "task begun");
        let (cancelled, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let running = Running {
            site: self.site.clone(),
            channel: self.channel.clone(),
            session: self.session.clone(),
            outbox: Outbox::new(&self.site.config.storage.work),
            cancelled: cancelled.clone(),
            answered: answered.clone(),
            id: id.clone(),
            state,
            hold: self.hold.clone(),
            computing: self.computing.clone(),
        };
        self.current = Some(Current { id, state, cancelled, answered, task: tokio::spawn(running.run(task)) });
    }

    /// Gives up the task in progress if it is the one that is not wanted any more, or none is.
    pub(super) fn withdraw(&mut self, withdraw: Withdraw) {
        let concerns = |current: &Current| withdraw.id.is_none() || withdraw.id.as_ref() == Some(&current.id);
        if self.current.as_ref().is_some_and(|current| concerns(current) && !current.task.is_finished()) {
            info!("task withdrawn: {}", withdraw.reason);
            self.stop();
        }
    }

    fn stop(&mut self) {
        if let Some(current) = self.current.take() {
            current.cancelled.store(true, Ordering::Relaxed);
            current.task.abort();
        }
    }
}

struct Running {
    site: Arc<Site>,
    channel: Channel,
    session: watch::Receiver<String>,
    outbox: Outbox,
    cancelled: Arc<AtomicBool>,
    answered: Arc<AtomicBool>,
    id: TaskId,
    /// What it starts from.
    state: Option<ArtifactRef>,
    hold: Arc<Hold>,
    computing: Arc<Mutex<()>>,
}

/// What is reported, and the artifact bytes that travelled.
struct Report {
    outcome: Outcome,
    bytes_down: u64,
    bytes_up: u64,
}

enum Failure {
    Work(WorkError),
    /// Of the other side, or the link.
    Transfer(TransferError),
}

impl From<WorkError> for Failure {
    fn from(error: WorkError) -> Self {
        Self::Work(error)
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::File { path, source } => Self::Work(WorkError::File { path, source }),
            other => Self::Transfer(other),
        }
    }
}

fn file(path: &Path) -> impl Fn(std::io::Error) -> WorkError {
    let path = path.to_path_buf();
    move |source| WorkError::File { path: path.clone(), source }
}

impl Running {
    async fn run(self, task: Task) {
        let result = match self.perform(&task).await {
            Ok(result) => result,
            Err(Failure::Work(e)) if e.is_cancelled() => return,
            Err(failure) => {
                let (all, reason, refused) = match failure {
                    Failure::Work(e) => (e.to_string(), e.told(), e.is_refusal()),
                    Failure::Transfer(e) => (e.to_string(), e.to_string(), false),
                };
                warn!("the task failed: {all}");
                let outcome = Outcome::Failed(v1::Failed { reason, refused });
                Report { outcome, bytes_down: 0, bytes_up: 0 }
            }
        };
        let Report { outcome, bytes_down, bytes_up } = result;
        let trained = matches!(outcome, Outcome::Trained(_));
        let request = ReportResultRequest { task: Some(self.id.clone()), outcome: Some(outcome), bytes_down, bytes_up };
        match self.ask(request).await {
            Ok(answer) => {
                self.answered.store(true, Ordering::Release);
                if answer.accepted {
                    info!(round = self.id.round, "result accepted");
                } else {
                    warn!(round = self.id.round, "the result does not count: {}", answer.reason);
                }
                if trained {
                    self.outbox.answered(&self.id, answer.accepted);
                }
            }
            // The update stays in the outbox; it is sent again when the task is offered again.
            Err(status) => warn!("the aggregator refused the result: {}", channel::told(&status)),
        }
    }

    async fn perform(&self, task: &Task) -> Result<Report, Failure> {
        self.hold.taken().await.map_err(file(&self.site.config.storage.work))?;
        if let Some((finished, update)) = self.outbox.finished(&self.id, self.state) {
            info!("the update of this task is in the outbox; sending it");
            return self.send_update(finished, &update).await;
        }
        let job = self.site.job(task)?;
        let (model, mut bytes_down) = self.fetch_model(task).await?;
        let kind = self.id.kind();
        let state = match (&task.state, kind) {
            (_, TaskKind::Initialize) => PathBuf::new(),
            (Some(artifact), _) => {
                let (state, bytes) = self.fetch_state(artifact, task.difference.as_ref()).await?;
                bytes_down += bytes;
                state
            }
            (None, _) => return Err(WorkError::Malformed("it names no state".into()).into()),
        };
        let turn = self.computing.clone().lock_owned().await;
        self.settle().await?;
        let begun = self.outbox.continues(&self.id.job, task.learning_rate_factor);
        let attempt = begun.and_then(|()| self.outbox.begin(&self.id, self.state));
        let attempt = attempt.map_err(file(&self.site.config.storage.work))?;
        let out = attempt.update();
        let site = self.site.clone();
        match kind {
            TaskKind::Initialize => {
                let (path, began) = (out.clone(), Instant::now());
                let recipe_json = self.compute(turn, move |_| site.initialize(&job, &model, &path)).await?;
                let artifact = digest(&out).await?;
                let bytes_up = self.send(artifact, &out).await?;
                info!(seconds = began.elapsed().as_secs_f64(), "first state made");
                let state = Some(artifact.into());
                Ok(Report {
                    outcome: Outcome::Initialized(v1::Initialized { state, recipe_json }),
                    bytes_down,
                    bytes_up,
                })
            }
            TaskKind::Train => {
                let round = self.id.round;
                let (report, encoded) = self
                    .compute(turn, move |observer| site.train(&job, round, &model, &state, &attempt, observer))
                    .await?;
                info!(round, loss = report.train_loss, seconds = report.seconds, "fine-tuned");
                let out = encoded.path;
                let TaskId { job, round, attempt, kind } = self.id.clone();
                let finished = Finished {
                    task: (job, round, attempt, kind),
                    state: self.state,
                    file: out.file_name().unwrap_or_default().into(),
                    update: digest(&out).await?,
                    relative_error: encoded.relative_error,
                    examples: report.examples,
                    train_loss: report.train_loss,
                    train_seconds: report.seconds,
                    bytes_down,
                };
                self.outbox.finish(&finished).map_err(file(&out))?;
                self.send_update(finished, &out).await
            }
            TaskKind::Evaluate => {
                let own = attempt.own.clone();
                let evaluate =
                    move |observer: &mut dyn Observer| site.evaluate(&job, &model, &state, own.as_deref(), observer);
                let sums = self.compute(turn, evaluate).await?;
                info!(round = self.id.round, examples = sums.examples, measures = ?sums.measures(), "state scored");
                let outcome = Outcome::Evaluated(v1::EvaluatedState { evaluation: Some(sums.into()) });
                Ok(Report { outcome, bytes_down, bytes_up: 0 })
            }
            TaskKind::Unspecified => {
                Err(WorkError::Malformed("this version does not know its kind; install a newer fedtune-client".into())
                    .into())
            }
        }
    }

    async fn fetch_model(&self, task: &Task) -> Result<(PathBuf, u64), Failure> {
        let folder = self.outbox.model(task).map_err(file(&self.site.config.storage.work))?;
        let mut bytes = 0;
        for model_file in &task.base_model {
            let plain = Path::new(&model_file.name).file_name().is_some_and(|name| name == model_file.name.as_str());
            let (true, Some(artifact)) = (plain, &model_file.artifact) else {
                return Err(WorkError::Malformed(format!("it names the model file {:?}", model_file.name)).into());
            };
            bytes += self.fetch(artifact, &folder.join(&model_file.name)).await?;
        }
        Ok((folder, bytes))
    }

    /// The file of a state: one that is here, or made of the one before and their difference, or fetched whole.
    async fn fetch_state(
        &self,
        artifact: &v1::Artifact,
        difference: Option<&v1::Difference>,
    ) -> Result<(PathBuf, u64), Failure> {
        let failed = file(&self.site.config.storage.work);
        let state = ArtifactRef::try_from(artifact).map_err(|e| WorkError::Malformed(e.to_string()))?;
        let states = States::new(&self.site.config.storage.work);
        let place = states.place(state.digest).map_err(&failed)?;
        let mut bytes = 0;
        if let Some((artifact, before)) = difference.and_then(|difference| smaller(difference, state))
            && let Some(base) = states.base(&place, before)
        {
            bytes += self.make_state(artifact, &place, state, base).await;
        }
        // Nothing travels if it is here by now.
        bytes += self.fetch(artifact, &place.whole).await?;
        states.used(&place).map_err(&failed)?;
        Ok((place.whole, bytes))
    }

    /// Fetches the difference and makes the state of it, or leaves that undone. Returns the bytes that travelled.
    async fn make_state(&self, artifact: &v1::Artifact, place: &Place, state: ArtifactRef, base: PathBuf) -> u64 {
        let bytes = match self.fetch(artifact, &place.difference).await {
            Ok(bytes) => bytes,
            Err(e) => {
                if let TransferError::Damaged { .. } = e {
                    warn!("the difference to the state before is damaged, fetching the whole state: {e}");
                }
                return 0;
            }
        };
        // One writer of the file at a time: an earlier task that was given up may still be at it.
        let turn = self.computing.clone().lock_owned().await;
        let (making, before) = (place.clone(), base.clone());
        let made = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            making.make(state, &before)
        });
        match made.await.unwrap_or_else(|e| Err(NotMade::Interrupted(e.to_string()))) {
            Ok(()) => info!(bytes, of = state.size, "state made of the one before"),
            Err(e) => {
                warn!("the state cannot be made of the one before, fetching it whole: {e}");
                place.forget(&base);
            }
        }
        bytes
    }

    async fn fetch(&self, artifact: &v1::Artifact, path: &Path) -> Result<u64, TransferError> {
        repeat("downloading", || transfer::download(&self.channel, artifact, path)).await
    }

    async fn send(&self, artifact: ArtifactRef, path: &Path) -> Result<u64, TransferError> {
        let artifact = artifact.into();
        repeat("uploading", || transfer::upload(&self.channel, &artifact, path)).await
    }

    async fn send_update(&self, finished: Finished, path: &Path) -> Result<Report, Failure> {
        let bytes_up = self.send(finished.update, path).await?;
        Ok(Report { outcome: trained(&finished), bytes_down: finished.bytes_down, bytes_up })
    }

    /// Learns what became of results whose answers never came; a repeated report gets the answer that the first one got.
    async fn settle(&self) -> Result<(), WorkError> {
        let unanswered = self.outbox.unanswered(&self.id).map_err(file(&self.site.config.storage.work))?;
        for finished in unanswered {
            let (id, bytes_down) = (finished.id(), finished.bytes_down);
            let outcome = Some(trained(&finished));
            let request = ReportResultRequest { task: Some(id.clone()), outcome, bytes_down, bytes_up: 0 };
            let accepted = self.ask(request).await.is_ok_and(|answer| answer.accepted);
            self.outbox.answered(&id, accepted);
        }
        Ok(())
    }

    /// Reports a result until there is an answer.
    async fn ask(&self, request: ReportResultRequest) -> Result<v1::ReportResultResponse, tonic::Status> {
        let client = FederationClient::new(self.channel.clone());
        let answer = repeat("reporting the result", || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.report_result(request).await }
        });
        answer.await.map(tonic::Response::into_inner)
    }

    /// Computes on a thread of its own, and reports progress meanwhile.
    async fn compute<T: Send + 'static>(
        &self,
        turn: OwnedMutexGuard<()>,
        work: impl FnOnce(&mut dyn Observer) -> Result<T, WorkError> + Send + 'static,
    ) -> Result<T, WorkError> {
        let (sender, mut progress) = watch::channel(None::<Progress>);
        let cancelled = self.cancelled.clone();
        let computing = tokio::task::spawn_blocking(move || {
            // This thread goes on when its waiter is gone; the guard is its own.
            let _turn = turn;
            let mut observer = |progress: Progress| {
                sender.send_replace(Some(progress));
                if cancelled.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            work(&mut observer)
        });
        tokio::pin!(computing);
        let mut logged = Instant::now();
        loop {
            tokio::select! {
                computed = &mut computing => return computed.unwrap_or_else(|e| Err(WorkError::Panicked(e.to_string()))),
                Ok(()) = progress.changed() => {
                    let Some(now) = *progress.borrow_and_update() else { continue };
                    if logged.elapsed() > LOG_EVERY {
                        logged = Instant::now();
                        info!(step = now.step, of = now.steps, loss = now.loss, examples_per_second = now.examples_per_second, "progress");
                    }
                    self.report(now).await;
                    // The work may end meanwhile; its result must not wait for the pause.
                    tokio::select! {
                        computed = &mut computing => return computed.unwrap_or_else(|e| Err(WorkError::Panicked(e.to_string()))),
                        () = tokio::time::sleep(REPORT_EVERY) => {}
                    }
                }
            }
        }
    }

    /// One report; a lost one is made good by the next.
    async fn report(&self, progress: Progress) {
        let request = ReportProgressRequest {
            session: self.session.borrow().clone(),
            task: Some(self.id.clone()),
            done: progress.step as u64,
            total: progress.steps as u64,
            loss: Some(progress.loss).filter(|loss| loss.is_finite()),
            examples_per_second: progress.examples_per_second,
        };
        if let Err(status) = FederationClient::new(self.channel.clone()).report_progress(request).await {
            tracing::debug!("progress was not reported: {}", channel::told(&status));
        }
    }
}

/// A difference and the state that it is to, where it is less to fetch than the state.
fn smaller(difference: &v1::Difference, state: ArtifactRef) -> Option<(&v1::Artifact, ArtifactRef)> {
    let artifact = difference.artifact.as_ref().filter(|artifact| artifact.size < state.size)?;
    let before = ArtifactRef::try_from(difference.before.as_ref()?).ok()?;
    Some((artifact, before))
}

fn trained(finished: &Finished) -> Outcome {
    Outcome::Trained(v1::Trained {
        update: Some(finished.update.into()),
        examples: finished.examples,
        train_loss: finished.train_loss,
        train_seconds: finished.train_seconds,
        relative_error: finished.relative_error,
    })
}

async fn digest(path: &Path) -> Result<ArtifactRef, WorkError> {
    let hashed = path.to_path_buf();
    let named = tokio::task::spawn_blocking(move || ArtifactRef::of_file(&hashed)).await;
    named.map_err(std::io::Error::other).flatten().map_err(file(path))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn an_offer_that_crossed_the_answer_is_stale() {
        let work = tempfile::tempdir().unwrap();
        let text = format!(
            "[aggregator]\naddress = \"https://localhost:1\"\nbundle = \"b\"\n[data]\ntrain = \"t.csv\"\n[storage]\nwork = {:?}\n",
            work.path()
        );
        let config = fedtune_config::parse("site.toml".as_ref(), &text, std::iter::empty()).unwrap();
        let site = Arc::new(Site { config, device: candle_core::Device::Cpu });
        let channel = tonic::transport::Endpoint::from_static("http://localhost:1").connect_lazy();
        let mut tasks = Tasks::new(site, channel, watch::channel(String::new()).1);
        let id = TaskId { job: "job".into(), round: 1, attempt: 1, kind: TaskKind::Train.into() };
        let task = Task { id: Some(id.clone()), ..Task::default() };
        let mut offered = async |task: &Task, was_answered: bool| {
            let done = tokio::spawn(async {});
            while !done.is_finished() {
                tokio::task::yield_now().await;
            }
            let answered = Arc::new(AtomicBool::new(was_answered));
            tasks.current =
                Some(Current { id: id.clone(), state: None, cancelled: Arc::default(), answered, task: done });
            tasks.begin(task.clone());
            !tasks.current.as_ref().unwrap().task.is_finished()
        };
        assert!(!offered(&task, true).await, "it is not begun again");
        assert!(offered(&task, false).await, "its answer never came: it is sent again");
        let state = Some(v1::Artifact { digest: "ab".repeat(32), size: 1 });
        assert!(offered(&Task { state, ..task }, true).await, "from another state it is another task");
    }
}
