//! Which rows come together in a step, and in what order.

use std::ops::Range;

use fedtune_config::job::Training;
use rand::SeedableRng;
use rand::seq::SliceRandom;

/// Most batches among which rows of like length are sought, as in transformers' `LengthGroupedSampler`.
const NEIGHBOURS: usize = 50;

/// The batches of an epoch: every row of `0..lengths.len()` once, `batch_size` in each but one, which has the rest. They
/// depend on seed, round and epoch only, and where rows are grouped by length on `lengths`.
pub(super) fn batches(lengths: &[usize], training: &Training, round: u32, epoch: u64) -> Vec<Vec<usize>> {
    let mut hasher = blake3::Hasher::new_derive_key("fedtune row order v1");
    for part in [training.seed, u64::from(round), epoch] {
        hasher.update(&part.to_le_bytes());
    }
    let mut generator = chacha20::ChaCha20Rng::from_seed(*hasher.finalize().as_bytes());
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.shuffle(&mut generator);
    let size = training.batch_size.max(1);
    if training.length_grouped {
        // In a sort of all rows the same ones would meet in every epoch.
        let among = (order.len() / size / 4).clamp(1, NEIGHBOURS) * size;
        order.chunks_mut(among).for_each(|rows| rows.sort_by_key(|row| lengths[*row]));
    }
    let mut batches: Vec<Vec<usize>> = order.chunks(size).map(<[usize]>::to_vec).collect();
    if training.length_grouped {
        batches.shuffle(&mut generator);
    }
    batches
}

/// The parts of a batch of so many rows that are computed one after another, at most `accumulate` of them; so large that
/// that many make `batch_size` rows.
pub(super) fn parts(rows: usize, training: &Training) -> impl Iterator<Item = Range<usize>> {
    let size = training.batch_size.max(1).div_ceil(training.accumulate.max(1));
    (0..rows).step_by(size).map(move |start| start..(start + size).min(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(batch_size: usize, length_grouped: bool, seed: u64) -> Training {
        Training { batch_size, length_grouped, seed, ..Training::default() }
    }

    #[test]
    fn every_row_comes_once_and_each_epoch_has_its_own_order() {
        let lengths: Vec<usize> = (0..100).map(|row| row * 7 % 40).collect();
        for grouped in [false, true] {
            let order = |seed, round, epoch| batches(&lengths, &training(8, grouped, seed), round, epoch);
            let first = order(1, 1, 0);
            let mut sizes: Vec<usize> = first.iter().map(Vec::len).collect();
            sizes.sort_unstable();
            assert_eq!(sizes, [vec![4], vec![8; 12]].concat());
            let mut sorted = first.concat();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..100).collect::<Vec<_>>());
            assert_eq!(first, order(1, 1, 0));
            for other in [order(2, 1, 0), order(1, 2, 0), order(1, 1, 1)] {
                assert_ne!(first, other);
            }
        }
        assert!(batches(&[], &training(8, true, 1), 1, 0).is_empty());
    }

    #[test]
    fn grouped_rows_are_of_like_length_and_batches_come_in_no_order_of_length() {
        let lengths: Vec<usize> = (0..2000).map(|row| 4 + row * 7919 % 125).collect();
        let padding = |batches: &[Vec<usize>]| -> usize {
            let cost = |rows: &Vec<usize>| {
                let longest = rows.iter().map(|row| lengths[*row]).max().unwrap_or(0);
                rows.iter().map(|row| longest - lengths[*row]).sum::<usize>()
            };
            batches.iter().map(cost).sum()
        };
        let plain = batches(&lengths, &training(16, false, 1), 1, 0);
        let grouped = batches(&lengths, &training(16, true, 1), 1, 0);
        assert!(padding(&grouped) * 10 < padding(&plain), "{} {}", padding(&grouped), padding(&plain));
        let longest: Vec<usize> = grouped.iter().map(|rows| lengths[rows[0]]).collect();
        let rises = longest.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((longest.len() / 3..longest.len() * 2 / 3).contains(&rises), "{rises} rises of {}", longest.len());
        // Other rows meet in the next epoch.
        let together = |batches: &[Vec<usize>]| {
            let mut sorted = batches.to_vec();
            sorted.iter_mut().for_each(|rows| rows.sort_unstable());
            sorted.sort_unstable();
            sorted
        };
        assert_ne!(together(&grouped), together(&batches(&lengths, &training(16, true, 1), 1, 1)));
    }

    #[test]
    fn parts_cover_a_batch_in_order() {
        let found = |rows, batch_size, accumulate| {
            let training = Training { accumulate, ..training(batch_size, false, 1) };
            parts(rows, &training).map(|part| (part.start, part.end)).collect::<Vec<_>>()
        };
        assert_eq!(found(16, 16, 1), [(0, 16)]);
        assert_eq!(found(16, 16, 4), [(0, 4), (4, 8), (8, 12), (12, 16)]);
        assert_eq!(found(10, 10, 4), [(0, 3), (3, 6), (6, 9), (9, 10)]);
        // The last batch of an epoch.
        assert_eq!(found(5, 16, 4), [(0, 4), (4, 5)]);
    }
}
