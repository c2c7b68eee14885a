//! Every way a command can fail, and its exit code.

use std::path::PathBuf;

use fedtune_config::ConfigError;

use crate::data::DataError;
use crate::device::DeviceError;
use crate::exit::Exit;
use crate::finetune::FinetuneError;
use crate::model::ModelError;
use crate::session::SessionError;

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// site.toml or job.toml.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A labelled file.
    #[error("{0}")]
    Data(#[from] DataError),
    /// A model.
    #[error("{0}")]
    Model(#[from] ModelError),
    /// A model by its name.
    #[cfg(feature = "hub")]
    #[error("{0}")]
    Hub(#[from] crate::hub::HubError),
    /// The device.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// Training or evaluation.
    #[error("{0}")]
    Finetune(#[from] FinetuneError),
    /// A site's life in a federation.
    #[error("{0}")]
    Session(#[from] SessionError),
    /// Data with findings, where a person asked for none.
    #[error("--strict: {0} of the findings above must be settled first")]
    Findings(usize),
    /// Arguments that contradict each other.
    #[error("{0}")]
    Usage(String),
    /// A result that cannot be written.
    #[error("cannot write {}: {source}; check the folder's permissions and the free space", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl CliError {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        let model = |error: &ModelError| match error {
            error if error.is_storage() => Exit::Storage,
            ModelError::Compute(_) => Exit::Unexpected,
            _ => Exit::Model,
        };
        match self {
            Self::Config(_)
            | Self::Finetune(
                FinetuneError::NothingPretrained { .. }
                | FinetuneError::NothingToProbe { .. }
                | FinetuneError::Model(ModelError::Recompute),
            ) => Exit::Configuration,
            Self::Data(_) | Self::Findings(_) => Exit::Data,
            Self::Model(error) => model(error),
            #[cfg(feature = "hub")]
            Self::Hub(_) => Exit::Model,
            Self::Device(_) => Exit::Device,
            Self::Finetune(FinetuneError::Model(error)) => model(error),
            Self::Finetune(
                FinetuneError::NoRows { .. }
                | FinetuneError::OtherTargets
                | FinetuneError::Image(_)
                | FinetuneError::TooFewForFolds { .. }
                | FinetuneError::Data(_),
            ) => Exit::Data,
            Self::Finetune(FinetuneError::TooFewSettings { .. }) => Exit::Usage,
            Self::Finetune(FinetuneError::Checkpoint { .. }) => Exit::Storage,
            Self::Finetune(FinetuneError::Cancelled { .. }) => Exit::Interrupted,
            Self::Finetune(FinetuneError::Diverged { .. }) => Exit::JobFailed,
            Self::Session(error) => error.exit(),
            Self::Usage(_) => Exit::Usage,
            Self::Write { .. } => Exit::Storage,
        }
    }
}
