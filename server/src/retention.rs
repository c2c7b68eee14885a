//! What is deleted of jobs that ended long ago. An artifact goes only if no record needs it *and* nobody has stored it or
//! asked for it for the whole time:
//!
//! - a job that has not ended, or not so long ago, needs every artifact that its records name;
//! - any other needs what its models are exported of: the base model, the last state and the best.
//!
//! What was staged and not finished goes once nobody can come back to it: a day after its last byte if no job was there
//! then that goes on, and in any case after the time above. This is so also where artifacts stay forever.
//!
//! Whoever is about to name an artifact in a record asks for it first ([`Artifacts::refresh`]), so one that is named
//! while a pass runs is too young to go. A pass that is cut off leaves less to do for the next.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use fedtune_proto::digest::Digest;
use tracing::{info, warn};

use crate::coordinator::now_ms;
use crate::store::artifacts::Stored;
use crate::store::records::JobArtifacts;
use crate::store::{Artifacts, Records, StoreError};

/// How long an upload may rest that belongs to no job: an operator sends a base model before there is one.
const UPLOAD_REST: Duration = Duration::from_secs(24 * 60 * 60);

/// Between two passes.
const PAUSE: Duration = Duration::from_secs(60 * 60);

/// The rule and what it is applied to.
#[derive(Debug, Clone)]
pub struct Retention {
    /// Where jobs are recorded.
    pub records: Records,
    /// Where artifacts are.
    pub artifacts: Artifacts,
    /// How long all of an ended job stays; `None` for ever.
    pub keep: Option<Duration>,
}

/// What a pass has deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Artifacts and unfinished uploads.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Retention {
    /// Makes a pass now and every hour.
    pub async fn run(self) -> Infallible {
        loop {
            match self.pass(now_ms()).await {
                Ok(Deleted { files: 0, .. }) => {}
                Ok(Deleted { files, bytes }) => info!(files, bytes, "deleted what no job needs any more"),
                Err(e) => warn!("what no job needs cannot be deleted: {e}; it is tried again in an hour"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Deletes what can go at this time, in milliseconds since 1970.
    ///
    /// # Errors
    /// Storage failed, or a record cannot be read; then nothing of it is deleted.
    pub async fn pass(&self, now_ms: u64) -> Result<Deleted, StoreError> {
        let mut deleted = Deleted::default();
        if let Some(keep) = self.keep {
            self.delete_artifacts(now_ms, millis(keep), &mut deleted).await?;
        }
        // What came before every job that goes on is none of its.
        let of_no_job = self.records.oldest_open_ms().await?.unwrap_or(u64::MAX);
        let at_rest = of_no_job.min(now_ms.saturating_sub(millis(UPLOAD_REST)));
        let old = self.keep.map_or(0, |keep| now_ms.saturating_sub(millis(keep)));
        for (name, bytes) in self.artifacts.remove_stale_uploads(at_rest.max(old)).await? {
            info!(upload = name, bytes, "unfinished upload deleted");
            deleted.files += 1;
            deleted.bytes += bytes;
        }
        Ok(deleted)
    }

    async fn delete_artifacts(&self, now_ms: u64, keep_ms: u64, deleted: &mut Deleted) -> Result<(), StoreError> {
        self.records.mark_ended(now_ms).await?;
        // The files first: what is stored after that is not looked at.
        let stored = self.artifacts.list().await?;
        let jobs = self.records.job_artifacts().await?;
        let before_ms = now_ms.saturating_sub(keep_ms);
        for Stored { digest, size, .. } in dispensable(&stored, &jobs, now_ms, keep_ms) {
            if self.artifacts.remove_unused(digest, before_ms).await? {
                info!(artifact = %digest, bytes = size, "artifact deleted");
                deleted.files += 1;
                deleted.bytes += size;
            }
        }
        Ok(())
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What may go of the artifacts stored, given what each job names.
fn dispensable(stored: &[Stored], jobs: &[JobArtifacts], now_ms: u64, keep_ms: u64) -> Vec<Stored> {
    let old = |since_ms: u64| now_ms.saturating_sub(since_ms) >= keep_ms;
    let needed: BTreeSet<Digest> = jobs
        .iter()
        .flat_map(|job| if job.ended_ms.is_some_and(old) { &job.exported } else { &job.named })
        .copied()
        .collect();
    stored.iter().filter(|stored| old(stored.used_ms) && !needed.contains(&stored.digest)).copied().collect()
}

#[cfg(test)]
mod tests;
