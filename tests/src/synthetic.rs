//! A site that speaks the protocol and computes nothing.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedtune_proto::channel::Credentials;
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::layout::Layout;
use fedtune_proto::v1::artifacts_client::ArtifactsClient;
use fedtune_proto::v1::directive::Kind;
use fedtune_proto::v1::federation_client::FederationClient;
use fedtune_proto::v1::report_result_request::Outcome;
use fedtune_proto::v1::{
    self, Directive, OpenSessionRequest, ReportResultRequest, ReportResultResponse, Task, TaskKind, UploadResponse,
};
use fedtune_proto::{transfer, version};
use tonic::Streaming;
use tonic::transport::Channel;

/// An open session.
#[derive(Debug)]
pub struct SyntheticSite {
    /// The connection.
    pub channel: Channel,
    /// What the aggregator says.
    pub directives: Streaming<Directive>,
    /// The session's id.
    pub session: String,
}

impl SyntheticSite {
    /// Connects and opens a session.
    ///
    /// # Errors
    /// The aggregator is away, or refuses.
    pub async fn connect(address: &str, bundle: &Path) -> anyhow::Result<Self> {
        Self::connect_as(address, bundle, version::PROTOCOL).await
    }

    /// The same, with another version of the protocol.
    ///
    /// # Errors
    /// The aggregator is away, or refuses.
    pub async fn connect_as(address: &str, bundle: &Path, protocol: v1::ProtocolVersion) -> anyhow::Result<Self> {
        Self::open(Credentials::read(bundle, "site")?.connect(address).await?, protocol).await
    }

    /// Opens a session on a connection.
    ///
    /// # Errors
    /// The aggregator refuses.
    pub async fn open(channel: Channel, protocol: v1::ProtocolVersion) -> anyhow::Result<Self> {
        let request =
            OpenSessionRequest { protocol: Some(protocol), program: "synthetic-site 9.9".into(), capabilities: None };
        let mut directives = FederationClient::new(channel.clone()).open_session(request).await?.into_inner();
        let Some(Kind::Welcome(welcome)) = directives.message().await?.and_then(|directive| directive.kind) else {
            bail!("no welcome");
        };
        Ok(Self { channel, directives, session: welcome.session })
    }

    /// The next task.
    ///
    /// # Errors
    /// The session ended.
    pub async fn task(&mut self) -> anyhow::Result<Task> {
        loop {
            match self.directives.message().await?.context("the session ended")?.kind {
                Some(Kind::Task(task)) => return Ok(task),
                Some(Kind::Close(close)) => bail!("closed: {}", close.reason),
                _ => {}
            }
        }
    }

    /// Says that the site is there.
    ///
    /// # Errors
    /// The session is not open.
    pub async fn heartbeat(&self) -> anyhow::Result<()> {
        let request = v1::HeartbeatRequest { session: self.session.clone() };
        FederationClient::new(self.channel.clone()).heartbeat(request).await?;
        Ok(())
    }

    /// Says so every second, until what it gives is dropped.
    pub fn beat(&self) -> tokio::task::JoinSet<()> {
        let (channel, session) = (self.channel.clone(), self.session.clone());
        let mut beating = tokio::task::JoinSet::new();
        beating.spawn(async move {
            let mut beat = tokio::time::interval(std::time::Duration::from_secs(1));
            loop {
                beat.tick().await;
                let request = v1::HeartbeatRequest { session: session.clone() };
                // If the aggregator is gone, the session's stream tells.
                let _ = FederationClient::new(channel.clone()).heartbeat(request).await;
            }
        });
        beating
    }

    /// Uploads a file. Returns its name and the bytes that travelled.
    ///
    /// # Errors
    /// The transfer stopped.
    pub async fn upload(&self, path: &Path) -> anyhow::Result<(v1::Artifact, u64)> {
        let hashed = path.to_path_buf();
        let artifact = tokio::task::spawn_blocking(move || ArtifactRef::of_file(&hashed)).await??.into();
        let travelled = transfer::upload(&self.channel, &artifact, path).await?;
        Ok((artifact, travelled))
    }

    /// Ends a task.
    ///
    /// # Errors
    /// The call failed.
    pub async fn report(&self, task: &Task, outcome: Outcome) -> Result<ReportResultResponse, tonic::Status> {
        let request = ReportResultRequest { task: task.id.clone(), outcome: Some(outcome), bytes_down: 0, bytes_up: 0 };
        Ok(FederationClient::new(self.channel.clone()).report_result(request).await?.into_inner())
    }

