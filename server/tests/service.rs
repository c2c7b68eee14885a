//! The aggregator as a service: the real program, real files, real signals, and sites that only speak the protocol.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fedtune_proto::CHUNK_BYTES;
use fedtune_proto::channel::Credentials;
use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::transfer;
use fedtune_proto::v1::artifacts_client::ArtifactsClient;
use fedtune_proto::v1::directive::Kind;
use fedtune_proto::v1::federation_client::FederationClient;
use fedtune_proto::v1::operator_client::OperatorClient;
use fedtune_proto::v1::plan_export_request::Selector;
use fedtune_proto::v1::report_result_request::Outcome;
use fedtune_proto::v1::upload_request::Part;
use fedtune_proto::v1::{self, UploadHeader, UploadRequest};
use fedtune_tests::{Federation, SyntheticSite, delta_file, last_answer, model_folder, program, run, state_file, text};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A failure of storage is known within this time.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);

/// Asks until the answer has this status; gives its body.
fn wait_for_status(federation: &Federation, path: &str, status: u16, within: Duration) -> String {
    let began = Instant::now();
    loop {
        let answer = federation.monitoring(path);
        if let Some((found, body)) = &answer
            && *found == status
        {
            return body.clone();
        }
        assert!(began.elapsed() < within, "no {status}: {answer:?}\n{}", federation.log_text("aggregator"));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every folder below and with this one.
fn folders(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_path_buf()];
    let mut at = 0;
    while let Some(folder) = found.get(at).cloned() {
        found
            .extend(std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()));
        at += 1;
    }
    found
}

#[test]
fn readiness_fails_while_the_data_folder_is_read_only_and_recovers() {
    let federation = Federation::start_unprivileged();
    let data = folders(&federation.path("federation/data"));
    let set =
        |mode: u32| data.iter().for_each(|path| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap());
    wait_for_status(&federation, "/readyz", 200, KNOWN_WITHIN);
    set(0o555);
    let body = wait_for_status(&federation, "/readyz", 503, KNOWN_WITHIN);
    assert!(body.contains("Permission denied"), "{body}");
    assert_eq!(federation.monitoring("/livez").unwrap().0, 200);
    set(0o755);
    wait_for_status(&federation, "/readyz", 200, KNOWN_WITHIN);
}

/// Submits a job for synthetic sites.
fn submit(federation: &Federation, rounds: u32, quorum: usize) -> String {
    let job = model_folder(&federation.path("model"), rounds, quorum).unwrap();
    federation.operator(&["job", "submit", text(&job)]).ok().stdout.trim().to_owned()
}

/// Runs a site that does every task with these made-up tensors, until the aggregator goes.
async fn synthetic(address: String, bundle: PathBuf, work: PathBuf) -> anyhow::Result<()> {
    std::fs::create_dir_all(&work)?;
    let state = state_file(&work.join("state"), 1000)?;
    let update = delta_file(&work.join("update"), 1000, 7)?;
    SyntheticSite::connect(&address, &bundle).await?.serve(&state, &update, &work).await
}

/// Runs a job to its end with two synthetic sites. Gives the job's id.
fn run_job(federation: &Federation, rounds: u32) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for site in ["north", "south"] {
        let bundle = federation.enrol(site, "site");
        runtime.spawn(synthetic(federation.address().to_owned(), bundle, federation.path(site)));
    }
    let job = submit(federation, rounds, 2);
    federation.ended(&job, "completed");
    job
}

