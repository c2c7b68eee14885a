//! Rounds across the real programs: training, kills, hostile and repeated answers.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use fedtune_proto::CHUNK_BYTES;
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::layout::Layout;
use fedtune_proto::transfer::{self, TransferError};
use fedtune_proto::v1::report_result_request::Outcome;
use fedtune_proto::v1::{self, TaskKind};
use fedtune_tests::{Federation, SyntheticSite, delta_file, last_answer, model_folder, run, state_file, text};
use tonic::Code;

/// Jobs run one after the other.
const ONE_JOB: (&str, &str) = ("LIMITS__RUNNING_JOBS", "1");

/// Splits the demo's rows by their site into files, and makes the three sites and the evaluator.
fn demo_sites(federation: &Federation) -> Vec<String> {
    let rows = std::fs::read_to_string(federation.path("demo/data/train.csv")).unwrap();
    let (header, rows) = rows.split_once('\n').unwrap();
    let mut names: Vec<String> = rows.lines().map(|row| row.rsplit_once(',').unwrap().1.to_owned()).collect();
    names.sort();
    names.dedup();
    for name in &names {
        let of_site = rows.lines().filter(|row| row.ends_with(&format!(",{name}")));
        let text: Vec<&str> = std::iter::once(header).chain(of_site).collect();
        let path = federation.path(&format!("{name}.csv"));
        std::fs::write(&path, text.join("\n")).unwrap();
        federation.write_site(name, "site", &format!("train = {path:?}\nvalidation_fraction = 0.2"));
    }
    let test = federation.path("demo/data/test.csv");
    federation.write_site("judge", "evaluator", &format!("test = {test:?}"));
    names
}

