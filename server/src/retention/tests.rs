#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use fedtune_config::Job;
use fedtune_proto::digest::ArtifactRef;
use proptest::prelude::*;

use super::*;
use crate::round::{Best, Machine, Phase, Plan, RoundRecord, SiteShare, Trainee};
use crate::store::records::{BaseFile, JobRecord, JobStatus};

const DAY: u64 = 24 * 60 * 60 * 1000;

struct Rig {
    folder: tempfile::TempDir,
    retention: Retention,
}

impl Rig {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(&folder.path().join("records.sqlite")).await.unwrap();
        let artifacts = Artifacts::open(&folder.path().join("artifacts")).unwrap();
        let keep = Some(Duration::from_secs(30 * DAY / 1000));
        Self { folder, retention: Retention { records, artifacts, keep } }
    }

    /// Stores an artifact of these bytes.
    async fn store(&self, bytes: &str) -> ArtifactRef {
        let mut staged = self.retention.artifacts.stage(bytes).await.unwrap();
        staged.append(vec![bytes.to_owned().into()]).await.unwrap();
        self.retention.artifacts.publish(staged, Digest::of(bytes.as_bytes())).await.unwrap()
    }

    async fn has(&self, bytes: &str) -> bool {
        self.retention.artifacts.size(Digest::of(bytes.as_bytes())).await.unwrap().is_some()
    }

    /// A job of three committed rounds whose best is the second; its artifacts are named after it.
    async fn add_job(&self, id: &str, status: JobStatus) {
        let job = Job::classify(id, "m".as_ref(), vec!["a".into(), "b".into()]);
        let base = self.store("base model").await;
        let mut machine = Machine::new(Plan::of(&job));
        let update = self.store(&format!("{id} update")).await;
        let share = SiteShare::new(update, 1, 1.0);
        let sites = BTreeMap::from([("north".to_owned(), share)]);
        let mut rounds = Vec::new();
        let mut state = self.store(&format!("{id} state 0")).await;
        for round in 1..=3 {
            let next = self.store(&format!("{id} state {round}")).await;
            rounds.push(RoundRecord {
                round,
                attempt: 1,
                opened_ms: 0,
                base: Some(state),
                from: None,
                undone: 0,
                state: next,
                difference: Some(self.store(&format!("{id} difference {round}")).await),
                moments: Vec::new(),
                shares: BTreeMap::new(),
                flags: BTreeMap::new(),
                sites: sites.clone(),
                problems: BTreeMap::new(),
                evaluations: BTreeMap::new(),
                aggregate_seconds: 0.0,
                wall_seconds: 0.0,
            });
            state = next;
        }
        (machine.state, machine.best) = (Some(state), Some(Best { round: 2, score: Some(0.5) }));
        let waiting = sites["north"].clone();
        let waiting = SiteShare { update: self.store(&format!("{id} open update")).await, ..waiting };
        let sites = BTreeMap::from([("north".to_owned(), Trainee::Done(waiting))]);
        machine.phase = Phase::Training { round: 4, attempt: 1, opened_ms: 0, sites };
        let record = JobRecord {
            id: id.into(),
            name: id.into(),
            text: job.to_toml(),
            base_model: vec![BaseFile { name: "config.json".into(), artifact: base }],
            submitted_ms: 0,
            status,
            reason: String::new(),
            machine,
            recipe: None,
        };
        self.retention.records.add_job(&record).await.unwrap();
        self.retention.records.save(&record, &rounds).await.unwrap();
    }
}