#[test]
fn metrics_count_what_a_job_does() {
    let federation = Federation::start();
    run_job(&federation, 2);
    // What is looked up comes within 2 s.
    let began = Instant::now();
    let text = loop {
        let text = wait_for_status(&federation, "/metrics", 200, KNOWN_WITHIN);
        if text.contains("fedtune_jobs{status=\"completed\"} 1\n") {
            break text;
        }
        assert!(began.elapsed() < KNOWN_WITHIN, "{text}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let value = |series: &str| -> f64 {
        let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap()
    };
    for (series, expected) in [
        ("fedtune_rounds_committed_total", 2.0),
        ("fedtune_round_attempts_failed_total", 0.0),
        ("fedtune_jobs_ended_total{status=\"completed\"}", 1.0),
        ("fedtune_jobs{status=\"queued\"}", 0.0),
        ("fedtune_results_total{work=\"initialize\",verdict=\"accepted\"}", 1.0),
        ("fedtune_results_total{work=\"train\",verdict=\"accepted\"}", 4.0),
        ("fedtune_aggregation_seconds_count", 2.0),
        ("fedtune_sites{state=\"enrolled\"}", 2.0),
        ("fedtune_ready", 1.0),
        ("fedtune_check_ok{check=\"artifacts\"}", 1.0),
        ("fedtune_calls_total{method=\"fedtune.v1.Operator/SubmitJob\",code=\"Ok\"}", 1.0),
        ("fedtune_call_duration_seconds_count{method=\"fedtune.v1.Operator/SubmitJob\"}", 1.0),
        ("fedtune_calls_total{method=\"fedtune.v1.Artifacts/Download\",code=\"Ok\"}", 4.0),
    ] {
        assert_eq!(value(series), expected, "{series} in {text}");
    }
    let state = std::fs::metadata(federation.path("north/state")).unwrap().len() as f64;
    // Both fetch the state of each round; the same update is sent once.
    for site in ["north", "south"] {
        let moved = |way: &str| {
            value(&format!("fedtune_artifact_bytes_total{{direction=\"{way}\",role=\"site\",site=\"{site}\"}}"))
        };
        assert_eq!(moved("down"), 2.0 * state);
    }
    assert!(value("process_open_fds") > 3.0 && value("process_resident_memory_bytes") > 1e6);
}

/// An upload that has begun and waits for its other half.
struct HalfSent {
    artifact: v1::Artifact,
    half: usize,
    bytes: Vec<u8>,
    parts: mpsc::Sender<UploadRequest>,
    call: JoinHandle<Result<v1::UploadResponse, Status>>,
}

impl HalfSent {
    /// Sends the first half and waits until the aggregator has it on its disk.
    async fn begin(federation: &Federation, channel: &Channel, path: &Path) -> Self {
        let artifact = v1::Artifact::from(ArtifactRef::of_file(path).unwrap());
        let bytes = std::fs::read(path).unwrap();
        let half = bytes.len() / 2;
        let (parts, receiver) = mpsc::channel(1);
        let mut calls = ArtifactsClient::new(channel.clone());
        let call = tokio::spawn(async move { last_answer(&mut calls, ReceiverStream::new(receiver)).await });
        let header = UploadHeader { artifact: Some(artifact.clone()), offset: 0 };
        parts.send(UploadRequest { part: Some(Part::Header(header)) }).await.unwrap();
        let upload = Self { artifact, half, bytes, parts, call };
        upload.send(0..half).await;
        let (began, staging) = (Instant::now(), federation.path("federation/data/artifacts/staging"));
        loop {
            let mut sizes = std::fs::read_dir(&staging).unwrap().flatten().flat_map(|file| file.metadata());
            if sizes.any(|file| file.len() == half as u64) {
                return upload;
            }
            assert!(began.elapsed() < KNOWN_WITHIN);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn send(&self, range: std::ops::Range<usize>) {
        for chunk in self.bytes[range].chunks(CHUNK_BYTES) {
            let part = Part::Data(chunk.to_vec().into());
            self.parts.send(UploadRequest { part: Some(part) }).await.unwrap();
        }
    }

    /// Sends the second half; gives the call's answer.
    async fn finish(self) -> Result<v1::UploadResponse, Status> {
        self.send(self.half..self.bytes.len()).await;
        drop(self.parts);
        self.call.await.unwrap()
    }
}

#[test]
fn told_to_stop_it_lets_an_upload_end_and_takes_nothing_new() {
    let mut federation = Federation::start();
    let bundle = federation.enrol("north", "site");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let path = state_file(&federation.path("state"), 200_000).unwrap();
    runtime.block_on(async {
        let operator = Credentials::read(&federation.path("federation/operator"), "operator").unwrap();
        let operator = operator.connect(federation.address()).await.unwrap();
        let mut site = SyntheticSite::connect(federation.address(), &bundle).await.unwrap();
        let upload = HalfSent::begin(&federation, &operator, &path).await;
        federation.signal_server("TERM");
        let body = wait_for_status(&federation, "/readyz", 503, KNOWN_WITHIN);
        assert!(body.contains("stopping"), "{body}");
        // The site is told to come again.
        let told = loop {
            if let Some(Kind::Close(close)) = site.directives.message().await.unwrap().and_then(|told| told.kind) {
                break close;
            }
        };
        assert!(!told.r#final && told.reason.contains("stopping"), "{told:?}");
        assert!(site.directives.message().await.unwrap().is_none(), "the stream ends");
        // Neither on an open connection nor on a new one is a call taken.
        let refused = site.heartbeat().await.unwrap_err().downcast::<Status>().unwrap();
        // The other is what a client makes of a connection that has just been closed.
        assert!(matches!(refused.code(), Code::Unavailable | Code::Cancelled), "{refused}");
        assert!(SyntheticSite::connect(federation.address(), &bundle).await.is_err());
        let artifact = upload.artifact.clone();
        assert!(upload.finish().await.unwrap().complete);
        assert_eq!(federation.server_ended(), 0);
        federation.start_server();
        let operator = Credentials::read(&federation.path("federation/operator"), "operator").unwrap();
        let operator = operator.connect(federation.address()).await.unwrap();
        assert_eq!(transfer::upload(&operator, &artifact, &path).await.unwrap(), 0, "it is there");
    });
}

#[test]
fn an_upload_cut_off_at_the_end_of_the_drain_goes_on_from_what_was_acknowledged() {
    let mut federation = Federation::start_with(&[("LISTEN__DRAIN", "500ms")]);
    let bundle = federation.enrol("north", "site");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let path = state_file(&federation.path("state"), 200_000).unwrap();
    let job = submit(&federation, 1, 1);
    runtime.block_on(async {
        let mut site = SyntheticSite::connect(federation.address(), &bundle).await.unwrap();
        let task = site.task().await.unwrap();
        let upload = HalfSent::begin(&federation, &site.channel, &path).await;
        federation.signal_server("TERM");
        let (half, size, artifact) = (upload.half as u64, upload.bytes.len() as u64, upload.artifact.clone());
        // The other half does not come.
        assert_eq!(upload.call.await.unwrap().unwrap_err().code(), Code::Unavailable);
        assert_eq!(federation.server_ended(), 0);
        federation.start_server();
        let mut site = SyntheticSite::connect(federation.address(), &bundle).await.unwrap();
        assert_eq!(site.task().await.unwrap().id, task.id, "the same task is offered again");
        assert_eq!(transfer::upload(&site.channel, &artifact, &path).await.unwrap(), size - half);
        let recipe_json = r#"{"config_json":"{}","tensors":[]}"#.into();
        let initialized = v1::Initialized { state: Some(artifact), recipe_json };
        assert!(site.report(&task, Outcome::Initialized(initialized)).await.unwrap().accepted);
    });
    assert!(federation.show(&job)["phase"].as_str().unwrap().contains("round 1"));
}

#[test]
fn told_twice_to_stop_it_ends_at_once() {
    let mut federation = Federation::start_with(&[("LISTEN__DRAIN", "1h")]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let path = state_file(&federation.path("state"), 200_000).unwrap();
    runtime.block_on(async {
        let operator = Credentials::read(&federation.path("federation/operator"), "operator").unwrap();
        let operator = operator.connect(federation.address()).await.unwrap();
        let upload = HalfSent::begin(&federation, &operator, &path).await;
        federation.signal_server("TERM");
        wait_for_status(&federation, "/readyz", 503, KNOWN_WITHIN);
        federation.signal_server("INT");
        assert_eq!(federation.server_ended(), 130);
        assert!(upload.call.await.unwrap().is_err());
    });
}

#[test]
fn every_json_line_about_a_job_names_it_with_its_round_and_site() {
    let federation = Federation::start_with(&[("LOG__FORMAT", "json")]);
    let bundle = federation.enrol("rogue", "site");
    let job = run_job(&federation, 2);
    // A result that does not count, and work that is not wanted any more.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let second = submit(&federation, 1, 1);
    runtime.block_on(async {
        let mut rogue = SyntheticSite::connect(federation.address(), &bundle).await.unwrap();
        let first = rogue.task().await.unwrap();
        let (state, _) = rogue.upload(&federation.path("north/state")).await.unwrap();
        let recipe_json = r#"{"config_json":"{}","tensors":[]}"#.into();
        let initialized = v1::Initialized { state: Some(state), recipe_json };
        assert!(rogue.report(&first, Outcome::Initialized(initialized)).await.unwrap().accepted);
        let task = rogue.task().await.unwrap();
        let update = v1::Artifact::from(ArtifactRef { digest: Digest::of(b"absent"), size: 6 });
        let trained =
            v1::Trained { update: Some(update), examples: 1, train_loss: 0.5, train_seconds: 1.0, relative_error: 0.0 };
        assert!(!rogue.report(&task, Outcome::Trained(trained)).await.unwrap().accepted);
    });
    federation.operator(&["job", "cancel", &second]).ok();
    federation.ended(&second, "cancelled");
    let lines = federation.log_text("aggregator");
    let mut seen = std::collections::BTreeSet::new();
    for text in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "no {field}: {text}");
        }
        let message = line["message"].as_str().unwrap();
        let (has_round, has_site) = match message {
            "job submitted" | "job running" | "job ended" => (false, false),
            "round committed" | "round evaluated" => (true, false),
            "task offered" | "task withdrawn" | "a result does not count" => (true, true),
            "session opened" | "session closed" => {
                assert!(line["site"].is_string(), "{text}");
                continue;
            }
            "listening" | "listening for monitoring" | "ready" => continue,
            other => panic!("{other:?} is new: say which fields it has: {text}"),
        };
        assert!([job.as_str(), &second].contains(&line["job"].as_str().unwrap_or_default()), "no job: {text}");
        assert!(!has_round || line["round"].is_u64(), "no round: {text}");
        assert!(!has_site || line["site"].is_string(), "no site: {text}");
        seen.insert(message.to_owned());
    }
    assert_eq!(seen.len(), 7, "{seen:?}");
}

#[test]
fn a_failure_of_storage_in_a_call_is_logged_with_site_job_and_round() {
    let federation = Federation::start_with(&[("LOG__FORMAT", "json"), ("LOG__LEVEL", "error")]);
    let bundle = federation.enrol("north", "site");
    let job = submit(&federation, 1, 1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut site = SyntheticSite::connect(federation.address(), &bundle).await.unwrap();
        let task = site.task().await.unwrap();
        // A folder in the way of the artifact that the report names.
        let digest = Digest::of(b"in the way");
        let name = digest.to_string();
        let blocked = federation.path("federation/data/artifacts/blake3").join(&name[..2]);
        std::fs::write(&blocked, "not a folder").unwrap();
        let recipe_json = r#"{"config_json":"{}","tensors":[]}"#.into();
        let state = Some(v1::Artifact::from(ArtifactRef { digest, size: 10 }));
        let outcome = Outcome::Initialized(v1::Initialized { state, recipe_json });
        assert_eq!(site.report(&task, outcome).await.unwrap_err().code(), Code::Unavailable);
    });
    let text = federation.log_text("aggregator");
    let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&line["site"], &line["job"], &line["round"]), (&"north".into(), &job.into(), &0.into()), "{text}");
    assert!(line["message"].as_str().unwrap().contains("storage failed"), "{text}");
}

