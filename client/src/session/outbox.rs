//! What a site keeps on disk: base models and states by digest, and results until the aggregator has answered them.
//!
//! ```text
//! work/models/DIGEST/…            a base model's folder
//! work/states/DIGEST              a state
//! work/outbox/JOB-ROUND-ATTEMPT/  update.safetensors, and result.json once it is whole
//! ```

use std::io;
use std::path::{Path, PathBuf};

use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::v1::{Task, TaskId};
use serde::{Deserialize, Serialize};

/// A finished fine-tuning that the aggregator has not answered yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) update: ArtifactRef,
    pub(super) examples: u64,
    pub(super) train_loss: f64,
    pub(super) train_seconds: f64,
    pub(super) bytes_down: u64,
}

/// The site's folder.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    root: PathBuf,
}

impl Outbox {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// The folder of a task's base model, named by what is in it.
    pub(super) fn model(&self, task: &Task) -> io::Result<PathBuf> {
        let mut names: Vec<String> = task
            .base_model
            .iter()
            .map(|file| format!("{} {}\n", file.name, file.artifact.as_ref().map_or("", |a| a.digest.as_str())))
            .collect();
        names.sort();
        let folder = self.root.join("models").join(Digest::of(names.concat().as_bytes()).to_string());
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Where a state lies; every other state is removed.
    pub(super) fn state(&self, digest: Digest) -> io::Result<PathBuf> {
        let folder = self.root.join("states");
        std::fs::create_dir_all(&folder)?;
        let name = digest.to_string();
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(&name) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(folder.join(name))
    }

    fn task(&self, id: &TaskId) -> PathBuf {
        // The job's id comes from the network: its digest is always a plain name.
        let job = Digest::of(id.job.as_bytes()).to_string();
        self.root.join("outbox").join(format!("{}-{}-{}-{}", &job[..16], id.kind, id.round, id.attempt))
    }

    /// Where a task's result is written; what is left of older tasks is removed.
    pub(super) fn begin(&self, id: &TaskId) -> io::Result<PathBuf> {
        let folder = self.task(id);
        let outbox = self.root.join("outbox");
        std::fs::create_dir_all(&outbox)?;
        for entry in std::fs::read_dir(&outbox)? {
            let path = entry?.path();
            if path != folder {
                std::fs::remove_dir_all(path)?;
            }
        }
        std::fs::create_dir_all(&folder)?;
        Ok(folder.join("update.safetensors"))
    }

    /// Notes that a task's result is whole. From here on it is sent, never computed again.
    pub(super) fn finish(&self, id: &TaskId, finished: &Finished) -> io::Result<()> {
        let folder = self.task(id);
        let part = folder.join("result.part");
        std::fs::File::open(folder.join("update.safetensors"))?.sync_all()?;
        std::fs::write(&part, serde_json::to_vec(finished).map_err(io::Error::other)?)?;
        std::fs::File::open(&part)?.sync_all()?;
        std::fs::rename(part, folder.join("result.json"))
    }

    /// The result of a task, if it is whole.
    pub(super) fn finished(&self, id: &TaskId) -> Option<(Finished, PathBuf)> {
        let folder = self.task(id);
        let finished: Finished = serde_json::from_slice(&std::fs::read(folder.join("result.json")).ok()?).ok()?;
        let update = folder.join("update.safetensors");
        let whole = std::fs::metadata(&update).is_ok_and(|found| found.len() == finished.update.size);
        whole.then_some((finished, update))
    }

    /// Forgets a task that has been answered.
    pub(super) fn answered(&self, id: &TaskId) {
        if let Err(e) = std::fs::remove_dir_all(self.task(id)) {
            tracing::warn!("an answered update could not be removed from the outbox: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_result_survives_a_restart_until_it_is_answered_and_a_broken_one_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let id = TaskId { job: "../../job".into(), round: 3, attempt: 1, kind: 2 };
        let outbox = Outbox::new(folder.path());
        let update = outbox.begin(&id).unwrap();
        assert!(update.starts_with(folder.path()));
        assert_eq!(outbox.finished(&id), None);
        std::fs::write(&update, b"12345678").unwrap();
        let artifact = ArtifactRef { digest: Digest::of(b"12345678"), size: 8 };
        let finished = Finished { update: artifact, examples: 5, train_loss: 0.5, train_seconds: 1.0, bytes_down: 9 };
        outbox.finish(&id, &finished).unwrap();
        assert_eq!(Outbox::new(folder.path()).finished(&id), Some((finished, update.clone())));
        assert_eq!(outbox.finished(&TaskId { attempt: 2, ..id.clone() }), None);
        std::fs::write(&update, b"123").unwrap();
        assert_eq!(outbox.finished(&id), None, "truncated");
        outbox.answered(&id);
        assert!(!update.exists());
    }
}
