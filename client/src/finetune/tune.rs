//! Choosing settings by successive halving (Jamieson and Talwalkar 2016, 1502.07943): many are tried a little, and the
//! better ones again with more steps.

use std::path::Path;

use candle_core::Device;
use chacha20::ChaCha20Rng;
use fedtune_config::Job;
use fedtune_config::job::{Lora, Trainable, Training};
use rand::{RngExt, SeedableRng};

use super::error::FinetuneError;
use super::evaluate::evaluate;
use super::fit::{Plan, fit};
use super::metrics::Evaluation;
use super::progress::Observer;
use crate::data::Rows;
use crate::model::{Classifier, ModelSpec};

/// How often a draw that came before is drawn anew, for each trial.
const DRAWS: usize = 100;

/// What is trained, and the learning rates that suit that.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What is trained.
    pub trainable: Trainable,
    /// Least and greatest learning rate; drawn evenly by their logarithm.
    pub learning_rates: (f64, f64),
}

/// What settings are drawn from. None of the lists is empty, but for `ranks` where nothing has a rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranges {
    /// What may be trained.
    pub parts: Vec<Part>,
    /// Rows of a step.
    pub batch_sizes: Vec<usize>,
    /// Ranks of adapters; their weight over their rank stays that of the job.
    pub ranks: Vec<usize>,
}

impl Ranges {
    /// So many settings, all different, which follow from the seed; what is not drawn is as in `base`.
    ///
    /// # Errors
    /// The ranges do not hold so many.
    pub fn draw(&self, base: &Training, trials: usize, seed: u64) -> Result<Vec<Training>, FinetuneError> {
        let mut hasher = blake3::Hasher::new_derive_key("fedtune tuning v1");
        hasher.update(&seed.to_le_bytes());
        let mut generator = ChaCha20Rng::from_seed(*hasher.finalize().as_bytes());
        let mut found: Vec<Training> = Vec::with_capacity(trials);
        for _ in 0..trials.saturating_mul(DRAWS) {
            if found.len() == trials {
                break;
            }
            let Some(drawn) = self.draw_one(base, &mut generator) else { break };
            if !found.contains(&drawn) {
                found.push(drawn);
            }
        }
        match found.len() == trials {
            true => Ok(found),
            false => Err(FinetuneError::TooFewSettings { found: found.len(), trials }),
        }
    }

    /// `None` where a list is empty.
    fn draw_one(&self, base: &Training, generator: &mut ChaCha20Rng) -> Option<Training> {
        // The same numbers are drawn whatever the lists are, so that a longer list does not change every other draw.
        let shares: [f64; 4] = std::array::from_fn(|_| generator.random());
        let part = pick(&self.parts, shares[0])?;
        let (least, most) = part.learning_rates;
        let rate = least * (most / least).powf(shares[1]);
        // Three digits are as exact as anyone reads, and as short.
        let learning_rate = format!("{rate:.2e}").parse().unwrap_or(rate).clamp(least, most);
        let lora = match part.trainable {
            Trainable::Lora => {
                let lora = base.lora.clone().unwrap_or_default();
                let rank = *pick(&self.ranks, shares[3])?;
                Some(Lora { rank, alpha: lora.alpha / lora.rank.max(1) as f64 * rank as f64, ..lora })
            }
            _ => None,
        };
        Some(Training {
            trainable: part.trainable.clone(),
            learning_rate,
            batch_size: *pick(&self.batch_sizes, shares[2])?,
            // Where the head is all that is trained there is nothing to wait for it.
            probe: if part.trainable == Trainable::Head { 0.0 } else { base.probe },
            lora,
            ..base.clone()
        })
    }
}

fn pick<T>(list: &[T], share: f64) -> Option<&T> {
    list.get((share * list.len() as f64) as usize)
}

/// How often the better ones are chosen, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Halving {
    /// Choices; there is one more rung.
    pub halvings: u32,
    /// One in so many goes on to the next rung, with so many times the steps.
    pub factor: usize,
}

impl Halving {
    /// Steps of a rung, counted from 0, where the last has so many.
    fn steps(&self, rung: u32, whole: usize) -> usize {
        let parts = self.factor.max(1).saturating_pow(self.halvings - rung.min(self.halvings));
        whole.div_ceil(parts).max(1)
    }
}

/// Settings, and how far they came.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// The settings.
    pub training: Training,
    /// What each rung gave that they came to.
    pub rungs: Vec<Rung>,
}

/// What one run of a trial gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Rung {
    /// Optimiser steps.
    pub steps: usize,
    /// On the validation rows; `None` where training diverged.
    pub evaluation: Option<Evaluation>,
}

/// All trials, in the order in which they were drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuned {
    /// The trials.
    pub trials: Vec<Trial>,
    /// The place of the best one.
    pub best: usize,
}

