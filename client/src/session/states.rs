//! The states that a site has: the last few, so that the next one can be made of one of them and the difference.
//!
//! ```text
//! states/DIGEST               a state, whole and verified
//! states/DIGEST.part          one on its way
//! states/DIGEST.difference    what makes it of another one
//! states/DIGEST.made          what is made of that, until it is whole
//! ```

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fedtune_proto::difference::{self, DifferenceError};
use fedtune_proto::digest::{ArtifactRef, Digest, Hasher};

use super::outbox::keep_latest;

/// States that are kept: the last two of a job, also where another job runs beside it.
const STATES_MAX: usize = 4;

/// Why a state could not be made of another one.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotMade {
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Difference(#[from] DifferenceError),
    #[error("what came out has the digest {found}; expected {expected}")]
    Digest { found: Digest, expected: Digest },
    #[error("it was interrupted: {0}")]
    Interrupted(String),
}

/// The folder of states.
#[derive(Debug, Clone)]
pub(super) struct States {
    folder: PathBuf,
}

/// Where a state that is asked for lies, or will.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The state.
    pub(super) whole: PathBuf,
    /// What makes it of another one.
    pub(super) difference: PathBuf,
}

impl States {
    /// Of a site with this folder for its work.
    pub(super) fn new(work: &Path) -> Self {
        Self { folder: work.join("states") }
    }

    /// The place of a state. What is not whole of others is removed.
    pub(super) fn place(&self, digest: Digest) -> io::Result<Place> {
        std::fs::create_dir_all(&self.folder)?;
        let name = digest.to_string();
        self.remove_unfinished(|found| found.starts_with(&name))?;
        let whole = self.folder.join(name);
        Ok(Place { difference: whole.with_extension("difference"), whole })
    }

    /// The file of a state, if it is here, and one can go on from it: where the next one has begun to come whole, it goes on
    /// coming.
    pub(super) fn base(&self, place: &Place, before: ArtifactRef) -> Option<PathBuf> {
        let path = self.folder.join(before.digest.to_string());
        let here = std::fs::metadata(&path).is_ok_and(|found| found.len() == before.size);
        (here && !place.whole.exists() && !place.whole.with_extension("part").exists()).then_some(path)
    }

    /// Notes that a state, now whole, is used. Those that were not for the longest time are removed.
    pub(super) fn used(&self, place: &Place) -> io::Result<()> {
        self.remove_unfinished(|_| false)?;
        File::open(&place.whole)?.set_modified(SystemTime::now())?;
        keep_latest(&self.folder, &place.whole, STATES_MAX)
    }

    /// Removes what is no whole state, but for names that are wanted.
    fn remove_unfinished(&self, wanted: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.parse::<Digest>().is_err() && !wanted(&name) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Place {
    /// Makes the state of the one at `base` and the difference, which is here. Blocks. The state has its name once its
    /// digest is verified and its bytes are synced.
    pub(super) fn make(&self, state: ArtifactRef, base: &Path) -> Result<(), NotMade> {
        let made = self.whole.with_extension("made");
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| NotMade::File { path, source }
        };
        let open = |path: &Path| File::open(path).map(BufReader::new).map_err(failed(path));
        let file = File::create(&made).map_err(failed(&made))?;
        let mut next = Hashed { file: BufWriter::new(file), hasher: Hasher::default() };
        difference::decode(open(&self.difference)?, open(base)?, state.size, &mut next)?;
        let found = next.hasher.finish();
        if found != state.digest {
            return Err(NotMade::Digest { found, expected: state.digest });
        }
        next.file.get_ref().sync_all().map_err(failed(&made))?;
        std::fs::rename(&made, &self.whole).map_err(failed(&made))
    }

    /// Forgets what did not make the state: one of the two is damaged.
    pub(super) fn forget(&self, base: &Path) {
        for path in [&self.difference, base] {
            if let Err(e) = std::fs::remove_file(path) {
                tracing::warn!("{}: cannot be removed: {e}", path.display());
            }
        }
    }
}

/// A file whose digest is taken as it is written.
struct Hashed {
    file: BufWriter<File>,
    hasher: Hasher,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests;
