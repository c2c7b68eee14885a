//! The gRPC edge: decode, check who asks, call the coordinator, encode. No decision is taken here.

mod artifacts;
mod federation;
mod identity;
mod operator;
mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fedtune_config::ServerConfig;
use fedtune_config::server::Tls;
use fedtune_proto::v1::artifacts_server::ArtifactsServer;
use fedtune_proto::v1::federation_server::FederationServer;
use fedtune_proto::v1::operator_server::OperatorServer;
use fedtune_proto::{CONNECTION_WINDOW_BYTES, DESCRIPTORS, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tracing::info;

use crate::coordinator;
use crate::store::{Artifacts, Records, StoreError};

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
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}; set listen.address to a free address of this machine")]
    Listen {
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
}

/// An aggregator that has bound its address and opened its storage.
#[derive(Debug)]
pub struct Aggregator {
    incoming: TcpIncoming,
    address: SocketAddr,
    tls: ServerTlsConfig,
    artifacts: Artifacts,
    handle: coordinator::Handle,
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
        let refused = |source| ServeError::Listen { address: listen.address, source };
        let listener = TcpListener::bind(listen.address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let (records, artifacts) = open_storage(&storage.data).await?;
        let silence = sessions.timeout.0;
        let handle = coordinator::start(records, artifacts.clone(), limits, sessions).await?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        Ok(Self { incoming, address, tls, artifacts, handle, silence })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is ready, then ends open calls.
    ///
    /// # Errors
    /// The transport failed.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { incoming, address, tls, artifacts, handle, silence } = self;
        let (ask, wait) = fedtune_proto::channel::keep_alive(silence);
        let transport = |e: tonic::transport::Error| ServeError::Transport(fedtune_proto::channel::chain(&e));
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<FederationServer<federation::Service>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|e| ServeError::Transport(e.to_string()))?;
        let federation = federation::Service::new(handle.clone(), artifacts.clone());
        let federation = FederationServer::new(federation).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let store = artifacts::Service::new(handle.clone(), artifacts.clone());
        let store = ArtifactsServer::new(store).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let operator = operator::Service::new(handle, artifacts);
        let operator = OperatorServer::new(operator).max_decoding_message_size(MESSAGE_BYTES_MAX);
        info!(%address, "listening");

        let (stopping, stopped) = tokio::sync::oneshot::channel();
        let server = Server::builder()
            .tls_config(tls)
            .map_err(transport)?
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(Some(64))
            .http2_keepalive_interval(Some(ask))
            .http2_keepalive_timeout(Some(wait))
            .add_service(health)
            .add_service(reflection)
            .add_service(federation)
            .add_service(store)
            .add_service(operator)
            .serve_with_incoming_shutdown(incoming, async {
                stop.await;
                let _ = stopping.send(());
            });
        tokio::pin!(server);
        // Sessions are streams without an end; calls in progress get a moment, then the connections are dropped.
        let grace = async {
            let _ = stopped.await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        tokio::select! {
            served = &mut server => served.map_err(transport)?,
            () = grace => {}
        }
        info!("stopped");
        Ok(())
    }
}

fn read_tls(tls: &Tls) -> Result<ServerTlsConfig, ServeError> {
    let read = |path: &Path| std::fs::read(path).map_err(|source| ServeError::Pem { path: path.to_path_buf(), source });
    Ok(ServerTlsConfig::new()
        .identity(Identity::from_pem(read(&tls.certificate)?, read(&tls.key)?))
        .client_ca_root(Certificate::from_pem(read(&tls.ca)?)))
}
