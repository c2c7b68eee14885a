//! What must hold before bytes of a site count.

use fedtune_config::job::Patterns;
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
    check_finite(artifacts, state, &layout).await.map(drop)
}

/// What an update may be at most.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    /// Examples it may claim.
    pub examples: u64,
    /// Its Euclidean norm.
    pub norm: f64,
    /// Tensors of which it says nothing: they stay at the sites.
    pub excluded: Patterns,
}

/// Checks an update against the state it is for: same tensors, every value finite, an example count and a norm that can be.
/// Gives the norm, which is computed in f64.
///
/// # Errors
/// What is wrong with it.
pub async fn check_update(
    artifacts: &Artifacts,
    state: ArtifactRef,
    update: ArtifactRef,
    examples: u64,
    bounds: &Bounds,
) -> Result<f64, Rejection> {
    if examples == 0 || examples > bounds.examples {
        let reason = format!("the update claims {examples} examples; expected 1 to {}", bounds.examples);
        return Err(Rejection::Unfit(reason));
    }
    let expected = artifacts.layout(state).await?;
    let layout = artifacts.layout(update).await.map_err(Rejection::of_layout)?;
    expected.same_tensors(&layout).map_err(|difference| Rejection::Unfit(format!("the update's {difference}")))?;
    if !bounds.excluded.is_empty() {
        check_excluded(artifacts, update, &layout, &bounds.excluded).await?;
    }
    let norm = check_finite(artifacts, update, &layout).await?;
    if norm > bounds.norm {
        let reason =
            format!("the update has the norm {norm:.3e}; expected at most {:.3e} (admission.norm_max)", bounds.norm);
        return Err(Rejection::Unfit(reason));
    }
    Ok(norm)
}

/// Checks that what stays at the sites is zero in an update.
async fn check_excluded(
    artifacts: &Artifacts,
    update: ArtifactRef,
    layout: &Layout,
    excluded: &Patterns,
) -> Result<(), Rejection> {
    let update = artifacts.open_artifact(update.digest).await?;
    for tensor in layout.tensors.iter().filter(|tensor| excluded.matches(&tensor.name)) {
        let mut at = tensor.start;
        while at < tensor.end {
            let end = tensor.end.min(at + WINDOW_BYTES);
            let bytes = update.read(at..end).await?;
            if bytes.iter().any(|byte| *byte != 0) {
                let name = &tensor.name;
                let reason =
                    format!("tensor {name:?} is excluded from averaging (aggregation.exclude); expected zeros");
                return Err(Rejection::Unfit(reason));
            }
            at = end;
        }
    }
    Ok(())
}

/// Checks that every value is finite, and gives the Euclidean norm of them all.
async fn check_finite(artifacts: &Artifacts, artifact: ArtifactRef, layout: &Layout) -> Result<f64, Rejection> {
    let opened = artifacts.open_artifact(artifact.digest).await?;
    let mut squares = [0.0; LANES];
    let mut at = layout.data_start;
    while at < layout.file_bytes {
        let end = layout.file_bytes.min(at + WINDOW_BYTES);
        let bytes = opened.read(at..end).await?;
        let values = bytes.as_chunks::<4>().0;
        let within = add_squares(&mut squares, values);
        if !within && let Some(i) = values.iter().position(|value| !f32::from_le_bytes(*value).is_finite()) {
            let byte = at + 4 * i as u64;
            let name = layout.tensors.iter().find(|t| t.end > byte).map_or("", |t| t.name.as_str());
            return Err(Rejection::Unfit(format!("tensor {name:?} has a value that is NaN or infinite")));
        }
        at = end;
    }
    Ok(squares.iter().sum::<f64>().sqrt())
}

/// Sums that are added up side by side; with one alone each addition would wait for the one before.
const LANES: usize = 16;

/// Adds the square of each value to one of the sums. Tells whether all sums are finite: the squares of finite f32 are, and no
/// file has so many that their sum is not.
fn add_squares(sums: &mut [f64; LANES], values: &[[u8; 4]]) -> bool {
    let square = |value: &[u8; 4]| f64::from(f32::from_le_bytes(*value)).powi(2);
    let (rows, rest) = values.as_chunks::<LANES>();
    for row in rows {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += square(value);
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += square(value);
    }
    sums.iter().all(|sum| sum.is_finite())
}
