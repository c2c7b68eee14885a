//! The operator's calls, on the wire.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use fedtune_config::Job;
use fedtune_config::job::Reads;
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::folder;
use fedtune_proto::v1::operator_server::Operator;
use fedtune_proto::v1::plan_export_request::Selector;
use fedtune_proto::v1::{self, ShowJobResponse};
use fedtune_proto::version;
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::drain::{self, Drain};
use super::{identity, wire};
use crate::coordinator::{self, Handle};
use crate::pki::Role;
use crate::round::{Machine, Plan};
use crate::store::Artifacts;
use crate::store::records::{BaseFile, JobRecord, JobStatus};

const OPERATOR: &[Role] = &[Role::Operator];

/// Least time between two snapshots of a watched job.
const WATCH_PAUSE: Duration = Duration::from_millis(200);

/// The service.
#[derive(Debug)]
pub(super) struct Service {
    coordinator: Handle,
    artifacts: Artifacts,
    drain: Drain,
}

impl Service {
    pub(super) fn new(coordinator: Handle, artifacts: Artifacts, drain: Drain) -> Self {
        Self { coordinator, artifacts, drain }
    }

    /// The id that this text begins, if it begins just one.
    async fn resolve(&self, text: &str) -> Result<JobRecord, Status> {
        let jobs = self.coordinator.jobs().await.map_err(wire::gone)?.map_err(wire::storage)?;
        let mut found = jobs.into_iter().filter(|job| !text.is_empty() && job.id.starts_with(text));
        match (found.next(), found.next()) {
            (Some(job), None) => Ok(job),
            (None, _) => Err(wire::rejected(coordinator::Rejected::Unknown(text.into()))),
            (Some(_), Some(_)) => Err(Status::invalid_argument(format!("more than one job begins with {text:?}"))),
        }
    }
}

