//! From what a site sent to an update in the layout of the state.

use std::io::BufReader;

use fedtune_proto::delta::{self, Codec};
use fedtune_proto::digest::ArtifactRef;

use super::Rejection;
use crate::store::artifacts::{Reader, Writer};
use crate::store::{Artifacts, StoreError};

/// Bytes of a container that are read in one go.
const READ_BYTES: usize = 256 << 10;

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
    let container = artifacts.open_artifact(container.digest).await?;
    let decoding = tokio::task::spawn_blocking(move || {
        let container = BufReader::with_capacity(READ_BYTES, Reader::from(container));
        delta::decode(container, &layout, codec, &mut writer).map(|_| writer)
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
