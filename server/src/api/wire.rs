//! Between wire messages and the aggregator's own types.

use std::collections::BTreeMap;

use fedtune_proto::digest::{ArtifactRef, NotADigest};
use fedtune_proto::evaluation::Evaluation;
use fedtune_proto::v1;
use tonic::Status;

use crate::coordinator::{Activity, Directive, JobSnapshot, Rejected, SiteSnapshot, Task};
use crate::round::{Difference, RoundRecord, Turn, Work};
use crate::store::StoreError;
use crate::store::records::{BaseFile, JobRecord, JobStatus};

/// Characters of what a site says is a job that go into a log line; an id has 36.
const JOB_LOGGED_MAX: usize = 64;

pub(super) fn invalid(error: NotADigest) -> Status {
    Status::invalid_argument(error.to_string())
}

pub(super) fn storage(error: StoreError) -> Status {
    if matches!(error, StoreError::Busy) {
        return Status::aborted(error.to_string());
    }
    tracing::error!("storage failed: {error}");
    Status::unavailable(format!("the aggregator's storage failed: {error}"))
}

pub(super) fn gone(error: impl std::error::Error) -> Status {
    Status::unavailable(error.to_string())
}

pub(super) fn rejected(error: Rejected) -> Status {
    match error {
        Rejected::Refused(reason) => Status::failed_precondition(reason),
        Rejected::Stopping => Status::unavailable(error.to_string()),
        Rejected::Unknown(_) => Status::not_found(error.to_string()),
        Rejected::Store(e) => storage(e),
    }
}

pub(super) fn artifact(wire: Option<&v1::Artifact>) -> Result<ArtifactRef, Status> {
    let wire = wire.ok_or_else(|| Status::invalid_argument("the artifact is missing"))?;
    ArtifactRef::try_from(wire).map_err(invalid)
}

/// The task that a call is about, also told to its log lines.
pub(super) fn turn(wire: Option<v1::TaskId>) -> Result<(String, Turn), Status> {
    let wire = wire.ok_or_else(|| Status::invalid_argument("the task is missing"))?;
    let work = match wire.kind() {
        v1::TaskKind::Initialize => Work::Initialize,
        v1::TaskKind::Train => Work::Train,
        v1::TaskKind::Evaluate => Work::Evaluate,
        v1::TaskKind::Unspecified => return Err(Status::invalid_argument("the task's kind is missing")),
    };
    let call = tracing::Span::current();
    call.record("job", wire.job.chars().take(JOB_LOGGED_MAX).collect::<String>());
    call.record("round", wire.round);
    Ok((wire.job, Turn { work, round: wire.round, attempt: wire.attempt }))
}

fn task_id(job: String, turn: Turn) -> v1::TaskId {
    let kind = match turn.work {
        Work::Initialize => v1::TaskKind::Initialize,
        Work::Train => v1::TaskKind::Train,
        Work::Evaluate => v1::TaskKind::Evaluate,
    };
    v1::TaskId { job, round: turn.round, attempt: turn.attempt, kind: kind.into() }
}

