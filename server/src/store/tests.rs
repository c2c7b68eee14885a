#![expect(clippy::unwrap_used, reason = "tests")]

mod migrations;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fedtune_config::Job;
use fedtune_proto::digest::{ArtifactRef, Digest};

use super::artifacts::{Reader, Writer};
use super::records::{BaseFile, JobRecord, JobStatus};
use super::*;
use crate::pki::{Identity, Role};
use crate::round::{Event, Machine, Plan, World};

fn job(id: &str, submitted_ms: u64) -> JobRecord {
    let job = Job::classify("n", "m".as_ref(), vec!["a".into(), "b".into()]);
    let artifact = ArtifactRef { digest: Digest::of(b"x"), size: 1 };
    JobRecord {
        id: id.into(),
        name: job.name.clone(),
        text: job.to_toml(),
        base_model: vec![BaseFile { name: "config.json".into(), artifact }],
        submitted_ms,
        status: JobStatus::Queued,
        reason: String::new(),
        machine: Machine::new(Plan::of(&job)),
        recipe: None,
    }
}

#[tokio::test]
async fn records_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.sqlite");
    let north = Identity::new(Role::Site, "north").unwrap();
    {
        let records = Records::open(&path).await.unwrap();
        assert!(records.add_site(&north, 5).await.unwrap());
        assert!(!records.add_site(&Identity::new(Role::Evaluator, "north").unwrap(), 6).await.unwrap(), "taken");
        records.add_job(&job("second", 20)).await.unwrap();
        records.add_job(&job("first", 10)).await.unwrap();
        assert!(records.add_job(&job("first", 30)).await.is_err(), "an id stands once");
        let mut running = job("first", 10);
        running.status = JobStatus::Running;
        let world = World { now_ms: 1, trainers: ["north".to_owned()].into(), ..World::default() };
        running.machine = running.machine.step(Event::Tick, &world).0;
        running.recipe = Some("{}".into());
        records.save(&running, &[]).await.unwrap();
    }
    let records = Records::open(&path).await.unwrap();
    assert_eq!(records.sites().await.unwrap(), [north]);
    let jobs = records.jobs().await.unwrap();
    let ids: Vec<_> = jobs.iter().map(|job| (job.id.as_str(), job.status)).collect();
    assert_eq!(ids, [("first", JobStatus::Running), ("second", JobStatus::Queued)]);
    assert!(jobs[0].machine.work_of("north").is_some());
    assert_eq!((jobs[0].recipe.as_deref(), jobs[1].recipe.as_deref()), (Some("{}"), None));
    assert!(records.rounds("first").await.unwrap().is_empty());
}

#[tokio::test]
async fn after_commits_that_failed_what_is_called_stored_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.sqlite");
    let records = Records::open(&path).await.unwrap();
    records.add_job(&job("a", 10)).await.unwrap();
    let refusals = Arc::new(AtomicU32::new(0));
    let refuse = async || {
        let refusals = refusals.clone();
        let mut connection = records.pool.acquire().await.unwrap();
        connection.lock_handle().await.unwrap().set_commit_hook(move || {
            refusals.fetch_add(1, Ordering::Relaxed);
            false
        });
    };
    let running = JobRecord { status: JobStatus::Running, ..job("a", 10) };
    for tried in 1..=3 {
        // A disk that is full refuses also a connection that was made anew.
        refuse().await;
        assert!(records.save(&running, &[]).await.is_err());
        assert_eq!(refusals.load(Ordering::Relaxed), tried);
    }
    records.save(&running, &[]).await.unwrap();
    let others = Records::open(&path).await.unwrap();
    assert_eq!(others.jobs().await.unwrap()[0].status, JobStatus::Running);
    assert!(records.save(&job("unknown", 10), &[]).await.is_err());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.sqlite");
    std::fs::write(&path, vec![7; 5000]).unwrap();
    assert!(Records::open(&path).await.is_err());
}

#[tokio::test]
async fn artifacts_appear_only_whole_and_under_their_own_digest() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(folder.path()).unwrap();
    let digest = Digest::of(b"hello world");
    let mut staged = artifacts.stage("upload").await.unwrap();
    staged.append(vec![b"hello "[..].into()]).await.unwrap();
    staged.sync().await.unwrap();
    assert!(matches!(artifacts.staged_size("upload").await, Err(StoreError::Busy)), "it is being written");
    drop(staged);
    assert_eq!(artifacts.staged_size("upload").await.unwrap(), 6);
    assert_eq!(artifacts.size(digest).await.unwrap(), None);
    // Goes on after a restart.
    let artifacts = Artifacts::open(folder.path()).unwrap();
    let mut staged = artifacts.stage("upload").await.unwrap();
    assert_eq!(staged.size(), 6);
    staged.append(vec![b"world"[..].into()]).await.unwrap();
    assert_eq!(artifacts.publish(staged, digest).await.unwrap(), ArtifactRef { digest, size: 11 });
    assert_eq!(artifacts.read(digest, 6..11).await.unwrap(), &b"world"[..]);
    let mut staged = artifacts.stage("other").await.unwrap();
    staged.append(vec![b"hello_world"[..].into()]).await.unwrap();
    assert!(matches!(artifacts.publish(staged, digest).await, Err(StoreError::Damaged { .. })));
    assert_eq!(artifacts.stage("other").await.unwrap().size(), 0, "damaged bytes are gone");
    let mut writer = Writer::create(&artifacts, "made").await.unwrap();
    writer.append(b"hello "[..].into()).await.unwrap();
    writer.append(b"world"[..].into()).await.unwrap();
    assert_eq!(writer.finish(&artifacts).await.unwrap().digest, digest);
    drop(Writer::create(&artifacts, "unfinished").await.unwrap());
    assert!(!folder.path().join("staging/unfinished").exists(), "nobody goes on with it");
}

#[tokio::test]
async fn what_is_open_is_read_to_its_end_and_no_further_even_once_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(folder.path()).unwrap();
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut writer = Writer::create(&artifacts, "large").await.unwrap();
    writer.append(bytes.clone().into()).await.unwrap();
    let artifact = writer.finish(&artifacts).await.unwrap();
    let opened = artifacts.open_artifact(artifact.digest).await.unwrap();
    assert!(artifacts.remove_unused(artifact.digest, u64::MAX).await.unwrap());
    assert_eq!(opened.size(), 1_000_000);
    assert_eq!(opened.read(300_000..900_000).await.unwrap(), bytes[300_000..900_000]);
    assert!(opened.read(1_000_000..1_000_000).await.unwrap().is_empty());
    for beyond in [999_999..1_000_001, 2_000_000..3_000_000, u64::MAX - 1..u64::MAX] {
        assert!(matches!(opened.read(beyond).await, Err(StoreError::File { .. })));
    }
    let mut whole = Vec::new();
    std::io::Read::read_to_end(&mut Reader::from(opened), &mut whole).unwrap();
    assert_eq!(whole, bytes);
    assert!(matches!(artifacts.open_artifact(artifact.digest).await, Err(StoreError::File { .. })), "it is removed");
}
