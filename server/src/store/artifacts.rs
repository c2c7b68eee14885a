//! Immutable bytes named by their digest, through an object store. New bytes are collected in a staging file on this
//! machine, synced, verified, and renamed; no artifact is ever seen half written.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use fedtune_proto::CHUNK_BYTES;
use fedtune_proto::digest::{ArtifactRef, Digest, Hasher};
use fedtune_proto::layout::{HEADER_BYTES_MAX, Layout};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::StoreError;

/// Bytes of an artifact that are read in one go to be hashed.
const HASHED_AT_ONCE: u64 = 1 << 20;

/// The artifact store.
#[derive(Debug, Clone)]
pub struct Artifacts {
    root: PathBuf,
    objects: Arc<dyn ObjectStore>,
    /// Staging files that are being written; each has one writer.
    staging: Arc<Mutex<BTreeSet<String>>>,
}

impl Artifacts {
    /// Opens the store in a folder, which is made if absent.
    ///
    /// # Errors
    /// The folder cannot be made or opened.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for folder in ["blake3", "staging"] {
            let path = root.join(folder);
            std::fs::create_dir_all(&path).map_err(|source| StoreError::File { path, source })?;
        }
        let objects = Arc::new(LocalFileSystem::new_with_prefix(root)?.with_fsync(true));
        Ok(Self { root: root.to_path_buf(), objects, staging: Arc::default() })
    }

    /// The size of an artifact, `None` if it is not here.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn size(&self, digest: Digest) -> Result<Option<u64>, StoreError> {
        match self.objects.head(&key(digest)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The digest that the bytes of an artifact have, `None` if it is not here.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn digest(&self, name: Digest) -> Result<Option<Digest>, StoreError> {
        let Some(size) = self.size(name).await? else { return Ok(None) };
        let mut hasher = Hasher::default();
        let mut at = 0;
        while at < size {
            let end = size.min(at + HASHED_AT_ONCE);
            hasher.update(&self.read(name, at..end).await?);
            at = end;
        }
        Ok(Some(hasher.finish()))
    }

    /// Some bytes of an artifact.
    ///
    /// # Errors
    /// Storage failed, or the artifact is not here.
    pub async fn read(&self, digest: Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        Ok(self.objects.get_range(&key(digest), range).await?)
    }

    /// The tensors of an artifact.
    ///
    /// # Errors
    /// Storage failed, or it is not a sound safetensors file.
    pub async fn layout(&self, artifact: ArtifactRef) -> Result<Layout, StoreError> {
        let ArtifactRef { digest, size } = artifact;
        let unsound = |reason: String| StoreError::Unsound { digest, reason };
        if size < 8 {
            return Err(unsound(format!("it has {size} bytes; expected at least 8")));
        }
        let prefix = self.read(digest, 0..8).await?;
        let length = prefix.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        if length > HEADER_BYTES_MAX.min(size - 8) {
            return Err(unsound(format!("its header claims {length} bytes")));
        }
        let header = self.read(digest, 8..8 + length).await?;
        Layout::parse(&header, size).map_err(unsound)
    }

    /// Bytes of an upload that have arrived.
    ///
    /// # Errors
    /// The staging file cannot be looked at, or is being written: whoever asks would send what is refused.
    pub async fn staged_size(&self, name: &str) -> Result<u64, StoreError> {
        let _claim = Claim::new(&self.staging, name)?;
        let path = self.root.join("staging").join(name);
        match tokio::fs::metadata(&path).await {
            Ok(found) => Ok(found.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(StoreError::File { path, source }),
        }
    }

    /// The staging file of an upload; the same name finds the bytes that arrived before.
    ///
    /// # Errors
    /// The file cannot be opened, or is being written by another.
    pub async fn stage(&self, name: &str) -> Result<Staged, StoreError> {
        let claim = Claim::new(&self.staging, name)?;
        let path = self.root.join("staging").join(name);
        let open = async {
            let mut file = File::options().create(true).append(true).open(&path).await?;
            // Tokio would keep up to 2 MiB for each upload.
            file.set_max_buf_size(CHUNK_BYTES);
            let size = file.metadata().await?.len();
            io::Result::Ok((file, size))
        };
        match open.await {
            Ok((file, size)) => Ok(Staged { path, file, size, _claim: claim }),
            Err(source) => Err(StoreError::File { path, source }),
        }
    }

    /// Syncs staged bytes and gives them their name, if they have the digest expected of them. Otherwise they are
    /// removed.
    ///
    /// # Errors
    /// Storage failed, or the digest is another.
    pub async fn publish(&self, mut staged: Staged, expected: Digest) -> Result<ArtifactRef, StoreError> {
        staged.sync().await?;
        let path = staged.path.clone();
        let hashed = tokio::task::spawn_blocking(move || Digest::of_file(&path)).await.map_err(io::Error::other);
        let (found, _) = hashed.and_then(|result| result).map_err(|source| staged.failed(source))?;
        if found != expected {
            let _ = tokio::fs::remove_file(&staged.path).await;
            return Err(StoreError::Damaged { expected, found });
        }
        self.adopt(staged, found).await
    }

    async fn adopt(&self, staged: Staged, digest: Digest) -> Result<ArtifactRef, StoreError> {
        let name = staged.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.objects.rename(&Key::from_iter(["staging", name]), &key(digest)).await?;
        Ok(ArtifactRef { digest, size: staged.size })
    }
}

fn key(digest: Digest) -> Key {
    let text = digest.to_string();
    Key::from_iter(["blake3", &text[..2], &text])
}

/// The right to write a staging file, given back when dropped.
#[derive(Debug)]
struct Claim {
    staging: Arc<Mutex<BTreeSet<String>>>,
    name: String,
}

impl Claim {
    fn new(staging: &Arc<Mutex<BTreeSet<String>>>, name: &str) -> Result<Self, StoreError> {
        let free = staging.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        if free { Ok(Self { staging: staging.clone(), name: name.to_owned() }) } else { Err(StoreError::Busy) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

/// Bytes on their way to become an artifact.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    file: File,
    size: u64,
    _claim: Claim,
}

impl Staged {
    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// The disk refused them.
    pub async fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).await.map_err(|source| self.failed(source))?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Makes sure that the bytes survive a crash.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn sync(&mut self) -> Result<(), StoreError> {
        self.file.flush().await.map_err(|source| self.failed(source))?;
        self.file.sync_all().await.map_err(|source| self.failed(source))
    }

    /// Forgets the bytes.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn discard(self) -> Result<(), StoreError> {
        tokio::fs::remove_file(&self.path).await.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> StoreError {
        StoreError::File { path: self.path.clone(), source }
    }
}

/// A new artifact whose digest is known only once all its bytes are.
#[derive(Debug)]
pub struct Writer {
    /// `None` where only the digest is wanted.
    staged: Option<Staged>,
    size: u64,
    hasher: Hasher,
}

impl Writer {
    /// Begins in a fresh staging file of this name.
    ///
    /// # Errors
    /// The file cannot be made.
    pub async fn create(artifacts: &Artifacts, name: &str) -> Result<Self, StoreError> {
        let staged = artifacts.stage(name).await?;
        staged.file.set_len(0).await.map_err(|source| staged.failed(source))?;
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
    pub async fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        match &mut self.staged {
            Some(staged) => staged.append(bytes).await,
            None => Ok(()),
        }
    }

    /// Syncs the bytes and gives them their name.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn finish(self, artifacts: &Artifacts) -> Result<ArtifactRef, StoreError> {
        let digest = self.hasher.finish();
        let Some(mut staged) = self.staged else { return Ok(ArtifactRef { digest, size: self.size }) };
        staged.sync().await?;
        artifacts.adopt(staged, digest).await
    }
}
