//! Immutable bytes named by their digest, through an object store. New bytes are collected in a staging file on this
//! machine, synced, verified, and renamed; no artifact is ever seen half written.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fedtune_proto::CHUNK_BYTES;
use fedtune_proto::digest::{ArtifactRef, Digest, Hasher};
use fedtune_proto::layout::{HEADER_BYTES_MAX, Layout};
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::StoreError;

/// Bytes of an artifact that are read in one go to be hashed.
const HASHED_AT_ONCE: u64 = 1 << 20;
/// One block, so that a full disk is seen.
const PROBE_BYTES: usize = 4096;

/// The artifact store.
#[derive(Debug, Clone)]
pub struct Artifacts {
    root: PathBuf,
    objects: Arc<dyn ObjectStore>,
    /// Staging files that are being written; each has one writer.
    staging: Arc<Mutex<BTreeSet<String>>>,
    /// Held while one is asked for or removed, so that none goes that somebody was told is here.
    use_or_remove: Arc<tokio::sync::Mutex<()>>,
}

/// An artifact that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// When it was stored or last asked for, in milliseconds since 1970.
    pub used_ms: u64,
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
        let (staging, use_or_remove) = Default::default();
        Ok(Self { root: root.to_path_buf(), objects, staging, use_or_remove })
    }

    /// Writes, syncs and removes a file where uploads are staged. Blocks.
    ///
    /// # Errors
    /// The disk refused.
    pub fn probe(&self) -> Result<(), StoreError> {
        let path = self.root.join("staging").join(".probe");
        let attempt = || {
            let mut file = std::fs::File::create(&path)?;
            file.write_all(&[1; PROBE_BYTES])?;
            file.sync_all()?;
            std::fs::remove_file(&path)
        };
        attempt().map_err(|source| StoreError::File { path: path.clone(), source })
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

    /// The same for whoever is about to rely on it: the artifact counts as used now, and is not removed for a while.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn refresh(&self, digest: Digest) -> Result<Option<u64>, StoreError> {
        let _none_is_removed = self.use_or_remove.lock().await;
        let size = self.size(digest).await?;
        if size.is_some() {
            // An object store has no such call; it is a folder of this machine, as is staging.
            let path = self.root.join(key(digest).as_ref());
            let touched = path.clone();
            let touch = move || std::fs::File::open(touched)?.set_modified(SystemTime::now());
            let touched = tokio::task::spawn_blocking(touch).await.map_err(io::Error::other).flatten();
            touched.map_err(|source| StoreError::File { path, source })?;
        }
        Ok(size)
    }

    /// Every artifact.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let mut found = Vec::new();
        let mut all = self.objects.list(Some(&Key::from("blake3")));
        while let Some(meta) = all.try_next().await? {
            // Nothing else is put here; what somebody else has put is not ours to judge.
            if let Some(digest) = meta.location.filename().and_then(|name| name.parse().ok()) {
                found.push(Stored { digest, size: meta.size, used_ms: used_ms(&meta) });
            }
        }
        Ok(found)
    }

    /// Removes an artifact unless it was stored or asked for at this time or later. Tells whether it is gone by this.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn remove_unused(&self, digest: Digest, before_ms: u64) -> Result<bool, StoreError> {
        let _nobody_asks = self.use_or_remove.lock().await;
        let key = key(digest);
        match self.objects.head(&key).await {
            Ok(meta) if used_ms(&meta) < before_ms => {
                self.objects.delete(&key).await?;
                Ok(true)
            }
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes staging files that nobody writes and that got their last bytes before this time. Names them, with their
    /// sizes.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn remove_stale_uploads(&self, before_ms: u64) -> Result<Vec<(String, u64)>, StoreError> {
        let path = self.root.join("staging");
        let failed = |source| StoreError::File { path: path.clone(), source };
        let mut removed = Vec::new();
        let mut files = tokio::fs::read_dir(&path).await.map_err(failed)?;
        while let Some(file) = files.next_entry().await.map_err(failed)? {
            let Ok(name) = file.file_name().into_string() else { continue };
            let Ok(_claim) = Claim::new(&self.staging, &name) else { continue };
            // One that has just become an artifact is not here any more.
            let Ok(found) = file.metadata().await else { continue };
            let since = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let old = since.is_some_and(|since| since.as_millis() < u128::from(before_ms));
            if found.is_file() && old {
                tokio::fs::remove_file(file.path()).await.map_err(failed)?;
                removed.push((name, found.len()));
            }
        }
        Ok(removed)
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

fn used_ms(meta: &ObjectMeta) -> u64 {
    meta.last_modified.timestamp_millis().try_into().unwrap_or(0)
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

    /// Forgets the bytes.
    ///
    /// # Errors
    /// The disk refused.
    pub async fn discard(self) -> Result<(), StoreError> {
        match self.staged {
            Some(staged) => staged.discard().await,
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
