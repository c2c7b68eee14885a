//! The order of the rows in an epoch.

use rand::SeedableRng;
use rand::seq::SliceRandom;

/// A permutation of `0..rows` that depends on seed, round and epoch only.
pub(super) fn shuffled(rows: usize, seed: u64, round: u32, epoch: u64) -> Vec<usize> {
    let mut hasher = blake3::Hasher::new_derive_key("fedtune row order v1");
    for part in [seed, u64::from(round), epoch] {
        hasher.update(&part.to_le_bytes());
    }
    let mut generator = chacha20::ChaCha20Rng::from_seed(*hasher.finalize().as_bytes());
    let mut order: Vec<usize> = (0..rows).collect();
    order.shuffle(&mut generator);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_comes_once_and_each_epoch_has_its_own_order() {
        let order = shuffled(100, 1, 1, 0);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order, shuffled(100, 1, 1, 0));
        for other in [shuffled(100, 2, 1, 0), shuffled(100, 1, 2, 0), shuffled(100, 1, 1, 1)] {
            assert_ne!(order, other);
        }
    }
}