/// Trains each of the settings on `rows` from the base model on and scores it on `validation` by the job's metric; the better
/// ones again, from the base model on, with more steps, until the last have those of the whole job. `observer` makes a watcher
/// of the run of a trial on a rung, both counted from 0, and `done` is told what it gave.
///
/// # Errors
/// No rows or settings, the model cannot be loaded for some settings, training fails, or all that is left diverges.
#[expect(clippy::too_many_arguments, reason = "where to train, on what, which settings, and whom to tell")]
pub fn successive_halving<O: Observer>(
    model: &Path,
    job: &Job,
    device: &Device,
    (rows, validation): (&Rows, &Rows),
    settings: Vec<Training>,
    halving: Halving,
    mut observer: impl FnMut(u32, usize) -> O,
    mut done: impl FnMut(u32, usize, &Rung),
) -> Result<Tuned, FinetuneError> {
    if validation.is_empty() {
        return Err(FinetuneError::NoRows { purpose: "validate on" });
    }
    let metric = job.metric();
    let mut trials: Vec<Trial> = settings.into_iter().map(|training| Trial { training, rungs: Vec::new() }).collect();
    let mut left: Vec<usize> = (0..trials.len()).collect();
    for rung in 0..=halving.halvings {
        let mut scored = Vec::with_capacity(left.len());
        let mut diverged = None;
        for place in left {
            let training = &trials[place].training;
            let whole = training.steps_per_round(rows.len()).saturating_mul(job.rounds.count as usize);
            let steps = halving.steps(rung, whole);
            let spec = ModelSpec::from(&Job { training: training.clone(), ..job.clone() });
            let mut classifier = Classifier::load(model, &spec, device)?;
            let plan = Plan { first_step: 0, steps, total_steps: steps, round: 1 };
            let mut observer = observer(rung, place);
            let evaluation = match fit(&mut classifier, rows, training, plan, &mut observer) {
                Ok(_) => Some(evaluate(&classifier, validation, training.batch_size, &mut super::progress::Silent)?),
                Err(error @ FinetuneError::Diverged { .. }) => {
                    diverged = Some(error);
                    None
                }
                Err(error) => return Err(error),
            };
            let found = Rung { steps, evaluation };
            done(rung, place, &found);
            if let Some(evaluation) = &found.evaluation {
                let score = evaluation.measure(metric.name()).map_or(f64::NAN, |value| metric.score(value));
                // What is not a number is worse than any.
                scored.push((score.max(f64::NEG_INFINITY), evaluation.loss(), place));
            }
            trials[place].rungs.push(found);
        }
        if scored.is_empty() {
            return Err(diverged.unwrap_or(FinetuneError::TooFewSettings { found: 0, trials: trials.len() }));
        }
        // Of equal ones the one of smaller loss, which says more than a share of few rows.
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        let kept = scored.len().div_ceil(halving.factor.max(1));
        left = scored.into_iter().take(kept).map(|(_, _, place)| place).collect();
    }
    Ok(Tuned { best: left.first().copied().unwrap_or_default(), trials })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn ranges() -> Ranges {
        Ranges {
            parts: vec![
                Part { trainable: Trainable::Full, learning_rates: (1e-5, 1e-3) },
                Part { trainable: Trainable::Lora, learning_rates: (1e-4, 1e-2) },
            ],
            batch_sizes: vec![8, 16],
            ranks: vec![2, 4],
        }
    }

    #[test]
    fn draws_follow_from_the_seed_and_stay_in_their_ranges() {
        let base = Training { lora: Some(Lora { rank: 8, alpha: 32.0, ..Lora::default() }), ..Training::default() };
        let drawn = ranges().draw(&base, 200, 3).unwrap();
        assert_eq!(drawn, ranges().draw(&base, 200, 3).unwrap());
        assert_ne!(drawn, ranges().draw(&base, 200, 4).unwrap());
        let mut low = 0;
        for training in &drawn {
            let (least, most) = if training.trainable == Trainable::Full { (1e-5, 1e-3) } else { (1e-4, 1e-2) };
            assert!((least..=most).contains(&training.learning_rate), "{training:?}");
            low += usize::from(training.learning_rate < (least * most).sqrt());
            assert!([8, 16].contains(&training.batch_size));
            match &training.lora {
                Some(lora) => assert!([(2, 8.0), (4, 16.0)].contains(&(lora.rank, lora.alpha))),
                None => assert_eq!(training.trainable, Trainable::Full),
            }
        }
        // Half of them below the middle by logarithm: six standard deviations are 42.
        assert!((58..142).contains(&low), "{low}");
        assert!(drawn.iter().any(|one| one.lora.is_some()) && drawn.iter().any(|one| one.lora.is_none()));
    }

    #[test]
    fn ranges_with_too_few_settings_are_refused() {
        let part = Part { trainable: Trainable::Head, learning_rates: (1e-3, 1e-3) };
        let ranges = Ranges { parts: vec![part], batch_sizes: vec![8, 16], ranks: Vec::new() };
        let base = Training { probe: 0.2, ..Training::default() };
        let drawn = ranges.draw(&base, 2, 1).unwrap();
        assert!(drawn.iter().all(|training| training.probe == 0.0 && training.learning_rate == 1e-3));
        let error = ranges.draw(&base, 3, 1).unwrap_err().to_string();
        assert!(error.contains("2 different settings") && error.contains("3 trials"), "{error}");
    }

    #[test]
    fn each_rung_has_more_steps_and_the_last_the_whole() {
        let halving = Halving { halvings: 2, factor: 3 };
        assert_eq!([0, 1, 2].map(|rung| halving.steps(rung, 100)), [12, 34, 100]);
        assert_eq!([0, 1, 2].map(|rung| halving.steps(rung, 2)), [1, 1, 2]);
        assert_eq!(Halving { halvings: 0, factor: 3 }.steps(0, 7), 7);
        assert_eq!(Halving { halvings: 1000, factor: 10 }.steps(0, 7), 1);
    }
}