#[test]
fn a_site_is_kept_to_its_streams_calls_and_bytes_and_the_others_are_not() {
    const RATE: usize = 1 << 18;
    let federation = Federation::start_with(&[
        ("LIMITS__STREAMS_PER_SITE", "4"),
        ("LIMITS__CALLS_PER_SECOND", "5"),
        ("LIMITS__BYTES_PER_SECOND", &RATE.to_string()),
    ]);
    let [north, south] = ["north", "south"].map(|site| federation.enrol(site, "site"));
    let path = state_file(&federation.path("state"), 300_000).unwrap();
    submit(&federation, 1, 1);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut site = SyntheticSite::connect(federation.address(), &north).await.unwrap();
        site.task().await.unwrap();
        // Bytes: what comes beyond two seconds of the rate takes its time.
        let began = Instant::now();
        let (_, travelled) = site.upload(&path).await.unwrap();
        let least = travelled as f64 / RATE as f64 - 2.0;
        assert!(least > 2.0 && began.elapsed().as_secs_f64() > least, "{:?} for {travelled} bytes", began.elapsed());
        // Streams: the session is one.
        let (ended, mut refusals) = mpsc::channel(8);
        let mut open = Vec::new();
        for i in 0..4_u8 {
            let (parts, receiver) = mpsc::channel(1);
            let artifact = v1::Artifact::from(ArtifactRef { digest: Digest::of(&[i]), size: 1000 });
            let header = UploadHeader { artifact: Some(artifact), offset: 0 };
            parts.send(UploadRequest { part: Some(Part::Header(header)) }).await.unwrap();
            open.push(parts);
            let (mut client, ended) = (ArtifactsClient::new(site.channel.clone()), ended.clone());
            tokio::spawn(async move {
                let answer = last_answer(&mut client, ReceiverStream::new(receiver)).await;
                let _ = ended.send(answer.unwrap_err()).await;
            });
        }
        // The others wait for bytes that do not come.
        let refused = refusals.recv().await.unwrap();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("limits.streams_per_site"), "{refused}");
        // Calls: so many at once wait for their turn, and those whose turn is far off are refused.
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let mut client = FederationClient::new(site.channel.clone());
            calls.spawn(async move { client.heartbeat(v1::HeartbeatRequest { session: "none".into() }).await });
        }
        let answers = calls.join_all().await;
        let codes: Vec<Code> = answers.into_iter().map(|answer| answer.unwrap_err().code()).collect();
        assert!(codes.contains(&Code::Unauthenticated) && codes.contains(&Code::ResourceExhausted), "{codes:?}");
        let other = SyntheticSite::connect(federation.address(), &south).await.unwrap();
        other.heartbeat().await.unwrap();
    });
}

