//! What a job asks of the machine, and the choices that follow from it.

use chacha20::ChaCha8Rng;
use fedtune_config::Span;
use fedtune_config::job::{Admission, BelowQuorum, Cohort, Evaluator, Job, Metric, OnCollapse, Strategy};
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use super::{Best, RoundRecord, World};

fn millis(span: Span) -> u64 {
    span.0.as_millis().try_into().unwrap_or(u64::MAX)
}

/// The part of a job that decides how its rounds go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Number of rounds.
    pub rounds: u32,
    /// Size of the cohort; `None` for every site online, or a share of them.
    pub cohort: Option<usize>,
    /// The share of the sites online that are asked; `None` for all of them, or a number.
    #[serde(default)]
    pub share: Option<f64>,
    /// Least number of updates that count.
    pub quorum: usize,
    /// Updates with which a round closes; `None` to wait for all.
    #[serde(default)]
    pub target: Option<usize>,
    /// Longest time that a round with its quorum stays open.
    #[serde(default)]
    pub limit_ms: Option<u64>,
    /// How many rounds late an update may be to count; `None` where sites that a round closes without are told to stop.
    #[serde(default)]
    pub staleness_max: Option<u32>,
    /// Whether sites that have answered are given work before their round closes.
    #[serde(default)]
    pub asynchronous: bool,
    /// What becomes of a job below quorum after all attempts.
    #[serde(default)]
    pub below_quorum: BelowQuorum,
    /// Longest silence of a site at work.
    pub deadline_ms: u64,
    /// Attempts at a round.
    pub attempts: u32,
    /// Which updates count.
    #[serde(default)]
    pub admission: Admission,
    /// Who scores.
    pub by: Evaluator,
    /// What decides.
    pub metric: Metric,
    /// Rounds without a better state before the job stops; 0 for never.
    pub patience: u32,
    /// Least improvement.
    pub min_delta: f64,
    /// What is done when the model collapses.
    #[serde(default)]
    pub on_collapse: OnCollapse,
    /// Seed of the cohort's draw.
    pub seed: u64,
}

impl Plan {
    /// The plan of a job.
    pub fn of(job: &Job) -> Self {
        Self {
            rounds: job.rounds.count,
            cohort: match job.rounds.cohort {
                Cohort::Count(count) => Some(count),
                Cohort::All | Cohort::Share(_) => None,
            },
            share: match job.rounds.cohort {
                Cohort::Share(share) => Some(share),
                Cohort::All | Cohort::Count(_) => None,
            },
            quorum: job.rounds.quorum,
            target: job.rounds.target,
            limit_ms: job.rounds.limit.map(millis),
            staleness_max: job.rounds.staleness_max.filter(|_| job.rounds.keeps_late()),
            asynchronous: job.aggregation.strategy == Strategy::Fedbuff,
            below_quorum: job.rounds.below_quorum,
            deadline_ms: millis(job.rounds.deadline),
            attempts: job.rounds.attempts,
            admission: job.admission.clone(),
            by: job.evaluation.by,
            metric: job.metric(),
            patience: job.evaluation.patience,
            min_delta: job.evaluation.min_delta,
            on_collapse: job.evaluation.on_collapse,
            seed: job.training.seed,
        }
    }

    /// Whether who was heard of at this time counts as silent.
    pub(super) fn silent(&self, heard_ms: u64, world: &World) -> bool {
        world.now_ms.saturating_sub(heard_ms) > self.deadline_ms
    }

    /// Whether what began at this time is over its limit, if it has one.
    pub(super) fn over(&self, since_ms: u64, world: &World) -> bool {
        self.limit_ms.is_some_and(|limit| world.now_ms.saturating_sub(since_ms) >= limit)
    }

    /// Sites without which no round opens, where so many may come at all, and so many of them are willing.
    pub(super) fn needed(&self, known: usize, willing: usize) -> usize {
        // Those that refuse do not come; others may yet be enrolled.
        let cohort = self.cohort.map_or(0, |cohort| if known >= cohort { cohort.min(willing) } else { cohort });
        self.quorum.max(cohort)
    }

    /// With how many updates a round closes while so many sites are at work on it; `None` to wait for all.
    pub(super) fn closes_with(&self, sites: usize) -> Option<usize> {
        let half = || self.asynchronous.then(|| sites.div_ceil(2).max(self.quorum));
        self.target.or_else(half)
    }

    /// Draws the cohort from the willing sites: all, or a partial Fisher-Yates shuffle of their sorted names, by seed,
    /// round and attempt.
    pub(super) fn draw_cohort(&self, willing: &[&String], round: u32, attempt: u32) -> Vec<String> {
        let mut names: Vec<String> = willing.iter().map(|name| (*name).clone()).collect();
        let share = self.share.map(|share| (share * names.len() as f64).ceil() as usize);
        let Some(size) = self.cohort.or(share.map(|size| size.max(self.quorum))) else { return names };
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..12].copy_from_slice(&round.to_le_bytes());
        key[12..16].copy_from_slice(&attempt.to_le_bytes());
        let mut random = ChaCha8Rng::from_seed(key);
        for i in 0..size.min(names.len()) {
            let other = random.random_range(i as u64..names.len() as u64);
            names.swap(i, usize::try_from(other).unwrap_or(i));
        }
        names.truncate(size);
        names.sort();
        names
    }

    /// Who scores the state of a round.
    pub(super) fn judges(&self, record: &RoundRecord, world: &World) -> Vec<String> {
        match self.by {
            Evaluator::Evaluator => world.evaluators.iter().cloned().collect(),
            Evaluator::Sites => record.sites.keys().cloned().collect(),
            Evaluator::None => Vec::new(),
        }
    }

    /// The better of what was best and a new round. Without an evaluation the newer round is taken.
    pub(super) fn better(&self, best: Option<Best>, record: &RoundRecord) -> Option<Best> {
        let Some(sums) = record.evaluation() else {
            let unscored = Best { round: record.round, score: None };
            return best.filter(|best| best.score.is_some()).or(Some(unscored));
        };
        // Larger is better from here on.
        let score = sums.measure(self.metric.name()).map_or(f64::NAN, |value| self.metric.score(value));
        let candidate = Best { round: record.round, score: Some(score) };
        match best.and_then(|best| best.score) {
            // A score that is not a number never beats one that is.
            Some(old) if score.is_nan() || score <= old + self.min_delta => best,
            _ => Some(candidate),
        }
    }
}