pub(super) fn directive(directive: Directive) -> v1::Directive {
    let kind = match directive {
        Directive::Task(Task { job, turn, job_text, base_model, state, difference, learning_rate_factor }) => {
            v1::directive::Kind::Task(v1::Task {
                id: Some(task_id(job, turn)),
                job_digest: fedtune_proto::digest::Digest::of(job_text.as_bytes()).to_string(),
                job_text,
                base_model: model_files(base_model),
                state: state.map(Into::into),
                difference: difference.map(|Difference { artifact, before }| v1::Difference {
                    artifact: Some(artifact.into()),
                    before: Some(before.into()),
                }),
                learning_rate_factor,
            })
        }
        Directive::Withdraw { job, turn, reason } => {
            v1::directive::Kind::Withdraw(v1::Withdraw { id: Some(task_id(job, turn)), reason })
        }
        Directive::Notify { job, turn, reason } => {
            v1::directive::Kind::Notice(v1::Notice { id: Some(task_id(job, turn)), reason })
        }
        Directive::WithdrawAll => {
            let reason = "no task of this site is open".into();
            v1::directive::Kind::Withdraw(v1::Withdraw { id: None, reason })
        }
        Directive::Close { reason, r#final } => v1::directive::Kind::Close(v1::Close { reason, r#final }),
    };
    v1::Directive { kind: Some(kind) }
}

pub(super) fn model_files(files: Vec<BaseFile>) -> Vec<v1::ModelFile> {
    files.into_iter().map(|file| v1::ModelFile { name: file.name, artifact: Some(file.artifact.into()) }).collect()
}

pub(super) fn activity(turn: Turn, wire: &v1::ReportProgressRequest) -> Activity {
    let number = |value: f64| if value.is_finite() { value } else { 0.0 };
    Activity {
        turn,
        done: wire.done,
        total: wire.total,
        loss: wire.loss,
        examples_per_second: number(wire.examples_per_second),
    }
}

fn summary(record: &JobRecord, rounds_done: u32) -> v1::JobSummary {
    let status = match record.status {
        JobStatus::Queued => v1::JobStatus::Queued,
        JobStatus::Running => v1::JobStatus::Running,
        JobStatus::Paused => v1::JobStatus::Paused,
        JobStatus::Completed => v1::JobStatus::Completed,
        JobStatus::Failed => v1::JobStatus::Failed,
        JobStatus::Cancelled => v1::JobStatus::Cancelled,
    };
    v1::JobSummary {
        job: record.id.clone(),
        name: record.name.clone(),
        status: status.into(),
        reason: record.reason.clone(),
        rounds_done,
        rounds_total: record.machine.plan.rounds,
        submitted_unix_millis: record.submitted_ms.cast_signed(),
        best_round: record.machine.best.map_or(0, |best| best.round),
    }
}

pub(super) fn snapshot(snapshot: JobSnapshot) -> v1::ShowJobResponse {
    let summary = summary(&snapshot.record, snapshot.rounds.last().map_or(0, |round| round.round));
    let activity = snapshot.activity.into_iter().map(|(site, word, activity)| v1::SiteActivity {
        site,
        activity: word.into(),
        done: activity.done,
        total: activity.total,
        loss: activity.loss,
        examples_per_second: activity.examples_per_second,
    });
    v1::ShowJobResponse {
        summary: Some(summary),
        job_text: snapshot.record.text,
        rounds: snapshot.rounds.into_iter().map(round).collect(),
        phase: snapshot.phase,
        activity: activity.collect(),
    }
}

fn problems(problems: BTreeMap<String, String>) -> Vec<v1::SiteProblem> {
    problems.into_iter().map(|(site, reason)| v1::SiteProblem { site, reason }).collect()
}

fn scores(sums: &Evaluation) -> v1::Scores {
    v1::Scores {
        examples: sums.examples,
        measures: sums.measures().into_iter().map(|(name, value)| v1::Measure { name: name.into(), value }).collect(),
    }
}

fn round(record: RoundRecord) -> v1::RoundSummary {
    let scores = record.evaluation().as_ref().map(scores);
    let site_scores = record
        .evaluations
        .iter()
        .map(|(site, sums)| v1::SiteScores { site: site.clone(), scores: Some(self::scores(sums)) });
    let site_scores = site_scores.collect();
    let shares = record.shares;
    let sites = record.sites.into_iter().map(|(site, share)| v1::SiteRound {
        norm: share.norm.max(0.0),
        relative_error: share.relative_error,
        staleness: share.stale.map_or(0, |stale| stale.rounds),
        share: shares.get(&site).copied().flatten(),
        site,
        examples: share.examples,
        train_loss: share.train_loss,
        train_seconds: share.train_seconds,
        bytes_up: share.bytes_up,
        bytes_down: share.bytes_down,
    });
    v1::RoundSummary {
        round: record.round,
        attempt: record.attempt,
        sites: sites.collect(),
        problems: problems(record.problems),
        flags: problems(record.flags),
        site_scores,
        from_round: record.from,
        state_digest: record.state.digest.to_string(),
        aggregate_seconds: record.aggregate_seconds,
        wall_seconds: record.wall_seconds,
        scores,
    }
}

pub(super) fn site(snapshot: SiteSnapshot) -> v1::SiteSummary {
    let online = snapshot.about.is_some();
    let about = snapshot.about.unwrap_or_default();
    v1::SiteSummary {
        name: snapshot.identity.name,
        role: snapshot.identity.role.to_string(),
        online,
        program: about.program,
        device: about.device,
        memory_bytes: about.memory_bytes,
        label_counts: about
            .label_counts
            .into_iter()
            .map(|(label, examples)| v1::LabelCount { label, examples })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn task_ids_read_back(job in "[a-z0-9-]{1,40}", round in any::<u32>(), attempt in any::<u32>(), work in 0_usize..3) {
            let there = Turn { work: [Work::Initialize, Work::Train, Work::Evaluate][work], round, attempt };
            let (id, back) = turn(Some(task_id(job.clone(), there))).expect("sound");
            prop_assert_eq!((id, back), (job, there));
        }
    }
}