#[tonic::async_trait]
impl Operator for Service {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<ShowJobResponse, Status>> + Send>>;

    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::SubmitJobResponse>, Status> {
        let operator = identity::require(&request, OPERATOR)?;
        let v1::SubmitJobRequest { protocol, job_text, base_model } = request.into_inner();
        version::check("the operator's program", protocol).map_err(|e| Status::failed_precondition(e.to_string()))?;
        let job: Job = fedtune_config::parse(Path::new("job.toml"), &job_text, std::iter::empty())
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let mut files = Vec::with_capacity(base_model.len());
        for file in base_model {
            let plain = !file.name.is_empty()
                && file.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
                && !file.name.starts_with('.');
            if !plain {
                return Err(Status::invalid_argument(format!("{:?} is not a plain file name", file.name)));
            }
            files.push(BaseFile { name: file.name, artifact: wire::artifact(file.artifact.as_ref())? });
        }
        let needed = folder::needed(job.task.kind.reads() == Reads::Texts, job.task.kind.reads_images());
        if let Some(needed) = needed.iter().find(|needed| !files.iter().any(|file| file.name == **needed)) {
            return Err(Status::invalid_argument(format!("the base model lacks {needed}")));
        }
        let wanted: Vec<ArtifactRef> = files.iter().map(|file| file.artifact).collect();
        let missing = coordinator::missing(&self.artifacts, &wanted).await.map_err(wire::storage)?;
        if let Some(digest) = missing.first() {
            return Err(Status::failed_precondition(format!("artifact {digest} of the base model was not uploaded")));
        }
        let record = JobRecord {
            id: Uuid::now_v7().to_string(),
            name: job.name.clone(),
            text: job.to_toml(),
            base_model: files,
            submitted_ms: coordinator::now_ms(),
            status: JobStatus::Queued,
            reason: String::new(),
            machine: Machine::new(Plan::of(&job)),
            recipe: None,
        };
        let id = record.id.clone();
        self.coordinator.submit(record).await.map_err(wire::gone)?.map_err(wire::storage)?;
        tracing::info!(job = id, name = job.name, operator = operator.name, "job submitted");
        Ok(Response::new(v1::SubmitJobResponse { job: id }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        identity::require(&request, OPERATOR)?;
        let jobs = self.coordinator.jobs().await.map_err(wire::gone)?.map_err(wire::storage)?;
        let mut summaries = Vec::with_capacity(jobs.len());
        for job in jobs {
            let shown = self.coordinator.show(job.id).await.map_err(wire::gone)?.map_err(wire::rejected)?;
            summaries.extend(wire::snapshot(shown).summary);
        }
        Ok(Response::new(v1::ListJobsResponse { jobs: summaries }))
    }

    async fn show_job(&self, request: Request<v1::ShowJobRequest>) -> Result<Response<ShowJobResponse>, Status> {
        identity::require(&request, OPERATOR)?;
        let id = self.resolve(&request.into_inner().job).await?.id;
        let snapshot = self.coordinator.show(id).await.map_err(wire::gone)?.map_err(wire::rejected)?;
        Ok(Response::new(wire::snapshot(snapshot)))
    }

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        identity::require(&request, OPERATOR)?;
        let id = self.resolve(&request.into_inner().job).await?.id;
        let (coordinator, drain) = (self.coordinator.clone(), self.drain.clone());
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut changes = coordinator.changes();
            loop {
                changes.mark_unchanged();
                let shown = match coordinator.show(id.clone()).await {
                    Ok(shown) => shown.map_err(wire::rejected),
                    Err(e) => Err(wire::gone(e)),
                };
                let over = shown.as_ref().map_or(true, |snapshot| snapshot.record.status.is_over());
                if sender.send(shown.map(wire::snapshot)).await.is_err() || over {
                    return;
                }
                tokio::select! {
                    () = sender.closed() => return,
                    () = drain.clone().stopped() => {
                        // Who does not read any more need not be told.
                        let _ = sender.send(Err(drain::stopping())).await;
                        return;
                    }
                    changed = changes.changed() => if changed.is_err() { return },
                }
                tokio::time::sleep(WATCH_PAUSE).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn pause_job(&self, request: Request<v1::PauseJobRequest>) -> Result<Response<v1::PauseJobResponse>, Status> {
        identity::require(&request, OPERATOR)?;
        let id = self.resolve(&request.into_inner().job).await?.id;
        self.coordinator.pause(id).await.map_err(wire::gone)?.map_err(wire::rejected)?;
        Ok(Response::new(v1::PauseJobResponse {}))
    }

    async fn resume_job(
        &self,
        request: Request<v1::ResumeJobRequest>,
    ) -> Result<Response<v1::ResumeJobResponse>, Status> {
        identity::require(&request, OPERATOR)?;
        let id = self.resolve(&request.into_inner().job).await?.id;
        self.coordinator.resume(id).await.map_err(wire::gone)?.map_err(wire::rejected)?;
        Ok(Response::new(v1::ResumeJobResponse {}))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        identity::require(&request, OPERATOR)?;
        let id = self.resolve(&request.into_inner().job).await?.id;
        self.coordinator.cancel(id).await.map_err(wire::gone)?.map_err(wire::rejected)?;
        Ok(Response::new(v1::CancelJobResponse {}))
    }

    async fn list_sites(
        &self,
        request: Request<v1::ListSitesRequest>,
    ) -> Result<Response<v1::ListSitesResponse>, Status> {
        identity::require(&request, OPERATOR)?;
        let sites = self.coordinator.sites().await.map_err(wire::gone)?.map_err(wire::storage)?;
        Ok(Response::new(v1::ListSitesResponse { sites: sites.into_iter().map(wire::site).collect() }))
    }

    async fn plan_export(
        &self,
        request: Request<v1::PlanExportRequest>,
    ) -> Result<Response<v1::PlanExportResponse>, Status> {
        identity::require(&request, OPERATOR)?;
        let v1::PlanExportRequest { job, selector } = request.into_inner();
        let job = self.resolve(&job).await?;
        let snapshot = self.coordinator.show(job.id).await.map_err(wire::gone)?.map_err(wire::rejected)?;
        let best = snapshot.record.machine.best.map(|best| best.round);
        let last = snapshot.rounds.last().map(|round| round.round);
        let wanted = match selector {
            Some(Selector::Round(round)) => Some(round),
            Some(Selector::Last(_)) => last,
            Some(Selector::Best(_)) | None => best.or(last),
        };
        let round = snapshot.rounds.iter().find(|record| Some(record.round) == wanted);
        let (Some(round), Some(recipe)) = (round, snapshot.record.recipe) else {
            let wanted = wanted.map_or("the best round".into(), |round| format!("round {round}"));
            return Err(Status::failed_precondition(format!(
                "{wanted} is not committed; {} rounds are",
                snapshot.rounds.len()
            )));
        };
        if self.artifacts.refresh(round.state.digest).await.map_err(wire::storage)?.is_none() {
            return Err(Status::failed_precondition(format!(
                "the state of round {} is not kept any more (storage.retention); the last and the best of a job are",
                round.round
            )));
        }
        Ok(Response::new(v1::PlanExportResponse {
            round: round.round,
            state: Some(round.state.into()),
            recipe_json: recipe,
            base_model: wire::model_files(snapshot.record.base_model),
        }))
    }
}