#[tokio::test]
async fn of_a_job_that_ended_long_ago_what_is_exported_stays() {
    let rig = Rig::new().await;
    rig.add_job("ended", JobStatus::Completed).await;
    rig.add_job("running", JobStatus::Running).await;
    rig.add_job("queued", JobStatus::Queued).await;
    rig.store("nobody's").await;
    let now = now_ms();
    assert_eq!(rig.retention.pass(now).await.unwrap(), Deleted::default(), "all is young");
    // Seen to have ended just now, so that nothing goes before the time has passed.
    assert_eq!(rig.retention.pass(now + 29 * DAY).await.unwrap(), Deleted::default());
    let deleted = rig.retention.pass(now + 31 * DAY).await.unwrap();
    let differences = (1..=3).map(|round| format!("ended difference {round}"));
    let others = ["ended state 0", "ended state 1", "ended update", "ended open update", "nobody's"];
    let gone: Vec<String> = differences.chain(others.map(str::to_owned)).collect();
    assert_eq!(deleted, Deleted { files: 8, bytes: gone.iter().map(|name| name.len() as u64).sum() });
    for name in gone {
        assert!(!rig.has(&name).await, "{name}");
    }
    for name in ["base model", "ended state 2", "ended state 3"] {
        assert!(rig.has(name).await, "{name}");
    }
    for job in ["running", "queued"] {
        for name in
            ["state 0", "state 1", "state 2", "state 3", "difference 1", "difference 3", "update", "open update"]
        {
            assert!(rig.has(&format!("{job} {name}")).await, "{job} {name}");
        }
    }
    assert_eq!(rig.retention.pass(now + 31 * DAY).await.unwrap(), Deleted::default(), "again is nothing");
}

#[tokio::test]
async fn what_somebody_was_just_told_is_here_stays() {
    let rig = Rig::new().await;
    let artifact = rig.store("state").await;
    // As if it had been stored long ago; a site asks, and is told that it need not send it.
    let name = artifact.digest.to_string();
    let path = rig.folder.path().join("artifacts/blake3").join(&name[..2]).join(&name);
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(90 * DAY / 1000);
    std::fs::File::open(&path).unwrap().set_modified(long_ago).unwrap();
    let stored = rig.retention.artifacts.list().await.unwrap();
    assert!(stored[0].used_ms < now_ms() - 80 * DAY);
    assert_eq!(rig.retention.artifacts.refresh(artifact.digest).await.unwrap(), Some(artifact.size));
    assert!(!rig.retention.artifacts.remove_unused(artifact.digest, now_ms() - 30 * DAY).await.unwrap());
    assert_eq!(rig.retention.pass(now_ms()).await.unwrap(), Deleted::default());
    std::fs::File::open(&path).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(rig.retention.pass(now_ms()).await.unwrap(), Deleted { files: 1, bytes: 5 });
    assert_eq!(rig.retention.artifacts.refresh(artifact.digest).await.unwrap(), None);
}

/// Stages a file, as an upload that was cut off leaves it.
async fn cut_off(artifacts: &Artifacts, name: &str) {
    let mut staged = artifacts.stage(name).await.unwrap();
    staged.append(vec![b"some"[..].into()]).await.unwrap();
    staged.sync().await.unwrap();
}

#[tokio::test]
async fn uploads_that_nobody_finished_go_and_one_in_progress_does_not() {
    let rig = Rig::new().await;
    let artifacts = &rig.retention.artifacts;
    let mut open = artifacts.stage("open.part").await.unwrap();
    open.append(vec![b"half"[..].into()]).await.unwrap();
    open.sync().await.unwrap();
    cut_off(artifacts, "left.part").await;
    cut_off(artifacts, "job-1-1.state").await;
    assert_eq!(rig.retention.pass(now_ms()).await.unwrap(), Deleted::default());
    assert_eq!(rig.retention.pass(now_ms() + DAY - 60_000).await.unwrap(), Deleted::default(), "it may come back");
    assert_eq!(rig.retention.pass(now_ms() + DAY + 1000).await.unwrap(), Deleted { files: 2, bytes: 8 });
    drop(open);
    assert_eq!(artifacts.staged_size("open.part").await.unwrap(), 4);
    assert_eq!(artifacts.staged_size("left.part").await.unwrap(), 0);
}

