//! Databases that other versions of the program wrote.

use std::path::Path;

use fedtune_proto::evaluation::{Counts, Evaluation};
use sqlx::AssertSqlSafe;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use super::*;
use crate::round::{After, Effect, Phase, Trainee};

const FIRST: &str = include_str!("first.sql");

fn artifact(name: &str) -> ArtifactRef {
    ArtifactRef { digest: Digest::of(name.as_bytes()), size: 100 }
}

/// Does this to a database, as somebody else's program.
async fn run(path: &Path, sql: &str) {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&pool).await.unwrap();
    pool.close().await;
}

/// A job of the oldest database after a start of today's program, and its machine's world.
struct Resumed {
    job: JobRecord,
    world: World,
    effects: Vec<Effect>,
}

impl Resumed {
    fn new(jobs: &[JobRecord], id: &str) -> Self {
        let job = jobs.iter().find(|job| job.id == id).unwrap().clone();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let world = World {
            now_ms: 1_800_000_000_000,
            trainers: names(&["north", "south"]),
            evaluators: names(&["judge"]),
            evaluator_enrolled: true,
            ..World::default()
        };
        let mut resumed = Self { job, world, effects: Vec::new() };
        resumed.on(Event::Resumed);
        resumed
    }

    fn on(&mut self, event: Event) {
        (self.job.machine, self.effects) = self.job.machine.clone().step(event, &self.world);
    }

    fn update(&mut self, site: &str) {
        let turn = self.job.machine.work_of(site).unwrap();
        let share = crate::round::SiteShare::new(artifact(&format!("new update of {site}")), 10, 1.0);
        self.on(Event::Updated { site: site.into(), turn, share });
    }

    fn aggregate(&mut self) {
        let Phase::Aggregating { round, attempt, .. } = self.job.machine.phase else {
            panic!("{:?}", self.job.machine.phase)
        };
        assert!(self.effects.contains(&Effect::Aggregate), "{:?}", self.effects);
        let state = artifact(&format!("new state {round}"));
        let after = After { state, moments: Vec::new(), shares: [].into(), difference: None };
        self.on(Event::Aggregated { round, attempt, after, seconds: 0.1 });
    }

    fn evaluate(&mut self) {
        let turn = self.job.machine.work_of("judge").unwrap();
        let sums = Evaluation { examples: 10, loss_sum: 3.0, ..Evaluation::from(Counts::Confusion(vec![4, 1, 1, 4])) };
        self.on(Event::Evaluated { site: "judge".into(), turn, sums });
    }

    /// Does the rounds that are left, from a round in training on.
    fn finish(&mut self) {
        while !matches!(self.job.machine.phase, Phase::Ended(_)) {
            for site in ["north", "south"] {
                self.update(site);
            }
            self.aggregate();
            self.evaluate();
        }
    }
}

#[tokio::test]
async fn a_database_of_the_first_schema_is_brought_up_to_date_and_its_jobs_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.sqlite");
    run(&path, FIRST).await;
    let records = Records::open(&path).await.unwrap();
    let roles: Vec<_> = records.sites().await.unwrap().into_iter().map(|site| (site.name, site.role)).collect();
    let expected = [("judge", Role::Evaluator), ("north", Role::Site), ("south", Role::Site)];
    assert_eq!(roles, expected.map(|(name, role)| (name.to_owned(), role)));
    let jobs = records.jobs().await.unwrap();
    let ids: Vec<_> = jobs.iter().map(|job| job.id.as_str()).collect();
    assert_eq!(ids, ["completed", "training", "aggregating", "evaluating", "gathering", "queued"]);
    for job in &jobs {
        // The job's text, too, was written by that program.
        let text = fedtune_config::parse::<Job>("job.toml".as_ref(), &job.text, std::iter::empty()).unwrap();
        assert_eq!((text.name.as_str(), job.base_model.len()), ("reviews", 2));
        assert_eq!(Plan::of(&text), job.machine.plan, "{}", job.id);
    }
    assert_eq!((jobs[0].status, jobs[0].reason.as_str()), (JobStatus::Completed, "all 2 rounds are done"));
    let rounds = records.rounds("completed").await.unwrap();
    assert_eq!(rounds.iter().map(|round| round.round).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((rounds[0].state, rounds[1].base), (artifact("state 1"), Some(artifact("state 1"))));
    assert_eq!(rounds[1].sites["south"].update, artifact("update 2 of south"));
    assert_eq!(rounds[1].evaluation().unwrap().measure("accuracy"), Some(0.7));

    let mut training = Resumed::new(&jobs, "training");
    let Phase::Training { round: 2, sites, .. } = &training.job.machine.phase else {
        panic!("{:?}", training.job.machine.phase)
    };
    assert!(matches!(&sites["north"], Trainee::Done(share) if share.update == artifact("update 2 of north")));
    assert_eq!(sites["south"], Trainee::Working(training.world.now_ms), "it has its time anew");
    training.on(Event::Joined("south".into()));
    assert!(matches!(&training.effects[..], [Effect::Offer(site, _)] if site == "south"), "{:?}", training.effects);
    training.update("south");
    training.aggregate();
    training.evaluate();
    training.finish();

    let mut aggregating = Resumed::new(&jobs, "aggregating");
    aggregating.aggregate();
    aggregating.evaluate();
    aggregating.finish();

    let mut evaluating = Resumed::new(&jobs, "evaluating");
    evaluating.evaluate();
    evaluating.finish();

    let mut gathering = Resumed::new(&jobs, "gathering");
    gathering.finish();

    let mut queued = Resumed::new(&jobs, "queued");
    let turn = queued.job.machine.work_of("judge").unwrap();
    queued.on(Event::Initialized { site: "judge".into(), turn, state: artifact("state 0") });
    queued.finish();

    // What they have become is stored, with what later schemas added.
    for mut resumed in [training, aggregating, evaluating, gathering, queued] {
        resumed.job.status = JobStatus::Completed;
        records.save(&resumed.job, &[]).await.unwrap();
    }
    records.probe(7).await.unwrap();
    records.mark_ended(8).await.unwrap();
    let artifacts = records.job_artifacts().await.unwrap();
    assert!(artifacts.iter().all(|job| job.ended_ms == Some(8)), "{artifacts:?}");
    drop(records);
    let records = Records::open(&path).await.unwrap();
    let ended = |job: &JobRecord| matches!(job.machine.phase, Phase::Ended(_));
    assert!(records.jobs().await.unwrap().iter().all(ended), "and the next start finds it");
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.sqlite");
    drop(Records::open(&path).await.unwrap());
    run(&path, "INSERT INTO _sqlx_migrations VALUES (99, 'later', CURRENT_TIMESTAMP, 1, X'00', 1)").await;
    let before = std::fs::read(&path).unwrap();
    let error = Records::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }), "{error:?}");
    let text = error.to_string();
    for part in ["records.sqlite", "schema 99", "expected at most 3", "newer fedtune-server", "copy of the data folder"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_database_with_another_history_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.sqlite");
    run(&path, FIRST).await;
    run(&path, "UPDATE _sqlx_migrations SET checksum = X'00' WHERE version = 1").await;
    let error = Records::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::OtherSchema { version: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("nothing was changed"), "{error}");
    // The tables of the later migrations were not made.
    let options = SqliteConnectOptions::new().filename(&path);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let probe = sqlx::query("SELECT * FROM probe").fetch_all(&pool).await;
    assert!(probe.unwrap_err().to_string().contains("no such table"));
}
