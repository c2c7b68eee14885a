//! An upload in progress.

use bytes::Bytes;
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::v1::upload_request::Part;
use fedtune_proto::v1::{UploadRequest, UploadResponse};
use fedtune_proto::{CHUNK_BYTES, STREAM_WINDOW_BYTES};
use futures::{FutureExt, Stream, StreamExt, stream};
use tonic::{Status, Streaming};
use tracing::{Instrument, Span};

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
        if data.len() > CHUNK_BYTES {
            let reason = format!("a chunk has {} bytes; expected at most {CHUNK_BYTES}", data.len());
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
    /// Stores what comes, and says how much has.
    pub(super) fn answers(self) -> impl Stream<Item = Result<UploadResponse, Status>> {
        let call = Span::current();
        stream::try_unfold(Some(self), move |receiving| {
            let next = async {
                let Some(mut receiving) = receiving else { return Ok(None) };
                Ok(Some(match receiving.batch().await? {
                    None => (UploadResponse { received: receiving.staged.size(), complete: false }, Some(receiving)),
                    Some(ended) => (receiving.end(ended).await?, None),
                }))
            };
            next.instrument(call.clone())
        })
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

    /// Publishes the artifact if it is whole.
    async fn end(mut self, ended: Ended) -> Result<UploadResponse, Status> {
        match ended {
            Ended::Complete => {}
            Ended::Broken(broken) => {
                // What has arrived stays; the site goes on from there.
                self.staged.sync().await.map_err(wire::storage)?;
                return Err(broken);
            }
            Ended::TooLong => {
                self.staged.discard().await.map_err(wire::storage)?;
                let reason = format!("more than the {} bytes announced came", self.artifact.size);
                return Err(Status::invalid_argument(reason));
            }
        }
        let received = self.staged.size();
        if received < self.artifact.size {
            self.staged.sync().await.map_err(wire::storage)?;
            return Ok(UploadResponse { received, complete: false });
        }
        match self.artifacts.publish(self.staged, self.artifact.digest).await {
            Ok(_) => Ok(UploadResponse { received, complete: true }),
            Err(e @ StoreError::Damaged { .. }) => Err(Status::data_loss(e.to_string())),
            Err(e) => Err(wire::storage(e)),
        }
    }
}
