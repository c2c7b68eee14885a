//! `audit`: whether the records of a job hold.

use std::path::PathBuf;

use anyhow::bail;
use clap::Subcommand;
use fedtune_config::ServerConfig;
use serde_json::json;

use super::output::outln;
use super::{Output, print_json};
use crate::api::open_storage;
use crate::audit::{self, Finding};
use crate::exit::Unsound;

/// Whether the records of a job hold.
#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Recompute each state of a job from the state before it and the updates of its round
    ///
    /// Run this on the aggregator's machine; it reads the data folder and stores nothing. Every artifact that a round names
    /// is read and its digest compared, the strategy's pass runs again, and its result must be the recorded state, bit for
    /// bit. Exit code 11 if a round does not hold, or cannot be recomputed because updates were deleted.
    #[command(after_help = "Example:\n  fedtune-server audit verify 01997c5e --config federation/server.toml")]
    Verify {
        /// The job's id, or the beginning of it
        job: String,
        /// The aggregator's configuration
        #[arg(long, default_value = "federation/server.toml", value_name = "FILE")]
        config: PathBuf,
        /// How to print
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
}

impl Audit {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self::Verify { job, config, output } = self;
        let config: ServerConfig = fedtune_config::load(&config)?;
        if !config.storage.data.is_dir() {
            bail!("there is no data folder {}; storage.data names it", config.storage.data.display());
        }
        let (records, artifacts) = open_storage(&config.storage.data).await?;
        let mut found: Vec<_> =
            records.jobs().await?.into_iter().filter(|record| record.id.starts_with(&job)).collect();
        let (Some(record), true) = (found.pop(), found.is_empty()) else {
            bail!("{job:?} is not the beginning of exactly one job's id in {}", config.storage.data.display());
        };
        let rounds = records.rounds(&record.id).await?;
        let findings = audit::verify(&artifacts, &record, &rounds, |round, finding| {
            if output == Output::Text {
                let (word, reason) = in_words(finding);
                let state = round.state.digest.to_string();
                outln!("round {:>4}  {:>3} sites  {}  {word}{reason}", round.round, round.sites.len(), &state[..16]);
            }
        })
        .await?;
        if output == Output::Json {
            let rounds: Vec<_> = rounds
                .iter()
                .zip(&findings)
                .map(|(round, finding)| {
                    let (word, reason) = in_words(finding);
                    let reason = reason.trim_start_matches(": ");
                    json!({ "round": round.round, "state": round.state.digest.to_string(), "finding": word, "reason": reason })
                })
                .collect();
            print_json(&json!({ "job": record.id, "rounds": rounds }))?;
        }
        let bad = findings.iter().filter(|finding| **finding != Finding::Sound).count();
        if bad > 0 {
            return Err(Unsound { job: record.id, bad, rounds: rounds.len() }.into());
        }
        if output == Output::Text {
            outln!("all {} rounds of job {} follow from their updates", rounds.len(), record.id);
        }
        Ok(())
    }
}

fn in_words(finding: &Finding) -> (&'static str, String) {
    match finding {
        Finding::Sound => ("sound", String::new()),
        Finding::Incomplete(reason) => ("incomplete", format!(": {reason}")),
        Finding::Wrong(reason) => ("wrong", format!(": {reason}")),
    }
}
