//! A download in progress.

use std::time::Instant;

use fedtune_proto::pace::Pace;
use fedtune_proto::v1::download_request::Part;
use fedtune_proto::v1::{DownloadChunk, DownloadRequest};
use futures::{FutureExt, Stream, StreamExt, stream};
use tonic::{Status, Streaming};
use tracing::{Instrument, Span};

use super::super::{drain, wire};
use super::Transfer;
use crate::store::artifacts::Opened;

/// Most that is heard between two chunks.
const TOLD_MAX: usize = 64;

/// Bytes that go, and where they come from.
pub(super) struct Sending {
    pub(super) artifact: Opened,
    pub(super) offset: u64,
    pub(super) pace: Pace,
    /// What the receiver says.
    pub(super) told: Streaming<DownloadRequest>,
    pub(super) transfer: Transfer,
}

impl Sending {
    /// The bytes, as fast as they arrive.
    pub(super) fn chunks(self) -> impl Stream<Item = Result<DownloadChunk, Status>> {
        let call = Span::current();
        stream::try_unfold(self, move |mut sending| {
            let next = async {
                let chunk = match sending.chunk().await {
                    Ok(Some(chunk)) => chunk,
                    end => return sending.transfer.ended(end).map(|_| None),
                };
                Ok(Some((chunk, sending)))
            };
            next.instrument(call.clone())
        })
    }

    async fn chunk(&mut self) -> Result<Option<DownloadChunk>, Status> {
        if self.pace.is_sent() {
            return Ok(None);
        }
        if self.transfer.drain.is_cut() {
            return Err(drain::stopping());
        }
        for _ in 0..TOLD_MAX {
            let Some(told) = self.told.next().now_or_never() else { break };
            self.hear(told)?;
        }
        let (turn, length) = loop {
            while !self.pace.has_room(Instant::now()) {
                let told = tokio::select! {
                    told = self.told.next() => told,
                    () = self.transfer.drain.cut() => return Err(drain::stopping()),
                };
                self.hear(told)?;
            }
            let turn = self.transfer.turn().await?;
            // The time that it travels begins here.
            if let Some(length) = self.pace.send(Instant::now()) {
                break (turn, length);
            }
        };
        let range = self.offset..self.offset + length as u64;
        let data = self.artifact.read(range.clone()).await.map_err(wire::storage)?;
        drop(turn);
        self.offset = range.end;
        self.transfer.moved(data.len()).await;
        Ok(Some(DownloadChunk { data }))
    }

    fn hear(&mut self, told: Option<Result<DownloadRequest, Status>>) -> Result<(), Status> {
        match told.transpose()?.map(|request| request.part) {
            Some(Some(Part::Received(received))) => {
                self.pace.acknowledge(received, Instant::now());
                Ok(())
            }
            Some(_) => Err(Status::invalid_argument("expected what has arrived after the header")),
            None => Err(Status::cancelled("the receiver takes no more")),
        }
    }
}
