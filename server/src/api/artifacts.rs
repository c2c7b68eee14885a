//! Artifacts on the wire, resumable both ways.

mod receiving;
mod sending;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::pace::Pace;
use fedtune_proto::v1::artifacts_server::Artifacts as ArtifactsRpc;
use fedtune_proto::v1::{self, DownloadChunk, UploadResponse, download_request, upload_request};
use futures::stream::{self, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Code, Request, Response, Status, Streaming};

use super::drain::Drain;
use super::limits::SiteLimits;
use super::{identity, wire};
use crate::coordinator::{Handle, Permit, Rejected};
use crate::metrics::{Direction, Metrics};
use crate::pki::{Identity, Role};
use crate::store::Artifacts;
use receiving::Receiving;
use sending::Sending;

/// Most transfers that read or write at once, so that memory does not grow with the number of sites.
const MOVING_MAX: usize = 4;

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

/// One transfer: counts the bytes of a peer that move, slows them down to its rate, tells the coordinator of them now and
/// then, and says when it may go on. As a call it is counted when it ends, not when it begins to answer.
struct Transfer {
    coordinator: Handle,
    metrics: Metrics,
    limits: SiteLimits,
    /// One of the streams that the peer may have open.
    _stream: Option<OwnedSemaphorePermit>,
    identity: Identity,
    direction: Direction,
    began: Instant,
    /// How it ended; so if nobody says otherwise: the peer has gone.
    code: Code,
    told: Instant,
    moving: Arc<Semaphore>,
    drain: Drain,
    /// It is in progress.
    _entered: TaskTrackerToken,
}

impl Transfer {
    fn begin(service: &Service, identity: Identity, direction: Direction) -> Result<Self, Status> {
        let Service { coordinator, metrics, limits, moving, drain, .. } = service;
        Ok(Self {
            coordinator: coordinator.clone(),
            metrics: metrics.clone(),
            limits: limits.clone(),
            _stream: limits.stream(&identity)?,
            identity,
            direction,
            began: Instant::now(),
            code: Code::Cancelled,
            told: Instant::now(),
            moving: moving.clone(),
            drain: drain.clone(),
            _entered: drain.enter()?,
        })
    }

    /// The right to have chunks in memory.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.moving.clone().acquire_owned().await.map_err(wire::gone)
    }

    /// Notes how it ends.
    fn ended<T>(&mut self, answer: Result<T, Status>) -> Result<T, Status> {
        self.code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        answer
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

impl Drop for Transfer {
    fn drop(&mut self) {
        self.metrics.call(self.direction.method(), self.code, self.began.elapsed());
    }
}

/// Two peers may send the same bytes at once, so each has its own staging file.
fn staging_name(identity: &Identity, artifact: ArtifactRef) -> String {
    format!("{}-{}.part", artifact.digest, identity.name)
}

/// What a stream of the service gives.
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ArtifactsRpc for Service {
    type DownloadStream = Messages<DownloadChunk>;
    type UploadStream = Messages<UploadResponse>;

    async fn download(
        &self,
        request: Request<Streaming<v1::DownloadRequest>>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let identity = identity::require(&request, ANYBODY)?;
        let mut told = request.into_inner();
        let first = told.message().await?.and_then(|request| request.part);
        let Some(download_request::Part::Header(v1::DownloadHeader { digest, offset })) = first else {
            return Err(nameless());
        };
        let digest: Digest = digest.parse().map_err(wire::invalid)?;
        self.permitted(&identity, Permit::Read(digest)).await?;
        let size = self.artifacts.size(digest).await.map_err(wire::storage)?;
        let size = size.ok_or_else(|| Status::not_found(format!("artifact {digest} is not here")))?;
        if offset > size {
            return Err(Status::out_of_range(format!("offset {offset} is past the {size} bytes of {digest}")));
        }
        let artifact = self.artifacts.open_artifact(digest).await.map_err(wire::storage)?;
        let transfer = Transfer::begin(self, identity, Direction::Down)?;
        let sending = Sending { artifact, offset, pace: Pace::new(offset, size), told, transfer };
        Ok(Response::new(Box::pin(sending.chunks())))
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
    ) -> Result<Response<Self::UploadStream>, Status> {
        let began = Instant::now();
        let identity = identity::require(&request, ANYBODY)?;
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|request| request.part);
        let Some(upload_request::Part::Header(header)) = first else { return Err(nameless()) };
        let artifact = wire::artifact(header.artifact.as_ref())?;
        self.permitted(&identity, Permit::Write(artifact)).await?;
        if self.complete(artifact).await? {
            let here = UploadResponse { received: artifact.size, complete: true };
            self.metrics.call(Direction::Up.method(), Code::Ok, began.elapsed());
            return Ok(Response::new(Box::pin(stream::iter([Ok(here)]))));
        }
        let staged = self.artifacts.stage(&staging_name(&identity, artifact)).await.map_err(wire::storage)?;
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
        let transfer = Transfer::begin(self, identity, Direction::Up)?;
        let receiving = Receiving { artifact, staged, parts, transfer, artifacts: self.artifacts.clone() };
        Ok(Response::new(Box::pin(receiving.answers())))
    }
}

fn nameless() -> Status {
    Status::invalid_argument("the first message must name the artifact")
}
