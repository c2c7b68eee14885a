//! The gRPC edge: decode, check who asks, call the coordinator, encode. No decision is taken here.

mod artifacts;
mod calls;
mod drain;
mod entrance;
mod federation;
mod identity;
mod limits;
mod operator;
mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fedtune_config::ServerConfig;
use fedtune_config::server::{Retention as Keep, Tls};
use fedtune_proto::v1::artifacts_server::ArtifactsServer;
use fedtune_proto::v1::federation_server::FederationServer;
use fedtune_proto::v1::operator_server::OperatorServer;
use fedtune_proto::{CONNECTION_WINDOW_BYTES, DESCRIPTORS, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::server::NamedService;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use calls::Calls;
use drain::Drain;
use limits::SiteLimits;

use crate::coordinator;
use crate::health::{Health, Report};
use crate::metrics::Metrics;
use crate::operations::Operations;
use crate::retention::Retention;
use crate::store::{Artifacts, Records, StoreError};

/// For calls that are cut off to sync what they have.
const CUT_TIME: Duration = Duration::from_secs(5);
/// From the end of the last call to that of the connections.
const FAREWELL: Duration = Duration::from_secs(1);

/// The aggregator cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A PEM file cannot be read.
    #[error("{path}: {source}; `fedtune-server init` makes the certificates", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {source}; set {field} to a free address of this machine")]
    Listen {
        /// Where it is configured.
        field: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The transport failed.
    #[error("the gRPC transport failed: {0}")]
    Transport(String),
    /// It was told twice to stop.
    #[error("stopped at once; calls in progress were cut off, and what they had acknowledged is kept")]
    Interrupted,
}

/// An aggregator that has bound its address and opened its storage.
#[derive(Debug)]
pub struct Aggregator {
    listener: TcpListener,
    limits: SiteLimits,
    drain: Duration,
    address: SocketAddr,
    tls: ServerTlsConfig,
    http: Option<(TcpListener, SocketAddr)>,
    artifacts: Artifacts,
    handle: coordinator::Handle,
    health: Health,
    metrics: Metrics,
    retention: Retention,
    /// How long a link may be silent.
    silence: Duration,
}

/// The data folder's parts.
///
/// # Errors
/// The folder cannot be made, or storage cannot be opened.
pub async fn open_storage(data: &Path) -> Result<(Records, Artifacts), StoreError> {
    std::fs::create_dir_all(data).map_err(|source| StoreError::File { path: data.to_path_buf(), source })?;
    Ok((Records::open(&data.join("records.sqlite")).await?, Artifacts::open(&data.join("artifacts"))?))
}

impl Aggregator {
    /// Binds the address, opens storage, and resumes the job that was running.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn open(config: ServerConfig) -> Result<Self, ServeError> {
        let ServerConfig { listen, tls, storage, sessions, limits, log: _ } = config;
        let tls = read_tls(&tls)?;
        let (listener, address) = bind("listen.address", listen.address).await?;
        let http = match listen.http {
            Some(http) => Some(bind("listen.http", http).await?),
            None => None,
        };
        let (records, artifacts) = open_storage(&storage.data).await?;
        let (metrics, site_limits) = (Metrics::new(), SiteLimits::new(&limits));
        let silence = sessions.timeout.0;
        let handle = coordinator::start(records.clone(), artifacts.clone(), limits, sessions, metrics.clone());
        let handle = handle.await?;
        let keep = match storage.retention {
            Keep::Forever => None,
            Keep::After(keep) => Some(keep.0),
        };
        let retention = Retention { records: records.clone(), artifacts: artifacts.clone(), keep };
        let health = Health::start(records, artifacts.clone(), handle.clone(), metrics.clone());
        health.settled().await;
        Ok(Self {
            listener,
            limits: site_limits,
            drain: listen.drain.0,
            address,
            tls,
            http,
            artifacts,
            handle,
            health,
            metrics,
            retention,
            silence,
        })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address at which it tells of its health.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `stop` gives something. Then it takes no new calls, tells the sites to come again, gives the calls in
    /// progress `listen.drain` to end, and ends the others with what they have. A second one ends it at once.
    ///
    /// # Errors
    /// The transport failed, or it was told twice to stop.
    pub async fn serve(self, mut stop: mpsc::Receiver<()>) -> Result<(), ServeError> {
        let Self {
            listener,
            limits,
            drain: patience,
            address,
            tls,
            http,
            artifacts,
            handle,
            health: readiness,
            metrics,
            retention,
            silence,
        } = self;
        let (ask, wait) = fedtune_proto::channel::keep_alive(silence);
        let transport = |e: tonic::transport::Error| ServeError::Transport(fedtune_proto::channel::chain(&e));
        let (reporter, health) = tonic_health::server::health_reporter();
        // All of it ends with this call.
        let mut beside = JoinSet::new();
        let reports = readiness.reports();
        announce(&reports, &reporter).await;
        beside.spawn(follow(reports, reporter));
        if let Some((listener, http)) = http {
            info!(%http, "listening for monitoring");
            let operations =
                Operations { health: readiness.clone(), coordinator: handle.clone(), metrics: metrics.clone() };
            beside.spawn(async move { match operations.serve(listener).await {} });
        }
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|e| ServeError::Transport(e.to_string()))?;
        beside.spawn(async move { match retention.run().await {} });
        let drain = Drain::default();
        let federation = federation::Service::new(handle.clone(), artifacts.clone(), metrics.clone(), limits.clone());
        let federation = FederationServer::new(federation).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let store =
            artifacts::Service::new(handle.clone(), artifacts.clone(), metrics.clone(), drain.clone(), limits.clone());
        let store = ArtifactsServer::new(store).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let operator = operator::Service::new(handle.clone(), artifacts, drain.clone());
        let operator = OperatorServer::new(operator).max_decoding_message_size(MESSAGE_BYTES_MAX);
        info!(%address, "listening");

        let around = (metrics, drain.clone(), limits);
        let server = Server::builder()
            .tls_config(tls)
            .map_err(transport)?
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(Some(64))
            .http2_keepalive_interval(Some(ask))
            .http2_keepalive_timeout(Some(wait))
            .layer(tower::layer::layer_fn(move |inner| {
                let (metrics, drain, limits) = around.clone();
                Calls { inner, metrics, drain, limits }
            }))
            .add_service(health)
            .add_service(reflection)
            .add_service(federation)
            .add_service(store)
            .add_service(operator)
            .serve_with_incoming_shutdown(entrance::connections(listener, silence), drain.clone().stopped());
        tokio::pin!(server);
        tokio::select! {
            // Without having been told.
            served = &mut server => return served.map_err(transport),
            _ = stop.recv() => {}
        }
        info!(drain = ?patience, "stopping");
        readiness.stopping();
        drain.stop();
        // Where it has ended there are no sessions.
        let _ = handle.drain().await;
        let ended = async {
            if tokio::time::timeout(patience, drain.idle()).await.is_err() {
                warn!(calls = drain.cut_off(), "calls in progress took too long and are cut off");
                let _ = tokio::time::timeout(CUT_TIME, drain.idle()).await;
            }
            // For the answers, and for streams that their receivers hold open.
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::pin!(ended);
        tokio::select! {
            served = &mut server => served.map_err(transport)?,
            () = &mut ended => {}
            _ = stop.recv() => return Err(ServeError::Interrupted),
        }
        info!("stopped");
        Ok(())
    }
}

/// Binds an address; `field` is where it is configured.
async fn bind(field: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let refused = |source| ServeError::Listen { field, address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener, bound))
}

/// Keeps the gRPC health service at what readiness says.
async fn follow(mut reports: watch::Receiver<Report>, reporter: HealthReporter) {
    while reports.changed().await.is_ok() {
        announce(&reports, &reporter).await;
    }
}

/// Tells the gRPC health service, as a whole and for sites, whether the aggregator is ready.
async fn announce(reports: &watch::Receiver<Report>, reporter: &HealthReporter) {
    let ready = reports.borrow().ready;
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    reporter.set_service_status("", status).await;
    reporter.set_service_status(<FederationServer<federation::Service> as NamedService>::NAME, status).await;
}

fn read_tls(tls: &Tls) -> Result<ServerTlsConfig, ServeError> {
    let read = |path: &Path| std::fs::read(path).map_err(|source| ServeError::Pem { path: path.to_path_buf(), source });
    Ok(ServerTlsConfig::new()
        .identity(Identity::from_pem(read(&tls.certificate)?, read(&tls.key)?))
        .client_ca_root(Certificate::from_pem(read(&tls.ca)?)))
}
