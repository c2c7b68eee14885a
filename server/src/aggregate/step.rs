//! How the state moves by the combined update: the server optimisers of Reddi et al. 2021 (2003.00295), value by value.

use fedtune_config::job::{Aggregation, Strategy};

/// A strategy at one round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    strategy: Strategy,
    /// η.
    rate: f64,
    /// β of the first moment, and β₂ of the second.
    betas: [f64; 2],
    /// τ.
    tau: f64,
    /// What the moments are divided by, since they started at zero.
    corrections: [f64; 2],
    /// What the second moment starts at.
    start: f64,
}

impl Step {
    /// The step of this number, counted from 1.
    pub(super) fn new(aggregation: &Aggregation, number: u32) -> Self {
        let betas = [aggregation.momentum.unwrap_or_default(), aggregation.second_momentum.unwrap_or_default()];
        let tau = aggregation.tau.unwrap_or_default();
        let corrected = aggregation.bias_correction == Some(true);
        Self {
            strategy: aggregation.strategy,
            rate: aggregation.rate(),
            betas,
            tau,
            corrections: if corrected { betas.map(|beta| 1.0 - beta.powf(f64::from(number))) } else { [1.0; 2] },
            start: if corrected { 0.0 } else { tau * tau },
        }
    }

    /// How many moments are kept between rounds.
    pub(super) fn moments(&self) -> usize {
        match self.strategy {
            Strategy::Fedavg | Strategy::Fedbuff => 0,
            Strategy::Fedavgm => 1,
            Strategy::Fedadam | Strategy::Fedyogi | Strategy::Fedadagrad => 2,
        }
    }

    /// What a moment holds before the first step.
    pub(super) fn start(&self, moment: usize) -> f32 {
        if moment == 1 { self.start as f32 } else { 0.0 }
    }

    /// Moves a window of the state, and of each moment, in place.
    pub(super) fn take(&self, state: &mut [f32], moments: &mut [Vec<f32>], combined: &[f64]) {
        let [beta, beta_2] = self.betas;
        match (self.strategy, moments) {
            (Strategy::Fedavgm, [first]) => {
                for ((x, m), delta) in state.iter_mut().zip(first).zip(combined) {
                    let next = beta * f64::from(*m) + delta;
                    *m = next as f32;
                    shift(x, self.rate * next);
                }
            }
            (_, [first, second]) => {
                let second_of = |v: f64, square: f64| match self.strategy {
                    Strategy::Fedyogi => v - (1.0 - beta_2) * square * sign(v - square),
                    Strategy::Fedadagrad => v + square,
                    _ => beta_2 * v + (1.0 - beta_2) * square,
                };
                for (((x, m), v), delta) in state.iter_mut().zip(first).zip(second).zip(combined) {
                    let next = beta * f64::from(*m) + (1.0 - beta) * delta;
                    let next_2 = second_of(f64::from(*v), delta * delta);
                    (*m, *v) = (next as f32, next_2 as f32);
                    let [of_first, of_second] = self.corrections;
                    shift(x, self.rate * (next / of_first) / ((next_2 / of_second).max(0.0).sqrt() + self.tau));
                }
            }
            _ => state.iter_mut().zip(combined).for_each(|(x, delta)| shift(x, self.rate * delta)),
        }
    }
}

/// `fl32(x + by)`; what does not move keeps its bits, a negative zero too.
fn shift(x: &mut f32, by: f64) {
    if by != 0.0 {
        *x = (f64::from(*x) + by) as f32;
    }
}

/// −1, 0 or 1.
fn sign(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value.signum() }
}
