#![expect(clippy::unwrap_used, reason = "tests")]

use fedtune_config::server::{Limits, Sessions};

use super::*;

struct Rig {
    folder: tempfile::TempDir,
    health: Health,
}

impl Rig {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(&folder.path().join("records.sqlite")).await.unwrap();
        let artifacts = Artifacts::open(folder.path()).unwrap();
        let handle = coordinator::start(
            records.clone(),
            artifacts.clone(),
            Limits::default(),
            Sessions::default(),
            Metrics::new(),
        );
        let health = Health::start(records, artifacts, handle.await.unwrap(), Metrics::new());
        Self { folder, health }
    }

    /// Waits for a report, at most the time a failure may take to be known.
    async fn wait(&self, wanted: impl FnMut(&Report) -> bool) -> Report {
        let mut reports = self.health.reports();
        let found = tokio::time::timeout(Duration::from_secs(10), reports.wait_for(wanted)).await;
        found.unwrap_or_else(|_| panic!("{:?}", self.health.reports().borrow())).unwrap().clone()
    }
}

fn failed(report: &Report, part: Part) -> bool {
    !report.ready && report.checks.iter().any(|check| check.name == part && !check.ok && !check.reason.is_empty())
}

#[tokio::test]
async fn an_artifact_folder_that_takes_no_file_is_seen_and_its_return_too() {
    let rig = Rig::start().await;
    rig.wait(|report| report.ready).await;
    let staging = rig.folder.path().join("staging");
    assert_eq!(std::fs::read_dir(&staging).unwrap().count(), 0, "a probe leaves nothing");
    std::fs::remove_dir(&staging).unwrap();
    std::fs::write(&staging, "not a folder").unwrap();
    let report = rig.wait(|report| failed(report, Part::Artifacts)).await;
    assert!(report.faults().contains("staging"), "{}", report.faults());
    assert!(!failed(&report, Part::Records));
    std::fs::remove_file(&staging).unwrap();
    std::fs::create_dir(&staging).unwrap();
    rig.wait(|report| report.ready).await;
}

#[tokio::test]
async fn a_database_that_takes_no_transaction_is_seen_and_its_return_too() {
    let rig = Rig::start().await;
    rig.wait(|report| report.ready).await;
    let path = rig.folder.path().join("records.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let other = sqlx::sqlite::SqlitePool::connect_with(options).await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    rig.wait(|report| failed(report, Part::Records)).await;
    held.rollback().await.unwrap();
    rig.wait(|report| report.ready).await;
}

#[tokio::test]
async fn one_that_stops_is_not_ready_whatever_its_storage_does() {
    let rig = Rig::start().await;
    rig.wait(|report| report.ready).await;
    rig.health.stopping();
    assert!(failed(&rig.health.reports().borrow(), Part::Running));
}
