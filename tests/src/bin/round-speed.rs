//! Benchmark: a round without training, phase by phase, beside what TLS alone does over this machine's loopback.
//!
//! Starts the real aggregator, and in this process sites that speak the protocol and send made-up updates. All sites begin
//! each phase together. `cargo run --release -p fedtune-tests --bin round-speed -- --megabytes 90 --sites 2 --sites 8`

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use fedtune_proto::digest::ArtifactRef;
use fedtune_proto::transfer;
use fedtune_proto::v1::report_result_request::Outcome;
use fedtune_proto::v1::{self, TaskKind};
use fedtune_tests::{Federation, SyntheticSite, delta_file, model_folder, state_file, text};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tokio::sync::Barrier;

/// Bytes that are written in one go, as transfers do.
const PIECE: usize = fedtune_proto::CHUNK_BYTES;

#[derive(Parser)]
#[command(about = "Measures a round without training, phase by phase")]
struct Arguments {
    /// Size of the state in megabytes (10^6 bytes); may be given more than once
    #[arg(long, default_values_t = [1, 90, 440])]
    megabytes: Vec<u64>,
    /// Number of sites; may be given more than once
    #[arg(long, default_values_t = [2, 8])]
    sites: Vec<usize>,
    /// Megabytes that are sent over bare TLS
    #[arg(long, default_value_t = 1000)]
    tls_megabytes: u64,
}

fn main() -> anyhow::Result<()> {
    let Arguments { megabytes, sites, tls_megabytes } = Arguments::parse();
    let (rate, cipher) = tls_rate(&Federation::start().path("federation/pki"), tls_megabytes)?;
    println!("bare TLS over loopback, one connection: {rate:.0} MB/s, {cipher}");
    println!(
        "{:>6} {:>5} {:>10} {:>8} {:>8} {:>11} {:>8} {:>8} {:>12}",
        "MB", "sites", "download s", "upload s", "check s", "aggregate s", "commit s", "round s", "times 2 TLS"
    );
    for megabytes in megabytes {
        for &sites in &sites {
            let Phases { download, upload, check, aggregate, commit } = round(megabytes, sites)?;
            let whole = download + upload + check + aggregate + commit;
            let moved = (2 * sites as u64 * megabytes) as f64;
            println!(
                "{megabytes:>6} {sites:>5} {download:>10.2} {upload:>8.2} {check:>8.2} {aggregate:>11.2} {commit:>8.2} {whole:>8.2} {:>12.2}",
                whole / (2.0 * moved / rate)
            );
        }
    }
    Ok(())
}

/// Seconds of each phase of a round.
struct Phases {
    download: f64,
    upload: f64,
    check: f64,
    aggregate: f64,
    commit: f64,
}

fn round(megabytes: u64, sites: usize) -> anyhow::Result<Phases> {
    let federation = Federation::start();
    let work = federation.path("synthetic");
    let job = model_folder(&work, 1, sites)?;
    let state = state_file(&work.join("state"), megabytes * 250_000)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let together = Arc::new(Barrier::new(sites));
    let mut running = tokio::task::JoinSet::new();
    for i in 0..sites {
        let update = delta_file(&work.join(format!("update-{i}")), megabytes * 250_000, 7 + i as u64)?;
        let bundle = federation.enrol(&format!("site-{i}"), "site");
        let folder = work.join(format!("site-{i}"));
        std::fs::create_dir_all(&folder)?;
        let (address, state, together) = (federation.address().to_owned(), state.clone(), together.clone());
        let site = async move {
            let site = SyntheticSite::connect(&address, &bundle).await?;
            phases(site, &state, &update, &folder, &together).await
        };
        running.spawn_on(site, runtime.handle());
    }
    let id = federation.operator(&["job", "submit", text(&job)]).ok().stdout;
    let mut times = [Duration::ZERO; 3];
    let mut reported = Instant::now();
    while let Some(ended) = runtime.block_on(running.join_next()) {
        // Alike at all sites but for the moment a barrier takes.
        (times, reported) = ended??;
    }
    let shown = federation.ended(id.trim(), "completed");
    let aggregate = shown["rounds"][0]["aggregate_seconds"].as_f64().context("no time of the pass")?;
    let [download, upload, check] = times.map(|time| time.as_secs_f64());
    // Seen by asking ten times a second.
    let commit = (reported.elapsed().as_secs_f64() - aggregate).max(0.0);
    Ok(Phases { download, upload, check, aggregate, commit })
}

