//! `run`: takes part in a federation.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::CliError;

/// Take part in a federation until stopped (SIGTERM or Ctrl-C).
///
/// Dials out to the aggregator named in site.toml and does what its jobs ask: fine-tunes on this site's own data, which
/// never leaves, and sends back weight deltas. A broken link is waited for; a finished update is kept on disk until the
/// aggregator has it.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  fedtune-client run --config site.toml\n\nEvery field of site.toml can be overridden: FEDTUNE_SITE__DEVICE__THREADS=8"
)]
pub(super) struct Arguments {
    /// The configuration, site.toml
    #[arg(long, default_value = "site.toml", value_name = "FILE")]
    config: PathBuf,
    /// What is logged to standard error: error, warn, info, debug, or a filter
    #[arg(long, env = "FEDTUNE_LOG", default_value = "info", value_name = "LEVEL")]
    log: String,
    /// The form of log lines
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Arguments {
    pub(super) fn run(self) -> Result<(), CliError> {
        let filter =
            EnvFilter::try_new(&self.log).map_err(|e| CliError::Usage(format!("--log: found {:?}: {e}", self.log)))?;
        let colours = std::io::stderr().is_terminal();
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
        match self.log_format {
            LogFormat::Text => log.with_target(false).init(),
            LogFormat::Json => log.json().flatten_event(true).init(),
        }
        Ok(crate::session::run(&self.config)?)
    }
}
