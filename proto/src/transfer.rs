//! Moving artifacts. Both directions go on from the bytes the receiver already has, and the receiver verifies the
//! digest before the artifact exists under its name.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::channel::{self, is_transient};
use crate::digest::Digest;
use crate::incoming::Incoming;
use crate::pace::Pace;
use crate::v1::artifacts_client::ArtifactsClient;
use crate::v1::{
    Artifact, DownloadChunk, DownloadHeader, DownloadRequest, UploadHeader, UploadRequest, UploadResponse,
    UploadStatusRequest, download_request, upload_request,
};

/// Chunks between the file and the connection.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Between two looks at a file that somebody else writes.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A transfer ended without its artifact. Calling again goes on where it stopped.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The file on this side cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The other side refused, or the link broke.
    #[error("the transfer of artifact {digest} stopped: {status}", status = channel::told(status))]
    Remote {
        /// The artifact.
        digest: String,
        /// What the other side said.
        status: Box<Status>,
    },
    /// The bytes are not those of the digest; what arrived has been removed.
    #[error("the bytes of artifact {expected} have the digest {found}; the sender's copy is damaged")]
    Damaged {
        /// The digest asked for.
        expected: String,
        /// The digest of what came.
        found: String,
    },
}

impl TransferError {
    /// Whether the link, and not the request, is at fault.
    pub fn is_transient(&self) -> bool {
        match self {
            // An earlier call of ours may have moved the offset.
            Self::Remote { status, .. } => is_transient(status.code()) || status.code() == Code::OutOfRange,
            // Not the link: TCP and TLS carry bytes whole. The source is damaged.
            Self::Damaged { .. } | Self::File { .. } => false,
        }
    }
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> TransferError {
    let path = path.to_path_buf();
    move |source| TransferError::File { path: path.clone(), source }
}

fn remote(digest: &str) -> impl Fn(Status) -> TransferError {
    let digest = digest.to_owned();
    move |status| TransferError::Remote { digest: digest.clone(), status: Box::new(status) }
}

/// Fetches an artifact into `path`, unless it is there already. Returns the bytes that travelled.
///
/// Bytes are collected in `path` with `.part` added; a later call goes on from there.
///
/// # Errors
/// See [`TransferError`].
pub async fn download(channel: &Channel, artifact: &Artifact, path: &Path) -> Result<u64, TransferError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let fail = file_error(&part);
    let file = loop {
        if tokio::fs::metadata(path).await.is_ok_and(|found| found.len() == artifact.size) {
            return Ok(0);
        }
        let file = tokio::fs::OpenOptions::new().create(true).append(true).open(&part).await.map_err(&fail)?;
        let file = alone(file.into_std().await).await;
        // Whoever wrote it before may have finished it.
        if tokio::fs::try_exists(&part).await.map_err(&fail)? {
            break file;
        }
    };
    // Holds the lock until the artifact has its name.
    let _held = file.try_clone().map_err(&fail)?;
    let mut incoming = Incoming::of(&part, file).map_err(&fail)?;
    if incoming.size() > artifact.size {
        incoming.clear().map_err(&fail)?;
    }
    let (have, size) = (incoming.size(), artifact.size);
    let (chunks, arriving) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let writing = spawn_blocking(move || collect(incoming, size, arriving));
    // All of it may be there, and only not have been verified.
    let fetched = match have < size {
        true => fetch(channel, artifact, have, chunks).await,
        false => {
            drop(chunks);
            Ok(())
        }
    };
    // Also what arrived before a link broke is kept.
    let digest = writing.await.map_err(io::Error::other).flatten().map_err(&fail)?;
    fetched?;
    let Some(digest) = digest else {
        let status = Status::unavailable(format!("less than the {size} bytes announced arrived"));
        return Err(remote(&artifact.digest)(status));
    };
    if digest.to_string() != artifact.digest {
        tokio::fs::remove_file(&part).await.map_err(&fail)?;
        return Err(TransferError::Damaged { expected: artifact.digest.clone(), found: digest.to_string() });
    }
    tokio::fs::rename(&part, path).await.map_err(&fail)?;
    Ok(size - have)
}