/// Waits until the other side closes a connection; whether it says so or just goes is the same.
async fn closed(mut stream: impl AsyncRead + Unpin) {
    let mut said = Vec::new();
    let _ = tokio::time::timeout(KNOWN_WITHIN, stream.read_to_end(&mut said)).await.expect("it is closed");
}

/// Where gRPC is spoken, for connections that do not speak it.
fn port_of(federation: &Federation) -> (&'static str, u16) {
    ("127.0.0.1", federation.address().rsplit_once(':').unwrap().1.parse().unwrap())
}

#[test]
fn a_handshake_that_does_not_go_on_is_closed_after_the_timeout() {
    let federation = Federation::start_with(&[("SESSIONS__TIMEOUT", "2s")]);
    let bundle = federation.enrol("north", "site");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let began = Instant::now();
        let silent = TcpStream::connect(port_of(&federation)).await.unwrap();
        // The head of a ClientHello, and then a byte of it now and then.
        let (reader, mut writer) = TcpStream::connect(port_of(&federation)).await.unwrap().into_split();
        writer.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.unwrap();
        let trickle = tokio::spawn(async move {
            while writer.write_all(&[0]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let site = SyntheticSite::connect(federation.address(), &bundle).await.unwrap();
        let _beating = site.beat();
        tokio::join!(closed(silent), closed(reader));
        assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
        trickle.await.unwrap();
        site.heartbeat().await.unwrap();
    });
}

#[test]
fn a_site_that_says_nothing_after_its_handshake_is_closed_after_the_timeout() {
    let federation = Federation::start_with(&[("SESSIONS__TIMEOUT", "2s")]);
    let bundle = federation.enrol("north", "site");
    let stream = std::net::TcpStream::connect(port_of(&federation)).unwrap();
    stream.set_read_timeout(Some(KNOWN_WITHIN)).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(bundle.join("ca.pem")).unwrap()).unwrap();
    let chain = CertificateDer::pem_file_iter(bundle.join("site.pem")).unwrap().map(Result::unwrap).collect();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(bundle.join("site-key.pem")).unwrap())
        .unwrap();
    let connection = rustls::ClientConnection::new(config.into(), "localhost".try_into().unwrap()).unwrap();
    let began = Instant::now();
    let mut stream = rustls::StreamOwned::new(connection, stream);
    stream.conn.complete_io(&mut stream.sock).unwrap();
    // What the aggregator has to say comes, and then the end.
    let ended = std::io::copy(&mut stream, &mut std::io::sink());
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    let timed_out = matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!timed_out, "it is still open after {:?}", began.elapsed());
}

