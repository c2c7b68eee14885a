//! The operator's side of an aggregator: submits jobs with their base models, watches, exports models.

mod export;

use std::path::{Path, PathBuf};

use fedtune_config::Job;
use fedtune_config::job::Reads;
use fedtune_proto::channel::{self, ChannelError, Credentials};
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::folder::{TOKENIZER_EXTRAS, needed};
use fedtune_proto::transfer::{self, TransferError};
use fedtune_proto::v1::operator_client::OperatorClient;
use fedtune_proto::v1::plan_export_request::Selector;
use fedtune_proto::v1::{self, ModelFile};
use fedtune_proto::{MESSAGE_BYTES_MAX, version};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// A call to the aggregator did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// It cannot be reached.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// It refused, or the link broke.
    #[error("the aggregator answered: {message}", message = channel::told(.0))]
    Remote(Box<Status>),
    /// A transfer stopped.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// A model folder that cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Model {
        /// The folder or file.
        path: PathBuf,
        /// What was found and expected.
        reason: String,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<Status> for OperatorError {
    fn from(status: Status) -> Self {
        Self::Remote(Box::new(status))
    }
}

/// A connection with the operator's certificate.
#[derive(Debug, Clone)]
pub struct Operator {
    channel: Channel,
    client: OperatorClient<Channel>,
}

impl Operator {
    /// Connects to the aggregator at `https://host:port` with the bundle in a folder.
    ///
    /// # Errors
    /// The bundle cannot be read, or the aggregator cannot be reached.
    pub async fn connect(address: &str, bundle: &Path) -> Result<Self, OperatorError> {
        let channel = Credentials::read(bundle, "operator")?.connect(address).await?;
        let client = OperatorClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { channel, client })
    }

    /// Uploads the job's base model where the aggregator lacks it, and queues the job. `progress` is told the name of
    /// each file before it travels. Returns the job's id.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn submit(&mut self, job: &Job, mut progress: impl FnMut(&str, u64)) -> Result<String, OperatorError> {
        let folder = &job.model.path;
        let mut base_model = Vec::new();
        let needed = needed(job.task.kind.reads() == Reads::Texts, job.task.kind.reads_images());
        for (name, required) in needed.iter().map(|n| (n, true)).chain(TOKENIZER_EXTRAS.iter().map(|n| (n, false))) {
            let path = folder.join(name);
            if !path.is_file() {
                if required {
                    let reason = format!(
                        "lacks {name}; a base model is a folder in Hugging Face layout with {}",
                        needed.join(", ")
                    );
                    return Err(OperatorError::Model { path: folder.clone(), reason });
                }
                continue;
            }
            let hashed = path.clone();
            let named = tokio::task::spawn_blocking(move || ArtifactRef::of_file(&hashed)).await;
            let failed = |source| OperatorError::File { path: path.clone(), source };
            let artifact = named.map_err(|e| failed(std::io::Error::other(e)))?.map_err(failed)?;
            progress(name, artifact.size);
            let artifact = v1::Artifact::from(artifact);
            transfer::upload(&self.channel, &artifact, &path).await?;
            base_model.push(ModelFile { name: (*name).into(), artifact: Some(artifact) });
        }
        let request = v1::SubmitJobRequest { protocol: Some(version::PROTOCOL), job_text: job.to_toml(), base_model };
        Ok(self.client.submit_job(request).await?.into_inner().job)
    }

    /// Every job, oldest first.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn jobs(&mut self) -> Result<Vec<v1::JobSummary>, OperatorError> {
        Ok(self.client.list_jobs(v1::ListJobsRequest {}).await?.into_inner().jobs)
    }

    /// One job with its rounds.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn show(&mut self, job: &str) -> Result<v1::ShowJobResponse, OperatorError> {
        Ok(self.client.show_job(v1::ShowJobRequest { job: job.into() }).await?.into_inner())
    }

    /// The same, again at every change, until the job has ended.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn watch(&mut self, job: &str) -> Result<Streaming<v1::ShowJobResponse>, OperatorError> {
        Ok(self.client.watch_job(v1::WatchJobRequest { job: job.into() }).await?.into_inner())
    }

    /// Opens no further round of a job.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn pause(&mut self, job: &str) -> Result<(), OperatorError> {
        self.client.pause_job(v1::PauseJobRequest { job: job.into() }).await?;
        Ok(())
    }

    /// Lets a paused job go on.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn resume(&mut self, job: &str) -> Result<(), OperatorError> {
        self.client.resume_job(v1::ResumeJobRequest { job: job.into() }).await?;
        Ok(())
    }

    /// Cancels a job.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn cancel(&mut self, job: &str) -> Result<(), OperatorError> {
        self.client.cancel_job(v1::CancelJobRequest { job: job.into() }).await?;
        Ok(())
    }

    /// Every enrolled site.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn sites(&mut self) -> Result<Vec<v1::SiteSummary>, OperatorError> {
        Ok(self.client.list_sites(v1::ListSitesRequest {}).await?.into_inner().sites)
    }

    /// Writes the model of a round into `folder`, in Hugging Face layout. Returns the round.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn export(&mut self, job: &str, selector: Selector, folder: &Path) -> Result<u32, OperatorError> {
        let request = v1::PlanExportRequest { job: job.into(), selector: Some(selector) };
        let plan = self.client.plan_export(request).await?.into_inner();
        let round = plan.round;
        export::write(&self.channel, plan, folder).await?;
        Ok(round)
    }
}
