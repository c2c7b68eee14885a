//! `run`: the aggregator.

use super::output::outln;
use std::path::PathBuf;

use clap::Args;
use fedtune_config::{ConfigError, ServerConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::warn;

use crate::api::Aggregator;
use crate::log;

/// Run the aggregator until it is told to stop (SIGTERM or Ctrl-C).
///
/// It then takes no new calls, gives those in progress the time of listen.drain, and ends; told a second time, it ends
/// at once. A job that was running goes on in the same round.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  fedtune-server run --config federation/server.toml\n\nEvery field of server.toml can be overridden: FEDTUNE_SERVER__LISTEN__ADDRESS=127.0.0.1:7443"
)]
pub(super) struct Run {
    /// The configuration, server.toml
    #[arg(long, default_value = "federation/server.toml", value_name = "FILE")]
    config: PathBuf,
}

/// Lets as many files be open as this process may have: each connection is one, and in a pass each update.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!("no more than {:?} files can be open: {e}", limit.current);
    }
}

impl Run {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let config: ServerConfig = fedtune_config::load(&self.config)?;
        let traces = log::init(&config.log).map_err(|e| ConfigError::whole(&self.config, e.to_string()))?;
        allow_open_files();
        let aggregator = Aggregator::open(config).await?;
        // For whoever started it: the addresses, known even when a port was 0.
        outln!("listening on {}", aggregator.address());
        if let Some(http) = aggregator.http_address() {
            outln!("monitoring at http://{http}");
        }
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (told, stop) = mpsc::channel(2);
        tell_supervisor(NotifyState::Ready);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tell_supervisor(NotifyState::Stopping);
                if told.send(()).await.is_err() {
                    return;
                }
            }
        });
        let served = aggregator.serve(stop).await;
        traces.flush().await;
        Ok(served?)
    }
}

/// Tells systemd, where it asks to be told (NOTIFY_SOCKET).
fn tell_supervisor(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(std::slice::from_ref(&state)) {
        warn!("systemd cannot be told that the state is {state:?}: {e}");
    }
}
