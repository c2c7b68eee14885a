//! New weights, the same at every site.

use rand::{Rng, SeedableRng};

/// Values drawn from N(0, deviation²) by a generator keyed with the seed and the tensor's name.
pub(super) fn normal(seed: u64, name: &str, count: usize, deviation: f64) -> Vec<f32> {
    let mut hasher = blake3::Hasher::new_derive_key("fedtune initial weights v1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut generator = chacha20::ChaCha20Rng::from_seed(*hasher.finalize().as_bytes());
    let mut uniform = || (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // Box and Muller 1958. 1 − u is never zero.
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt() * deviation;
        let angle = std::f64::consts::TAU * uniform();
        values.push((radius * angle.cos()) as f32);
        values.push((radius * angle.sin()) as f32);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_deviation_and_depend_on_seed_and_name() {
        let values = normal(1, "a", 100_001, 0.02);
        assert_eq!(values.len(), 100_001);
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 3e-4 && (variance.sqrt() - 0.02).abs() < 3e-4);
        assert_eq!(values[..5], normal(1, "a", 5, 0.02));
        assert_ne!(values[..5], normal(2, "a", 5, 0.02));
        assert_ne!(values[..5], normal(1, "b", 5, 0.02));
    }
}
