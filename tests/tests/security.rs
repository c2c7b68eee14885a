//! Who is let in: nobody without TLS, nobody of another authority, no site as an operator, nobody who is not enrolled.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use fedtune_proto::channel::Credentials;
use fedtune_proto::transfer::{self, TransferError};
use fedtune_proto::v1::operator_client::OperatorClient;
use fedtune_proto::v1::{self, ProtocolVersion};
use fedtune_tests::{Federation, SyntheticSite, program, run, text};
use tonic::Code;
use tonic::transport::Channel;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

#[test]
fn plaintext_is_refused() {
    let federation = Federation::start();
    let address = federation.address().replace("https://localhost", "127.0.0.1");
    // HTTP/2 without TLS, as a raw preface: the server must not answer with HTTP/2.
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut answer = Vec::new();
    // A reset is as good a refusal as an alert.
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.len() < 9 || answer[0] == 0x15, "an HTTP/2 answer: {answer:?}");
    // And the same through a whole gRPC client.
    runtime().block_on(async {
        let plain = Channel::from_shared(format!("http://{address}")).unwrap().connect().await;
        if let Ok(channel) = plain {
            let status = OperatorClient::new(channel).list_jobs(v1::ListJobsRequest {}).await.unwrap_err();
            assert_ne!(status.code(), Code::Ok);
        }
    });
    // A site cannot even be configured for it.
    let site = federation.path("plain.toml");
    std::fs::write(
        &site,
        format!("[aggregator]\naddress = \"http://{address}\"\nbundle = \"b\"\n[data]\ntrain = \"t.csv\"\n"),
    )
    .unwrap();
    run("fedtune-client", ["run", "--config", text(&site)])
        .failed(3, &["plain.toml:2", "aggregator.address", "no plaintext"]);
}

#[test]
fn an_unknown_authority_is_refused_by_both_sides() {
    let federation = Federation::start();
    let stranger = Federation::start();
    let foreign = stranger.enrol("north", "site");
    runtime().block_on(async {
        // Their authority does not know our server.
        let error = SyntheticSite::connect(federation.address(), &foreign).await.unwrap_err();
        assert!(format!("{error:#}").contains("UnknownIssuer"), "{error:#}");
        // Our authority's certificate with their key and certificate: our server does not know the client.
        let mixed = federation.path("mixed");
        std::fs::create_dir(&mixed).unwrap();
        std::fs::copy(federation.path("federation/pki/ca.pem"), mixed.join("ca.pem")).unwrap();
        for name in ["site.pem", "site-key.pem"] {
            std::fs::copy(foreign.join(name), mixed.join(name)).unwrap();
        }
        assert!(SyntheticSite::connect(federation.address(), &mixed).await.is_err());
    });
    // The real client says what is wrong and does not try for ever.
    let site = federation.path("foreign.toml");
    std::fs::write(federation.path("t.csv"), "text,label\na,b\n").unwrap();
    let body = format!(
        "[aggregator]\naddress = {:?}\nbundle = {:?}\n[data]\ntrain = \"t.csv\"\n",
        federation.address(),
        foreign
    );
    std::fs::write(&site, body).unwrap();
    run("fedtune-client", ["run", "--config", text(&site)]).failed(8, &["refused", "different federations"]);
    let body =
        format!("[aggregator]\naddress = {:?}\nbundle = \"mixed\"\n[data]\ntrain = \"t.csv\"\n", federation.address());
    std::fs::write(&site, body).unwrap();
    run("fedtune-client", ["run", "--config", text(&site)]).failed(8, &["refused", "different federations"]);
}

#[test]
fn a_connection_without_a_certificate_is_refused() {
    let federation = Federation::start();
    runtime().block_on(async {
        let ca = std::fs::read(federation.path("federation/pki/ca.pem")).unwrap();
        let tls = tonic::transport::ClientTlsConfig::new().ca_certificate(tonic::transport::Certificate::from_pem(ca));
        let endpoint = Channel::from_shared(federation.address().to_owned()).unwrap().tls_config(tls).unwrap();
        // TLS 1.3 tells of a missing certificate at the first call.
        if let Ok(channel) = endpoint.connect().await {
            assert!(OperatorClient::new(channel).list_jobs(v1::ListJobsRequest {}).await.is_err());
        }
    });
}

