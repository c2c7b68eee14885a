//! `init`: a new federation's folder.

use super::output::outln;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use crate::pki::{self, Authority, Identity, Role};

/// Make a new federation in a folder.
///
/// Writes pki/ (certificate authority and server certificate), operator/ (the operator's bundle), server.toml and an
/// example job.toml. Nothing that exists is overwritten.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  fedtune-server init --dir federation --host aggregator.example.org\n  fedtune-server run --config federation/server.toml"
)]
pub(super) struct Init {
    /// The folder to make
    #[arg(long, default_value = "federation", value_name = "DIR")]
    dir: PathBuf,
    /// Host name or address by which sites reach the aggregator; may be given more than once. localhost is always added
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// Name in the operator's certificate
    #[arg(long, default_value = "operator", value_name = "NAME")]
    operator: String,
}

/// server.toml of a new federation: the commented example, as it is.
const SERVER: &str = fedtune_config::examples::SERVER;

impl Init {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let dir = &self.dir;
        if dir.join("server.toml").exists() || dir.join("pki").exists() {
            bail!("{} holds a federation already; choose another folder with --dir", dir.display());
        }
        create(dir, &self.host, &self.operator)?;
        let job = fedtune_config::examples::JOB.replace("\"../demo/model\"", "\"path/to/a/hugging-face/model\"");
        write(&dir.join("server.toml"), SERVER)?;
        write(&dir.join("job.toml"), &job)?;
        let d = dir.display();
        outln!("Made the federation in {d}:");
        outln!("  {d}/pki         certificate authority and server certificate; keep ca-key.pem secret and backed up");
        outln!("  {d}/operator    the operator's bundle, for job and model commands (--operator {d}/operator)");
        outln!("  {d}/server.toml the aggregator's configuration");
        outln!("  {d}/job.toml    an example job\n");
        outln!("Next:");
        outln!("  fedtune-server run --config {d}/server.toml");
        outln!("  fedtune-server site add NAME --config {d}/server.toml");
        Ok(())
    }
}

/// Makes authority, server certificate and operator bundle in `dir`.
pub(crate) fn create(dir: &Path, hosts: &[String], operator: &str) -> anyhow::Result<Authority> {
    let operator = Identity::new(Role::Operator, operator)?;
    let mut hosts = hosts.to_vec();
    hosts.extend(["localhost", "127.0.0.1", "::1"].map(String::from));
    let pki = dir.join("pki");
    pki::create_folder(&pki)?;
    let authority = Authority::create(&pki)?;
    authority.issue_server(&hosts)?;
    authority.issue_bundle(&operator, &dir.join("operator"))?;
    Ok(authority)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("{}: cannot be written", path.display()))
}
