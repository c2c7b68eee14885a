//! An upload in progress.

use bytes::Bytes;
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::v1::upload_request::Part;
use fedtune_proto::v1::{UploadRequest, UploadResponse};
use fedtune_proto::{CHUNK_BYTES, STREAM_WINDOW_BYTES};
use futures::{FutureExt, Stream, StreamExt, stream};
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::WatchStream;
use tonic::{Status, Streaming};
use tracing::Instrument;

use super::super::{drain, wire};
use super::Transfer;
use crate::store::artifacts::Staged;
use crate::store::{Artifacts, StoreError};

/// Most chunks that are written at once, however small.
const CHUNKS_MAX: usize = 64;

/// Bytes that come, and where they go.
pub(super) struct Receiving {
    pub(super) artifact: ArtifactRef,
    pub(super) staged: Staged,
    pub(super) parts: Streaming<UploadRequest>,
    pub(super) transfer: Transfer,
    pub(super) artifacts: Artifacts,
}

/// Chunks that are written together.
struct Batch {
    chunks: Vec<Bytes>,
    bytes: usize,
    /// Bytes that may still come.
    left: u64,
}

/// How the chunks ended.
enum Ended {
    /// As they should.
    Complete,
    /// By what came, or did not come.
    Broken(Status),
    /// With more bytes than were announced.
    TooLong,
}

impl Batch {
    /// Takes the next message, unless the upload ends with it.
    fn take(&mut self, message: Option<Result<UploadRequest, Status>>) -> Option<Ended> {
        let data = match message {
            None => return Some(Ended::Complete),
            Some(Err(broken)) => return Some(Ended::Broken(broken)),
            Some(Ok(UploadRequest { part: Some(Part::Data(data)) })) => data,
            Some(Ok(_)) => return Some(Ended::Broken(Status::invalid_argument("expected bytes after the header"))),
        };
        if data.is_empty() || data.len() > CHUNK_BYTES {
            let reason = format!("a chunk has {} bytes; expected 1 to {CHUNK_BYTES}", data.len());
            return Some(Ended::Broken(Status::invalid_argument(reason)));
        }
        let Some(left) = self.left.checked_sub(data.len() as u64) else { return Some(Ended::TooLong) };
        self.left = left;
        self.bytes += data.len();
        self.chunks.push(data);
        None
    }

    /// Whether it has what a stream's window holds.
    fn is_full(&self) -> bool {
        self.bytes + CHUNK_BYTES > STREAM_WINDOW_BYTES as usize || self.chunks.len() >= CHUNKS_MAX
    }
}

impl Receiving {
    /// Stores what comes, and says how much has. It goes on in a task of its own, so that what came before a link broke is
    /// stored and synced although nobody hears of it.
    pub(super) fn answers(self) -> impl Stream<Item = Result<UploadResponse, Status>> {
        let (told, received) = watch::channel(self.staged.size());
        let (end, ended) = oneshot::channel();
        let receive = async move {
            let answer = self.receive(&told).await;
            // Whoever sent may be gone.
            let _ = end.send(answer);
        };
        tokio::spawn(receive.in_current_span());
        let received = WatchStream::from_changes(received);
        let received = received.map(|received| Ok(UploadResponse { received, complete: false }));
        let ended = async { ended.await.unwrap_or_else(|_| Err(Status::internal("the upload was broken off"))) };
        received.chain(stream::once(ended))
    }

    /// Stores what comes, to its end.
    async fn receive(mut self, told: &watch::Sender<u64>) -> Result<UploadResponse, Status> {
        let ended = loop {
            match self.batch().await {
                Ok(None) => told.send_replace(self.staged.size()),
                Ok(Some(ended)) => break ended,
                Err(status) => return self.transfer.ended(Err(status)),
            };
        };
        let Self { artifact, staged, mut transfer, artifacts, .. } = self;
        transfer.ended(end(artifact, staged, &artifacts, ended).await)
    }

    /// Stores the chunks that have come.
    async fn batch(&mut self) -> Result<Option<Ended>, Status> {
        let first = tokio::select! {
            message = self.parts.next() => message,
            () = self.transfer.drain.cut() => Some(Err(drain::stopping())),
        };
        let turn = self.transfer.turn().await?;
        let mut batch = Batch { chunks: Vec::new(), bytes: 0, left: self.artifact.size - self.staged.size() };
        let mut ended = batch.take(first);
        // What else has come meanwhile is written in one go.
        while ended.is_none() && !batch.is_full() {
            let Some(message) = self.parts.next().now_or_never() else { break };
            ended = batch.take(message);
        }
        if batch.bytes > 0 {
            self.staged.append(batch.chunks).await.map_err(wire::storage)?;
        }
        drop(turn);
        self.transfer.moved(batch.bytes).await;
        Ok(ended)
    }
}

/// Publishes the artifact if it is whole.
async fn end(
    artifact: ArtifactRef,
    mut staged: Staged,
    artifacts: &Artifacts,
    ended: Ended,
) -> Result<UploadResponse, Status> {
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
        return Ok(UploadResponse { received, complete: false });
    }
    match artifacts.publish(staged, artifact.digest).await {
        Ok(_) => Ok(UploadResponse { received, complete: true }),
        Err(e @ StoreError::Damaged { .. }) => Err(Status::data_loss(e.to_string())),
        Err(e) => Err(wire::storage(e)),
    }
}
