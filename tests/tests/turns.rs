//! Whose turn it is: jobs that share sites, and sites that no round waits for.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use fedtune_proto::v1::report_result_request::Outcome;
use fedtune_proto::v1::{self, TaskKind};
use fedtune_tests::{Federation, SyntheticSite, delta_file, model_folder, run, state_file, text};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const ELEMENTS: u64 = 1000;

struct Bench {
    federation: Federation,
    runtime: Runtime,
    state: PathBuf,
    bundles: Vec<PathBuf>,
}

impl Bench {
    fn new(sites: usize) -> Self {
        let federation = Federation::start();
        std::fs::create_dir(federation.path("base")).unwrap();
        let state = state_file(&federation.path("base/state"), ELEMENTS).unwrap();
        let bundles = (0..sites).map(|i| federation.enrol(&format!("site-{i}"), "site")).collect();
        Self { federation, runtime: Runtime::new().unwrap(), state, bundles }
    }

    /// Submits a job of so many rounds with these lines.
    fn submit(&self, rounds: u32, quorum: usize, lines: &str) -> String {
        let job = model_folder(&self.federation.path("base"), rounds, quorum).unwrap();
        let document = std::fs::read_to_string(&job).unwrap();
        std::fs::write(&job, format!("{document}{lines}")).unwrap();
        self.federation.operator(&["job", "submit", text(&job)]).ok().stdout.trim().to_owned()
    }

    fn connect(&self) -> (Vec<SyntheticSite>, Vec<JoinSet<()>>) {
        self.runtime.block_on(async {
            let (mut sites, mut beats) = (Vec::new(), Vec::new());
            for bundle in &self.bundles {
                let site = SyntheticSite::connect(self.federation.address(), bundle).await.unwrap();
                beats.push(site.beat());
                sites.push(site);
            }
            (sites, beats)
        })
    }

    /// The next task of a site: round, attempt and state.
    fn task(&self, site: &mut SyntheticSite) -> (v1::Task, (u32, u32), String) {
        let task = self.runtime.block_on(site.task()).unwrap();
        let id = task.id.clone().unwrap();
        let state = task.state.clone().map_or(String::new(), |state| state.digest);
        (task, (id.round, id.attempt), state)
    }

    fn answer(&self, site: &SyntheticSite, task: &v1::Task, seed: u64) {
        let update = delta_file(&self.federation.path(&format!("update-{seed}")), ELEMENTS, seed).unwrap();
        assert!(self.runtime.block_on(site.send_update(task, &update, 10)).unwrap().accepted);
    }

    /// Recomputes every state of a job.
    fn audit(&mut self, job: &str) {
        let config = self.federation.path("federation/server.toml");
        run("fedtune-server", ["audit", "verify", job, "--config", text(&config)]).ok();
    }
}

#[test]
fn jobs_that_share_their_sites_take_turns() {
    let mut bench = Bench::new(2);
    let jobs = [bench.submit(3, 2, ""), bench.submit(3, 2, "")];
    for job in &jobs {
        assert_eq!(bench.federation.show(job)["status"], "running");
    }
    let (state, update) = (bench.state.clone(), delta_file(&bench.federation.path("update"), ELEMENTS, 7).unwrap());
    let (sites, _) = bench.connect();
    let mut serving = JoinSet::new();
    for (i, mut site) in sites.into_iter().enumerate() {
        let (state, update, work) = (state.clone(), update.clone(), bench.federation.path(&format!("work-{i}")));
        std::fs::create_dir(&work).unwrap();
        serving.spawn_on(async move { site.serve(&state, &update, &work).await }, bench.runtime.handle());
    }
    for job in &jobs {
        let shown = bench.federation.ended(job, "completed");
        assert!(shown["rounds"].as_array().unwrap().iter().all(|round| round["sites"].as_array().unwrap().len() == 2));
    }
    let log = bench.federation.log_text("aggregator");
    let offers = log.lines().filter(|line| line.contains("task offered") && line.contains("Train"));
    let mut turns: Vec<usize> =
        offers.map(|line| jobs.iter().position(|job| line.contains(job.as_str())).unwrap()).collect();
    assert_eq!(turns.len(), 12);
    turns.dedup();
    assert!(turns == [0, 1, 0, 1, 0, 1] || turns == [1, 0, 1, 0, 1, 0], "{turns:?}");
    jobs.iter().for_each(|job| bench.audit(job));
}

#[test]
fn an_asynchronous_job_waits_for_no_site_and_a_kill_loses_nothing_of_it() {
    let mut bench = Bench::new(3);
    let job = bench.submit(3, 1, "[aggregation]\nstrategy = \"fedbuff\"\n");
    let (mut sites, beats) = bench.connect();
    let (task, ..) = bench.task(&mut sites[0]);
    assert_eq!(task.id.as_ref().unwrap().kind(), TaskKind::Initialize);
    let (artifact, _) = bench.runtime.block_on(sites[0].upload(&bench.state)).unwrap();
    let recipe_json = r#"{"config_json":"{}","tensors":[]}"#.into();
    let outcome = Outcome::Initialized(v1::Initialized { state: Some(artifact), recipe_json });
    assert!(bench.runtime.block_on(sites[0].report(&task, outcome)).unwrap().accepted);

    let first: Vec<_> = sites.iter_mut().map(|site| bench.task(site)).collect();
    assert!(first.iter().all(|(_, turn, state)| *turn == (1, 1) && *state == first[0].2));
    for (i, (task, ..)) in first.iter().enumerate().take(2) {
        bench.answer(&sites[i], task, i as u64);
        let (_, turn, state) = bench.task(&mut sites[i]);
        assert_eq!((turn, &state), ((2, 0), &first[0].2), "it goes on at once, from the state there is");
    }
    bench.federation.wait_for(&job, "first round", |shown| shown["rounds_done"] == 1);
    drop((sites, beats));
    bench.federation.kill_server();
    bench.federation.start_server();

    let (mut sites, _beats) = bench.connect();
    let again: Vec<_> = sites.iter_mut().map(|site| bench.task(site)).collect();
    let turns: Vec<_> = again.iter().map(|(_, turn, _)| *turn).collect();
    assert_eq!(turns, [(2, 0), (2, 0), (1, 1)]);
    assert!(again.iter().all(|(_, _, state)| *state == first[0].2), "the state that they began with");
    bench.answer(&sites[2], &again[2].0, 2);
    let (of_third, turn, state) = bench.task(&mut sites[2]);
    assert!(turn == (3, 0) && state != first[0].2);
    bench.answer(&sites[0], &again[0].0, 10);
    // Said twice, it counts once.
    bench.answer(&sites[0], &again[0].0, 10);
    bench.federation.wait_for(&job, "second round", |shown| shown["rounds_done"] == 2);
    bench.answer(&sites[2], &of_third, 12);
    bench.answer(&sites[1], &again[1].0, 11);
    let shown = bench.federation.ended(&job, "completed");
    let staleness = |round: usize| -> Vec<(String, u64)> {
        let sites = shown["rounds"][round]["sites"].as_array().unwrap().iter();
        sites.map(|of| (of["name"].as_str().unwrap().into(), of["staleness"].as_u64().unwrap())).collect()
    };
    let site = |i: usize, rounds: u64| (format!("site-{i}"), rounds);
    assert_eq!(staleness(0), [site(0, 0), site(1, 0)]);
    assert_eq!(staleness(1), [site(0, 1), site(2, 1)]);
    assert_eq!(staleness(2), [site(1, 2), site(2, 1)]);
    bench.audit(&job);
}
