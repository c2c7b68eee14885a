//! Immutable bytes named by their digest, through an object store. New bytes are collected in a staging file on this
//! machine, synced, verified, and renamed; no artifact is ever seen half written.

mod reading;
mod staging;

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::layout::{HEADER_BYTES_MAX, Layout};
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::task::spawn_blocking;

use super::StoreError;
use crate::claims::Claims;
pub use reading::{Opened, Reader};
pub use staging::{Staged, Writer};

/// One block, so that a full disk is seen.
const PROBE_BYTES: usize = 4096;

/// The artifact store.
#[derive(Debug, Clone)]
pub struct Artifacts {
    root: PathBuf,
    objects: Arc<dyn ObjectStore>,
    /// Staging files that are being written; each has one writer.
    staging: Claims,
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
        for folder in root.ancestors().take(2).filter(|folder| !folder.as_os_str().is_empty()) {
            sync_folder(folder).map_err(|source| StoreError::File { path: folder.to_path_buf(), source })?;
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
            let path = self.path(digest);
            let touched = path.clone();
            let touch = move || {
                // Whoever gave it its name may not have come to sync that.
                touched.ancestors().skip(1).take(2).try_for_each(sync_folder)?;
                std::fs::File::open(touched)?.set_modified(SystemTime::now())
            };
            let touched = spawn_blocking(touch).await.map_err(io::Error::other).flatten();
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
        let (path, staging) = (self.root.join("staging"), self.staging.clone());
        let folder = path.clone();
        let removal = move || {
            let mut removed = Vec::new();
            for file in std::fs::read_dir(folder)? {
                let file = file?;
                let Ok(name) = file.file_name().into_string() else { continue };
                // Held to the end, so that nobody begins to write what is about to go, and nobody is turned away.
                let writing = staging.held();
                // One that has just become an artifact is not here any more.
                let Ok(found) = file.metadata() else { continue };
                let since = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                let old = since.is_some_and(|since| since.as_millis() < u128::from(before_ms));
                if found.is_file() && old && !writing.contains(&name) {
                    std::fs::remove_file(file.path())?;
                    removed.push((name, found.len()));
                }
            }
            io::Result::Ok(removed)
        };
        let removed = spawn_blocking(removal).await.map_err(io::Error::other).flatten();
        removed.map_err(|source| StoreError::File { path, source })
    }

    /// The digest that the bytes of an artifact have, `None` if it is not here.
    ///
    /// # Errors
    /// Storage failed.
    pub async fn digest(&self, name: Digest) -> Result<Option<Digest>, StoreError> {
        if self.size(name).await?.is_none() {
            return Ok(None);
        }
        let path = self.path(name);
        let hashed = path.clone();
        let hashed = spawn_blocking(move || ArtifactRef::of_file(&hashed)).await.map_err(io::Error::other).flatten();
        hashed.map(|artifact| Some(artifact.digest)).map_err(|source| StoreError::File { path, source })
    }

    /// Opens an artifact, to read much of it.
    ///
    /// # Errors
    /// Storage failed, or the artifact is not here.
    pub async fn open_artifact(&self, digest: Digest) -> Result<Opened, StoreError> {
        let path = self.path(digest);
        spawn_blocking(move || Opened::open(path)).await.map_err(|e| StoreError::Interrupted(e.to_string()))?
    }

    /// Some bytes of an artifact.
    ///
    /// # Errors
    /// Storage failed, or the artifact is not here.
    pub async fn read(&self, digest: Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.open_artifact(digest).await?.read(range).await
    }

    /// Where an artifact is. An object store has no open files and no time of use; it is a folder of this machine, as is
    /// staging.
    fn path(&self, digest: Digest) -> PathBuf {
        self.root.join(key(digest).as_ref())
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
        let opened = self.open_artifact(digest).await?;
        let prefix = opened.read(0..8).await?;
        let length = prefix.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
        if length > HEADER_BYTES_MAX.min(size - 8) {
            return Err(unsound(format!("its header claims {length} bytes")));
        }
        let header = opened.read(8..8 + length).await?;
        Layout::parse(&header, size).map_err(unsound)
    }

    /// Bytes of an upload that have arrived.
    ///
    /// # Errors
    /// The staging file cannot be looked at, or is being written: whoever asks would send what is refused.
    pub async fn staged_size(&self, name: &str) -> Result<u64, StoreError> {
        let _claim = self.staging.take(name).ok_or(StoreError::Busy)?;
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
        let claim = self.staging.take(name).ok_or(StoreError::Busy)?;
        let path = self.root.join("staging").join(name);
        let opened = path.clone();
        let opened = spawn_blocking(move || Staged::open(&opened, claim)).await.map_err(io::Error::other).flatten();
        opened.map_err(|source| StoreError::File { path, source })
    }

    /// Syncs staged bytes and gives them their name, if they have the digest expected of them. Otherwise they are
    /// removed.
    ///
    /// # Errors
    /// Storage failed, or the digest is another.
    pub async fn publish(&self, mut staged: Staged, expected: Digest) -> Result<ArtifactRef, StoreError> {
        let found = staged.finish().await?;
        if found != expected {
            let _ = tokio::fs::remove_file(&staged.path).await;
            return Err(StoreError::Damaged { expected, found });
        }
        self.adopt(staged, found).await
    }

    async fn adopt(&self, staged: Staged, digest: Digest) -> Result<ArtifactRef, StoreError> {
        // Where there is an old one of this name, it is not removed in this moment.
        let _none_is_removed = self.use_or_remove.lock().await;
        let name = staged.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.objects.rename(&Key::from_iter(["staging", name]), &key(digest)).await?;
        Ok(ArtifactRef { digest, size: staged.size })
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

fn used_ms(meta: &ObjectMeta) -> u64 {
    meta.last_modified.timestamp_millis().try_into().unwrap_or(0)
}

fn key(digest: Digest) -> Key {
    let text = digest.to_string();
    Key::from_iter(["blake3", &text[..2], &text])
}
