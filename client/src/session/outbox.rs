//! What a site keeps on disk: base models by digest, and results until the aggregator has answered them. Its states are in
//! `states`.
//!
//! ```text
//! work/models/DIGEST/…                    a base model's folder; the last few
//! work/residuals/JOB-ROUND.safetensors    what compression lost of the last update that counts
//! work/own/JOB.safetensors                the tensors of a job that stay at this site
//! work/outbox/JOB-KIND-ROUND-ATTEMPT/     checkpoints while it is computed; update, residual, and result.json once it is whole
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::v1::{Task, TaskId};
use serde::{Deserialize, Serialize};

/// Base models that are kept.
const MODELS_MAX: usize = 4;

/// Files of residuals that are kept: of each job two, and how often it was taken back.
const RESIDUALS_MAX: usize = 48;

/// A residual of so many rounds ago is of no use any more.
const RESIDUAL_ROUNDS: u32 = 5;

/// A finished fine-tuning that the aggregator has not answered yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Finished {
    /// Job, round, attempt and kind of the task.
    pub(super) task: (String, u32, u32, i32),
    /// The state it started from; `None` where an earlier version of this program did not note it.
    #[serde(default)]
    pub(super) state: Option<ArtifactRef>,
    /// The name of the file in the task's folder.
    pub(super) file: PathBuf,
    pub(super) update: ArtifactRef,
    pub(super) relative_error: f64,
    pub(super) examples: u64,
    pub(super) train_loss: f64,
    pub(super) train_seconds: f64,
    pub(super) bytes_down: u64,
}

impl Finished {
    /// The task it is the result of.
    pub(super) fn id(&self) -> TaskId {
        let (job, round, attempt, kind) = self.task.clone();
        TaskId { job, round, attempt, kind }
    }
}

/// A task in progress: where its files lie.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attempt {
    folder: PathBuf,
    /// What compression lost of the last update that counts.
    pub(super) residual: Option<PathBuf>,
    /// The tensors that stay here, as they were after the last update that counts.
    pub(super) own: Option<PathBuf>,
}

impl Attempt {
    /// Where the first state, or the update as it is, is written.
    pub(super) fn update(&self) -> PathBuf {
        self.folder.join("update.safetensors")
    }

    /// Where the encoded update is written.
    pub(super) fn container(&self) -> PathBuf {
        self.folder.join("update.delta")
    }

    /// Where what is lost of it is written.
    pub(super) fn new_residual(&self) -> PathBuf {
        self.folder.join(RESIDUAL)
    }

    /// Where the tensors that stay here are written.
    pub(super) fn new_own(&self) -> PathBuf {
        self.folder.join(OWN)
    }

    /// Where the checkpoint of its training is.
    pub(super) fn checkpoint(&self) -> PathBuf {
        self.folder.join("checkpoint")
    }
}

const RESIDUAL: &str = "residual.safetensors";
const OWN: &str = "own.safetensors";
const RESULT: &str = "result.json";
/// The digest of the state that the task starts from.
const STATE: &str = "state";

/// The site's folder.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    root: PathBuf,
}

impl Outbox {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// The folder of a task's base model, named by what is in it. Those that were not asked for lately are removed.
    pub(super) fn model(&self, task: &Task) -> io::Result<PathBuf> {
        let mut names: Vec<String> = task
            .base_model
            .iter()
            .map(|file| format!("{} {}\n", file.name, file.artifact.as_ref().map_or("", |a| a.digest.as_str())))
            .collect();
        names.sort();
        let models = self.root.join("models");
        let folder = models.join(Digest::of(names.concat().as_bytes()).to_string());
        std::fs::create_dir_all(&folder)?;
        File::open(&folder)?.set_modified(SystemTime::now())?;
        keep_latest(&models, &folder, MODELS_MAX)?;
        Ok(folder)
    }

    fn task(&self, id: &TaskId) -> PathBuf {
        let job = job_name(&id.job);
        self.root.join("outbox").join(format!("{job}-{}-{}-{}", id.kind, id.round, id.attempt))
    }

