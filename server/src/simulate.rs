//! A whole federation on this machine, made of the real programs: a throw-away authority, the aggregator and one client
//! process a site on loopback, mutual TLS, a labelled file split among the sites.
//!
//! Read in this order: [`partition`] (who gets which rows), [`federation`](self) (the processes), [`report`] (what is
//! written down).

mod federation;
pub mod partition;
pub mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use fedtune_config::Job;
use fedtune_config::job::TaskKind;
use fedtune_proto::v1::{JobStatus, ShowJobResponse};

use tokio::signal::unix::{SignalKind, signal};

use crate::operator::OperatorError;
use federation::Federation;
use partition::{Partition, Shard, Table};
use report::{Baselines, LocalBaseline, PooledBaseline, Report};

/// A simulation did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// The wishes do not go together.
    #[error("{0}")]
    Usage(String),
    /// A data file that cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        reason: String,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// One of the programs ended, or could not be started.
    #[error("{what}\n{log}")]
    Process {
        /// Which, and how.
        what: String,
        /// The end of its log.
        log: String,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl SimulateError {
    pub(crate) fn file(path: &Path) -> impl Fn(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { path: path.clone(), source }
    }
}

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Simulation {
    /// The job; `model.path` is the base model.
    pub job: Job,
    /// Labelled rows, split among the sites.
    pub train: PathBuf,
    /// Labelled rows for the evaluator.
    pub test: Option<PathBuf>,
    /// Number of sites; `None` for as many as the partition makes.
    pub sites: Option<usize>,
    /// Who gets which rows.
    pub partition: Partition,
    /// Seed of the partition; the job has its own.
    pub seed: u64,
    /// CPU threads of each site.
    pub threads_per_site: Option<usize>,
    /// Whether each site alone, and all data pooled, are trained too.
    pub baselines: bool,
    /// The run folder.
    pub out: PathBuf,
}

/// What a watcher is told.
pub trait Observer {
    /// A new step of the simulation begins.
    fn note(&mut self, text: &str);
    /// The job changed.
    fn job(&mut self, shown: &ShowJobResponse);
    /// The job has ended.
    fn ended(&mut self, shown: &ShowJobResponse);
}

/// Runs a simulation to its end and writes the run folder: report.json, model/ and logs/. Whatever happens, and on Ctrl-C
/// and SIGTERM too, the programs are ended, and keys and shards are removed.
///
/// # Errors
/// See [`SimulateError`]; errors of the operator's calls come as they are.
pub async fn run(simulation: Simulation, observer: &mut dyn Observer) -> anyhow::Result<Report> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        // A signal reaches the programs as well; that they end then is not a failure of theirs.
        biased;
        _ = interrupt.recv() => Err(SimulateError::Interrupted.into()),
        _ = terminate.recv() => Err(SimulateError::Interrupted.into()),
        done = uninterrupted(simulation, observer) => done,
    }
}

async fn uninterrupted(simulation: Simulation, observer: &mut dyn Observer) -> anyhow::Result<Report> {
    let began = Instant::now();
    let Simulation { job, train, test, sites, partition, seed, threads_per_site, baselines, out } = simulation;
    let out = out.as_path();
    std::fs::create_dir_all(out).map_err(SimulateError::file(out))?;
    let work = out.join("federation");
    if work.exists() || out.join("report.json").exists() {
        let reason = format!("{} holds a run already; choose another folder with --out", out.display());
        return Err(SimulateError::Usage(reason).into());
    }
    check_kind(job.task.kind)?;
    let labelled = job.task.kind.has_one_label() || job.task.kind == TaskKind::MultiLabelClassification;
    let table = Table::read(&train, job.task.label_column.as_deref().filter(|_| labelled))?;
    let shards = partition.split(&table, sites, seed)?;
    if job.rounds.quorum > shards.len() {
        let (quorum, sites) = (job.rounds.quorum, shards.len());
        let reason =
            format!("the job's rounds.quorum is {quorum}, but there are {sites} sites; lower it or raise --sites");
        return Err(SimulateError::Usage(reason).into());
    }
    for shard in &shards {
        observer.note(&format!("{}: {}", shard.site, shard.describe(&table)));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads_per_site.unwrap_or((cores / shards.len()).max(1));
    let mut federation = Federation::create(&work, &out.join("logs"), &job, &table, &shards, test.as_deref(), threads)?;
    federation.start().await?;
    let (shown, peak) = drive(&mut federation, &job, observer).await?;
    let summary = shown.summary.clone().unwrap_or_default();
    if summary.status() != JobStatus::Completed {
        let failed = crate::exit::JobFailed { job: summary.job, status: "failed".into(), reason: summary.reason };
        return Err(failed.into());
    }
    federation.export(&summary.job, &out.join("model")).await?;
    let client = federation.client_program().await?;
    federation.stop().await?;
    let baselines = match (baselines, &test) {
        (true, Some(test)) => {
            Some(run_baselines(&federation, &job, &train, test, &shards, &out.join("logs"), observer).await?)
        }
        _ => None,
    };
    drop(federation);
    let report = Report::new(&job, client, seed, &shown, baselines, peak, began.elapsed().as_secs_f64());
    report.write(&out.join("report.json"))?;
    Ok(report)
}

/// Refuses what cannot be dealt out.
///
/// # Errors
/// The rows are images.
pub fn check_kind(kind: TaskKind) -> Result<(), SimulateError> {
    if kind.reads_images() {
        let reason = "simulate deals out the rows of CSV and JSONL files, and images stand in Parquet files and folders; \
                      enrol sites with data of their own (site add) and queue the job with job submit";
        return Err(SimulateError::Usage(reason.into()));
    }
    Ok(())
}

/// Submits the job and follows it to its end. Returns the job and the aggregator's peak resident memory.
async fn drive(
    federation: &mut Federation,
    job: &Job,
    observer: &mut dyn Observer,
) -> anyhow::Result<(ShowJobResponse, Option<u64>)> {
    observer.note("waiting for the sites to connect");
    federation.all_online().await?;
    observer.note("submitting the job");
    let id = federation.operator().await?.submit(job, |_, _| {}).await?;
    let mut stream = federation.operator().await?.watch(&id).await?;
    let mut last = ShowJobResponse::default();
    loop {
        let next = tokio::select! {
            next = stream.message() => next.map_err(OperatorError::from)?,
            failed = federation.failed() => return Err(failed.into()),
        };
        let Some(shown) = next else { break };
        observer.job(&shown);
        last = shown;
    }
    observer.ended(&last);
    Ok((last, federation.aggregator_peak_rss()))
}

/// Each site alone on its shard, and all rows pooled, with the budget of the whole job.
async fn run_baselines(
    federation: &Federation,
    job: &Job,
    train: &Path,
    test: &Path,
    shards: &[Shard],
    logs: &Path,
    observer: &mut dyn Observer,
) -> Result<Baselines, SimulateError> {
    let mut local = Vec::new();
    for shard in shards {
        observer.note(&format!("baseline: {} alone", shard.site));
        let score = federation.finetune(job, &federation.shard_file(shard), test, &shard.site, logs).await?;
        local.push(LocalBaseline { site: shard.site.clone(), score });
    }
    observer.note("baseline: all data pooled");
    let score = federation.finetune(job, train, test, "pooled", logs).await?;
    Ok(Baselines { local, pooled: PooledBaseline { score } })
}
