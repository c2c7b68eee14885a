//! From what a site sent to an update in the layout of the state.

use std::io::{self, Read, Write};

use fedtune_proto::delta::{self, Codec};
use fedtune_proto::digest::ArtifactRef;
use tokio::runtime::Handle;

use super::Rejection;
use crate::store::artifacts::Writer;
use crate::store::{Artifacts, StoreError};

/// Bytes of a container that are read in one go.
const READ_BYTES: u64 = 256 << 10;

/// Decodes a container of the tensors of `state`, and stores what it holds. Memory is bounded by a few frames.
///
/// # Errors
/// What is wrong with it, or storage failed.
pub async fn decode(
    artifacts: &Artifacts,
    state: ArtifactRef,
    container: ArtifactRef,
    codec: Codec,
    staging_name: &str,
) -> Result<ArtifactRef, Rejection> {
    let layout = artifacts.layout(state).await?;
    let most = delta::wire_bytes_max(&layout, codec);
    if container.size > most {
        let reason =
            format!("the update has {} bytes; expected at most {most} for compression {codec}", container.size);
        return Err(Rejection::Unfit(reason));
    }
    let mut writer = Writer::create(artifacts, staging_name).await?;
    let (input, runtime) = (Input { artifacts: artifacts.clone(), container, at: 0 }, Handle::current());
    let decoding = tokio::task::spawn_blocking(move || {
        let decoded = {
            let input = io::BufReader::with_capacity(READ_BYTES as usize, Blocking(input, runtime.clone()));
            delta::decode(input, &layout, codec, Blocking(&mut writer, runtime))
        };
        decoded.map(|_| writer)
    });
    match decoding.await {
        Ok(Ok(writer)) => Ok(writer.finish(artifacts).await?),
        Ok(Err(delta::DeltaError::Read { source, .. } | delta::DeltaError::Write { source, .. })) => {
            Err(StoreError::Interrupted(source.to_string()).into())
        }
        Ok(Err(unfit)) => Err(Rejection::Unfit(unfit.to_string())),
        Err(e) => Err(StoreError::Interrupted(e.to_string()).into()),
    }
}

/// A container that is being read.
struct Input {
    artifacts: Artifacts,
    container: ArtifactRef,
    at: u64,
}

/// Something asynchronous as something that blocks, for a thread that may.
struct Blocking<T>(T, Handle);

impl Read for Blocking<Input> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Input { artifacts, container, at } = &mut self.0;
        let end = container.size.min(*at + (buffer.len() as u64).min(READ_BYTES));
        if *at == end {
            return Ok(0);
        }
        let bytes = self.1.block_on(artifacts.read(container.digest, *at..end)).map_err(io::Error::other)?;
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