    /// Uploads an update and reports it.
    ///
    /// # Errors
    /// The upload or the call failed.
    pub async fn send_update(&self, task: &Task, update: &Path, examples: u64) -> anyhow::Result<ReportResultResponse> {
        let (artifact, _) = self.upload(update).await?;
        let trained =
            v1::Trained { update: Some(artifact), examples, train_loss: 0.5, train_seconds: 1.0, relative_error: 0.0 };
        Ok(self.report(task, Outcome::Trained(trained)).await?)
    }

    /// Does every task as a site would, until the session ends: the first state from `state`, the same `update` each
    /// round, an invented evaluation.
    ///
    /// # Errors
    /// A call failed.
    pub async fn serve(&mut self, state: &Path, update: &Path, work: &Path) -> anyhow::Result<()> {
        // Ends with this call.
        let _beating = self.beat();
        loop {
            let task = self.task().await?;
            let kind = task.id.as_ref().map(v1::TaskId::kind);
            match kind {
                Some(TaskKind::Initialize) => {
                    let (artifact, _) = self.upload(state).await?;
                    let recipe_json = r#"{"config_json":"{}","tensors":[]}"#.into();
                    let initialized = v1::Initialized { state: Some(artifact), recipe_json };
                    self.report(&task, Outcome::Initialized(initialized)).await?;
                }
                Some(TaskKind::Train) => {
                    let artifact = task.state.clone().context("no state")?;
                    let path = work.join(format!("state-{}", artifact.digest));
                    transfer::download(&self.channel, &artifact, &path).await?;
                    tokio::fs::remove_file(path).await?;
                    self.send_update(&task, update, 100).await?;
                }
                _ => {
                    let evaluation = v1::Evaluation {
                        examples: 2,
                        loss_sum: 1.0,
                        confusion: vec![1, 0, 0, 1],
                        ..v1::Evaluation::default()
                    };
                    let outcome = Outcome::Evaluated(v1::EvaluatedState { evaluation: Some(evaluation) });
                    self.report(&task, outcome).await?;
                }
            }
        }
    }
}

/// Makes an upload of these messages. Gives the last answer.
///
/// # Errors
/// The call failed.
pub async fn last_answer<S>(client: &mut ArtifactsClient<Channel>, parts: S) -> Result<UploadResponse, tonic::Status>
where
    S: tonic::IntoStreamingRequest<Message = v1::UploadRequest>,
{
    let mut answers = client.upload(parts).await?.into_inner();
    let mut last = UploadResponse::default();
    while let Some(answer) = answers.message().await? {
        last = answer;
    }
    Ok(last)
}

/// Writes a state of so many f32, as tensors of at most 4 Mi elements, with small varying values.
///
/// # Errors
/// The file cannot be written.
pub fn state_file(path: &Path, elements: u64) -> io::Result<PathBuf> {
    values_file(path, elements, 1)
}

/// Writes an update for such a state; `seed` makes it differ from others.
///
/// # Errors
/// The file cannot be written.
pub fn delta_file(path: &Path, elements: u64, seed: u64) -> io::Result<PathBuf> {
    values_file(path, elements, seed)
}

/// Values after which they repeat.
const PERIOD: u64 = 1024;

fn values_file(path: &Path, elements: u64, seed: u64) -> io::Result<PathBuf> {
    const TENSOR: u64 = 4 << 20;
    let tensors = (0..elements.div_ceil(TENSOR)).map(|i| {
        let length = TENSOR.min(elements - i * TENSOR);
        (format!("t{i:04}"), "F32".to_owned(), vec![length])
    });
    let layout = Layout::of_tensors(tensors).ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    file.write_all(&layout.header())?;
    let mut state = seed;
    for i in 0..elements {
        // A file system that compresses then holds many large ones.
        state = if i % PERIOD == 0 { seed } else { state };
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 1e-2;
        file.write_all(&value.to_le_bytes())?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(path.to_path_buf())
}

/// Writes a folder that looks like a base model, for jobs whose sites are synthetic and may all send the same update, and a
/// job of two labels for it.
/// Returns the job's file.
///
/// # Errors
/// A file cannot be written.
pub fn model_folder(folder: &Path, rounds: u32, quorum: usize) -> io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    for (name, bytes) in [("config.json", &b"{}"[..]), ("tokenizer.json", b"{}"), ("model.safetensors", b"none")] {
        std::fs::write(folder.join(name), bytes)?;
    }
    let job = format!(
        "name = \"synthetic\"\n[model]\npath = \".\"\n[task]\nkind = \"text-classification\"\nlabels = [\"a\", \"b\"]\n\
         [rounds]\ncount = {rounds}\nquorum = {quorum}\n[updates]\ncompression = \"none\"\n[admission]\ncopies = \"count\"\n[evaluation]\nby = \"none\"\n"
    );
    let path = folder.join("job.toml");
    std::fs::write(&path, job)?;
    Ok(path)
}
