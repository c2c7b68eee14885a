//! The right to write in a site's folder: one process at a time has it, until it ends.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;
use tracing::{info, warn};

/// Between two looks at whether the other process has ended.
const PAUSE: Duration = Duration::from_millis(50);
/// A process whose session was taken over has ended long before.
const PATIENCE: Duration = Duration::from_secs(60);

/// The right, once it is had.
#[derive(Debug)]
pub(super) struct Hold {
    path: PathBuf,
    file: OnceCell<File>,
}

impl Hold {
    /// To a folder, which need not be there yet.
    pub(super) fn of(work: &Path) -> Self {
        Self { path: work.join("lock"), file: OnceCell::new() }
    }

    /// Waits for it: a process whose session this one has taken over may still be at work.
    ///
    /// # Errors
    /// The folder cannot be used, or the other process does not end.
    pub(super) async fn taken(&self) -> io::Result<()> {
        self.file.get_or_try_init(|| take(&self.path)).await.map(drop)
    }
}

async fn take(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = File::options().create(true).append(true).open(path)?;
    let mut began = None;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            // Where a file system has no locks there is nobody to wait for.
            Err(TryLockError::Error(e)) => {
                warn!("{}: {e}; that no other fedtune-client works in this folder is not known", path.display());
                return Ok(file);
            }
        }
        let waited = began.get_or_insert_with(|| {
            info!("another fedtune-client works in this folder, waiting for its end ({})", path.display());
            Instant::now()
        });
        if waited.elapsed() > PATIENCE {
            let reason = "another fedtune-client works in this folder and does not end; stop it, or set storage.work";
            return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn the_second_waits_until_the_first_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("work");
        let first = Hold::of(&work);
        first.taken().await.unwrap();
        first.taken().await.unwrap();
        let waiting = tokio::spawn(async move {
            let second = Hold::of(&work);
            second.taken().await.unwrap();
        });
        tokio::time::sleep(3 * PAUSE).await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(Hold::of(&file.join("work")).taken().await.is_err());
    }
}