#[tokio::test]
async fn an_upload_waits_for_its_site_as_long_as_its_job_goes_on() {
    let mut rig = Rig::new().await;
    // So that only uploads go.
    rig.retention.keep = None;
    rig.add_job("ended", JobStatus::Completed).await;
    rig.add_job("paused", JobStatus::Paused).await;
    let artifacts = rig.retention.artifacts.clone();
    cut_off(&artifacts, "north.part").await;
    assert_eq!(rig.retention.pass(now_ms() + 90 * DAY).await.unwrap(), Deleted::default());
    let mut job = rig.retention.records.jobs().await.unwrap().pop().unwrap();
    assert_eq!((job.id.as_str(), job.status), ("paused", JobStatus::Paused));
    job.status = JobStatus::Cancelled;
    rig.retention.records.save(&job, &[]).await.unwrap();
    // A job that comes later has no part in it.
    job.id = "later".into();
    (job.status, job.submitted_ms) = (JobStatus::Queued, now_ms() + 10_000);
    rig.retention.records.add_job(&job).await.unwrap();
    assert_eq!(rig.retention.pass(now_ms() + DAY - 60_000).await.unwrap(), Deleted::default());
    assert_eq!(rig.retention.pass(now_ms() + DAY + 1000).await.unwrap(), Deleted { files: 1, bytes: 4 });
    assert!(rig.has("ended update").await, "artifacts stay");
    // And where artifacts go after a time, so does what was staged for a job that goes on.
    rig.retention.keep = Some(Duration::from_secs(30 * DAY / 1000));
    (job.id, job.submitted_ms) = ("older".into(), 0);
    rig.retention.records.add_job(&job).await.unwrap();
    cut_off(&artifacts, "north.part").await;
    for (days, left) in [(29, 4), (31, 0)] {
        rig.retention.pass(now_ms() + days * DAY).await.unwrap();
        assert_eq!(artifacts.staged_size("north.part").await.unwrap(), left, "after {days} days");
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_stops_everything() {
    let rig = Rig::new().await;
    rig.add_job("ended", JobStatus::Completed).await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(rig.folder.path().join("records.sqlite"));
    let other = sqlx::sqlite::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("UPDATE rounds SET record = '{\"of\":\"a newer version\"}' WHERE round = 2")
        .execute(&other)
        .await
        .unwrap();
    other.close().await;
    rig.retention.pass(now_ms()).await.unwrap_err();
    rig.retention.pass(now_ms() + 90 * DAY).await.unwrap_err();
    assert!(rig.has("ended update").await);
}

fn digest(n: u8) -> Digest {
    Digest::of(&[n])
}

fn jobs() -> impl Strategy<Value = Vec<JobArtifacts>> {
    let names = || prop::collection::btree_set((0_u8..30).prop_map(digest), 0..8);
    let job = (prop::option::of(0_u64..200), names(), names()).prop_map(|(ended_ms, exported, others)| {
        let named = exported.union(&others).copied().collect();
        JobArtifacts { ended_ms, named, exported }
    });
    prop::collection::vec(job, 0..6)
}

proptest! {
    #[test]
    fn nothing_goes_that_any_job_needs_or_that_is_young(
        jobs in jobs(),
        used in prop::collection::vec(0_u64..200, 30),
        now_ms in 0_u64..300,
        keep_ms in 1_u64..100,
    ) {
        let stored: Vec<Stored> =
            (0_u8..).zip(&used).map(|(n, used)| Stored { digest: digest(n), size: 1, used_ms: *used }).collect();
        let gone = dispensable(&stored, &jobs, now_ms, keep_ms);
        for file in &stored {
            let old = now_ms >= file.used_ms + keep_ms;
            let needed = jobs.iter().any(|job| match job.ended_ms {
                Some(ended) if now_ms >= ended + keep_ms => job.exported.contains(&file.digest),
                _ => job.named.contains(&file.digest),
            });
            prop_assert_eq!(gone.contains(file), old && !needed, "{:?}", file);
        }
        // Time takes nothing back: what may go now may go later, as long as nobody asks for it.
        let later = dispensable(&stored, &jobs, now_ms + 50, keep_ms);
        prop_assert!(gone.iter().all(|file| later.contains(file)));
    }
}