#[test]
fn of_too_many_who_say_nothing_the_first_go_and_a_site_gets_in() {
    let federation = Federation::start_with(&[("SESSIONS__TIMEOUT", "10m")]);
    let bundle = federation.enrol("north", "site");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut silent = Vec::new();
        for _ in 0..300 {
            silent.push(TcpStream::connect(port_of(&federation)).await.unwrap());
        }
        let site = SyntheticSite::connect(federation.address(), &bundle).await.unwrap();
        site.heartbeat().await.unwrap();
        let last = silent.pop().unwrap();
        for stream in silent.into_iter().take(300 - 256) {
            closed(stream).await;
        }
        let still_open = last.try_read(&mut [0]).unwrap_err();
        assert_eq!(still_open.kind(), std::io::ErrorKind::WouldBlock);
    });
}

/// With the feature it is `tests/otel.rs` that looks.
#[cfg(not(feature = "otel"))]
#[test]
fn traces_are_refused_by_a_program_that_cannot_send_them() {
    let folder = tempfile::tempdir().unwrap();
    run("fedtune-server", ["init", "--dir", text(&folder.path().join("f"))]).ok();
    let config = folder.path().join("f/server.toml");
    let asked = std::fs::read_to_string(&config).unwrap().replace("# otlp = ", "otlp = ");
    std::fs::write(&config, &asked).unwrap();
    let start = || run("fedtune-server", ["run", "--config", text(&config)]);
    start().failed(3, &["server.toml", "log.otlp", "built without the feature `otel`", "--features otel"]);
    std::fs::write(&config, asked.replace("http://", "grpcs://")).unwrap();
    start().failed(3, &["log.otlp", "grpcs://127.0.0.1:4317", "expected an address"]);
}

