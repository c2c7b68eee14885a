//! The difference between a state and the one before, which sites that have that one fetch in place of the state.

use fedtune_proto::difference::{self, DifferenceError};
use fedtune_proto::digest::ArtifactRef;
use tokio::task::JoinError;
use tracing::{debug, warn};

use crate::store::artifacts::{Reader, Writer};
use crate::store::{Artifacts, StoreError};

/// The most a difference may have of the bytes of the state, in per cent; a larger one is not worth its place on the disk.
const PER_CENT_MAX: u64 = 90;

/// Why there is no difference. The state does not depend on it.
#[derive(Debug, thiserror::Error)]
enum NoDifference {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Encode(#[from] DifferenceError),
    #[error("it was interrupted: {0}")]
    Interrupted(#[from] JoinError),
}

/// Stores the difference between two states, in memory bounded by a frame of each. `None` where it is hardly smaller than the
/// state, or cannot be made: sites then fetch the state whole.
pub async fn difference(
    artifacts: &Artifacts,
    before: ArtifactRef,
    next: ArtifactRef,
    staging_name: &str,
) -> Option<ArtifactRef> {
    // A state that did not move is at every site that had the one before.
    if before.size != next.size || before.digest == next.digest {
        return None;
    }
    match make(artifacts, before, next, staging_name).await {
        Ok(made) => made,
        Err(e) => {
            warn!(state = %next.digest, "the difference to the state before cannot be made, sites fetch all of it: {e}");
            None
        }
    }
}

async fn make(
    artifacts: &Artifacts,
    before: ArtifactRef,
    next: ArtifactRef,
    staging_name: &str,
) -> Result<Option<ArtifactRef>, NoDifference> {
    let mut writer = Writer::create(artifacts, staging_name).await?;
    let size = next.size;
    let before = Reader::from(artifacts.open_artifact(before.digest).await?);
    let next = Reader::from(artifacts.open_artifact(next.digest).await?);
    let encoding = tokio::task::spawn_blocking(move || {
        let bytes = difference::encode(before, next, size, &mut writer)?;
        Ok::<_, DifferenceError>((bytes, writer))
    });
    let (bytes, writer) = encoding.await??;
    if bytes.saturating_mul(100) > size.saturating_mul(PER_CENT_MAX) {
        debug!(bytes, of = size, "the difference to the state before is not worth its bytes");
        return Ok(None);
    }
    Ok(Some(writer.finish(artifacts).await?))
}

#[cfg(test)]
mod tests;
