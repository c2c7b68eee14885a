//! Artifacts on the wire, resumable both ways.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::v1::artifacts_server::Artifacts as ArtifactsRpc;
use fedtune_proto::v1::upload_request::Part;
use fedtune_proto::v1::{self, DownloadChunk};
use fedtune_proto::{CHUNK_BYTES, STREAM_WINDOW_BYTES};
use futures::{FutureExt, Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span};

use super::drain::{self, Drain};
use super::limits::SiteLimits;
use super::{identity, wire};
use crate::coordinator::{Handle, Permit, Rejected};
use crate::metrics::{Direction, Metrics};
use crate::pki::{Identity, Role};
use crate::store::{Artifacts, StoreError};

/// Most transfers that read or write at once, so that memory does not grow with the number of sites.
const MOVING_MAX: usize = 4;

/// Most chunks of an upload that are written at once: what a stream's window holds.
const CHUNKS_MAX: usize = STREAM_WINDOW_BYTES as usize / CHUNK_BYTES;

/// How often moving bytes are reported.
const PULSE: Duration = Duration::from_secs(1);

const ANYBODY: &[Role] = &[Role::Site, Role::Evaluator, Role::Operator];

/// The service.
#[derive(Debug)]
pub(super) struct Service {
    coordinator: Handle,
    artifacts: Artifacts,
    metrics: Metrics,
    drain: Drain,
    limits: SiteLimits,
    /// Transfers whose chunks are in memory; the others wait, with no more than their window.
    moving: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(
        coordinator: Handle,
        artifacts: Artifacts,
        metrics: Metrics,
        drain: Drain,
        limits: SiteLimits,
    ) -> Self {
        Self { coordinator, artifacts, metrics, drain, limits, moving: Arc::new(Semaphore::new(MOVING_MAX)) }
    }

    async fn permitted(&self, identity: &Identity, permit: Permit) -> Result<(), Status> {
        let permitted = self.coordinator.permit(identity.clone(), permit).await.map_err(wire::gone)?;
        permitted.map_err(|rejected| match rejected {
            Rejected::Refused(reason) => Status::permission_denied(reason),
            other => wire::rejected(other),
        })
    }

    async fn complete(&self, artifact: ArtifactRef) -> Result<bool, Status> {
        let size = self.artifacts.refresh(artifact.digest).await.map_err(wire::storage)?;
        Ok(size == Some(artifact.size))
    }
}

/// Counts the bytes of a peer that move, slows them down to its rate, and tells the coordinator of them now and then.
struct Pulse {
    coordinator: Handle,
    metrics: Metrics,
    limits: SiteLimits,
    /// One of the streams that the peer may have open.
    _stream: Option<OwnedSemaphorePermit>,
    identity: Identity,
    direction: Direction,
    told: Instant,
}

impl Pulse {
    fn new(service: &Service, identity: Identity, direction: Direction) -> Result<Self, Status> {
        let Service { coordinator, metrics, limits, .. } = service;
        let (coordinator, metrics, limits) = (coordinator.clone(), metrics.clone(), limits.clone());
        let stream = limits.stream(&identity)?;
        Ok(Self { coordinator, metrics, limits, _stream: stream, identity, direction, told: Instant::now() })
    }

    async fn moved(&mut self, bytes: usize) {
        self.metrics.moved(&self.identity, self.direction, bytes as u64);
        self.limits.bytes(&self.identity, bytes).await;
        if self.told.elapsed() > PULSE {
            self.told = Instant::now();
            self.coordinator.moving(self.identity.name.clone()).await;
        }
    }
}

/// Chunks of an upload that are written together.
struct Batch {
    chunks: Vec<Bytes>,
    /// Bytes that may still come.
    left: u64,
}

/// How the chunks of an upload ended.
enum Ended {
    /// As they should.
    Complete,
    /// By what came, or did not come.
    Broken(Status),
    /// With more bytes than were announced.
    TooLong,
}

impl Batch {
    /// Takes the next message of an upload, unless the upload ends with it.
    fn take(&mut self, message: Option<Result<v1::UploadRequest, Status>>) -> Option<Ended> {
        let data = match message {
            None => return Some(Ended::Complete),
            Some(Err(broken)) => return Some(Ended::Broken(broken)),
            Some(Ok(v1::UploadRequest { part: Some(Part::Data(data)) })) => data,
            Some(Ok(_)) => return Some(Ended::Broken(Status::invalid_argument("expected bytes after the header"))),
        };
        if data.len() > CHUNK_BYTES {
            let reason = format!("a chunk has {} bytes; expected at most {CHUNK_BYTES}", data.len());
            return Some(Ended::Broken(Status::invalid_argument(reason)));
        }
        let Some(left) = self.left.checked_sub(data.len() as u64) else { return Some(Ended::TooLong) };
        self.left = left;
        self.chunks.push(data);
        None
    }
}

/// Two peers may send the same bytes at once, so each has its own staging file.
fn staging_name(identity: &Identity, artifact: ArtifactRef) -> String {
    format!("{}-{}.part", artifact.digest, identity.name)
}

#[tonic::async_trait]
impl ArtifactsRpc for Service {
    type DownloadStream = Pin<Box<dyn Stream<Item = Result<DownloadChunk, Status>> + Send>>;

