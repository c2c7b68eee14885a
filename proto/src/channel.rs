//! Dialling the aggregator: one address, mutual TLS always, HTTP/2 set for bulk transfer.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};

/// How long a link may be silent unless something else is said. A ping waits behind what is in flight, at most
/// [`CONNECTION_WINDOW_BYTES`]: on a link of less than 13 kB/s it would come too late.
pub const SILENCE: Duration = Duration::from_secs(60);

/// Longest wait for a connection, and for its handshake.
const DIAL_MAX: Duration = Duration::from_secs(20);

/// After how long without a sign the other end is asked for one, and how long the answer may take, so that both together
/// are `silence`.
pub fn keep_alive(silence: Duration) -> (Duration, Duration) {
    (silence / 3, silence - silence / 3)
}

/// What one side needs to prove who it is: the authority, its own certificate and key, all PEM.
#[derive(Clone)]
pub struct Credentials {
    authority: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Credentials(..)")
    }
}

/// Dialling failed.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A PEM file of the bundle cannot be read.
    #[error("{path}: cannot be read: {source}; a bundle has ca.pem, NAME.pem and NAME-key.pem", path = path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The address or a PEM file is malformed.
    #[error("{address}: {reason}; expected \"https://host:port\" and PEM files as the operator made them")]
    Malformed {
        /// The address.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// Nobody answered, or the TLS handshake failed.
    #[error("{address}: cannot connect: {reason}")]
    Connect {
        /// The address.
        address: String,
        /// The whole chain of causes.
        reason: String,
    },
}

impl ChannelError {
    /// Whether one side's TLS refused the other's certificate.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Connect { reason, .. } if is_refusal(reason))
    }
}

/// Whether a transport error is a refusal by TLS: by our side ("invalid peer certificate") or the other ("fatal alert").
/// With TLS 1.3 the latter comes with the first call, not when connecting.
pub fn is_refusal(reason: &str) -> bool {
    ["invalid peer certificate", "fatal alert"].iter().any(|sign| reason.contains(sign))
}

/// A refusal by TLS with what to do about it.
pub fn explained(reason: &str) -> String {
    let remedy = if reason.contains("NotValidForName") {
        "; the server's certificate is for other host names: make it with `fedtune-server init --host NAME`, or use a name it has"
    } else if is_refusal(reason) {
        "; the bundle and the aggregator are of different federations, or a certificate has expired"
    } else {
        ""
    };
    format!("{reason}{remedy}")
}

impl Credentials {
    /// Reads `ca.pem`, `NAME.pem` and `NAME-key.pem` from a folder; `name` is `site` or `operator`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read(folder: &Path, name: &str) -> Result<Self, ChannelError> {
        let read = |file: String| {
            let path = folder.join(file);
            std::fs::read(&path).map_err(|source| ChannelError::Bundle { path, source })
        };
        Ok(Self {
            authority: read("ca.pem".into())?,
            certificate: read(format!("{name}.pem"))?,
            key: read(format!("{name}-key.pem"))?,
        })
    }

    /// Connects to `https://host:port`. See [`Self::connect_within`], with [`SILENCE`].
    ///
    /// # Errors
    /// The address or the PEM files are malformed, nobody answers, or the other side is not of this authority.
    pub async fn connect(&self, address: &str) -> Result<Channel, ChannelError> {
        self.connect_within(address, SILENCE).await
    }

    /// Connects to `https://host:port`. A link whose other end gives no sign for so long counts as broken: calls end, and
    /// the next one dials anew.
    ///
    /// # Errors
    /// The address or the PEM files are malformed, nobody answers, or the other side is not of this authority.
    pub async fn connect_within(&self, address: &str, silence: Duration) -> Result<Channel, ChannelError> {
        let (ask, wait) = keep_alive(silence);
        let malformed =
            |e: tonic::transport::Error| ChannelError::Malformed { address: address.to_owned(), reason: chain(&e) };
        let dial = wait.min(DIAL_MAX);
        let tls = ClientTlsConfig::new()
            .timeout(dial)
            .ca_certificate(Certificate::from_pem(&self.authority))
            .identity(Identity::from_pem(&self.certificate, &self.key));
        Endpoint::from_shared(address.to_owned())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(malformed)?
            .connect_timeout(dial)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(ask)
            .keep_alive_timeout(wait)
            .keep_alive_while_idle(true)
            .connect()
            .await
            .map_err(|e| ChannelError::Connect { address: address.to_owned(), reason: chain(&e) })
    }
}

/// Whether the link, or how much is asked at once, and not the request is at fault: the same may succeed later.
pub fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Internal
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            // An earlier call of ours, whose link broke, has not ended yet.
            | Code::Aborted
    )
}

/// An error with all its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    with_causes(error.to_string(), error.source())
}

/// What a call was answered, in one line; where the link broke, with the causes.
pub fn told(status: &Status) -> String {
    with_causes(status.message().to_owned(), std::error::Error::source(status))
}

fn with_causes(mut text: String, mut source: Option<&(dyn std::error::Error + 'static)>) -> String {
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // What tonic calls every one of them.
        if cause_text != "transport error" && !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the stream broke")]
    struct Broke(#[source] io::Error);

    #[test]
    fn a_broken_link_is_told_of_with_its_causes_and_a_refusal_as_it_is() {
        let broke = Status::from_error(Box::new(Broke(io::Error::other("the wire was cut"))));
        assert_eq!(told(&broke), "the stream broke: the wire was cut");
        assert_eq!(told(&Status::not_found("no job of this name")), "no job of this name");
    }
}