#[test]
fn systemd_is_told_when_it_is_ready_and_when_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    run("fedtune-server", ["init", "--dir", text(&folder.path().join("f"))]).ok();
    let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(KNOWN_WITHIN)).unwrap();
    let mut server = Command::new(program("fedtune-server"))
        .args(["run", "--config", text(&folder.path().join("f/server.toml"))])
        .env("FEDTUNE_SERVER__LISTEN__ADDRESS", "127.0.0.1:0")
        .env("FEDTUNE_SERVER__LISTEN__HTTP", "127.0.0.1:0")
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert_eq!(told().trim(), "READY=1");
    let kill = Command::new("kill").args(["-s", "TERM", &server.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(told().trim(), "STOPPING=1");
    assert_eq!(server.wait().unwrap().code(), Some(0));
}

#[test]
fn retention_runs_at_the_start_and_says_what_went() {
    let mut federation = Federation::start_with(&[("STORAGE__RETENTION", "2d")]);
    let job = run_job(&federation, 2);
    federation.kill_server();
    // As if all of it had been three days ago.
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(3 * 24 * 60 * 60);
    let data = federation.path("federation/data");
    for folder in folders(&data.join("artifacts/blake3")) {
        for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
        {
            std::fs::File::open(file).unwrap().set_modified(long_ago).unwrap();
        }
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("records.sqlite"));
        let records = sqlx::sqlite::SqlitePool::connect_with(options).await.unwrap();
        let ended = long_ago.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
        sqlx::query("UPDATE jobs SET ended_ms = $1").bind(ended).execute(&records).await.unwrap();
        records.close().await;
    });
    federation.start_server();
    let began = Instant::now();
    while !federation.log_text("aggregator").contains("deleted what no job needs any more") {
        assert!(began.elapsed() < KNOWN_WITHIN, "{}", federation.log_text("aggregator"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let plan = |selector| {
        let bundle = federation.path("federation/operator");
        let address = federation.address().to_owned();
        runtime.block_on(async {
            let channel = Credentials::read(&bundle, "operator").unwrap().connect(&address).await.unwrap();
            let request = v1::PlanExportRequest { job: job.clone(), selector: Some(selector) };
            OperatorClient::new(channel).plan_export(request).await.map(tonic::Response::into_inner)
        })
    };
    let planned = plan(Selector::Last(true)).unwrap();
    let state = planned.state.unwrap().digest;
    assert!(data.join("artifacts/blake3").join(&state[..2]).join(&state).is_file(), "what is exported is there");
    for file in planned.base_model {
        let digest = file.artifact.unwrap().digest;
        assert!(data.join("artifacts/blake3").join(&digest[..2]).join(&digest).is_file(), "{}", file.name);
    }
    assert_eq!(federation.show(&job)["best_round"], 2);
    let refused = plan(Selector::Round(1)).unwrap_err();
    assert!(refused.message().contains("storage.retention"), "{refused}");
}
