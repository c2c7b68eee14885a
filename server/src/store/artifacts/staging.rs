//! Bytes on their way to become an artifact, in files that each have one writer.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fedtune_proto::digest::{ArtifactRef, Digest, Hasher};
use fedtune_proto::incoming::Incoming;
use tokio::task::spawn_blocking;

use super::Artifacts;
use crate::claims::Claim;
use crate::store::StoreError;

/// The open file of [`Staged`]. It goes where it is written, so that the claim lasts as long as the writing does.
#[derive(Debug)]
struct Sink {
    incoming: Incoming,
    _claim: Claim,
}

/// Bytes on their way to become an artifact.
#[derive(Debug)]
pub struct Staged {
    pub(super) path: PathBuf,
    /// `None` while it is written, and when that was broken off.
    sink: Option<Sink>,
    pub(super) size: u64,
}

impl Staged {
    /// Opens the file, which may hold bytes from before. Blocks.
    pub(super) fn open(path: &Path, claim: Claim) -> io::Result<Self> {
        let incoming = Incoming::open(path)?;
        let size = incoming.size();
        Ok(Self { path: path.to_path_buf(), sink: Some(Sink { incoming, _claim: claim }), size })
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// The disk refused them.
    pub async fn append(&mut self, parts: Vec<Bytes>) -> Result<(), StoreError> {
        let size = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        self.on_a_thread(move |sink| parts.iter().try_for_each(|part| sink.incoming.append(part))).await?;
        self.size += size;
        Ok(())
    }

    /// Makes sure that the bytes survive a crash.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn sync(&mut self) -> Result<(), StoreError> {
        self.on_a_thread(|sink| sink.incoming.sync()).await
    }

    /// Syncs the bytes, and gives their digest.
    pub(super) async fn finish(&mut self) -> Result<Digest, StoreError> {
        self.on_a_thread(|sink| sink.incoming.finish()).await
    }

    /// Forgets the bytes.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn discard(self) -> Result<(), StoreError> {
        tokio::fs::remove_file(&self.path).await.map_err(|source| self.failed(source))
    }

    async fn on_a_thread<T, W>(&mut self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&mut Sink) -> io::Result<T> + Send + 'static,
    {
        let mut sink = self.sink.take().ok_or_else(|| self.failed(broken_off()))?;
        let working = spawn_blocking(move || {
            let done = work(&mut sink);
            (sink, done)
        });
        let (sink, done) = working.await.map_err(|e| StoreError::Interrupted(e.to_string()))?;
        self.sink = Some(sink);
        done.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> StoreError {
        StoreError::File { path: self.path.clone(), source }
    }
}

fn broken_off() -> io::Error {
    io::Error::other("writing was broken off")
}

/// A new artifact whose digest is known only once all its bytes are. Nobody goes on with one that was not finished, so
/// its bytes go with it.
///
/// Asynchronous code appends; code that may block writes.
#[derive(Debug)]
pub struct Writer {
    /// `None` where only the digest is wanted.
    staged: Option<Staged>,
    /// What is counted where nothing is staged.
    size: u64,
    hasher: Hasher,
}

impl Writer {
    /// Begins in a fresh staging file of this name.
    ///
    /// # Errors
    /// The file cannot be made.
    pub async fn create(artifacts: &Artifacts, name: &str) -> Result<Self, StoreError> {
        let mut staged = artifacts.stage(name).await?;
        staged.on_a_thread(|sink| sink.incoming.clear()).await?;
        Ok(Self { staged: Some(Staged { size: 0, ..staged }), size: 0, hasher: Hasher::default() })
    }

    /// Keeps no byte, and tells what their name would be.
    pub fn nowhere() -> Self {
        Self { staged: None, size: 0, hasher: Hasher::default() }
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// The disk refused them.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        match &mut self.staged {
            Some(staged) => staged.append(vec![bytes]).await,
            None => {
                self.count(&bytes);
                Ok(())
            }
        }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// Syncs the bytes and gives them their name.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn finish(mut self, artifacts: &Artifacts) -> Result<ArtifactRef, StoreError> {
        let digest = match &mut self.staged {
            Some(staged) => staged.finish().await?,
            None => std::mem::take(&mut self.hasher).finish(),
        };
        match self.staged.take() {
            Some(staged) => artifacts.adopt(staged, digest).await,
            None => Ok(ArtifactRef { digest, size: self.size }),
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.staged {
            Some(staged) => {
                let sink = staged.sink.as_mut().ok_or_else(broken_off)?;
                sink.incoming.append(bytes)?;
                staged.size += bytes.len() as u64;
            }
            None => self.count(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(staged) = &self.staged {
            let _ = std::fs::remove_file(&staged.path);
        }
    }
}
