//! `site`: who takes part.

use super::output::outln;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use fedtune_config::ServerConfig;
use serde_json::json;

use super::{Output, Remote, print_json, table};
use crate::api::open_storage;
use crate::coordinator::now_ms;
use crate::pki::{Authority, Identity, Role};

/// Enrol sites, list them.
#[derive(Debug, Subcommand)]
pub(super) enum Site {
    /// Enrol a site and write its certificate bundle
    ///
    /// Run this on the aggregator's machine: it needs the authority's key, which stands beside tls.ca. Give the folder
    /// it writes to the site engineer over a safe channel; it holds the site's private key.
    #[command(
        after_help = "Example:\n  fedtune-server site add north-hospital --out north-hospital-bundle\n\nThe site then names the folder as aggregator.bundle in its site.toml and runs fedtune-client run --config site.toml"
    )]
    Add {
        /// Lower-case letters, digits and inner hyphens
        name: String,
        /// What the site does
        #[arg(long, value_enum, default_value = "site")]
        role: RoleArg,
        /// The aggregator's configuration
        #[arg(long, default_value = "federation/server.toml", value_name = "FILE")]
        config: PathBuf,
        /// The folder to write; NAME-bundle if absent
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// List the enrolled sites, and which are online
    List {
        #[command(flatten)]
        remote: Remote,
        /// How to print
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum RoleArg {
    /// Trains on its own data
    Site,
    /// Scores each new state on its test file
    Evaluator,
}

impl Site {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add { name, role, config, out } => {
                let role = match role {
                    RoleArg::Site => Role::Site,
                    RoleArg::Evaluator => Role::Evaluator,
                };
                let identity = Identity::new(role, &name)?;
                let out = out.unwrap_or_else(|| format!("{name}-bundle").into());
                let config: ServerConfig = fedtune_config::load(&config)?;
                if out.exists() {
                    bail!("{} exists already; choose another folder with --out", out.display());
                }
                let (records, _) = open_storage(&config.storage.data).await?;
                if records.sites().await?.iter().any(|site| site.name == name) {
                    bail!("a site named {name:?} is enrolled already; choose another name");
                }
                let folder = config.tls.ca.parent().unwrap_or("".as_ref());
                Authority::open(folder)?.issue_bundle(&identity, &out)?;
                records.add_site(&identity, now_ms()).await?;
                outln!("Enrolled {name} as {role}; its bundle is in {}", out.display());
                Ok(())
            }
            Self::List { remote, output } => {
                let sites = remote.connect().await?.sites().await?;
                if output == Output::Json {
                    let sites: Vec<_> = sites
                        .iter()
                        .map(|s| json!({ "name": s.name, "role": s.role, "online": s.online, "program": s.program, "device": s.device, "memory_bytes": s.memory_bytes, "label_counts": s.label_counts.iter().map(|c| (c.label.clone(), c.examples.into())).collect::<serde_json::Map<_, _>>() }))
                        .collect();
                    return print_json(&sites);
                }
                let rows = sites.into_iter().map(|s| {
                    let online = if s.online { "online" } else { "offline" };
                    let examples: u64 = s.label_counts.iter().fold(0, |sum, count| sum.saturating_add(count.examples));
                    let examples = if s.label_counts.is_empty() { "-".into() } else { examples.to_string() };
                    [s.name, s.role, online.into(), s.device, s.program, examples]
                });
                table::print(["SITE", "ROLE", "SESSION", "DEVICE", "PROGRAM", "EXAMPLES"], rows);
                Ok(())
            }
        }
    }
}
