//! The admission table: every kind of bad update is refused or left out, with its reason, and the round completes with what
//! the honest sites sent and nothing else.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::layout::Layout;
use fedtune_proto::v1::report_result_request::Outcome;
use fedtune_proto::v1::{self, TaskKind};
use fedtune_tests::{Federation, SyntheticSite, model_folder, run, text};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const HONEST: usize = 5;
const VALUES: usize = 1000;

type Tensor<'a> = (&'a str, &'a str, Vec<u64>, Vec<u8>);

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn write(path: &Path, tensors: &[Tensor<'_>]) -> PathBuf {
    let specs = tensors.iter().map(|(name, dtype, shape, _)| ((*name).to_owned(), (*dtype).to_owned(), shape.clone()));
    let mut bytes = Layout::of_tensors(specs).unwrap().header();
    tensors.iter().for_each(|tensor| bytes.extend(&tensor.3));
    std::fs::write(path, bytes).unwrap();
    path.to_path_buf()
}

/// Small values that differ by seed.
fn values(seed: u64) -> Vec<f32> {
    let value = |i: usize| (((i as u64 + 1) * 2_654_435_761 * (seed + 1)) >> 8 & 0xffff) as f32 / 65_536.0 - 0.5;
    (0..VALUES).map(|i| value(i) * 1e-2).collect()
}

struct Table {
    federation: Federation,
    runtime: Runtime,
    bundles: Vec<PathBuf>,
    names: Vec<String>,
    job: String,
}

impl Table {
    /// Honest sites and these others, for a job with these lines.
    fn new(others: &[&str], rounds: u32, lines: &str) -> Self {
        let federation = Federation::start();
        let names: Vec<String> =
            (0..HONEST).map(|i| format!("honest-{i}")).chain(others.iter().map(|name| (*name).to_owned())).collect();
        let folder = federation.path("base");
        let job = model_folder(&folder, rounds, HONEST).unwrap();
        let document = std::fs::read_to_string(&job).unwrap();
        std::fs::write(&job, document.replace("copies = \"count\"", lines)).unwrap();
        let bundles = names.iter().map(|name| federation.enrol(name, "site")).collect();
        let job = federation.operator(&["job", "submit", text(&job)]).ok().stdout.trim().to_owned();
        Self { federation, runtime: Runtime::new().unwrap(), bundles, names, job }
    }

    fn file(&self, name: &str, tensors: &[Tensor<'_>]) -> PathBuf {
        write(&self.federation.path(name), tensors)
    }

    fn delta(&self, name: &str, values: &[f32]) -> PathBuf {
        self.file(name, &[("w", "F32", vec![VALUES as u64], f32s(values))])
    }

    /// Connects every site and makes the first state, of ones; the first round is for all of them.
    fn open(&self) -> (Vec<SyntheticSite>, Vec<JoinSet<()>>) {
        let state = self.delta("state", &[1.0; VALUES]);
        self.runtime.block_on(async {
            let (mut sites, mut beats) = (Vec::new(), Vec::new());
            for bundle in &self.bundles {
                let site = SyntheticSite::connect(self.federation.address(), bundle).await.unwrap();
                beats.push(site.beat());
                sites.push(site);
            }
            let task = sites[0].task().await.unwrap();
            assert_eq!(task.id.as_ref().unwrap().kind(), TaskKind::Initialize);
            let (artifact, _) = sites[0].upload(&state).await.unwrap();
            let recipe_json = r#"{"config_json":"{}","tensors":[]}"#.into();
            let initialized = v1::Initialized { state: Some(artifact), recipe_json };
            assert!(sites[0].report(&task, Outcome::Initialized(initialized)).await.unwrap().accepted);
            (sites, beats)
        })
    }

    fn tasks(&self, sites: &mut [SyntheticSite]) -> Vec<v1::Task> {
        sites.iter_mut().map(|site| self.runtime.block_on(site.task()).unwrap()).collect()
    }

    /// What a site is told of its update.
    fn send(&self, site: &SyntheticSite, task: &v1::Task, update: &Path, examples: u64) -> v1::ReportResultResponse {
        self.runtime.block_on(site.send_update(task, update, examples)).unwrap()
    }

    /// Sends the honest updates of a round.
    fn honest(&self, sites: &[SyntheticSite], tasks: &[v1::Task], round: u64) {
        for i in 0..HONEST {
            let update = self.delta(&format!("good-{i}-{round}"), &values(10 * round + i as u64));
            assert!(self.send(&sites[i], &tasks[i], &update, 10 + i as u64).accepted);
        }
    }

    /// The digest of the state that the honest updates of the first round alone make of ones.
    fn honest_state(&self) -> String {
        let updates: Vec<(Vec<f32>, f64)> = (0..HONEST).map(|i| (values(10 + i as u64), 10.0 + i as f64)).collect();
        let total: f64 = updates.iter().map(|(_, weight)| weight).sum();
        let next: Vec<f32> = (0..VALUES)
            .map(|at| {
                let sum: f64 = updates.iter().fold(0.0, |sum, (update, weight)| sum + weight * f64::from(update[at]));
                (1.0 + sum / total) as f32
            })
            .collect();
        Digest::of(&std::fs::read(self.delta("expected", &next)).unwrap()).to_string()
    }

    /// Checks what monitoring is told.
    fn assert_counted(&self, expected: &[(&str, u64)]) {
        let (_, text) = self.federation.monitoring("/metrics").unwrap();
        for (series, count) in expected {
            assert!(text.contains(&format!("{series} {count}\n")), "no {series} {count} in {text}");
        }
    }

    /// Checks whose answers a round left out, and that each reason has its words.
    fn assert_left_out(&self, round: &serde_json::Value, expected: &[(&str, &str)]) {
        let found = round["left_out"].as_array().unwrap();
        let names: Vec<&str> = found.iter().map(|of| of["site"].as_str().unwrap()).collect();
        let mut sorted: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
        sorted.sort_unstable();
        assert_eq!(names, sorted, "{round}");
        for (name, words) in expected {
            let reason = found.iter().find(|of| of["site"] == *name).unwrap()["reason"].as_str().unwrap();
            assert!(reason.contains(words), "{name}: {reason:?} lacks {words:?}");
        }
        assert_eq!(round["sites"].as_array().unwrap().len(), self.names.len() - expected.len());
    }
}

#[test]
fn every_bad_update_is_named_and_the_round_has_the_honest_ones_alone() {
    let expected = [
        ("nan", "NaN or infinite"),
        ("infinite", "NaN or infinite"),
        ("shape", "[999]"),
        ("missing", "tensor \"w\" is missing"),
        ("extra", "tensor \"x\" is not in the state"),
        ("half", "F16"),
        ("no-examples", "0 examples"),
        ("many-examples", "1000000000000 examples"),
        ("truncated", "not a sound safetensors file"),
        ("zero", "changes nothing"),
        ("copy", "the same as that of honest-1"),
        ("scaled", "times the median"),
    ];
    let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    let table = Table::new(&names, 1, "");
    let (mut sites, _beats) = table.open();
    let tasks = table.tasks(&mut sites);
    let good = values(99);
    let with_last = |value: f32| [&good[1..], &[value]].concat();
    let whole = ("w", "F32", vec![VALUES as u64], f32s(&good));
    // Who copies comes later.
    table.honest(&sites, &tasks, 1);
    for (name, update, examples) in [
        ("nan", table.delta("nan", &with_last(f32::NAN)), 10),
        ("infinite", table.delta("infinite", &with_last(f32::NEG_INFINITY)), 10),
        ("shape", table.file("shape", &[("w", "F32", vec![999], f32s(&good[1..]))]), 10),
        ("missing", table.file("missing", &[("v", "F32", vec![VALUES as u64], f32s(&good))]), 10),
        ("extra", table.file("extra", &[whole.clone(), ("x", "F32", vec![1], f32s(&[1.0]))]), 10),
        ("half", table.file("half", &[("w", "F16", vec![VALUES as u64], vec![0; 2 * VALUES])]), 10),
        ("no-examples", table.delta("no-examples", &values(50)), 0),
        ("many-examples", table.delta("many-examples", &values(51)), 1_000_000_000_000),
        ("zero", table.delta("zero", &[0.0; VALUES]), 10),
        ("copy", table.delta("copy", &values(11)), 10),
        ("scaled", table.delta("scaled", &values(52).iter().map(|value| value * 100.0).collect::<Vec<_>>()), 10),
    ] {
        let at = table.names.iter().position(|of| of == name).unwrap();
        let answer = table.send(&sites[at], &tasks[at], &update, examples);
        // What only a comparison shows is told later.
        assert_eq!(answer.accepted, ["zero", "copy", "scaled"].contains(&name), "{name}: {answer:?}");
    }
    let cut = table.delta("truncated", &good);
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let at = table.names.iter().position(|of| of == "truncated").unwrap();
    assert!(!table.send(&sites[at], &tasks[at], &cut, 10).accepted);
    // Who repeats itself is told the same again, and counts once.
    let again = table.delta("again", &values(10));
    let update = Some(ArtifactRef::of_file(&again).unwrap().into());
    let trained = v1::Trained { update, examples: 10, train_loss: 0.5, train_seconds: 1.0, relative_error: 0.0 };
    let answer = table.runtime.block_on(sites[0].report(&tasks[0], Outcome::Trained(trained))).unwrap();
    assert!(answer.accepted, "{answer:?}");

    let shown = table.federation.ended(&table.job, "completed");
    let round = &shown["rounds"][0];
    table.assert_left_out(round, &expected);
    assert_eq!(round["state_digest"].as_str().unwrap_or_default(), table.honest_state(), "{shown}");
    let text = table.federation.operator(&["job", "show", &table.job]).ok().stdout;
    assert!(text.contains("round 1: scaled: left out: its update has the norm"), "{text}");
    // The site itself is told of what came out later.
    let at = table.names.iter().position(|of| of == "scaled").unwrap();
    let notice = table.runtime.block_on(async {
        loop {
            if let Some(v1::directive::Kind::Notice(notice)) =
                sites[at].directives.message().await.unwrap().unwrap().kind
            {
                return notice;
            }
        }
    });
    assert!(notice.reason.contains("times the median"), "{notice:?}");
    table.assert_counted(&[
        ("fedtune_results_total{work=\"train\",verdict=\"unfit\"}", 9),
        ("fedtune_updates_left_out_total{reason=\"idle\"}", 1),
        ("fedtune_updates_left_out_total{reason=\"copied\"}", 1),
        ("fedtune_updates_left_out_total{reason=\"too-large\"}", 1),
    ]);
}

#[test]
fn updates_of_other_rounds_are_refused_and_a_site_that_goes_on_is_suspended() {
    let table = Table::new(&["replayer"], 4, "strikes = 2\nnorm_max = 1.0");
    let (mut sites, _beats) = table.open();
    let update = table.delta("first", &values(70));
    for round in 1..=4 {
        let asked = if round == 4 { HONEST } else { HONEST + 1 };
        let tasks = table.tasks(&mut sites[..asked]);
        if let Some(task) = tasks.get(HONEST) {
            let mut stale = task.clone();
            stale.id.as_mut().unwrap().round = 7;
            let answer = table.send(&sites[HONEST], &stale, &update, 10);
            assert!(!answer.accepted && answer.reason.contains("round 7"), "{answer:?}");
            let answer = table.send(&sites[HONEST], task, &update, 10);
            assert_eq!(answer.accepted, round == 1, "{answer:?}");
            assert!(round == 1 || answer.reason.contains("that replayer sent in round 1"), "{answer:?}");
        }
        table.honest(&sites, &tasks, round);
    }
    let shown = table.federation.ended(&table.job, "completed");
    let left_out: Vec<usize> = (0..4).map(|i| shown["rounds"][i]["left_out"].as_array().unwrap().len()).collect();
    assert_eq!(left_out, [0, 1, 1, 0], "{shown}");
    assert_eq!(shown["rounds"][3]["sites"].as_array().unwrap().len(), HONEST);
    // Three were of a round that there never was.
    table.assert_counted(&[
        ("fedtune_results_total{work=\"train\",verdict=\"replayed\"}", 2),
        ("fedtune_results_total{work=\"train\",verdict=\"late\"}", 3),
    ]);
}

/// What the aggregator stores is enough to recompute every state, and a changed byte is found.
#[test]
fn an_audit_recomputes_every_state_and_finds_what_was_changed() {
    let table =
        Table::new(&[], 3, "copies = \"count\"\n[aggregation]\nstrategy = \"fedadam\"\nrule = \"geometric-median\"");
    let (mut sites, _beats) = table.open();
    for round in 1..=3 {
        let tasks = table.tasks(&mut sites);
        table.honest(&sites, &tasks, round);
    }
    let shown = table.federation.ended(&table.job, "completed");
    let config = table.federation.path("federation/server.toml");
    let audit = || run("fedtune-server", ["audit", "verify", &table.job[..30], "--config", text(&config)]);
    let sound = audit().ok().stdout;
    assert!(sound.contains("all 3 rounds") && sound.matches("sound").count() == 3, "{sound}");

    let state = shown["rounds"][1]["state_digest"].as_str().unwrap();
    let path = table.federation.path("federation/data/artifacts/blake3").join(&state[..2]).join(state);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let changed = audit();
    changed.failed(11, &["2 of 3 rounds"]);
    assert!(changed.stdout.contains("the state it made should have the digest"), "{}", changed.stdout);
    std::fs::remove_file(path).unwrap();
    let gone = audit();
    gone.failed(11, &["2 of 3 rounds"]);
    assert!(gone.stdout.contains("is not stored any more"), "{}", gone.stdout);
}