/// Waits until nobody else writes the file: a call that was broken off, or the process that this one takes over from, may
/// have chunks that it has not written yet.
async fn alone(file: File) -> File {
    // Where a file system has no locks there is nobody to wait for.
    while let Err(TryLockError::WouldBlock) = file.try_lock() {
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    file
}

/// Hands over what arrives from the byte at `have` on.
async fn fetch(
    channel: &Channel,
    artifact: &Artifact,
    mut have: u64,
    chunks: mpsc::Sender<Bytes>,
) -> Result<(), TransferError> {
    let remote = remote(&artifact.digest);
    // The first one waits here until the call has begun.
    let (tell, told) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let say = async |part| {
        // A closed channel means that the call has ended; its answer says why.
        let _ = tell.send(DownloadRequest { part: Some(part) }).await;
    };
    say(download_request::Part::Header(DownloadHeader { digest: artifact.digest.clone(), offset: have })).await;
    let mut client = ArtifactsClient::new(channel.clone());
    let mut stream = client.download(ReceiverStream::new(told)).await.map_err(&remote)?.into_inner();
    while let Some(DownloadChunk { data }) = stream.message().await.map_err(&remote)? {
        have += data.len() as u64;
        if have > artifact.size {
            let status = Status::data_loss(format!("more than the {} bytes announced arrived", artifact.size));
            return Err(remote(status));
        }
        // If nobody takes it, writing has failed and says why.
        if chunks.send(data).await.is_err() {
            break;
        }
        say(download_request::Part::Received(have)).await;
    }
    Ok(())
}

/// Writes chunks. Gives the digest once there are `size` bytes and they are synced. Blocks.
fn collect(mut incoming: Incoming, size: u64, mut chunks: mpsc::Receiver<Bytes>) -> io::Result<Option<Digest>> {
    while let Some(chunk) = chunks.blocking_recv() {
        incoming.append(&chunk)?;
    }
    if incoming.size() < size { Ok(None) } else { incoming.finish().map(Some) }
}

/// Sends the file at `path`, which has the bytes of `artifact`. Returns the bytes that travelled.
///
/// # Errors
/// See [`TransferError`].
pub async fn upload(channel: &Channel, artifact: &Artifact, path: &Path) -> Result<u64, TransferError> {
    let remote = remote(&artifact.digest);
    let fail = file_error(path);
    let mut client = ArtifactsClient::new(channel.clone());
    let request = UploadStatusRequest { artifact: Some(artifact.clone()) };
    let status = client.upload_status(request).await.map_err(&remote)?.into_inner();
    if status.complete {
        return Ok(0);
    }
    let (chunks, sent) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let header = UploadHeader { artifact: Some(artifact.clone()), offset: status.received };
    let travelled = artifact.size.saturating_sub(status.received);
    let (source, (order, lengths)) = (path.to_path_buf(), std::sync::mpsc::channel());
    let reading = spawn_blocking(move || send(&source, header, &lengths, &chunks));
    let pace = Pace::new(status.received, artifact.size);
    let answer = follow(client, ReceiverStream::new(sent), pace, order).await;
    reading.await.map_err(io::Error::other).flatten().map_err(&fail)?;
    let answer = answer.map_err(&remote)?;
    if answer.complete {
        Ok(travelled)
    } else {
        Err(remote(Status::unavailable(format!("{} of {} bytes arrived", answer.received, artifact.size))))
    }
}

/// Makes the call, and orders pieces of the file as it is told what has arrived. Gives the last answer.
async fn follow(
    mut client: ArtifactsClient<Channel>,
    requests: ReceiverStream<UploadRequest>,
    mut pace: Pace,
    order: std::sync::mpsc::Sender<usize>,
) -> Result<UploadResponse, Status> {
    let mut order = Some(order);
    let mut keep_up = |pace: &mut Pace| {
        while let (Some(order), Some(length)) = (&order, pace.send(Instant::now())) {
            // Where the file cannot be read nobody listens.
            let _ = order.send(length);
        }
        if pace.is_sent() {
            order = None;
        }
    };
    keep_up(&mut pace);
    let mut answers = client.upload(requests).await?.into_inner();
    let mut last = UploadResponse::default();
    while let Some(answer) = answers.message().await? {
        pace.acknowledge(answer.received, Instant::now());
        keep_up(&mut pace);
        last = answer;
    }
    Ok(last)
}

/// Hands over the header, and pieces of the file from there on as they are ordered. Blocks.
fn send(
    path: &Path,
    header: UploadHeader,
    lengths: &std::sync::mpsc::Receiver<usize>,
    chunks: &mpsc::Sender<UploadRequest>,
) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(io::SeekFrom::Start(header.offset))?;
    let mut part = upload_request::Part::Header(header);
    // A closed channel means that the call has ended; its answer says why.
    while chunks.blocking_send(UploadRequest { part: Some(part) }).is_ok() {
        let Ok(length) = lengths.recv() else { break };
        let mut chunk = Vec::with_capacity(length);
        if file.by_ref().take(length as u64).read_to_end(&mut chunk)? != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        part = upload_request::Part::Data(Bytes::from(chunk));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn a_file_that_somebody_writes_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let open = || File::options().create(true).append(true).open(folder.path().join("state.part")).unwrap();
        let first = alone(open()).await;
        let second = tokio::spawn(alone(open()));
        tokio::time::sleep(3 * LOCK_PAUSE).await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap();
    }

    #[test]
    fn chunks_that_were_handed_over_are_written_whether_or_not_the_rest_comes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.part");
        let take = |bytes: &'static [u8]| {
            let (chunks, arriving) = mpsc::channel(CHUNKS_IN_FLIGHT);
            for chunk in bytes.chunks(4) {
                chunks.try_send(Bytes::from_static(chunk)).unwrap();
            }
            drop(chunks);
            collect(Incoming::open(&path).unwrap(), 11, arriving).unwrap()
        };
        assert_eq!(take(b"hello "), None);
        assert_eq!(std::fs::read(&path).unwrap(), b"hello ");
        assert_eq!(take(b"world"), Some(Digest::of(b"hello world")), "with what came before");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(take(b"hello world"), Some(Digest::of(b"hello world")));
    }
}
