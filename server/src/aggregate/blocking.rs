//! Artifacts read and written by code that blocks, on a thread that may.

use std::io::{self, Read, Write};

use fedtune_proto::digest::ArtifactRef;
use tokio::runtime::Handle;

use crate::store::Artifacts;
use crate::store::artifacts::Writer;

/// Bytes of an artifact that are read in one go.
pub(super) const READ_BYTES: u64 = 256 << 10;

/// An artifact that is being read.
pub(super) struct Input {
    artifacts: Artifacts,
    artifact: ArtifactRef,
    at: u64,
}

impl Input {
    pub(super) fn new(artifacts: &Artifacts, artifact: ArtifactRef) -> Self {
        Self { artifacts: artifacts.clone(), artifact, at: 0 }
    }
}

/// Something asynchronous as something that blocks, for a thread that may.
pub(super) struct Blocking<T>(pub(super) T, pub(super) Handle);

impl Read for Blocking<Input> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Input { artifacts, artifact, at } = &mut self.0;
        let end = artifact.size.min(*at + (buffer.len() as u64).min(READ_BYTES));
        if *at == end {
            return Ok(0);
        }
        let bytes = self.1.block_on(artifacts.read(artifact.digest, *at..end)).map_err(io::Error::other)?;
        *at = end;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

impl Write for Blocking<&mut Writer> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.block_on(self.0.append(bytes)).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
