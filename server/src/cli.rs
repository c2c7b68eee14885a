//! The command line: one module a command, each of them thin.

mod audit;
mod init;
mod job;
mod model;
mod output;
mod run;
mod simulate;
mod site;
mod table;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::exit;
use crate::operator::Operator;

/// The aggregator of a fedtune federation.
///
/// It sends a pre-trained model to sites, each of which fine-tunes it on its own private data, and averages the weight
/// deltas they send back into the next global model. It never sees data and never runs a model.
#[derive(Debug, Parser)]
#[command(name = "fedtune-server", version, after_help = exit::TABLE, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new federation: authority, certificates, server.toml and an example job
    Init(init::Init),
    /// Run the aggregator
    Run(run::Run),
    /// Enrol sites, list them
    #[command(subcommand)]
    Site(site::Site),
    /// Check, submit, list, show, watch, pause, resume and cancel jobs
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Recompute what a job made, from its records
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Export trained models
    #[command(subcommand)]
    Model(model::Model),
    /// Run a whole federation on this machine, out of the real programs; with no arguments, the embedded demo
    Simulate(simulate::Simulate),
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON document on standard output.
    Json,
}

/// Which aggregator, and who asks.
#[derive(Debug, Args)]
struct Remote {
    /// The aggregator's address
    #[arg(long, env = "FEDTUNE_ADDRESS", default_value = "https://localhost:7443", value_name = "URL")]
    address: String,
    /// The operator's bundle, as `fedtune-server init` made it
    #[arg(long, env = "FEDTUNE_OPERATOR", default_value = "federation/operator", value_name = "DIR")]
    operator: PathBuf,
}

impl Remote {
    async fn connect(&self) -> anyhow::Result<Operator> {
        Ok(Operator::connect(&self.address, &self.operator).await?)
    }
}

/// Threads that read, write and hash files; their number bounds the memory of many transfers at once.
const FILE_THREADS_MAX: usize = 4;

/// Runs what the command line asks for.
///
/// # Errors
/// What failed, with its causes; [`exit::code`] gives the exit code.
pub fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    // The one provider of this program, whatever its dependencies link; an embedding program may have chosen before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(FILE_THREADS_MAX).build()?;
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Init(command) => command.run().await,
            Command::Run(command) => command.run().await,
            Command::Site(command) => command.run().await,
            Command::Job(command) => command.run().await,
            Command::Audit(command) => command.run().await,
            Command::Model(command) => command.run().await,
            Command::Simulate(command) => command.run().await,
        }
    });
    // Nobody waits any more for what still runs there, such as the digest of a large upload that was cut off.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Prints one JSON document.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    output::outln!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A federation's folder for a simulation: loopback only, any free port.
///
/// # Errors
/// A file exists or cannot be written.
pub(crate) fn new_federation(dir: &std::path::Path) -> anyhow::Result<()> {
    init::create(dir, &[], "operator")?;
    let text = "[listen]\naddress = \"127.0.0.1:0\"\n[tls]\nca = \"pki/ca.pem\"\ncertificate = \"pki/server.pem\"\n\
                key = \"pki/server-key.pem\"\n[storage]\ndata = \"data\"\n";
    std::fs::write(dir.join("server.toml"), text)?;
    Ok(())
}