    /// Where a task's files are written; what an earlier run of this program left of it is still there, what is left of
    /// other tasks, or of this one from another state, is removed.
    pub(super) fn begin(&self, id: &TaskId, state: Option<ArtifactRef>) -> io::Result<Attempt> {
        let folder = self.task(id);
        let outbox = self.root.join("outbox");
        let (noted, state) = (folder.join(STATE), state.map_or_else(String::new, |state| state.digest.to_string()));
        // An aggregator whose records were put back may offer a task again with another state.
        if std::fs::read_to_string(&noted).is_ok_and(|before| before != state) {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        std::fs::write(noted, state)?;
        for entry in std::fs::read_dir(&outbox)? {
            let path = entry?.path();
            if path != folder {
                std::fs::remove_dir_all(path)?;
            }
        }
        Ok(Attempt { folder, residual: self.residual(id)?, own: self.own(&id.job) })
    }

    /// Notes that a task's result is whole. From here on it is sent, never computed again.
    pub(super) fn finish(&self, finished: &Finished) -> io::Result<()> {
        let folder = self.task(&finished.id());
        let part = folder.join("result.part");
        File::open(folder.join(&finished.file))?.sync_all()?;
        for beside in [RESIDUAL, OWN] {
            if let Ok(beside) = File::open(folder.join(beside)) {
                beside.sync_all()?;
            }
        }
        std::fs::write(&part, serde_json::to_vec(finished).map_err(io::Error::other)?)?;
        File::open(&part)?.sync_all()?;
        std::fs::rename(part, folder.join(RESULT))?;
        File::open(&folder)?.sync_all()
    }

    /// The result of a task that starts from a state, if it is whole, and its file.
    pub(super) fn finished(&self, id: &TaskId, state: Option<ArtifactRef>) -> Option<(Finished, PathBuf)> {
        let of_it = |finished: &Finished| finished.id() == *id && (finished.state.is_none() || finished.state == state);
        whole(&self.task(id)).filter(|(finished, _)| of_it(finished))
    }

    /// Results of other tasks, whose answers never came.
    pub(super) fn unanswered(&self, than: &TaskId) -> io::Result<Vec<Finished>> {
        let outbox = self.root.join("outbox");
        let entries = match std::fs::read_dir(&outbox) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            found.extend(whole(&entry?.path()).map(|(finished, _)| finished).filter(|finished| finished.id() != *than));
        }
        Ok(found)
    }

    /// Forgets a task that has been answered. What was lost of an update that counts, and what stays here, is kept for the
    /// next one.
    pub(super) fn answered(&self, id: &TaskId, accepted: bool) {
        let folder = self.task(id);
        let residual = folder.join(RESIDUAL);
        let kept = if accepted && residual.exists() { self.keep_residual(id, &residual) } else { Ok(()) };
        let own = folder.join(OWN);
        let kept_own = if accepted && own.exists() { self.keep_own(&id.job, &own) } else { Ok(()) };
        if let Err(e) = kept.and(kept_own).and_then(|()| std::fs::remove_dir_all(folder)) {
            tracing::warn!("an answered update could not be removed from the outbox: {e}");
        }
    }

    /// The tensors of a job that stay here. They are this site's model, and are never removed.
    pub(super) fn own(&self, job: &str) -> Option<PathBuf> {
        Some(self.own_file(job)).filter(|path| path.exists())
    }

    fn own_file(&self, job: &str) -> PathBuf {
        self.root.join("own").join(format!("{}.safetensors", job_name(job)))
    }

    fn keep_own(&self, job: &str, own: &Path) -> io::Result<()> {
        let folder = self.root.join("own");
        std::fs::create_dir_all(&folder)?;
        let kept = self.own_file(job);
        std::fs::rename(own, &kept)?;
        tracing::info!(job, path = %kept.display(), "kept what stays at this site");
        File::open(&folder)?.sync_all()
    }

    /// Forgets what was lost of updates if the job was taken back to an earlier state since: it was lost of changes to states
    /// that are given up. Each time halves the factor of the learning rate.
    pub(super) fn continues(&self, job: &str, factor: f64) -> io::Result<()> {
        let folder = self.root.join("residuals");
        let noted = folder.join(format!("{}.factor", job_name(job)));
        let before = std::fs::read_to_string(&noted).ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
        // An aggregator that knows no such factor says 0.
        let factor = if factor == 0.0 { 1.0 } else { factor };
        if factor == before {
            return Ok(());
        }
        std::fs::create_dir_all(&folder)?;
        for (path, _) in self.residuals(job)? {
            std::fs::remove_file(path)?;
        }
        std::fs::write(noted, factor.to_string())
    }

