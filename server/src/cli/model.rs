//! `model`: what came out.

use super::output::outln;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::bail;
use clap::Subcommand;
use fedtune_proto::folder::{ADAPTER_TENSORS, TENSORS};
use fedtune_proto::v1::plan_export_request::Selector;

use super::Remote;

/// Export trained models.
#[derive(Debug, Subcommand)]
pub(super) enum Model {
    /// Write the model of a round as a Hugging Face folder, which transformers loads as it is
    #[command(
        after_help = "Examples:\n  fedtune-server model export 0199 --to model          the best round\n  fedtune-server model export 0199@last --to model     the last one\n  fedtune-server model export 0199@3 --to model        round 3"
    )]
    Export {
        /// The job's id or the beginning of it, then @ROUND, @best or @last; @best if absent
        #[arg(value_name = "JOB[@ROUND|@best|@last]")]
        which: Which,
        /// The folder to write; must not hold a model yet
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        #[command(flatten)]
        remote: Remote,
    },
}

/// A job and one of its rounds.
#[derive(Debug, Clone)]
pub(super) struct Which {
    job: String,
    selector: Selector,
}

impl FromStr for Which {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (job, round) = text.split_once('@').unwrap_or((text, "best"));
        let selector = match round {
            "best" => Selector::Best(true),
            "last" => Selector::Last(true),
            _ => Selector::Round(
                round
                    .parse()
                    .map_err(|_| format!("found {round:?} after @; expected a round's number, best or last"))?,
            ),
        };
        Ok(Self { job: job.into(), selector })
    }
}

impl Model {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self::Export { which, to, remote } = self;
        if to.join(TENSORS).exists() || to.join(ADAPTER_TENSORS).exists() {
            bail!("{} holds a model already; choose another folder with --to", to.display());
        }
        let round = remote.connect().await?.export(&which.job, which.selector, &to).await?;
        outln!("Wrote the model of round {round} to {}", to.display());
        Ok(())
    }
}
