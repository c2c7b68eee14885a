//! Links that are slow, late, and break: what is sent arrives once, and nobody who sends is given up.
//!
//! The figures of a hospital's line (90 MB at 4 Mbit/s, six minutes of outage) are the benchmark `bad-links`.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::{Duration, Instant};

use fedtune_proto::channel::Credentials;
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::transfer::{self, TransferError};
use fedtune_proto::v1::report_result_request::Outcome;
use fedtune_proto::v1::{self, TaskKind};
use fedtune_proto::{CHUNK_BYTES, version};
use fedtune_tests::{
    Break, Federation, Link, Outage, Proxy, SyntheticSite, Way, delta_file, model_folder, state_file, text,
};
use tonic::transport::Channel;

/// After so long without a sign a site dials anew.
const SILENCE: Duration = Duration::from_secs(3);

/// What handshakes, pings and heartbeats may take for each connection.
const DIALLING_BYTES: u64 = 16 << 10;

/// Sends a file as a site does, again and again until it is there. Gives how often it began.
async fn send(channel: &Channel, artifact: &v1::Artifact, path: &Path) -> usize {
    for begun in 1.. {
        match transfer::upload(channel, artifact, path).await {
            Ok(_) => return begun,
            Err(e) if e.is_transient() => tokio::time::sleep(Duration::from_millis(250)).await,
            Err(e) => panic!("{e}"),
        }
    }
    unreachable!("it ends by returning")
}

fn artifact(path: &Path) -> v1::Artifact {
    ArtifactRef::of_file(path).unwrap().into()
}

/// An upload goes through a slow line with a cut and a black hole. It sends again, for each, no more than a chunk; and it
/// takes longer than the deadline, which is for those who are silent.
#[test]
fn an_upload_survives_outages_and_sends_little_again() {
    const ELEMENTS: u64 = 2_250_000;
    const DEADLINE: Duration = Duration::from_secs(10);
    let federation = Federation::start();
    let proxy = Proxy::start(federation.address()).unwrap();
    let work = federation.path("synthetic");
    let job = model_folder(&work, 1, 1).unwrap();
    let document = std::fs::read_to_string(&job).unwrap();
    std::fs::write(&job, document.replace("quorum = 1", "quorum = 1\nattempts = 1\ndeadline = \"10s\"")).unwrap();
    let state = state_file(&work.join("state"), ELEMENTS).unwrap();
    let update = delta_file(&work.join("update"), ELEMENTS, 7).unwrap();
    let bundle = federation.enrol("far", "site");
    let job = federation.operator(&["job", "submit", text(&job)]).ok().stdout.trim().to_owned();

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (took, again) = runtime.block_on(async {
        let credentials = Credentials::read(&bundle, "site").unwrap();
        let channel = credentials.connect_within(&proxy.address(), SILENCE).await.unwrap();
        let mut site = SyntheticSite::open(channel, version::PROTOCOL).await.unwrap();
        let _beating = site.beat();
        let task = site.task().await.unwrap();
        // A file of this size without any outage is what the other is compared with.
        proxy.set(Link { delay: Duration::from_millis(20), up: Some(1_000_000), down: None });
        let before = proxy.sent(Way::Up);
        assert_eq!(send(&site.channel, &artifact(&state), &state).await, 1);
        let undisturbed = proxy.sent(Way::Up) - before;
        let recipe_json = r#"{"config_json":"{}","tensors":[]}"#.into();
        let initialized = v1::Initialized { state: Some(artifact(&state)), recipe_json };
        assert!(site.report(&task, Outcome::Initialized(initialized)).await.unwrap().accepted);

        let task = site.task().await.unwrap();
        assert_eq!(task.id.as_ref().unwrap().kind(), TaskKind::Train);
        let (began, before) = (Instant::now(), proxy.sent(Way::Up));
        let outage = |after, how| Outage { after, way: Way::Up, how, lasts: Duration::from_secs(2) };
        proxy.plan([outage(3_000_000, Break::Cut), outage(6_000_000, Break::BlackHole)]);
        send(&site.channel, &artifact(&update), &update).await;
        assert_eq!(proxy.outages_left(), 0);
        let again = (proxy.sent(Way::Up) - before).saturating_sub(undisturbed);
        let answer = site.send_update(&task, &update, 10).await.unwrap();
        assert!(answer.accepted, "{answer:?}");
        (began.elapsed(), again)
    });
    let shown = federation.ended(&job, "completed");
    assert_eq!(shown["rounds"][0]["sites"][0]["name"], "far", "{shown}");
    println!("{took:.1?}, {again} bytes again over {} connections", proxy.connections());
    assert!(took > DEADLINE, "the deadline is put to the test: {took:?}");
    assert!(again <= 2 * (CHUNK_BYTES as u64 + DIALLING_BYTES), "{again} bytes travelled again");
}

