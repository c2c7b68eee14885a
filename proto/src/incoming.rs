//! A file in which bytes arrive.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::digest::{ArtifactRef, Digest, Hasher};

/// Bytes after which the disk is given what has come.
const SYNC_BYTES: u64 = 16 << 20;

/// Whether the disk is being given some; one file at a time, whatever the number of transfers.
static SYNCING: AtomicBool = AtomicBool::new(false);

/// A file to which bytes are added: digested as they pass, and brought to the disk while others come, so that the wait
/// at the end is short. Everything here blocks.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    file: File,
    size: u64,
    /// Of all bytes, if all passed here.
    hasher: Option<Hasher>,
    /// Bytes that the disk was not given.
    unsynced: u64,
}

impl Incoming {
    /// Opens the file, which may hold bytes from before.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Self::of(path, file)
    }

    /// The same where it is open, to append.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn of(path: &Path, file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let hasher = (size == 0).then(Hasher::default);
        Ok(Self { path: path.to_path_buf(), file, size, hasher, unsynced: 0 })
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Forgets all bytes.
    ///
    /// # Errors
    /// The disk refused.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        (self.size, self.unsynced, self.hasher) = (0, 0, Some(Hasher::default()));
        Ok(())
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// The disk refused them.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_BYTES && begin_sync(&self.path) {
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Makes sure that the bytes survive a crash.
    ///
    /// # Errors
    /// The disk refused. Then the file is gone.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all().inspect_err(|_| forget(&self.path))
    }

    /// Syncs the bytes, and gives their digest.
    ///
    /// # Errors
    /// The disk refused. If it refused to sync, the file is gone.
    pub fn finish(&mut self) -> io::Result<Digest> {
        self.sync()?;
        // Bytes from before a break were not seen by this writer.
        self.hasher.take().map_or_else(|| Ok(ArtifactRef::of_file(&self.path)?.digest), |hasher| Ok(hasher.finish()))
    }
}

/// Removes a file that the disk refused: the system has told so, counts what it holds of it in memory as written, and would
/// give it to whoever goes on there.
fn forget(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// Has a thread bring the bytes of a file to the disk, unless one does so for another file.
fn begin_sync(path: &Path) -> bool {
    if SYNCING.swap(true, Ordering::Acquire) {
        return false;
    }
    let path = path.to_path_buf();
    let begun = std::thread::Builder::new().name("sync".into()).spawn(move || {
        // Opened anew: the system tells each opened file once that the disk has failed, and whoever waits must hear of it.
        if let Ok(file) = File::open(&path)
            && file.sync_data().is_err()
        {
            forget(&path);
        }
        SYNCING.store(false, Ordering::Release);
    });
    if begun.is_err() {
        SYNCING.store(false, Ordering::Release);
    }
    begun.is_ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_digest_is_of_all_bytes_also_of_those_from_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.part");
        Incoming::open(&path).unwrap().append(b"hello ").unwrap();
        let mut incoming = Incoming::open(&path).unwrap();
        assert_eq!(incoming.size(), 6);
        incoming.append(b"world").unwrap();
        assert_eq!(incoming.finish().unwrap(), Digest::of(b"hello world"));
        incoming.clear().unwrap();
        incoming.append(b"again").unwrap();
        assert_eq!((incoming.size(), incoming.finish().unwrap()), (5, Digest::of(b"again")));
        assert_eq!(std::fs::read(&path).unwrap(), b"again");
    }

    #[test]
    fn what_the_disk_refused_to_sync_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.part");
        std::fs::write(&path, b"").unwrap();
        // A pipe cannot be synced.
        let (_reader, pipe) = io::pipe().unwrap();
        let mut incoming = Incoming::of(&path, File::from(std::os::fd::OwnedFd::from(pipe))).unwrap();
        incoming.append(b"hello").unwrap();
        assert!(incoming.finish().is_err());
        assert!(!path.exists());
    }

    #[test]
    fn bytes_brought_to_the_disk_meanwhile_are_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.part");
        let mut incoming = Incoming::open(&path).unwrap();
        let piece: Vec<u8> = (0..SYNC_BYTES / 2 + 1).map(|i| i as u8).collect();
        for _ in 0..6 {
            incoming.append(&piece).unwrap();
        }
        assert_eq!(incoming.finish().unwrap(), Digest::of(&piece.repeat(6)));
        assert_eq!(std::fs::read(&path).unwrap(), piece.repeat(6));
    }
}
