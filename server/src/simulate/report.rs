//! report.json: what a simulation writes down. A stable interface, documented in `docs/report.md`.

use std::collections::BTreeMap;
use std::path::Path;

use fedtune_config::Job;
use fedtune_config::job::Metric;
use fedtune_proto::{v1, version};
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::SimulateError;

/// The whole report.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The exact text of the job.
    pub job: String,
    /// The programs that ran.
    pub versions: Versions,
    /// Seed of the partition and of the job.
    pub seed: u64,
    /// Every committed round.
    pub rounds: Vec<RoundReport>,
    /// The best round; `None` if nothing was evaluated.
    pub best: Option<BestReport>,
    /// What non-federated training reaches with the same budget; absent unless asked for.
    pub baselines: Option<Baselines>,
    /// The aggregator's peak resident memory; absent where the system does not tell.
    pub aggregator_peak_rss_bytes: Option<u64>,
    /// The last state's BLAKE3 digest.
    pub state_digest: String,
    /// From the first process to this report.
    pub wall_seconds: f64,
}

/// The programs that ran.
#[derive(Debug, Clone, Serialize)]
pub struct Versions {
    /// The aggregator.
    pub server: String,
    /// The sites.
    pub client: String,
    /// The protocol between them.
    pub protocol: String,
}

/// One committed round.
#[derive(Debug, Clone, Serialize)]
pub struct RoundReport {
    /// From 1.
    pub round: u32,
    /// Scores of its state; `None` if it was not evaluated.
    pub evaluation: Option<EvaluationReport>,
    /// Scores of its state at each site that evaluated.
    pub site_evaluations: BTreeMap<String, EvaluationReport>,
    /// The round whose state it started from, where that is not the one before it.
    pub from_round: Option<u32>,
    /// The state's BLAKE3 digest.
    pub state_digest: String,
    /// Whose updates counted.
    pub sites: Vec<SiteReport>,
    /// Whose answers did not count.
    pub left_out: Vec<SiteReason>,
    /// Whose updates count, but are remarkable.
    pub flags: Vec<SiteReason>,
    /// Time of the strategy's pass.
    pub aggregate_seconds: f64,
    /// From opening to evaluation.
    pub wall_seconds: f64,
}

/// Scores of a state.
#[derive(Debug, Clone, Serialize)]
pub struct EvaluationReport {
    /// The measures of the kind of task, by the names that jobs have for them.
    #[serde(flatten)]
    pub measures: BTreeMap<String, f64>,
    /// Number of examples.
    pub examples: u64,
}

/// One site in a round.
#[derive(Debug, Clone, Serialize)]
pub struct SiteReport {
    /// Its name.
    pub name: String,
    /// Distinct examples trained on.
    pub examples: u64,
    /// Mean training loss over the steps.
    pub train_loss: f64,
    /// Time of its fine-tuning.
    pub train_seconds: f64,
    /// Artifact bytes it sent.
    pub bytes_up: u64,
    /// Artifact bytes it received.
    pub bytes_down: u64,
    /// Euclidean norm of its update.
    pub norm: f64,
    /// What compression lost of it, as a share of its norm.
    pub relative_error: f64,
    /// How many rounds the state that it started from was behind.
    pub staleness: u32,
    /// The update's share in the combined one; `None` where every value has its own.
    pub share: Option<f64>,
}

/// Why an answer of a site does not count, or is remarkable.
#[derive(Debug, Clone, Serialize)]
pub struct SiteReason {
    /// The site.
    pub site: String,
    /// Why.
    pub reason: String,
}

/// The best round.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct BestReport {
    /// The round.
    pub round: u32,
    /// What it scores.
    #[serde(flatten)]
    pub score: Score,
}

/// A value of the first measure of the kind of task, under the measure's name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// The measure.
    pub metric: Metric,
    /// Its value.
    pub value: f64,
}

impl Serialize for Score {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map([(self.metric.name(), self.value)])
    }
}

/// Non-federated training with the same budget.
#[derive(Debug, Clone, Serialize)]
pub struct Baselines {
    /// Each site alone on its own rows.
    pub local: Vec<LocalBaseline>,
    /// All rows in one place.
    pub pooled: PooledBaseline,
}

/// A site alone.
#[derive(Debug, Clone, Serialize)]
pub struct LocalBaseline {
    /// The site.
    pub site: String,
    /// On the test file.
    #[serde(flatten)]
    pub score: Score,
}

/// All rows in one place.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PooledBaseline {
    /// On the test file.
    #[serde(flatten)]
    pub score: Score,
}

impl Report {
    pub(super) fn new(
        job: &Job,
        client: String,
        seed: u64,
        shown: &v1::ShowJobResponse,
        baselines: Option<Baselines>,
        aggregator_peak_rss_bytes: Option<u64>,
        wall_seconds: f64,
    ) -> Self {
        let rounds: Vec<RoundReport> = shown.rounds.iter().map(round).collect();
        let best_round = shown.summary.as_ref().map_or(0, |summary| summary.best_round);
        let best = rounds.iter().find(|round| round.round == best_round).and_then(|round| {
            let metric = job.task.kind.metrics()[0];
            let value = *round.evaluation.as_ref()?.measures.get(metric.name())?;
            Some(BestReport { round: round.round, score: Score { metric, value } })
        });
        let v1::ProtocolVersion { major, minor } = version::PROTOCOL;
        let versions =
            Versions { server: crate::PROGRAM.into(), client, protocol: format!("fedtune.v1 {major}.{minor}") };
        let state_digest = shown.rounds.last().map(|round| round.state_digest.clone()).unwrap_or_default();
        Self {
            job: job.to_toml(),
            versions,
            seed,
            rounds,
            best,
            baselines,
            aggregator_peak_rss_bytes,
            state_digest,
            wall_seconds,
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), SimulateError> {
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::other);
        text.and_then(|text| std::fs::write(path, text + "\n")).map_err(SimulateError::file(path))
    }
}

fn round(round: &v1::RoundSummary) -> RoundReport {
    let evaluation_of = |v1::Scores { examples, measures }: &v1::Scores| EvaluationReport {
        measures: measures.iter().map(|measure| (measure.name.clone(), measure.value)).collect(),
        examples: *examples,
    };
    let evaluation = round.scores.as_ref().map(evaluation_of);
    let site_evaluations = round.site_scores.iter();
    let site_evaluations =
        site_evaluations.filter_map(|of| Some((of.site.clone(), evaluation_of(of.scores.as_ref()?)))).collect();
    let sites = round.sites.iter().map(|site| SiteReport {
        name: site.site.clone(),
        examples: site.examples,
        train_loss: site.train_loss,
        train_seconds: site.train_seconds,
        bytes_up: site.bytes_up,
        bytes_down: site.bytes_down,
        norm: site.norm,
        relative_error: site.relative_error,
        staleness: site.staleness,
        share: site.share,
    });
    let reasons = |of: &[v1::SiteProblem]| -> Vec<SiteReason> {
        of.iter().map(|of| SiteReason { site: of.site.clone(), reason: of.reason.clone() }).collect()
    };
    RoundReport {
        round: round.round,
        evaluation,
        site_evaluations,
        from_round: round.from_round,
        state_digest: round.state_digest.clone(),
        sites: sites.collect(),
        left_out: reasons(&round.problems),
        flags: reasons(&round.flags),
        aggregate_seconds: round.aggregate_seconds,
        wall_seconds: round.wall_seconds,
    }
}

/// A round as it stands in report.json.
pub(crate) fn round_json(wire: &v1::RoundSummary) -> Value {
    serde_json::to_value(round(wire)).unwrap_or_default()
}
