//! `job`: what the sites are asked to do.

use super::output::{out, outln};
use std::path::PathBuf;

use clap::Subcommand;
use fedtune_config::Job;
use fedtune_proto::v1::{JobStatus, JobSummary, ShowJobResponse};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Output, Remote, print_json, table, watch};
use crate::exit::JobFailed;

/// Check, submit, list, show, watch, pause, resume and cancel jobs.
#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// Check a job file without an aggregator, and print it with every default written out
    Check {
        /// job.toml
        file: PathBuf,
    },
    /// Upload the base model where the aggregator lacks it, and queue the job
    #[command(after_help = "Example:\n  fedtune-server job submit job.toml --watch")]
    Submit {
        /// job.toml
        file: PathBuf,
        /// Stay and watch it to its end
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// List all jobs
    List {
        #[command(flatten)]
        remote: Remote,
        /// How to print
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Show a job with its rounds
    Show {
        /// The job's id, or the beginning of it
        job: String,
        #[command(flatten)]
        remote: Remote,
        /// How to print
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Watch a job live until it ends; exit code 10 if it fails
    Watch {
        /// The job's id, or the beginning of it
        job: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Pause a job: the round that is open is finished and no other is opened; the next job in the queue may run
    Pause {
        /// The job's id, or the beginning of it
        job: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Let a paused job go on
    Resume {
        /// The job's id, or the beginning of it
        job: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Cancel a job; sites at work are told to stop
    Cancel {
        /// The job's id, or the beginning of it
        job: String,
        #[command(flatten)]
        remote: Remote,
    },
}

impl JobCommand {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check { file } => {
                let job: Job = fedtune_config::load(&file)?;
                out!("{}", job.to_toml());
                eprintln!("{} is a sound job", file.display());
                Ok(())
            }
            Self::Submit { file, watch: stay, remote } => {
                let job: Job = fedtune_config::load(&file)?;
                let mut operator = remote.connect().await?;
                let id = operator
                    .submit(&job, |name, size| eprintln!("uploading {name} ({:.1} MB)", size as f64 / 1e6))
                    .await?;
                outln!("{id}");
                if stay { ended(watch::to_the_end(&mut operator, &id).await?) } else { Ok(()) }
            }
            Self::List { remote, output } => {
                let jobs = remote.connect().await?.jobs().await?;
                if output == Output::Json {
                    return print_json(&jobs.iter().map(summary_json).collect::<Vec<_>>());
                }
                let rows = jobs.into_iter().map(|job| {
                    let status = status(&job).to_owned();
                    [job.job, job.name, status, submitted(job.submitted_unix_millis), job.reason]
                });
                table::print(["JOB", "NAME", "STATUS", "SUBMITTED", "REASON"], rows);
                Ok(())
            }
            Self::Show { job, remote, output } => {
                let shown = remote.connect().await?.show(&job).await?;
                if output == Output::Json {
                    return print_json(&job_json(&shown));
                }
                out!("{}", watch::describe(&shown));
                Ok(())
            }
            Self::Watch { job, remote } => {
                let mut operator = remote.connect().await?;
                ended(watch::to_the_end(&mut operator, &job).await?)
            }
            Self::Pause { job, remote } => {
                remote.connect().await?.pause(&job).await?;
                outln!("pausing; `fedtune-server job resume {job}` lets it go on");
                Ok(())
            }
            Self::Resume { job, remote } => {
                remote.connect().await?.resume(&job).await?;
                outln!("resumed");
                Ok(())
            }
            Self::Cancel { job, remote } => {
                remote.connect().await?.cancel(&job).await?;
                outln!("cancelled");
                Ok(())
            }
        }
    }
}

fn ended(shown: ShowJobResponse) -> anyhow::Result<()> {
    let summary = shown.summary.unwrap_or_default();
    if summary.status() == JobStatus::Completed {
        return Ok(());
    }
    Err(JobFailed { status: status(&summary).into(), job: summary.job, reason: summary.reason }.into())
}

/// The word for a job's status.
pub(super) fn status(job: &JobSummary) -> &'static str {
    match job.status() {
        JobStatus::Unspecified => "unknown",
        JobStatus::Queued => "queued",
        JobStatus::Running => "running",
        JobStatus::Paused => "paused",
        JobStatus::Completed => "completed",
        JobStatus::Failed => "failed",
        JobStatus::Cancelled => "cancelled",
    }
}

fn submitted(unix_millis: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix_millis / 1000);
    time.ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

fn summary_json(job: &JobSummary) -> Value {
    json!({
        "job": job.job, "name": job.name, "status": status(job), "reason": job.reason,
        "rounds_done": job.rounds_done, "rounds_total": job.rounds_total,
        "submitted": submitted(job.submitted_unix_millis), "best_round": job.best_round,
    })
}

fn job_json(shown: &ShowJobResponse) -> Value {
    let mut value = shown.summary.as_ref().map(summary_json).unwrap_or_default();
    value["phase"] = json!(shown.phase);
    value["rounds"] = json!(shown.rounds.iter().map(crate::simulate::report::round_json).collect::<Vec<_>>());
    value["text"] = json!(shown.job_text);
    value
}
