//! Which rows come together in a step, and in what order.

use std::ops::{ControlFlow, Range};

use fedtune_config::job::Training;
use rand::SeedableRng;
use rand::seq::SliceRandom;

use crate::data::Rows;

/// Most batches among which rows of like length are sought, as in transformers' `LengthGroupedSampler`.
const NEIGHBOURS: usize = 50;

/// The batches of an epoch: every row once, `batch_size` in each but one, which has the rest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batches {
    rows: Vec<u32>,
    size: usize,
    /// Which batch comes when, where it is not the order in which they lie in `rows`.
    turns: Option<Vec<u32>>,
}

impl Batches {
    /// They depend on seed, round and epoch only, and where rows are grouped by length on `length`, which need not be exact.
    /// There are at most `u32::MAX` rows; see [`crate::data::Rows`].
    pub(super) fn of(rows: usize, length: impl Fn(usize) -> u32, training: &Training, round: u32, epoch: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("fedtune row order v1");
        for part in [training.seed, u64::from(round), epoch] {
            hasher.update(&part.to_le_bytes());
        }
        let mut generator = chacha20::ChaCha20Rng::from_seed(*hasher.finalize().as_bytes());
        let mut rows: Vec<u32> = (0..rows as u32).collect();
        rows.shuffle(&mut generator);
        let size = training.batch_size.max(1);
        let mut turns = None;
        if training.length_grouped {
            // In a sort of all rows the same ones would meet in every epoch.
            let among = (rows.len() / size / 4).clamp(1, NEIGHBOURS) * size;
            rows.chunks_mut(among).for_each(|rows| rows.sort_by_key(|row| length(*row as usize)));
            let mut order: Vec<u32> = (0..rows.len().div_ceil(size) as u32).collect();
            order.shuffle(&mut generator);
            turns = Some(order);
        }
        Self { rows, size, turns }
    }

    /// The rows of each batch, in turn.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u32]> {
        let batch = |turn: usize| {
            let place = self.turns.as_ref().map_or(turn, |turns| turns[turn] as usize);
            let start = place * self.size;
            &self.rows[start..(start + self.size).min(self.rows.len())]
        };
        (0..self.rows.len().div_ceil(self.size)).map(batch)
    }
}

/// Calls `step` with the number of each step, counted from 0, its rows, and whether an epoch ends with it, until it breaks.
/// There is at least one row.
pub(super) fn each_step(
    rows: &Rows,
    training: &Training,
    round: u32,
    mut step: impl FnMut(usize, &[u32], bool) -> ControlFlow<()>,
) {
    let mut steps = 0;
    for epoch in 0.. {
        let batches = Batches::of(rows.len(), |row| rows.length(row), training, round, epoch);
        let mut batches = batches.iter().peekable();
        while let Some(batch) = batches.next() {
            if step(steps, batch, batches.peek().is_none()).is_break() {
                return;
            }
            steps += 1;
        }
    }
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

    fn batches(lengths: &[u32], training: &Training, round: u32, epoch: u64) -> Vec<Vec<u32>> {
        Batches::of(lengths.len(), |row| lengths[row], training, round, epoch).iter().map(<[u32]>::to_vec).collect()
    }

    fn training(batch_size: usize, length_grouped: bool, seed: u64) -> Training {
        Training { batch_size, length_grouped, seed, ..Training::default() }
    }

    #[test]
    fn every_row_comes_once_and_each_epoch_has_its_own_order() {
        let lengths: Vec<u32> = (0..100).map(|row| row * 7 % 40).collect();
        for grouped in [false, true] {
            let order = |seed, round, epoch| batches(&lengths, &training(8, grouped, seed), round, epoch);
            let first = order(1, 1, 0);
            let mut sizes: Vec<usize> = first.iter().map(Vec::len).collect();
            sizes.sort_unstable();
            assert_eq!(sizes, [vec![4], vec![8; 12]].concat());
            let mut sorted = first.concat();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..100).collect::<Vec<u32>>());
            assert_eq!(first, order(1, 1, 0));
            for other in [order(2, 1, 0), order(1, 2, 0), order(1, 1, 1)] {
                assert_ne!(first, other);
            }
        }
        assert!(batches(&[], &training(8, true, 1), 1, 0).is_empty());
    }

    #[test]
    fn grouped_rows_are_of_like_length_and_batches_come_in_no_order_of_length() {
        let lengths: Vec<u32> = (0..2000).map(|row| 4 + row * 7919 % 125).collect();
        let padding = |batches: &[Vec<u32>]| -> u32 {
            let cost = |rows: &Vec<u32>| {
                let longest = rows.iter().map(|row| lengths[*row as usize]).max().unwrap_or(0);
                rows.iter().map(|row| longest - lengths[*row as usize]).sum::<u32>()
            };
            batches.iter().map(cost).sum()
        };
        let plain = batches(&lengths, &training(16, false, 1), 1, 0);
        let grouped = batches(&lengths, &training(16, true, 1), 1, 0);
        assert!(padding(&grouped) * 10 < padding(&plain), "{} {}", padding(&grouped), padding(&plain));
        let longest: Vec<u32> = grouped.iter().map(|rows| lengths[rows[0] as usize]).collect();
        let rises = longest.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((longest.len() / 3..longest.len() * 2 / 3).contains(&rises), "{rises} rises of {}", longest.len());
        // Other rows meet in the next epoch.
        let together = |batches: &[Vec<u32>]| {
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