    fn keep_residual(&self, id: &TaskId, residual: &Path) -> io::Result<()> {
        let folder = self.root.join("residuals");
        std::fs::create_dir_all(&folder)?;
        let kept = folder.join(format!("{}-{}.safetensors", job_name(&id.job), id.round));
        std::fs::rename(residual, &kept)?;
        // The one before stays: where the attempt fails, the round is tried again from there.
        let others = self.residuals(&id.job)?.into_iter().filter(|(_, round)| *round != id.round);
        let before = others.clone().map(|(_, round)| round).filter(|round| *round < id.round).max();
        for (path, _) in others.filter(|(_, round)| Some(*round) != before) {
            std::fs::remove_file(path)?;
        }
        keep_latest(&folder, &kept, RESIDUALS_MAX)
    }

    /// The residuals of a job, with their rounds.
    fn residuals(&self, job: &str) -> io::Result<Vec<(PathBuf, u32)>> {
        let entries = match std::fs::read_dir(self.root.join("residuals")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let round = name.to_str().and_then(|name| name.strip_prefix(&job_name(job))?.strip_prefix('-'));
            let round = round.and_then(|rest| rest.strip_suffix(".safetensors")?.parse().ok());
            found.extend(round.map(|round| (entry.path(), round)));
        }
        Ok(found)
    }

    /// What was lost of the last update of this job that counts, unless it is too long ago or of a later round, from which
    /// the job was taken back.
    fn residual(&self, id: &TaskId) -> io::Result<Option<PathBuf>> {
        let recent = |round: u32| round < id.round && id.round - round <= RESIDUAL_ROUNDS;
        let found = self.residuals(&id.job)?.into_iter().filter(|(_, round)| recent(*round));
        // More than one is there when this program was killed between keeping one and removing the one before.
        Ok(found.max_by_key(|(_, round)| *round).map(|(path, _)| path))
    }
}

/// The job's id comes from the network: its digest is always a plain name.
fn job_name(job: &str) -> String {
    let mut name = Digest::of(job.as_bytes()).to_string();
    name.truncate(16);
    name
}

fn whole(folder: &Path) -> Option<(Finished, PathBuf)> {
    let finished: Finished = serde_json::from_slice(&std::fs::read(folder.join(RESULT)).ok()?).ok()?;
    let update = folder.join(finished.file.file_name()?);
    let whole = std::fs::metadata(&update).is_ok_and(|found| found.len() == finished.update.size);
    whole.then_some((finished, update))
}