    async fn download(&self, request: Request<v1::DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        let identity = identity::require(&request, ANYBODY)?;
        let v1::DownloadRequest { digest, offset } = request.into_inner();
        let digest: Digest = digest.parse().map_err(wire::invalid)?;
        self.permitted(&identity, Permit::Read(digest)).await?;
        let size = self.artifacts.size(digest).await.map_err(wire::storage)?;
        let size = size.ok_or_else(|| Status::not_found(format!("artifact {digest} is not here")))?;
        if offset > size {
            return Err(Status::out_of_range(format!("offset {offset} is past the {size} bytes of {digest}")));
        }
        let artifact = self.artifacts.open_artifact(digest).await.map_err(wire::storage)?;
        let pulse = Pulse::new(self, identity, Direction::Down)?;
        let (moving, drain) = (self.moving.clone(), self.drain.clone());
        let (entered, call) = (drain.enter()?, Span::current());
        let chunks = stream::try_unfold((offset, pulse, entered), move |(start, mut pulse, entered)| {
            let (artifact, moving, drain) = (artifact.clone(), moving.clone(), drain.clone());
            async move {
                if start >= size {
                    return Ok(None);
                }
                if drain.is_cut() {
                    return Err(drain::stopping());
                }
                let end = size.min(start + CHUNK_BYTES as u64);
                let turn = moving.acquire().await.map_err(wire::gone)?;
                let data = artifact.read(start..end).await.map_err(wire::storage)?;
                drop(turn);
                pulse.moved(data.len()).await;
                Ok(Some((DownloadChunk { data }, (end, pulse, entered))))
            }
            .instrument(call.clone())
        });
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn upload_status(
        &self,
        request: Request<v1::UploadStatusRequest>,
    ) -> Result<Response<v1::UploadStatusResponse>, Status> {
        let identity = identity::require(&request, ANYBODY)?;
        let artifact = wire::artifact(request.into_inner().artifact.as_ref())?;
        self.permitted(&identity, Permit::Write(artifact)).await?;
        if self.complete(artifact).await? {
            return Ok(Response::new(v1::UploadStatusResponse { received: artifact.size, complete: true }));
        }
        let received = self.artifacts.staged_size(&staging_name(&identity, artifact)).await.map_err(wire::storage)?;
        Ok(Response::new(v1::UploadStatusResponse { received, complete: false }))
    }

    async fn upload(
        &self,
        request: Request<Streaming<v1::UploadRequest>>,
    ) -> Result<Response<v1::UploadResponse>, Status> {
        let identity = identity::require(&request, ANYBODY)?;
        let mut parts = request.into_inner();
        let Some(Part::Header(header)) = parts.message().await?.and_then(|request| request.part) else {
            return Err(Status::invalid_argument("the first message must name the artifact"));
        };
        let artifact = wire::artifact(header.artifact.as_ref())?;
        self.permitted(&identity, Permit::Write(artifact)).await?;
        if self.complete(artifact).await? {
            return Ok(Response::new(v1::UploadResponse { received: artifact.size, complete: true }));
        }
        let mut staged = self.artifacts.stage(&staging_name(&identity, artifact)).await.map_err(wire::storage)?;
        if header.offset != staged.size() {
            let reason =
                format!("the upload goes on at byte {}, not {}; ask UploadStatus", staged.size(), header.offset);
            return Err(Status::out_of_range(reason));
        }
        if staged.size() > artifact.size {
            let reason =
                format!("{} bytes are here of the {} announced; they are forgotten", staged.size(), artifact.size);
            staged.discard().await.map_err(wire::storage)?;
            return Err(Status::out_of_range(reason));
        }
        let mut pulse = Pulse::new(self, identity.clone(), Direction::Up)?;
        let ended = loop {
            let first = tokio::select! {
                message = parts.next() => message,
                () = self.drain.cut() => Some(Err(drain::stopping())),
            };
            let turn = self.moving.acquire().await.map_err(wire::gone)?;
            let mut batch = Batch { chunks: Vec::new(), left: artifact.size - staged.size() };
            let mut ended = batch.take(first);
            // What else has come meanwhile is written in one go.
            while ended.is_none() && batch.chunks.len() < CHUNKS_MAX {
                let Some(message) = parts.next().now_or_never() else { break };
                ended = batch.take(message);
            }
            let bytes = batch.chunks.iter().map(Bytes::len).sum();
            if bytes > 0 {
                staged.append(batch.chunks).await.map_err(wire::storage)?;
            }
            drop(turn);
            pulse.moved(bytes).await;
            if let Some(ended) = ended {
                break ended;
            }
        };
        match ended {
            Ended::Complete => {}
            Ended::Broken(broken) => {
                // What has arrived stays; the site goes on from there.
                staged.sync().await.map_err(wire::storage)?;
                return Err(broken);
            }
            Ended::TooLong => {
                staged.discard().await.map_err(wire::storage)?;
                return Err(Status::invalid_argument(format!("more than the {} bytes announced came", artifact.size)));
            }
        }
        let received = staged.size();
        if received < artifact.size {
            staged.sync().await.map_err(wire::storage)?;
            return Ok(Response::new(v1::UploadResponse { received, complete: false }));
        }
        match self.artifacts.publish(staged, artifact.digest).await {
            Ok(_) => Ok(Response::new(v1::UploadResponse { received, complete: true })),
            Err(e @ StoreError::Damaged { .. }) => Err(Status::data_loss(e.to_string())),
            Err(e) => Err(wire::storage(e)),
        }
    }
}