/// While the aggregator has not noticed that a link is gone, whoever comes back is told before it sends anything.
#[test]
fn a_second_upload_waits_for_the_first_without_sending() {
    let federation = Federation::start();
    let proxy = Proxy::start(federation.address()).unwrap();
    let work = federation.path("synthetic");
    let job = model_folder(&work, 1, 1).unwrap();
    let state = state_file(&work.join("state"), 1_000_000).unwrap();
    let bundle = federation.enrol("far", "site");
    federation.operator(&["job", "submit", text(&job)]).ok();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let credentials = Credentials::read(&bundle, "site").unwrap();
        let slow = credentials.connect_within(&proxy.address(), SILENCE).await.unwrap();
        let mut site = SyntheticSite::open(slow, version::PROTOCOL).await.unwrap();
        site.task().await.unwrap();
        proxy.set(Link { up: Some(200_000), ..Link::default() });
        let (channel, artifact, path) = (site.channel.clone(), artifact(&state), state.clone());
        let (of_first, whole) = (artifact.clone(), path.clone());
        let first = tokio::spawn(async move { transfer::upload(&channel, &of_first, &whole).await });
        let begun = proxy.delivered(Way::Up);
        while proxy.delivered(Way::Up) < begun + 4 * CHUNK_BYTES as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let direct = credentials.connect(federation.address()).await.unwrap();
        let error = transfer::upload(&direct, &artifact, &path).await.unwrap_err();
        let TransferError::Remote { status, .. } = &error else { panic!("{error}") };
        assert!(error.is_transient() && status.code() == tonic::Code::Aborted, "{error}");
        first.abort();
        // What came of the first counts.
        send(&direct, &artifact, &path).await;
    });
}

/// A link that swallows everything is noticed, when there is a connection and when there is to be one.
#[test]
fn a_black_hole_is_noticed() {
    let federation = Federation::start();
    let proxy = Proxy::start(federation.address()).unwrap();
    let bundle = federation.enrol("far", "site");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let credentials = Credentials::read(&bundle, "site").unwrap();
        let channel = credentials.connect_within(&proxy.address(), SILENCE).await.unwrap();
        let mut site = SyntheticSite::open(channel, version::PROTOCOL).await.unwrap();
        proxy.fail(Break::BlackHole);
        let began = Instant::now();
        assert!(site.task().await.is_err(), "the session ends");
        let dialled = credentials.connect_within(&proxy.address(), SILENCE).await;
        assert!(dialled.is_err(), "the handshake ends");
        // Three seconds and two, and what a busy machine adds; without a limit it would be for ever.
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        proxy.mend();
        let channel = credentials.connect_within(&proxy.address(), SILENCE).await.unwrap();
        SyntheticSite::open(channel, version::PROTOCOL).await.unwrap();
    });
}

/// The real client behind such a link does the same work: refused at first, cut in a download, in an upload swallowed.
#[test]
fn the_client_does_its_rounds_over_a_bad_link() {
    let run = |bad: bool| {
        let mut federation = Federation::start();
        let train = federation.path("demo/data/train.csv");
        let config = federation.write_site("far", "site", &format!("train = {train:?}\nper_label = 20"));
        let proxy = Proxy::start(federation.address()).unwrap();
        if bad {
            let own = std::fs::read_to_string(&config).unwrap();
            let behind = own.replace(federation.address(), &proxy.address());
            std::fs::write(&config, behind.replace("[data]", "timeout = \"3s\"\n[data]")).unwrap();
            proxy.set(Link { delay: Duration::from_millis(20), up: Some(1_000_000), down: Some(2_000_000) });
            proxy.fail(Break::Cut);
            let outage = |after, way, how| Outage { after, way, how, lasts: Duration::from_secs(1) };
            proxy.plan([
                outage(500_000, Way::Down, Break::Cut),
                outage(700_000, Way::Up, Break::Cut),
                outage(2_000_000, Way::Up, Break::BlackHole),
            ]);
        }
        federation.start_client("far");
        let job = federation.submit(&[
            (
                "[rounds]\ncount = 6\nquorum = 3",
                "[evaluation]\nby = \"none\"\n[rounds]\ncount = 2\nquorum = 1\nattempts = 1",
            ),
            ("epochs = 2", "steps = 2"),
            ("[model]", "[updates]\ncompression = \"none\"\n[model]"),
        ]);
        if bad {
            // The link is made once the client has been refused.
            federation.wait_for(&job, "refusal", |_| federation.log_text("far").contains("cannot connect"));
            proxy.mend();
        }
        let shown = federation.ended(&job, "completed");
        assert_eq!(proxy.outages_left(), 0, "{}", federation.log_text("far"));
        let digests: Vec<String> =
            (0..2).map(|round| shown["rounds"][round]["state_digest"].as_str().unwrap().to_owned()).collect();
        digests
    };
    assert_eq!(run(true), run(false));
}
