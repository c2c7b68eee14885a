//! `simulate`: a whole federation on this machine.

use super::output::{out, outln};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use fedtune_config::job::{Metric, Task, suggested_kind};
use fedtune_config::{Job, demo};
use fedtune_proto::folder::ADAPTER_CONFIG;
use fedtune_proto::v1::ShowJobResponse;
use time::OffsetDateTime;
use time::macros::format_description;

use super::watch::View;
use super::{Output, print_json, table};
use crate::simulate::partition::{Partition, Table};
use crate::simulate::report::{Report, Score};
use crate::simulate::{self, Observer, SimulateError, Simulation};

/// Run a whole federation on this machine, out of the real programs.
///
/// Makes a throw-away authority, starts the aggregator and one client process a site on loopback with mutual TLS, splits
/// a labelled file among the sites, runs the job, and writes a run folder: report.json, model/ (the best model, in
/// Hugging Face layout) and logs/.
///
/// With neither --model nor --train nor --job it runs the embedded demo: three hospitals, none of which sees every kind
/// of note.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fedtune-server simulate\n  fedtune-server simulate --model MODEL --train train.csv --test test.csv --sites 3 --partition dirichlet:0.5 --rounds 3\n  fedtune-server simulate --job job.toml --train train.csv --test test.csv --partition column:hospital --baselines"
)]
pub(super) struct Simulate {
    /// Number of sites; 3 if absent, or as many as --partition column:NAME makes
    #[arg(long, value_name = "N")]
    sites: Option<usize>,
    /// Number of rounds; the job's if absent
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// The base model, a Hugging Face folder; the job's if absent
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Labelled rows to split among the sites, CSV or JSONL
    #[arg(long, value_name = "FILE")]
    train: Option<PathBuf>,
    /// Labelled rows on which an evaluator scores every round; without it sites score on a tenth of their own rows
    #[arg(long, value_name = "FILE")]
    test: Option<PathBuf>,
    /// Who gets which rows: iid, dirichlet:ALPHA (label skew, smaller is stronger) or column:NAME (one site a value)
    #[arg(long, value_name = "HOW")]
    partition: Option<Partition>,
    /// job.toml; if absent, a job with every default for the labels of --train, 2 epochs a round, logit
    /// adjustment for the labels' shares in --train, and the learning rate 1e-4 for small encoders, 5e-5 for
    /// hidden sizes above 512; for a model of tables what it was made for, 7 epochs a round at 1e-3, or 1e-2 if it is linear
    #[arg(long, value_name = "FILE")]
    job: Option<PathBuf>,
    /// Seed of the partition and of the job; the job's if absent
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// CPU threads of each site; the cores divided among them if absent
    #[arg(long, value_name = "N")]
    threads_per_site: Option<usize>,
    /// Also train each site alone and all data pooled, with the same budget (needs --test)
    #[arg(long)]
    baselines: bool,
    /// The run folder; runs/TIME if absent
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// json prints report.json on standard output
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// Epochs of each site in each round, where no job says.
const SIMULATED_EPOCHS: usize = 2;

/// Progress on standard error.
struct Terminal(View);

impl Observer for Terminal {
    fn note(&mut self, text: &str) {
        eprintln!("{text}");
    }
    fn job(&mut self, shown: &ShowJobResponse) {
        self.0.update(shown);
    }
    fn ended(&mut self, shown: &ShowJobResponse) {
        self.0.finish(shown);
    }
}

impl Simulate {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let output = self.output;
        let demo = self.model.is_none() && self.train.is_none() && self.job.is_none();
        let unpacked = tempfile::tempdir()?;
        let simulation = if demo { self.demo(unpacked.path())? } else { self.simulation()? };
        let out = simulation.out.clone();
        let report = simulate::run(simulation, &mut Terminal(View::new())).await?;
        if output == Output::Json {
            return print_json(&report);
        }
        out!("\n{}", summary(&report));
        outln!(
            "\nThe best model is in {}, the report in {}.",
            out.join("model").display(),
            out.join("report.json").display()
        );
        let model = out.join("model");
        let base = if model.join(ADAPTER_CONFIG).exists() { " --base BASE_MODEL" } else { "" };
        outln!("Use the model: fedtune-client predict --model {}{base} --data FILE --out FILE", model.display());
        Ok(())
    }

    fn demo(self, folder: &Path) -> anyhow::Result<Simulation> {
        eprintln!("embedded demo: a tiny BERT learns to route synthetic triage notes; no site sees every kind of note");
        demo::write(folder).map_err(SimulateError::file(folder))?;
        let with_demo = Self {
            job: Some(folder.join("job.toml")),
            train: Some(folder.join("data/train.csv")),
            test: Some(self.test.clone().unwrap_or_else(|| folder.join("data/test.csv"))),
            partition: Some(self.partition.clone().unwrap_or(match self.sites {
                None => Partition::Column("site".into()),
                Some(_) => Partition::Dirichlet(0.5),
            })),
            baselines: true,
            ..self
        };
        with_demo.simulation()
    }

