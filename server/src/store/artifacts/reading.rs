//! Bytes of an artifact that is open.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use crate::store::StoreError;

/// An artifact that is open. Its bytes never change, and they can be read for as long as this lives, whoever removes it.
#[derive(Debug, Clone)]
pub struct Opened {
    file: Arc<File>,
    path: Arc<PathBuf>,
    size: u64,
}

impl Opened {
    /// Opens the file. Blocks.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let opened = File::open(&path).and_then(|file| {
            let size = file.metadata()?.len();
            Ok((file, size))
        });
        match opened {
            Ok((file, size)) => Ok(Self { file: Arc::new(file), path: Arc::new(path), size }),
            Err(source) => Err(StoreError::File { path, source }),
        }
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Some of its bytes. What the system holds in memory is copied here and now; a disk is waited for on a thread that
    /// may wait.
    ///
    /// # Errors
    /// Storage failed, or there are not so many bytes.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        let failed = |source| StoreError::File { path: self.path.to_path_buf(), source };
        let length = range.end.checked_sub(range.start).filter(|_| range.end <= self.size);
        let length = length.and_then(|length| usize::try_from(length).ok()).ok_or_else(|| failed(ended()))?;
        let mut bytes = vec![0; length];
        let read = read_in_memory(&self.file, &mut bytes, range.start);
        if read == length {
            return Ok(bytes.into());
        }
        let file = self.file.clone();
        let waiting = move || {
            file.read_exact_at(&mut bytes[read..], range.start + read as u64)?;
            Ok(bytes.into())
        };
        spawn_blocking(waiting).await.map_err(io::Error::other).flatten().map_err(failed)
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than what is read of it")
}

/// Reads what needs no disk; 0 where nothing does, or the file system cannot tell.
#[cfg(target_os = "linux")]
fn read_in_memory(file: &File, bytes: &mut [u8], at: u64) -> usize {
    use rustix::io::{IoSliceMut, ReadWriteFlags, preadv2};
    preadv2(file, &mut [IoSliceMut::new(bytes)], at, ReadWriteFlags::NOWAIT).unwrap_or(0)
}

#[cfg(not(target_os = "linux"))]
fn read_in_memory(_: &File, _: &mut [u8], _: u64) -> usize {
    0
}

/// An artifact from its first byte to its last, for code that may block.
#[derive(Debug)]
pub struct Reader {
    opened: Opened,
    at: u64,
}

impl From<Opened> for Reader {
    fn from(opened: Opened) -> Self {
        Self { opened, at: 0 }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.opened.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