/// Removes all but so many of a folder's entries: what is in use, and those that were changed last. The clock may have been
/// set back, so that the time of what is in use says nothing.
pub(super) fn keep_latest(folder: &Path, in_use: &Path, most: usize) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path() != in_use {
            others.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    others.sort();
    for (_, path) in others.iter().rev().skip(most.saturating_sub(1)) {
        if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn id(round: u32, attempt: u32) -> TaskId {
        TaskId { job: "../../job".into(), round, attempt, kind: 2 }
    }

    fn state(value: u8) -> Option<ArtifactRef> {
        Some(ArtifactRef { digest: Digest::of(&[value]), size: 1 })
    }

    fn finished(id: &TaskId, bytes: &[u8]) -> Finished {
        Finished {
            task: (id.job.clone(), id.round, id.attempt, id.kind),
            state: state(0),
            file: "update.delta".into(),
            update: ArtifactRef { digest: Digest::of(bytes), size: bytes.len() as u64 },
            relative_error: 0.1,
            examples: 5,
            train_loss: 0.5,
            train_seconds: 1.0,
            bytes_down: 9,
        }
    }

    #[test]
    fn a_result_survives_a_restart_until_it_is_answered_and_a_broken_one_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::new(folder.path());
        let attempt = outbox.begin(&id(3, 1), state(0)).unwrap();
        assert!(attempt.container().starts_with(folder.path()));
        assert_eq!(outbox.finished(&id(3, 1), state(0)), None);
        std::fs::write(attempt.container(), b"12345678").unwrap();
        let finished = finished(&id(3, 1), b"12345678");
        outbox.finish(&finished).unwrap();
        let again = Outbox::new(folder.path());
        assert_eq!(again.finished(&id(3, 1), state(0)), Some((finished.clone(), attempt.container())));
        assert_eq!(again.finished(&id(3, 2), state(0)), None);
        assert_eq!(again.finished(&id(3, 1), state(1)), None, "it started from another state");
        assert_eq!(again.unanswered(&id(3, 1)).unwrap(), []);
        assert_eq!(again.unanswered(&id(3, 2)).unwrap(), [finished]);
        std::fs::write(attempt.container(), b"123").unwrap();
        assert_eq!(outbox.finished(&id(3, 1), state(0)), None, "truncated");
        outbox.answered(&id(3, 1), true);
        assert!(!attempt.container().exists());
        let begun = |from| outbox.begin(&id(3, 1), state(from)).unwrap().checkpoint();
        std::fs::create_dir(begun(0)).unwrap();
        assert!(begun(0).exists() && !begun(1).exists(), "a checkpoint is of no use from another state");
    }

    #[test]
    fn what_was_lost_is_kept_of_updates_that_count_and_for_a_few_rounds() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::new(folder.path());
        let residual = |round| outbox.begin(&id(round, 1), state(0)).unwrap().residual;
        let answer = |round, accepted| {
            let attempt = outbox.begin(&id(round, 1), state(0)).unwrap();
            std::fs::write(attempt.new_residual(), [round as u8]).unwrap();
            outbox.answered(&id(round, 1), accepted);
        };
        assert_eq!(residual(1), None);
        answer(1, true);
        answer(2, false);
        assert_eq!(std::fs::read(residual(3).unwrap()).unwrap(), [1]);
        answer(3, true);
        assert_eq!(std::fs::read(residual(4).unwrap()).unwrap(), [3]);
        assert_eq!(std::fs::read(residual(8).unwrap()).unwrap(), [3]);
        assert_eq!(residual(9), None, "too long ago");
        assert_eq!(std::fs::read(residual(3).unwrap()).unwrap(), [1], "the round is tried again");
        // What a kill left, in whatever order the folder lists it.
        let kept = residual(4).unwrap().with_file_name(format!("{}-ROUND.safetensors", job_name(&id(1, 1).job)));
        for round in [1, 2, 4, 5] {
            std::fs::write(kept.to_str().unwrap().replace("ROUND", &round.to_string()), [round]).unwrap();
        }
        for round in 2..=6 {
            assert_eq!(std::fs::read(residual(round).unwrap()).unwrap(), [round as u8 - 1]);
        }
        outbox.continues(&id(6, 1).job, 0.0).unwrap();
        outbox.continues(&id(6, 1).job, 1.0).unwrap();
        assert!(residual(6).is_some());
        outbox.continues(&id(6, 1).job, 0.5).unwrap();
        assert_eq!(residual(6), None, "it was lost on the way to states that are given up");
        answer(6, true);
        outbox.continues(&id(7, 1).job, 0.5).unwrap();
        assert!(residual(7).is_some());
        let other = TaskId { job: "other".into(), ..id(4, 1) };
        assert_eq!(outbox.begin(&other, state(0)).unwrap().residual, None);
    }

    #[test]
    fn what_stays_here_is_that_of_the_last_update_that_counts() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::new(folder.path());
        let answer = |round, accepted| {
            let attempt = outbox.begin(&id(round, 1), state(0)).unwrap();
            std::fs::write(attempt.new_own(), [round as u8]).unwrap();
            outbox.answered(&id(round, 1), accepted);
            outbox.begin(&id(round + 1, 1), state(0)).unwrap().own.map(|own| std::fs::read(own).unwrap())
        };
        assert_eq!((answer(1, false), answer(1, true), answer(2, false)), (None, Some(vec![1]), Some(vec![1])));
        assert_eq!(answer(9, true), Some(vec![9]));
        assert_eq!(outbox.own("other"), None);
    }

    #[test]
    fn models_that_were_not_asked_for_lately_go() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::new(folder.path());
        let model = |name: &str| {
            let file = fedtune_proto::v1::ModelFile { name: name.into(), artifact: None };
            outbox.model(&Task { base_model: vec![file], ..Task::default() }).unwrap()
        };
        let first = model("0");
        let others: Vec<PathBuf> = (1..=MODELS_MAX).map(|i| model(&i.to_string())).collect();
        assert!(!first.exists());
        assert!(others.iter().all(|folder| folder.exists()));
    }

    #[test]
    fn what_is_in_use_stays_whatever_the_clock_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = |number: u64| {
            let path = folder.path().join(number.to_string());
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000 * number);
            File::create(&path).unwrap().set_modified(time).unwrap();
            path
        };
        let files: Vec<_> = (0..6).map(file).collect();
        keep_latest(folder.path(), &files[0], 3).unwrap();
        let left: Vec<_> = (0..6).filter(|i| files[*i].exists()).collect();
        assert_eq!(left, [0, 4, 5]);
    }
}