/// The whole loop: real sites train, the state improves, the best model is exported and used by the client.
#[test]
fn real_sites_train_a_model_that_the_client_then_uses() {
    let mut federation = Federation::start();
    let names = demo_sites(&federation);
    assert_eq!(names.len(), 3);
    for name in names.iter().map(String::as_str).chain(["judge"]) {
        federation.start_client(name);
    }
    let job = federation.submit(&[("count = 6", "count = 3"), ("epochs = 2", "epochs = 2\nschedule = \"constant\"")]);
    let shown = federation.ended(&job, "completed");
    let rounds = shown["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 3);
    for round in rounds {
        assert_eq!(round["sites"].as_array().unwrap().len(), 3);
        assert_eq!(round["evaluation"]["examples"], 300);
        assert!(round["sites"][0]["bytes_up"].as_u64().unwrap() > 1_000_000);
    }
    let loss = |round: usize| rounds[round]["evaluation"]["loss"].as_f64().unwrap();
    assert!(loss(2) < loss(0), "{shown}");

    let model = federation.path("model");
    federation.operator(&["model", "export", &format!("{job}@last"), "--to", text(&model)]).ok();
    let test = federation.path("demo/data/test.csv");
    let scored =
        run("fedtune-client", ["evaluate", "--model", text(&model), "--data", text(&test), "--output", "json"]).ok();
    let scored: serde_json::Value = serde_json::from_str(scored.stdout.lines().last().unwrap()).unwrap();
    let accuracy = |value: &serde_json::Value| value["evaluation"]["accuracy"].as_f64().unwrap();
    assert!((accuracy(&scored) - accuracy(&rounds[2])).abs() < 1e-9, "{scored} {shown}");
    let model = federation.path("first");
    federation.operator(&["model", "export", &format!("{}@1", &job[..30]), "--to", text(&model)]).ok();
    federation
        .operator(&["model", "export", &format!("{job}@7"), "--to", text(&federation.path("z"))])
        .failed(8, &["round 7"]);
}

/// Sites that score on their own validation split, `head` only, and a cancelled job before it in the queue.
#[test]
fn sites_evaluate_themselves_and_jobs_queue() {
    let mut federation = Federation::start_with(&[ONE_JOB]);
    let names = demo_sites(&federation);
    let sites = [
        ("[evaluation]", "[evaluation]"),
        ("[rounds]\ncount = 6", "[evaluation]\nby = \"sites\"\n[rounds]\ncount = 1"),
    ];
    let first = federation.submit(&[sites[1]]);
    // Every setting of the training, L2-SP among them, for which a site goes back to the base model it fetched.
    let training = "steps = 5\ntrainable = \"head\"\noptimizer = \"sgd\"\nmomentum = 0.9\naccumulate = 2\n\
                    length_grouped = true\nproximal = 0.1\nl2_sp = 0.01\nlabel_smoothing = 0.1\nfocal_gamma = 1.0\n\
                    class_weights = \"balanced\"\nlayer_decay = 0.9";
    let second = federation.submit(&[sites[1], ("epochs = 2", training)]);
    let queued = federation.show(&second);
    assert_eq!(queued["status"], "queued");
    federation.operator(&["job", "cancel", &first]).ok();
    assert_eq!(federation.show(&first)["status"], "cancelled");
    federation.operator(&["job", "cancel", &first]).failed(8, &["cancelled already"]);
    names.iter().for_each(|name| federation.start_client(name));
    let shown = federation.ended(&second, "completed");
    let examples = shown["rounds"][0]["evaluation"]["examples"].as_u64().unwrap();
    assert!((100..300).contains(&examples), "about a fifth of 900 rows: {shown}");
    // The head is a small part of the model.
    assert!(shown["rounds"][0]["sites"][0]["bytes_up"].as_u64().unwrap() < 200_000);
    federation.operator(&["job", "show", "no-such-job"]).failed(8, &["no job"]);
}

/// Heads that are not averaged stay at their sites, are what sites score with, and make a site's own model in the end.
#[test]
fn heads_that_are_not_averaged_stay_at_their_sites() {
    let mut federation = Federation::start();
    let names = demo_sites(&federation);
    names.iter().for_each(|name| federation.start_client(name));
    let job = federation.submit(&[(
        "[rounds]\ncount = 6",
        "[evaluation]\nby = \"sites\"\n[aggregation]\nexclude = [\"classifier.*\"]\n[rounds]\ncount = 2",
    )]);
    let shown = federation.ended(&job, "completed");
    let export = |round: u32| {
        let model = federation.path(&format!("model-{round}"));
        federation.operator(&["model", "export", &format!("{job}@{round}"), "--to", text(&model)]).ok();
        let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
        let layout = Layout::read(&model.join("model.safetensors")).unwrap();
        let of = |name: &str| {
            let tensor = layout.tensors.iter().find(|tensor| tensor.name == name).unwrap();
            bytes[tensor.start as usize..tensor.end as usize].to_vec()
        };
        (model.clone(), of("classifier.weight"), of("bert.pooler.dense.weight"))
    };
    let ((_, first_head, first_body), (model, head, body)) = (export(1), export(2));
    assert_eq!(head, first_head);
    assert_ne!(body, first_body);
    let train = federation.path(&format!("{}.csv", names[0]));
    let accuracy = |model: &Path| {
        let words = ["evaluate", "--model", text(model), "--data", text(&train), "--output", "json"];
        let scored = run("fedtune-client", words).ok();
        let scored: serde_json::Value = serde_json::from_str(scored.stdout.lines().last().unwrap()).unwrap();
        scored["evaluation"]["accuracy"].as_f64().unwrap()
    };
    let own: Vec<PathBuf> = std::fs::read_dir(federation.path(&format!("{}-work/own", names[0])))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(own.len(), 1);
    assert!(federation.log_text(&names[0]).contains(text(&own[0])));
    let personal = federation.path("personal");
    let words = ["personalize", "--model", text(&model), "--own", text(&own[0]), "--out", text(&personal)];
    run("fedtune-client", words).ok();
    assert!(accuracy(&personal) > accuracy(&model) + 0.05, "{shown}");
}

/// What a site's own settings leave of its rows is what it reports and is weighed by.
#[test]
fn a_site_trains_on_the_rows_that_its_settings_leave() {
    let mut federation = Federation::start();
    let train = federation.path("train.csv");
    let mut rows = String::from("text,label,site,patient\n");
    // Ten patients of four rows each, of which two are the same.
    for i in 0..40 {
        let label = ["cardiology", "neurology"][i % 2];
        rows.push_str(&format!("{} {},{label},here,{}\n", ["Pain", "pain "][i / 2 % 2], i / 4 * 2 + i % 2, i / 4));
    }
    std::fs::write(&train, rows).unwrap();
    for name in ["one", "two"] {
        let settings =
            "group_column = \"patient\"\nvalidation_fraction = 0.2\nduplicates = \"remove\"\noversample = 2.0";
        federation.write_site(name, "site", &format!("train = {train:?}\n{settings}"));
        federation.start_client(name);
    }
    let job = federation.submit(&[
        ("[rounds]\ncount = 6\nquorum = 3", "[evaluation]\nby = \"sites\"\n[rounds]\ncount = 1\nquorum = 2"),
        ("epochs = 2", "epochs = 1\ntoken_dropout = 0.1"),
    ]);
    let shown = federation.ended(&job, "completed");
    let round = &shown["rounds"][0];
    // Twenty rows are left, those of eight patients to train on, at each of the two sites.
    assert_eq!((&round["sites"][0]["examples"], &round["evaluation"]["examples"]), (&16.into(), &8.into()), "{shown}");
}

/// What happens in the middle of a job.
enum Middle {
    Nothing,
    Kills,
    SecondClient,
}

/// A kill of the aggregator and of a site in the middle changes nothing of the result, nor does a second client of a site
/// that is at work: it takes over, the first one ends and says why.
#[test]
fn kills_and_second_clients_in_the_middle_change_no_bit_of_the_result() {
    let digest = |middle: Middle| {
        let mut federation = Federation::start();
        let names = demo_sites(&federation);
        for name in names.iter().map(String::as_str).chain(["judge"]) {
            federation.start_client(name);
        }
        let job = federation.submit(&[("count = 6", "count = 2"), ("epochs = 2", "steps = 12")]);
        if !matches!(middle, Middle::Nothing) {
            federation.wait_for(&job, "training", |shown| shown["phase"] == "round 1: training");
        }
        if let Middle::SecondClient = middle {
            federation.start_client(&names[1]);
            assert_eq!(federation.client_ended(&names[1]), 8);
            assert!(federation.log_text(&names[1]).contains("a newer session of this site took over"));
        }
        if let Middle::Kills = middle {
            federation.kill_server();
            federation.start_server();
            federation.kill_client(&names[1]);
            federation.start_client(&names[1]);
            federation.wait_for(&job, "second round", |shown| shown["rounds_done"] == 1);
            federation.kill_server();
            federation.kill_client(&names[0]);
            federation.start_client(&names[0]);
            federation.start_server();
        }
        federation.ended(&job, "completed");
        let model = federation.path("model");
        federation.operator(&["model", "export", &format!("{job}@last"), "--to", text(&model)]).ok();
        ArtifactRef::of_file(&model.join("model.safetensors")).unwrap().digest
    };
    let undisturbed = digest(Middle::Nothing);
    assert_eq!(digest(Middle::Kills), undisturbed);
    assert_eq!(digest(Middle::SecondClient), undisturbed);
}

/// A client whose folder another one works in waits for its end, and says so.
#[test]
fn a_folder_that_another_client_works_in_is_waited_for() {
    let mut federation = Federation::start();
    let train = federation.path("demo/data/train.csv");
    federation.write_site("north", "site", &format!("train = {train:?}\nper_label = 20"));
    let work = federation.path("north-work");
    std::fs::create_dir(&work).unwrap();
    let lock = std::fs::File::create(work.join("lock")).unwrap();
    lock.lock().unwrap();
    federation.start_client("north");
    let job = federation.submit(&[
        ("[rounds]\ncount = 6\nquorum = 3", "[evaluation]\nby = \"none\"\n[rounds]\ncount = 1\nquorum = 1"),
        ("epochs = 2", "steps = 2"),
    ]);
    let shown = federation.wait_for(&job, "wait", |_| federation.log_text("north").contains("waiting for its end"));
    assert_eq!(shown["rounds_done"], 0);
    assert!(!work.join("models").exists() && !work.join("outbox").exists());
    drop(lock);
    federation.ended(&job, "completed");
}

/// After the first round a site fetches what changed of the state, and the states are those of a job that sends them whole. A
/// site whose states are gone goes on with the whole, and so does one whose state is damaged, which says so.
#[test]
fn a_state_comes_as_its_difference_and_whole_where_that_cannot_be() {
    const ROUNDS: usize = 4;
    let start = |download: &str| {
        let mut federation = Federation::start();
        let names = demo_sites(&federation);
        for name in names.iter().map(String::as_str).chain(["judge"]) {
            federation.start_client(name);
        }
        let rounds = format!("[updates]\ndownload = {download:?}\n[rounds]\ncount = {ROUNDS}");
        let job = federation.submit(&[("[rounds]\ncount = 6", &rounds), ("epochs = 2", "steps = 8")]);
        (federation, names, job)
    };
    let states = |shown: &serde_json::Value| {
        let rounds = shown["rounds"].as_array().unwrap().iter();
        rounds.map(|round| round["state_digest"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let bytes = |shown: &serde_json::Value, round: usize, site: usize| {
        shown["rounds"][round]["sites"][site]["bytes_down"].as_u64().unwrap()
    };

    let (federation, names, job) = start("whole");
    let wholly = federation.ended(&job, "completed");
    let size = bytes(&wholly, 1, 0);
    for (round, site) in (1..ROUNDS).flat_map(|round| (0..names.len()).map(move |site| (round, site))) {
        assert_eq!(bytes(&wholly, round, site), size, "{wholly}");
    }
    drop(federation);

    let (mut federation, names, job) = start("difference");
    federation.wait_for(&job, "training", |shown| shown["phase"] == "round 1: training");
    federation.operator(&["job", "pause", &job]).ok();
    let paused = federation.wait_for(&job, "pause", |shown| shown["status"] == "paused");
    let next = states(&paused).len();
    assert!(next < ROUNDS - 1, "{paused}");
    let of_site = |federation: &Federation, name: &str| federation.path(&format!("{name}-work/states"));
    federation.kill_client(&names[0]);
    std::fs::remove_dir_all(of_site(&federation, &names[0])).unwrap();
    for state in std::fs::read_dir(of_site(&federation, &names[1])).unwrap() {
        let path = state.unwrap().path();
        let mut damaged = std::fs::read(&path).unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        std::fs::write(path, damaged).unwrap();
    }
    federation.start_client(&names[0]);
    federation.operator(&["job", "resume", &job]).ok();
    let shown = federation.ended(&job, "completed");
    assert_eq!(states(&shown), states(&wholly));

    let difference = bytes(&shown, next, 2);
    assert_eq!(bytes(&shown, next, 0), size, "it had no state: {shown}");
    assert_eq!(bytes(&shown, next, 1), difference + size, "its state was damaged: {shown}");
    for (round, site) in (next + 1..ROUNDS).flat_map(|round| (0..names.len()).map(move |site| (round, site))) {
        assert_eq!(bytes(&shown, round, site), bytes(&shown, round, 2), "{shown}");
    }
    for round in 1..ROUNDS {
        let part = bytes(&shown, round, 2) as f64 / size as f64;
        println!("round {}: the difference has {part:.3} of the {size} bytes of the state", round + 1);
        assert!((0.2..0.9).contains(&part), "{part}");
    }
    let warning = "the state cannot be made of the one before";
    for (site, warned) in [(0, false), (1, true), (2, false)] {
        assert_eq!(federation.log_text(&names[site]).contains(warning), warned, "{}", names[site]);
    }
}

struct Synthetic {
    federation: Federation,
    runtime: tokio::runtime::Runtime,
    state: PathBuf,
    bundles: Vec<PathBuf>,
    job: String,
}

const ELEMENTS: u64 = 1_000_000;

impl Synthetic {
    /// A job of one round for so many sites that speak the protocol by hand.
    fn new(sites: usize, quorum: usize) -> Self {
        let federation = Federation::start_with(&[ONE_JOB]);
        let work = federation.path("synthetic");
        let job = model_folder(&work, 1, quorum).unwrap();
        let state = state_file(&work.join("state"), ELEMENTS).unwrap();
        let bundles = (0..sites).map(|i| federation.enrol(&format!("site-{i}"), "site")).collect();
        let job = federation.operator(&["job", "submit", text(&job)]).ok().stdout.trim().to_owned();
        Self { federation, runtime: tokio::runtime::Runtime::new().unwrap(), state, bundles, job }
    }

    fn connect(&self, site: usize) -> SyntheticSite {
        self.runtime.block_on(SyntheticSite::connect(self.federation.address(), &self.bundles[site])).unwrap()
    }

    fn task(&self, site: &mut SyntheticSite, kind: TaskKind) -> v1::Task {
        let task = self.runtime.block_on(site.task()).unwrap();
        assert_eq!(task.id.as_ref().unwrap().kind(), kind);
        task
    }

    fn update(&self, seed: u64) -> PathBuf {
        delta_file(&self.federation.path(&format!("update-{seed}")), ELEMENTS, seed).unwrap()
    }

    fn initialize(&self, site: &mut SyntheticSite) {
        let task = self.task(site, TaskKind::Initialize);
        self.runtime.block_on(async {
            let (artifact, _) = site.upload(&self.state).await.unwrap();
            let recipe_json = r#"{"config_json":"{}","tensors":[]}"#.into();
            let initialized = v1::Initialized { state: Some(artifact), recipe_json };
            assert!(site.report(&task, Outcome::Initialized(initialized)).await.unwrap().accepted);
        });
    }
}

/// Bad updates are quarantined with their reason, repeated ones change nothing, and the round completes without them.
#[test]
fn bad_repeated_and_stale_answers_are_named_and_the_round_goes_on() {
    let synthetic = Synthetic::new(4, 2);
    let mut sites: Vec<SyntheticSite> = Vec::new();
    sites.push(synthetic.connect(0));
    synthetic.initialize(&mut sites[0]);
    // The round opens at quorum: connect the rest first would race, so the round of two is what the first two see.
    sites.push(synthetic.connect(1));
    let tasks: Vec<_> = (0..2).map(|i| synthetic.task(&mut sites[i], TaskKind::Train)).collect();
    synthetic.runtime.block_on(async {
        // Not finite.
        let bad = synthetic.update(3);
        let mut bytes = std::fs::read(&bad).unwrap();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&bad, bytes).unwrap();
        let answer = sites[1].send_update(&tasks[1], &bad, 10).await.unwrap();
        assert!(!answer.accepted && answer.reason.contains("NaN"), "{answer:?}");
        let update = Some(ArtifactRef::of_file(&bad).unwrap().into());
        let trained = v1::Trained { update, examples: 10, train_loss: 0.5, train_seconds: 1.0, relative_error: 0.0 };
        let again = sites[1].report(&tasks[1], Outcome::Trained(trained)).await.unwrap();
        assert!(!again.accepted && again.reason.contains("NaN"), "the same answer again: {again:?}");
        let other = sites[1].send_update(&tasks[1], &synthetic.update(4), 10).await.unwrap_err();
        assert!(other.to_string().contains("no task of this site"), "its turn is over: {other}");
        // One that was never uploaded.
        let update = Some(v1::Artifact { digest: "ab".repeat(32), size: 10 });
        let trained = v1::Trained { update, examples: 10, train_loss: 0.5, train_seconds: 1.0, relative_error: 0.0 };
        let mut stranger = tasks[0].clone();
        stranger.id.as_mut().unwrap().round = 9;
        let answer = sites[0].report(&stranger, Outcome::Trained(trained)).await.unwrap();
        assert!(!answer.accepted && answer.reason.contains("round 9"), "{answer:?}");
        // A stale attempt, before and after.
        let mut stale = tasks[0].clone();
        stale.id.as_mut().unwrap().attempt = 7;
        let answer = sites[0].send_update(&stale, &synthetic.update(5), 10).await.unwrap();
        assert!(!answer.accepted && answer.reason.contains("attempt 7"), "{answer:?}");
    });
    // A good one: below quorum the round is tried again with the same state.
    let good = synthetic.update(6);
    assert!(synthetic.runtime.block_on(sites[0].send_update(&tasks[0], &good, 10)).unwrap().accepted);
    let retried: Vec<_> = (0..2).map(|i| synthetic.task(&mut sites[i], TaskKind::Train)).collect();
    assert_eq!(retried[0].id.as_ref().unwrap().attempt, 2);
    assert_eq!(retried[0].state, tasks[0].state);
    synthetic.runtime.block_on(async {
        let update = v1::Artifact::from(ArtifactRef::of_file(&good).unwrap());
        for (site, task) in sites.iter().zip(&retried) {
            assert!(site.send_update(task, &good, 10).await.unwrap().accepted);
            let update = Some(update.clone());
            let trained =
                v1::Trained { update, examples: 10, train_loss: 0.5, train_seconds: 1.0, relative_error: 0.0 };
            let again = site.report(task, Outcome::Trained(trained)).await.unwrap();
            assert!(again.accepted, "the same answer again: {again:?}");
        }
    });
    let shown = synthetic.federation.ended(&synthetic.job, "completed");
    assert_eq!(shown["rounds"][0]["sites"].as_array().unwrap().len(), 2);
    let answer = synthetic.runtime.block_on(sites[0].send_update(&retried[0], &good, 10));
    assert!(answer.is_err() || !answer.unwrap().accepted, "the job is over");
}

/// A paused job ends its round and lets another run; it goes on where it was.
#[test]
fn a_paused_job_makes_room_for_another_and_goes_on() {
    let synthetic = Synthetic::new(1, 1);
    let second = synthetic.federation.path("synthetic/job.toml");
    let second = synthetic.federation.operator(&["job", "submit", text(&second)]).ok().stdout.trim().to_owned();
    let mut site = synthetic.connect(0);
    synthetic.initialize(&mut site);
    let task = synthetic.task(&mut site, TaskKind::Train);
    synthetic.federation.operator(&["job", "pause", &second]).ok();
    synthetic.federation.operator(&["job", "pause", &synthetic.job]).ok();
    let shown = synthetic.federation.show(&synthetic.job);
    assert!(shown["phase"].as_str().unwrap().contains("pauses after that"), "{shown}");
    // What was begun counts; of one round there is nothing left to pause before.
    assert!(synthetic.runtime.block_on(site.send_update(&task, &synthetic.update(3), 10)).unwrap().accepted);
    synthetic.federation.ended(&synthetic.job, "completed");
    synthetic.federation.operator(&["job", "resume", &synthetic.job]).failed(8, &["is completed", "only a paused one"]);
    assert_eq!(synthetic.federation.show(&second)["status"], "paused");
    synthetic.federation.operator(&["job", "resume", &second]).ok();
    let _beating = synthetic.runtime.block_on(async { site.beat() });
    let task = synthetic.task(&mut site, TaskKind::Initialize);
    assert_eq!(task.id.unwrap().job, second);
}

/// An upload goes on where it stopped, bytes of another digest do not count, and too many are refused.
#[test]
fn uploads_resume_and_damaged_or_oversized_ones_are_refused() {
    let synthetic = Synthetic::new(1, 1);
    let mut site = synthetic.connect(0);
    let task = synthetic.task(&mut site, TaskKind::Initialize);
    synthetic.runtime.block_on(async {
        let artifact = v1::Artifact::from(ArtifactRef::of_file(&synthetic.state).unwrap());
        // A chunk and a half, then the link is cut.
        let bytes = std::fs::read(&synthetic.state).unwrap();
        let mut client = v1::artifacts_client::ArtifactsClient::new(site.channel.clone());
        let part = |part| v1::UploadRequest { part: Some(part) };
        let header = v1::UploadHeader { artifact: Some(artifact.clone()), offset: 0 };
        let sent = CHUNK_BYTES + CHUNK_BYTES / 2;
        let parts = vec![
            part(v1::upload_request::Part::Header(header)),
            part(v1::upload_request::Part::Data(bytes[..CHUNK_BYTES].to_vec().into())),
            part(v1::upload_request::Part::Data(bytes[CHUNK_BYTES..sent].to_vec().into())),
        ];
        let answer = last_answer(&mut client, tokio_stream::iter(parts)).await.unwrap();
        assert_eq!((answer.received, answer.complete), (sent as u64, false));
        let travelled = transfer::upload(&site.channel, &artifact, &synthetic.state).await.unwrap();
        assert_eq!(travelled, artifact.size - sent as u64);
        assert_eq!(transfer::upload(&site.channel, &artifact, &synthetic.state).await.unwrap(), 0, "it is there");

        let wrong = v1::Artifact { digest: "cd".repeat(32), size: artifact.size };
        let error = transfer::upload(&site.channel, &wrong, &synthetic.state).await.unwrap_err();
        assert!(error.to_string().contains("have the digest"), "{error}");
        let short = v1::Artifact { digest: "ef".repeat(32), size: 1000 };
        let header = v1::UploadHeader { artifact: Some(short), offset: 0 };
        let parts = vec![
            part(v1::upload_request::Part::Header(header)),
            part(v1::upload_request::Part::Data(bytes[..2000].to_vec().into())),
        ];
        let status = last_answer(&mut client, tokio_stream::iter(parts)).await.unwrap_err();
        assert!(status.message().contains("more than the 1000 bytes"), "{status}");
        // Bytes that are here of a larger one of the same name do not lift the limit.
        for (size, expected) in [(2000, None), (100, Some("are forgotten")), (100, Some("goes on at byte 0"))] {
            let shrunk = v1::Artifact { digest: "ee".repeat(32), size };
            let offset = if size == 2000 { 0 } else { 1000 };
            let parts = vec![
                part(v1::upload_request::Part::Header(v1::UploadHeader { artifact: Some(shrunk), offset })),
                part(v1::upload_request::Part::Data(bytes[..1000].to_vec().into())),
            ];
            let answer = last_answer(&mut client, tokio_stream::iter(parts)).await;
            match expected {
                None => assert_eq!(answer.unwrap().received, 1000),
                Some(text) => assert!(answer.unwrap_err().message().contains(text)),
            }
        }
        let empty = v1::UploadHeader { artifact: Some(v1::Artifact { digest: "ec".repeat(32), size: 9 }), offset: 0 };
        let parts = vec![
            part(v1::upload_request::Part::Header(empty)),
            part(v1::upload_request::Part::Data(Vec::new().into())),
        ];
        let status = last_answer(&mut client, tokio_stream::iter(parts)).await.unwrap_err();
        assert!(status.message().contains("a chunk has 0 bytes"), "{status}");
        let huge = v1::Artifact { digest: "ab".repeat(32), size: u64::MAX };
        let error = transfer::upload(&site.channel, &huge, &synthetic.state).await.unwrap_err();
        assert!(matches!(&error, TransferError::Remote { .. }) && error.to_string().contains("at most"), "{error}");
        let malformed = v1::Artifact { digest: "../../etc/passwd".into(), size: 5 };
        let error = transfer::upload(&site.channel, &malformed, &synthetic.state).await.unwrap_err();
        assert!(error.to_string().contains("expected a BLAKE3 digest"), "{error}");

        // Artifacts without end are not for one task.
        let mut refused = None;
        for number in 0..20 {
            let other = v1::Artifact { digest: format!("{number:064x}"), size: 1000 };
            let asked = v1::UploadStatusRequest { artifact: Some(other) };
            refused = refused.or(client.upload_status(asked).await.err());
        }
        assert!(refused.unwrap().message().contains("artifacts came for one task"));

        let recipe_json = r#"{"config_json":"{}","tensors":[]}"#.into();
        let initialized = v1::Initialized { state: Some(artifact.clone()), recipe_json };
        assert!(site.report(&task, Outcome::Initialized(initialized)).await.unwrap().accepted);
        let task = site.task().await.unwrap();
        assert_eq!(task.state, Some(artifact.clone()));

        // A download goes on from the bytes that are there, and damaged ones are not kept.
        let part_file = synthetic.federation.path("down.part");
        std::fs::write(&part_file, &bytes[..3_000_000]).unwrap();
        let down = synthetic.federation.path("down");
        assert_eq!(transfer::download(&site.channel, &artifact, &down).await.unwrap(), artifact.size - 3_000_000);
        assert_eq!(std::fs::read(&down).unwrap(), bytes);
        std::fs::remove_file(&down).unwrap();
        std::fs::write(&part_file, vec![1; 3_000_000]).unwrap();
        let error = transfer::download(&site.channel, &artifact, &down).await.unwrap_err();
        assert!(matches!(error, TransferError::Damaged { .. }));
        assert_eq!(transfer::download(&site.channel, &artifact, &down).await.unwrap(), artifact.size);

        // Whoever says that more has come than can be hears no more of it, and who says nothing more is not sent more.
        let ask = |part| v1::DownloadRequest { part: Some(part) };
        let named = v1::DownloadHeader { digest: artifact.digest.clone(), offset: 0 };
        let header = || ask(v1::download_request::Part::Header(named.clone()));
        let too_much = ask(v1::download_request::Part::Received(u64::MAX));
        for (said, code) in [
            (vec![header()], Code::Cancelled),
            (vec![header(), too_much], Code::Cancelled),
            (vec![header(), header()], Code::InvalidArgument),
        ] {
            let mut chunks = client.download(tokio_stream::iter(said)).await.unwrap().into_inner();
            let mut came = 0;
            let status = loop {
                match chunks.message().await {
                    Ok(chunk) => came += chunk.unwrap().data.len(),
                    Err(status) => break status,
                }
            };
            assert!(status.code() == code && came <= 2 * CHUNK_BYTES, "{came} bytes, {status}");
        }
        let status = client.download(tokio_stream::empty()).await.unwrap_err();
        assert!(status.message().contains("must name the artifact"), "{status}");
    });
}

/// A newer session of the same site takes over; the older one is told why.
#[test]
fn a_newer_session_takes_over() {
    let synthetic = Synthetic::new(1, 1);
    let mut older = synthetic.connect(0);
    let _ = synthetic.task(&mut older, TaskKind::Initialize);
    let mut newer = synthetic.connect(0);
    let error = synthetic.runtime.block_on(older.task()).unwrap_err().to_string();
    assert!(error.contains("took over"), "{error}");
    assert!(synthetic.runtime.block_on(older.heartbeat()).is_err());
    synthetic.runtime.block_on(newer.heartbeat()).unwrap();
    let _ = synthetic.task(&mut newer, TaskKind::Initialize);
}

/// Peak memory does not grow with the size of the state or the number of sites. The full size is the benchmark
/// `aggregator-memory`.
#[test]
fn the_aggregator_stays_small() {
    let peak = |sites: usize| {
        let mut synthetic = Synthetic::new(sites, sites);
        let state = state_file(&synthetic.federation.path("large"), 20_000_000).unwrap();
        let update = delta_file(&synthetic.federation.path("large-update"), 20_000_000, 3).unwrap();
        synthetic.state = state.clone();
        for i in 0..sites {
            let mut site = synthetic.connect(i);
            let (state, update, work) =
                (state.clone(), update.clone(), synthetic.federation.path(&format!("site-{i}")));
            std::fs::create_dir_all(&work).unwrap();
            synthetic.runtime.spawn(async move { site.serve(&state, &update, &work).await });
        }
        synthetic.federation.ended(&synthetic.job, "completed");
        let status = std::fs::read_to_string(format!("/proc/{}/status", synthetic.federation.server_id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1024
    };
    let megabytes = peak(6);
    assert!(megabytes < 200, "{megabytes} MB for an 80 MB state and 6 sites");
}
