//! Why a site's life in a federation ended.

use std::io;
use std::path::PathBuf;

use fedtune_config::ConfigError;
use fedtune_proto::channel::ChannelError;

use crate::data::DataError;
use crate::device::DeviceError;
use crate::exit::Exit;

/// The site does not take part any more.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// site.toml.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The device.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// A labelled file, counted because the policy shares label counts.
    #[error("{0}")]
    Data(#[from] DataError),
    /// The bundle, or the address.
    #[error("{0}")]
    Channel(#[from] ChannelError),
    /// The aggregator will not have this site, or this site not that aggregator.
    #[error("{address}: refused: {reason}")]
    Refused {
        /// The aggregator.
        address: String,
        /// What it said.
        reason: String,
    },
    /// A file named in site.toml cannot be read.
    #[error("{path}: cannot be read: {source}; check the path in site.toml and the file's permissions", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused threads or signals.
    #[error("the system refused to start the network runtime: {0}")]
    Runtime(io::Error),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl SessionError {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Channel(ChannelError::Bundle { .. } | ChannelError::Malformed { .. }) => {
                Exit::Configuration
            }
            Self::Device(_) => Exit::Device,
            Self::Data(_) | Self::File { .. } => Exit::Data,
            Self::Channel(ChannelError::Connect { .. }) => Exit::Network,
            Self::Refused { .. } => Exit::Refused,
            Self::Runtime(_) => Exit::Unexpected,
            Self::Interrupted => Exit::Interrupted,
        }
    }
}
