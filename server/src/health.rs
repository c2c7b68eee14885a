//! Whether the aggregator can do its work: storage takes writes, and the coordinator answers. Found by trying it.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::coordinator::{self, Handle};
use crate::metrics::Metrics;
use crate::store::{Artifacts, Records, StoreError};

/// Between two tries of one check.
const PAUSE: Duration = Duration::from_secs(2);
/// A check that takes longer fails, until it is done. With [`PAUSE`], a failure is known within 8 s.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// A file can be written, synced and removed beside the artifacts.
    Artifacts,
    /// The database takes a transaction.
    Records,
    /// The coordinator answers.
    Coordinator,
    /// The aggregator has not been told to stop.
    Running,
}

impl Part {
    /// The word in reports and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Artifacts => "artifacts",
            Self::Records => "records",
            Self::Coordinator => "coordinator",
            Self::Running => "running",
        }
    }
}

/// How one check went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: Part,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What is wrong; empty if nothing is.
    pub reason: String,
}

/// All checks, as they went last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether work can be taken.
    pub ready: bool,
    /// Each check.
    pub checks: Vec<Check>,
}

impl Report {
    fn new() -> Self {
        let not_yet = |name| Check { name, ok: false, reason: "was not checked yet".into() };
        let mut checks: Vec<_> = [Part::Artifacts, Part::Records, Part::Coordinator].map(not_yet).into();
        checks.push(Check { name: Part::Running, ok: true, reason: String::new() });
        Self { ready: false, checks }
    }

    /// What is wrong, in words.
    fn faults(&self) -> String {
        let faults = self.checks.iter().filter(|check| !check.ok);
        faults.map(|check| format!("{}: {}", check.name.as_str(), check.reason)).collect::<Vec<_>>().join("; ")
    }
}

/// The checks that run, and what they found. They end when the last clone goes.
#[derive(Debug, Clone)]
pub struct Health {
    reports: Arc<watch::Sender<Report>>,
    metrics: Metrics,
}

impl Health {
    /// Starts the checks. What they see on the way is counted.
    pub fn start(records: Records, artifacts: Artifacts, coordinator: Handle, metrics: Metrics) -> Self {
        let health = Self { reports: Arc::new(watch::Sender::new(Report::new())), metrics: metrics.clone() };
        let disk = Disk::new(artifacts);
        health.repeat(Part::Artifacts, move || disk.clone().probe());
        let seen = metrics.clone();
        health.repeat(Part::Records, move || {
            let (records, seen) = (records.clone(), seen.clone());
            async move { look(&records, &seen).await.map_err(|e| e.to_string()) }
        });
        health.repeat(Part::Coordinator, move || {
            let (coordinator, seen) = (coordinator.clone(), metrics.clone());
            async move { coordinator.overview().await.map(|found| seen.overview(found)).map_err(|e| e.to_string()) }
        });
        health
    }

    /// Waits until all is well, or a failure had its time to show.
    pub async fn settled(&self) {
        let _ = tokio::time::timeout(PATIENCE, self.reports().wait_for(|report| report.ready)).await;
    }

    /// What was found last; changes with it.
    pub fn reports(&self) -> watch::Receiver<Report> {
        self.reports.subscribe()
    }

    /// The aggregator stops: it takes no more work, whatever else is found.
    pub fn stopping(&self) {
        set(&self.reports, &self.metrics, Part::Running, Err("the aggregator is stopping".into()));
    }

    /// Tries one check again and again.
    fn repeat<F>(&self, part: Part, mut probe: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (reports, metrics) = (Arc::downgrade(&self.reports), self.metrics.clone());
        tokio::spawn(async move {
            while let Some(reports) = reports.upgrade() {
                // One at a time: what hangs is waited for, not piled up.
                let mut probing = std::pin::pin!(probe());
                let found = match tokio::time::timeout(PATIENCE, &mut probing).await {
                    Ok(found) => found,
                    Err(_) => {
                        set(&reports, &metrics, part, Err(format!("no answer within {} s", PATIENCE.as_secs())));
                        probing.await
                    }
                };
                set(&reports, &metrics, part, found);
                drop(reports);
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
}

fn set(reports: &watch::Sender<Report>, metrics: &Metrics, part: Part, found: Result<(), String>) {
    reports.send_if_modified(|report| {
        let before = report.clone();
        if let Some(check) = report.checks.iter_mut().find(|check| check.name == part) {
            (check.ok, check.reason) = (found.is_ok(), found.err().unwrap_or_default());
        }
        report.ready = report.checks.iter().all(|check| check.ok);
        if before.ready && !report.ready {
            warn!(reason = report.faults(), "not ready");
        } else if !before.ready && report.ready {
            info!("ready");
        }
        metrics.health(report);
        before != *report
    });
}

/// Tries a transaction, and counts what is recorded.
async fn look(records: &Records, seen: &Metrics) -> Result<(), StoreError> {
    records.probe(coordinator::now_ms()).await?;
    seen.jobs(&records.job_counts().await?);
    seen.enrolled(records.sites().await?);
    Ok(())
}

/// Writes from a thread of its own: those that the transfers use may all be busy, which is no failure.
#[derive(Debug, Clone)]
struct Disk {
    asked: mpsc::Sender<oneshot::Sender<Result<(), String>>>,
}

impl Disk {
    fn new(artifacts: Artifacts) -> Self {
        let (asked, mut asks) = mpsc::channel::<oneshot::Sender<_>>(1);
        let work = move || {
            while let Some(answer) = asks.blocking_recv() {
                let _ = answer.send(artifacts.probe().map_err(|e| e.to_string()));
            }
        };
        if let Err(e) = std::thread::Builder::new().name("probe".into()).spawn(work) {
            warn!("the thread that checks the artifact folder cannot start: {e}");
        }
        Self { asked }
    }

    async fn probe(self) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let gone = "the thread that checks it has ended";
        self.asked.send(answer).await.map_err(|_| gone)?;
        answered.await.map_err(|_| gone)?
    }
}

#[cfg(test)]
mod tests;
