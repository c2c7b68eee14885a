//! An update made smaller, as its job asks.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use fedtune_config::job::Updates;
use fedtune_proto::delta::{Codec, Encoder, Rounding};
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::layout::Layout;

use super::outbox::Attempt;
use super::work::WorkError;

/// What is sent, and what it lost.
#[derive(Debug)]
pub(super) struct Encoded {
    /// The file to send.
    pub(super) path: PathBuf,
    /// The norm of the error in that of the update.
    pub(super) relative_error: f64,
}

/// Encodes the update of an attempt, and leaves what was lost beside it where the job wants it added to the next one.
pub(super) fn encode(updates: &Updates, attempt: &Attempt) -> Result<Encoded, WorkError> {
    let update = attempt.update();
    let Some(codec) = updates.codec() else { return Ok(Encoded { path: update, relative_error: 0.0 }) };
    let codec: Codec = codec.parse().map_err(|e| WorkError::Malformed(format!("its job's compression: {e}")))?;
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| WorkError::File { path: path.clone(), source }
    };
    let open = |path: &Path| File::open(path).map(BufReader::new).map_err(failed(path));
    let create = |path: &Path| File::create(path).map(BufWriter::new).map_err(failed(path));
    let layout = Layout::read(&update)?;
    // Of the values themselves, so that no two sites and no two rounds round alike, and the same values always do.
    let seed = ArtifactRef::of_file(&update).map_err(failed(&update))?.digest;
    let mut encoder = Encoder::new(&layout, codec, Rounding::Stochastic { seed: *seed.bytes() });
    let feedback = updates.error_feedback == Some(true);
    let mut earlier = match &attempt.residual {
        Some(path) if feedback => Some(open(path)?),
        _ => None,
    };
    if let Some(earlier) = &mut earlier {
        encoder = encoder.earlier(earlier);
    }
    let mut residual = match feedback {
        true => Some(create(&attempt.new_residual())?),
        false => None,
    };
    if let Some(residual) = &mut residual {
        encoder = encoder.residual_to(residual);
    }
    let path = attempt.container();
    let mut container = create(&path)?;
    let encoded = encoder.encode(open(&update)?, &mut container)?;
    container.flush().map_err(failed(&path))?;
    if let Some(residual) = &mut residual {
        residual.flush().map_err(failed(&attempt.new_residual()))?;
    }
    std::fs::remove_file(&update).map_err(failed(&update))?;
    Ok(Encoded { path, relative_error: encoded.relative_error() })
}