    fn simulation(self) -> anyhow::Result<Simulation> {
        let usage = |reason: &str| SimulateError::Usage(reason.into());
        let train =
            self.train.ok_or_else(|| usage("--train is missing; expected a CSV or JSONL file with labelled rows"))?;
        if self.baselines && self.test.is_none() {
            return Err(usage("--baselines needs --test, on which they are compared").into());
        }
        let partition = self.partition.unwrap_or(Partition::Iid);
        let mut job = match &self.job {
            Some(path) => fedtune_config::load::<Job>(path)?,
            None => {
                let model = self
                    .model
                    .as_ref()
                    .ok_or_else(|| usage("--model is missing; expected a Hugging Face folder, or a job with --job"))?;
                let kind = suggested_kind(model);
                simulate::check_kind(kind)?;
                let labels = match kind.has_labels() {
                    true => Table::read(&train, Some("label"))?.labels()?,
                    false => BTreeMap::new(),
                };
                let mut job = Job::new("simulation", model, Task::new(kind, labels.keys().cloned().collect()));
                // What few rounds with differing sites want; on skewed splits it was the best of the recipes tried.
                job.training.epochs = job.training.epochs.or(Some(SIMULATED_EPOCHS));
                if kind.has_one_label() {
                    job.training.logit_adjustment = 1.0;
                    job.training.label_shares = labels.values().map(|count| *count as f64).collect();
                }
                job.rounds.quorum = match &partition {
                    Partition::Column(_) => 1,
                    _ => self.sites.unwrap_or(3),
                };
                job
            }
        };
        if let Some(model) = self.model {
            job.model.path = model;
        }
        job.model.path = std::path::absolute(&job.model.path)?;
        if let Some(rounds) = self.rounds {
            job.rounds.count = rounds;
        }
        if let Some(seed) = self.seed {
            job.training.seed = seed;
        }
        if self.test.is_none() && job.evaluation.by == fedtune_config::job::Evaluator::Evaluator {
            job.evaluation.by = fedtune_config::job::Evaluator::Sites;
        }
        // What the flags made of the job must be a sound job still.
        let job: Job = fedtune_config::parse(
            "the job with the flags of the command line".as_ref(),
            &job.to_toml(),
            std::iter::empty(),
        )?;
        let stamp =
            OffsetDateTime::now_utc().format(format_description!("[year][month][day]-[hour][minute][second]"))?;
        let seed = job.training.seed;
        Ok(Simulation {
            job,
            train,
            test: self.test,
            sites: self.sites,
            partition,
            seed,
            threads_per_site: self.threads_per_site,
            baselines: self.baselines,
            out: self.out.unwrap_or_else(|| Path::new("runs").join(stamp)),
        })
    }
}

/// The table at the end.
fn summary(report: &Report) -> String {
    let shown = |score: Score| match score.metric {
        Metric::Accuracy => format!("{:.1} %", 100.0 * score.value),
        _ => format!("{:.4}", score.value),
    };
    let mut rows: Vec<[String; 2]> = Vec::new();
    let best = report.best.map(|best| best.score);
    if let Some(baselines) = &report.baselines {
        rows.extend(baselines.local.iter().map(|local| [format!("{} alone", local.site), shown(local.score)]));
    }
    match report.best {
        Some(best) => rows.push([
            format!("federated, {} rounds (best: round {})", report.rounds.len(), best.round),
            shown(best.score),
        ]),
        None => rows.push([format!("federated, {} rounds", report.rounds.len()), "not evaluated".into()]),
    }
    if let Some(baselines) = &report.baselines {
        rows.push(["all data pooled (what sites may not do)".into(), shown(baselines.pooled.score)]);
    }
    let title = best.map_or("SCORE".into(), |best| best.metric.name().replace('_', " ").to_uppercase());
    let mut text = table::layout(["MODEL", &title], rows);
    if let (Some(best), Some(baselines)) = (best, &report.baselines) {
        let score = |score: Score| score.metric.score(score.value);
        let lead = baselines.local.iter().map(|local| score(best) - score(local.score)).fold(f64::INFINITY, f64::min);
        let verdict = match lead > 0.0 {
            true if best.metric == Metric::Accuracy => {
                format!("The federated model beats every site alone, by {:.1} points or more.", 100.0 * lead)
            }
            true => format!("The federated model beats every site alone, by {lead:.4} or more."),
            false => "Here the federated model does not beat every site alone.".into(),
        };
        text += &format!("\n{verdict}\n");
    }
    if let Some(peak) = report.aggregator_peak_rss_bytes {
        text += &format!("Aggregator: at most {:.0} MB of memory. ", peak as f64 / 1e6);
    }
    text + &format!("Whole run: {:.0} s.\n", report.wall_seconds)
}