/// One site's round. Gives how long it took to fetch the state, to send the update, and to have it checked, and when that was.
async fn phases(
    mut site: SyntheticSite,
    state: &Path,
    update: &Path,
    folder: &Path,
    together: &Barrier,
) -> anyhow::Result<([Duration; 3], Instant)> {
    let _beating = site.beat();
    let task = loop {
        let task = site.task().await?;
        if task.id.as_ref().map(v1::TaskId::kind) == Some(TaskKind::Train) {
            break task;
        }
        let (artifact, _) = site.upload(state).await?;
        let recipe_json = r#"{"config_json":"{}","tensors":[]}"#.into();
        let initialized = v1::Initialized { state: Some(artifact), recipe_json };
        site.report(&task, Outcome::Initialized(initialized)).await?;
    };
    // A site names an update when it stores it, before it sends it.
    let sent = v1::Artifact::from(ArtifactRef::of_file(update)?);
    let fetched: PathBuf = folder.join("state");
    let artifact = task.state.clone().context("no state")?;
    let mut times = [Duration::ZERO; 3];
    together.wait().await;
    let began = Instant::now();
    transfer::download(&site.channel, &artifact, &fetched).await?;
    together.wait().await;
    times[0] = began.elapsed();
    let began = Instant::now();
    transfer::upload(&site.channel, &sent, update).await?;
    together.wait().await;
    times[1] = began.elapsed();
    let began = Instant::now();
    let trained =
        v1::Trained { update: Some(sent), examples: 10, train_loss: 0.5, train_seconds: 1.0, relative_error: 0.0 };
    let answer = site.report(&task, Outcome::Trained(trained)).await?;
    anyhow::ensure!(answer.accepted, "{}", answer.reason);
    together.wait().await;
    times[2] = began.elapsed();
    Ok((times, Instant::now()))
}

/// Megabytes a second that one connection of rustls moves over loopback, and its cipher.
fn tls_rate(pki: &Path, megabytes: u64) -> anyhow::Result<(f64, String)> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_file_iter(pki.join("server.pem"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(pki.join("server-key.pem"))?;
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.join("ca.pem"))?)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let bytes = megabytes * 1_000_000;
    let receiving = std::thread::spawn(move || -> anyhow::Result<()> {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(server))?, listener.accept()?.0);
        let (mut left, mut piece) = (bytes, vec![0; PIECE]);
        while left > 0 {
            let length = stream.read(&mut piece)?;
            anyhow::ensure!(length > 0, "{left} bytes did not come");
            left -= length as u64;
        }
        // The clock stops when all is read.
        stream.write_all(b"!")?;
        Ok(stream.flush()?)
    });
    let connection = ClientConnection::new(Arc::new(client), "localhost".try_into()?)?;
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
    stream.conn.complete_io(&mut stream.sock)?;
    let cipher = format!("{:?}", stream.conn.negotiated_cipher_suite().context("no cipher")?.suite());
    let (began, piece, mut left) = (Instant::now(), vec![7; PIECE], bytes);
    while left > 0 {
        let length = left.min(PIECE as u64);
        stream.write_all(&piece[..usize::try_from(length)?])?;
        left -= length;
    }
    stream.flush()?;
    stream.read_exact(&mut [0])?;
    let rate = megabytes as f64 / began.elapsed().as_secs_f64();
    receiving.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    Ok((rate, cipher))
}