#[test]
fn a_site_certificate_is_refused_for_every_operator_call_and_the_other_way_round() {
    let federation = Federation::start();
    let bundle = federation.enrol("north", "site");
    runtime().block_on(async {
        let channel = Credentials::read(&bundle, "site").unwrap().connect(federation.address()).await.unwrap();
        let mut operator = OperatorClient::new(channel.clone());
        let job = || "x".to_owned();
        let answers = [
            operator.submit_job(v1::SubmitJobRequest::default()).await.map(drop),
            operator.list_jobs(v1::ListJobsRequest {}).await.map(drop),
            operator.show_job(v1::ShowJobRequest { job: job() }).await.map(drop),
            operator.watch_job(v1::WatchJobRequest { job: job() }).await.map(drop),
            operator.cancel_job(v1::CancelJobRequest { job: job() }).await.map(drop),
            operator.list_sites(v1::ListSitesRequest {}).await.map(drop),
            operator.plan_export(v1::PlanExportRequest { job: job(), selector: None }).await.map(drop),
        ];
        for answer in answers {
            let status = answer.unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied);
            assert!(status.message().contains("role operator"), "{}", status.message());
        }
        // With no task, a site may neither read nor store artifacts.
        let artifact = v1::Artifact { digest: "ab".repeat(32), size: 10 };
        let file = federation.path("x");
        std::fs::write(&file, b"0123456789").unwrap();
        for error in [
            transfer::download(&channel, &artifact, &federation.path("y")).await.unwrap_err(),
            transfer::upload(&channel, &artifact, &file).await.unwrap_err(),
        ] {
            assert!(
                matches!(&error, TransferError::Remote { status, .. } if status.code() == Code::PermissionDenied),
                "{error}"
            );
        }
        let operator = federation.path("federation/operator");
        let channel = Credentials::read(&operator, "operator").unwrap().connect(federation.address()).await.unwrap();
        let mut site = v1::federation_client::FederationClient::new(channel);
        let status = site.open_session(v1::OpenSessionRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
    });
}

#[test]
fn a_site_that_is_not_enrolled_and_an_incompatible_version_are_told_why() {
    let federation = Federation::start();
    let bundle = federation.enrol("north", "site");
    runtime().block_on(async {
        let newer = ProtocolVersion { major: 9, minor: 0 };
        let error = SyntheticSite::connect_as(federation.address(), &bundle, newer).await.unwrap_err();
        let error = format!("{error:#}");
        for part in ["incompatible versions", "synthetic-site 9.9", "9.0", "install programs"] {
            assert!(error.contains(part), "{error}");
        }
        SyntheticSite::connect(federation.address(), &bundle).await.unwrap();
    });
    // A certificate of the authority whose site is not in the records, as after a restored backup.
    let records = federation.path("federation/data");
    let bundle = federation.enrol("south", "site");
    let mut federation = federation;
    federation.kill_server();
    std::fs::remove_dir_all(records).unwrap();
    federation.start_server();
    runtime().block_on(async {
        let error = SyntheticSite::connect(federation.address(), &bundle).await.unwrap_err();
        assert!(format!("{error:#}").contains("site add south"), "{error:#}");
    });
}

#[test]
fn health_and_reflection_answer_over_mutual_tls() {
    let federation = Federation::start();
    let operator = federation.path("federation/operator");
    runtime().block_on(async {
        let channel = Credentials::read(&operator, "operator").unwrap().connect(federation.address()).await.unwrap();
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        let request = tonic_health::pb::HealthCheckRequest { service: "fedtune.v1.Federation".into() };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
        let mut reflection = tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(channel);
        let ask = tonic_reflection::pb::v1::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(tonic_reflection::pb::v1::server_reflection_request::MessageRequest::ListServices(
                String::new(),
            )),
        };
        let mut answers = reflection.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
        let answer = format!("{:?}", answers.message().await.unwrap().unwrap());
        for service in ["fedtune.v1.Federation", "fedtune.v1.Artifacts", "fedtune.v1.Operator"] {
            assert!(answer.contains(service), "{answer}");
        }
    });
}

/// Keys are readable by their owner only, and nothing is overwritten.
#[test]
fn keys_are_private_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let federation = Federation::start();
    let bundle = federation.enrol("north", "site");
    for key in [bundle.join("site-key.pem"), federation.path("federation/pki/ca-key.pem")] {
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600, "{}", key.display());
    }
    run("fedtune-server", ["init", "--dir", text(&federation.path("federation"))])
        .failed(1, &["holds a federation already"]);
    let config = federation.path("federation/server.toml");
    let again = federation.path("again");
    let words = ["site", "add", "north", "--config", text(&config), "--out", text(&again)];
    run("fedtune-server", words).failed(1, &["enrolled already"]);
    run("fedtune-server", ["site", "add", "No/rth", "--config", text(&config)]).failed(9, &["lower-case letters"]);
}

/// The programs ask for what they need and say so: each wrong use has its exit code.
#[test]
fn wrong_use_has_documented_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.toml");
    run("fedtune-server", ["run", "--config", text(&missing)]).failed(3, &["missing.toml", "cannot be read"]);
    run("fedtune-client", ["run", "--config", text(&missing)]).failed(3, &["missing.toml", "cannot be read"]);
    run("fedtune-server", ["job", "check", text(&missing)]).failed(3, &["missing.toml"]);
    run("fedtune-server", ["no-such-command"]).failed(2, &["no-such-command"]);
    run("fedtune-server", ["simulate", "--model", "x"]).failed(2, &["--train is missing"]);
    let away = ["job", "list", "--address", "https://localhost:1", "--operator", text(folder.path())];
    run("fedtune-server", away).failed(9, &["ca.pem", "a bundle has"]);
    for name in ["fedtune-server", "fedtune-client"] {
        let help = Command::new(program(name)).arg("--help").stderr(Stdio::inherit()).output().unwrap();
        assert!(String::from_utf8_lossy(&help.stdout).contains("Exit codes"), "{name}");
    }
}
