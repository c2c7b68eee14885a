//! What must hold before bytes of a site count.

use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::layout::Layout;

use crate::store::{Artifacts, StoreError};

/// Bytes looked at in one go.
const WINDOW_BYTES: u64 = 64 << 10;

/// Why an artifact of a site does not count.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// It is not what it should be; the reason reaches the operator and the site.
    #[error("{0}")]
    Unfit(String),
    /// Storage failed; the site may try again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Rejection {
    fn of_layout(error: StoreError) -> Self {
        match error {
            StoreError::Unsound { .. } => Self::Unfit(error.to_string()),
            other => Self::Store(other),
        }
    }
}

/// Checks a first state: sound, all tensors F32, every value finite.
///
/// # Errors
/// What is wrong with it.
pub async fn check_state(artifacts: &Artifacts, state: ArtifactRef) -> Result<(), Rejection> {
    let layout = artifacts.layout(state).await.map_err(Rejection::of_layout)?;
    if layout.tensors.is_empty() {
        return Err(Rejection::Unfit("the state has no tensors; expected the trainable ones".into()));
    }
    if let Some(tensor) = layout.tensors.iter().find(|tensor| tensor.dtype != "F32") {
        let reason = format!("tensor {:?} of the state is {}; expected F32", tensor.name, tensor.dtype);
        return Err(Rejection::Unfit(reason));
    }
    check_finite(artifacts, state, &layout).await
}

/// Checks an update against the state it is for: same tensors, every value finite, an example count that can be.
///
/// # Errors
/// What is wrong with it.
pub async fn check_update(
    artifacts: &Artifacts,
    state: ArtifactRef,
    update: ArtifactRef,
    examples: u64,
    examples_max: u64,
) -> Result<(), Rejection> {
    if examples == 0 || examples > examples_max {
        let reason = format!("the update claims {examples} examples; expected 1 to {examples_max}");
        return Err(Rejection::Unfit(reason));
    }
    let expected = artifacts.layout(state).await?;
    let layout = artifacts.layout(update).await.map_err(Rejection::of_layout)?;
    expected.same_tensors(&layout).map_err(|difference| Rejection::Unfit(format!("the update's {difference}")))?;
    check_finite(artifacts, update, &layout).await
}

async fn check_finite(artifacts: &Artifacts, artifact: ArtifactRef, layout: &Layout) -> Result<(), Rejection> {
    let mut at = layout.data_start;
    while at < layout.file_bytes {
        let end = layout.file_bytes.min(at + WINDOW_BYTES);
        let bytes = artifacts.read(artifact.digest, at..end).await?;
        let values = bytes.as_chunks::<4>().0;
        if let Some(i) = values.iter().position(|value| !f32::from_le_bytes(*value).is_finite()) {
            let byte = at + 4 * i as u64;
            let name = layout.tensors.iter().find(|t| t.end > byte).map_or("", |t| t.name.as_str());
            return Err(Rejection::Unfit(format!("tensor {name:?} has a value that is NaN or infinite")));
        }
        at = end;
    }
    Ok(())
}
