//! Moving artifacts. Both directions go on from the bytes the receiver already has, and the receiver verifies the
//! digest before the artifact exists under its name.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::CHUNK_BYTES;
use crate::digest::Digest;
use crate::v1::artifacts_client::ArtifactsClient;
use crate::v1::upload_request::Part;
use crate::v1::{Artifact, DownloadRequest, UploadHeader, UploadRequest, UploadStatusRequest};

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
    #[error("the transfer of artifact {digest} stopped: {status}", status = status.message())]
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
            Self::Remote { status, .. } => matches!(
                status.code(),
                tonic::Code::Unavailable
                    | tonic::Code::Unknown
                    | tonic::Code::Cancelled
                    | tonic::Code::Internal
                    | tonic::Code::DeadlineExceeded
                    // Another call of ours has not ended yet, or has moved the offset.
                    | tonic::Code::Aborted
                    | tonic::Code::OutOfRange
            ),
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
    if tokio::fs::metadata(path).await.is_ok_and(|found| found.len() == artifact.size) {
        return Ok(0);
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let fail = file_error(&part);
    let mut file = tokio::fs::OpenOptions::new().create(true).append(true).open(&part).await.map_err(&fail)?;
    let mut have = file.metadata().await.map_err(&fail)?.len();
    if have > artifact.size {
        file.set_len(0).await.map_err(&fail)?;
        have = 0;
    }
    let mut travelled = 0;
    if have < artifact.size {
        let remote = remote(&artifact.digest);
        let request = DownloadRequest { digest: artifact.digest.clone(), offset: have };
        let mut stream = ArtifactsClient::new(channel.clone()).download(request).await.map_err(&remote)?.into_inner();
        while let Some(chunk) = stream.message().await.map_err(&remote)? {
            have += chunk.data.len() as u64;
            travelled += chunk.data.len() as u64;
            if have > artifact.size {
                let status = Status::data_loss(format!("more than the {} bytes announced arrived", artifact.size));
                return Err(remote(status));
            }
            file.write_all(&chunk.data).await.map_err(&fail)?;
        }
        if have < artifact.size {
            return Err(remote(Status::unavailable(format!("{have} of {} bytes arrived", artifact.size))));
        }
    }
    file.flush().await.map_err(&fail)?;
    file.sync_all().await.map_err(&fail)?;
    let checked = part.clone();
    let digest = tokio::task::spawn_blocking(move || Digest::of_file(&checked))
        .await
        .map_err(|e| fail(io::Error::other(e)))?
        .map_err(&fail)?;
    if digest.0.to_string() != artifact.digest {
        tokio::fs::remove_file(&part).await.map_err(&fail)?;
        return Err(TransferError::Damaged { expected: artifact.digest.clone(), found: digest.0.to_string() });
    }
    tokio::fs::rename(&part, path).await.map_err(&fail)?;
    Ok(travelled)
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
    let mut file = tokio::fs::File::open(path).await.map_err(&fail)?;
    file.seek(io::SeekFrom::Start(status.received)).await.map_err(&fail)?;

    let (sender, receiver) = mpsc::channel(1);
    let header = UploadHeader { artifact: Some(artifact.clone()), offset: status.received };
    let mut left = artifact.size.saturating_sub(status.received);
    let travelled = left;
    let reader = tokio::spawn(async move {
        let mut part = Part::Header(header);
        // A closed channel means that the call has ended; its answer says why.
        while sender.send(UploadRequest { part: Some(part) }).await.is_ok() && left > 0 {
            let mut chunk = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES)];
            file.read_exact(&mut chunk).await?;
            left -= chunk.len() as u64;
            part = Part::Data(Bytes::from(chunk));
        }
        io::Result::Ok(())
    });
    let answer = client.upload(ReceiverStream::new(receiver)).await;
    reader.await.map_err(|e| fail(io::Error::other(e)))?.map_err(&fail)?;
    let answer = answer.map_err(&remote)?.into_inner();
    if answer.complete {
        Ok(travelled)
    } else {
        Err(remote(Status::unavailable(format!("{} of {} bytes arrived", answer.received, artifact.size))))
    }
}
