//! What malicious sites send instead of their updates.

use chacha20::ChaCha8Rng;
use clap::ValueEnum;
use rand_distr::{Distribution, StandardNormal};

use crate::digits::CLASSES;

/// An attack. Malicious sites know every honest update of the round, and act together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Attack {
    /// None.
    None,
    /// Training on labels `9 − y`.
    Labelflip,
    /// `−Δ`.
    Sign,
    /// `−5 Δ`.
    Sign5,
    /// `−10²⁵ Δ`: beside it all others vanish in rounding.
    Huge,
    /// `−2 n` times the mean of the honest updates, so that the mean of all points backwards (model replacement, Bagdasaryan
    /// et al. 2020, 1807.00459).
    Scale,
    /// Gaussian noise of ten times the update's norm.
    Noise,
    /// One value is NaN.
    Nan,
    /// Zero: a free rider.
    Free,
    /// The update of the first round for ever.
    Replay,
    /// The honest mean less one standard deviation of each value (Baruch et al. 2019, 1902.06156).
    Alie,
    /// `−10` times the mean of the honest updates (inner-product manipulation, Xie et al. 2019, 1903.03936).
    Ipm,
}

/// ε of [`Attack::Ipm`].
const EPSILON: f64 = 10.0;

/// What malicious sites know in a round.
pub(crate) struct Known<'a> {
    /// The update that this site has trained.
    pub(crate) own: &'a [f32],
    /// The one that it trained first of all.
    pub(crate) first: &'a [f32],
    /// The honest sites' updates.
    pub(crate) honest: &'a [Vec<f32>],
    /// How many sites there are.
    pub(crate) sites: usize,
}

impl Attack {
    /// The label that a malicious site trains on.
    pub(crate) fn label(self, label: usize) -> usize {
        if self == Self::Labelflip { CLASSES - 1 - label } else { label }
    }

    /// What a malicious site sends.
    pub(crate) fn forge(self, known: &Known<'_>, random: &mut ChaCha8Rng) -> Vec<f32> {
        let own = |factor: f32| known.own.iter().map(|value| factor * value).collect();
        let moments = |of: fn(f64, f64) -> f64| {
            let count = known.honest.len().max(1) as f64;
            let at = |place: usize| known.honest.iter().map(move |update| f64::from(update[place]));
            let mut forged = Vec::with_capacity(known.own.len());
            for place in 0..known.own.len() {
                let mean = at(place).sum::<f64>() / count;
                let variance = at(place).map(|value| (value - mean).powi(2)).sum::<f64>() / count;
                forged.push(of(mean, variance.sqrt()) as f32);
            }
            forged
        };
        match self {
            Self::None | Self::Labelflip => own(1.0),
            Self::Sign => own(-1.0),
            Self::Sign5 => own(-5.0),
            Self::Huge => own(-1e25),
            Self::Scale => {
                let mut mean = moments(|mean, _| mean);
                mean.iter_mut().for_each(|value| *value *= -2.0 * known.sites as f32);
                mean
            }
            Self::Noise => {
                let noise: Vec<f64> = known.own.iter().map(|_| StandardNormal.sample(random)).collect();
                let norm =
                    |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
                let factor = 10.0 * norm(&mut known.own.iter().map(|value| f64::from(*value)))
                    / norm(&mut noise.iter().copied());
                noise.iter().map(|value| (factor * value) as f32).collect()
            }
            Self::Nan => {
                let mut forged = known.own.to_vec();
                let middle = forged.len() / 2;
                forged[middle] = f32::NAN;
                forged
            }
            Self::Free => vec![0.0; known.own.len()],
            Self::Replay => known.first.to_vec(),
            Self::Alie => moments(|mean, deviation| mean - deviation),
            Self::Ipm => moments(|mean, _| -EPSILON * mean),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::stream;

    fn forged(attack: Attack) -> Vec<f32> {
        let honest = [vec![1.0, 2.0, 0.0], vec![3.0, 2.0, 0.0]];
        let known = Known { own: &[3.0, 0.0, -4.0], first: &[7.0, 8.0, 9.0], honest: &honest, sites: 4 };
        attack.forge(&known, &mut stream(1, [0, 0]))
    }

    #[test]
    fn updates_are_forged_by_the_formulas() {
        for (attack, expected) in [
            (Attack::None, [3.0, 0.0, -4.0]),
            (Attack::Labelflip, [3.0, 0.0, -4.0]),
            (Attack::Sign, [-3.0, 0.0, 4.0]),
            (Attack::Sign5, [-15.0, 0.0, 20.0]),
            (Attack::Huge, [-3e25, 0.0, 4e25]),
            (Attack::Scale, [-16.0, -16.0, 0.0]),
            (Attack::Free, [0.0; 3]),
            (Attack::Replay, [7.0, 8.0, 9.0]),
            (Attack::Alie, [1.0, 2.0, 0.0]),
            (Attack::Ipm, [-20.0, -20.0, 0.0]),
        ] {
            assert_eq!(forged(attack), expected, "{attack:?}");
        }
        let noise = forged(Attack::Noise);
        let norm = noise.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        assert!((norm - 50.0).abs() < 1e-4 && noise.iter().all(|value| *value != 0.0), "{noise:?}");
        assert_eq!(forged(Attack::Nan).iter().filter(|value| value.is_nan()).count(), 1);
    }

    #[test]
    fn only_flipped_labels_are_others() {
        assert_eq!(Attack::Labelflip.label(2), 7);
        assert_eq!(Attack::Sign.label(2), 2);
    }
}
