//! Dropout masks out of a counter: nothing is stored, and the backward pass draws the same mask again.

use rayon::prelude::*;

/// Where in training a mask is drawn; one of these gives the masks of a whole forward pass.
#[derive(Debug, Clone, Copy)]
pub struct DropoutStream {
    /// Probability of dropping a value; 0 or more, less than 1.
    pub probability: f64,
    /// Seed of the job.
    pub seed: u64,
    /// Round of the job, counted from 1.
    pub round: u32,
    /// Step inside the round.
    pub step: u64,
}

impl DropoutStream {
    /// The mask of one place in the network; `None` where nothing is dropped.
    pub fn at(&self, place: u64) -> Option<Dropout> {
        // Draws have 16 bits, so the probability is rounded to the nearest 65536th.
        let threshold = (self.probability * 65_536.0).round().clamp(0.0, 65_535.0) as u32;
        if threshold == 0 {
            return None;
        }
        let mut hasher = blake3::Hasher::new_derive_key("fedtune dropout mask v1");
        for part in [self.seed, u64::from(self.round), self.step, place] {
            hasher.update(&part.to_le_bytes());
        }
        let mut key = [0; 8];
        hasher.finalize_xof().fill(&mut key);
        Some(Dropout { key: u64::from_le_bytes(key), threshold, scale: 65_536.0 / (65_536 - threshold) as f32 })
    }
}

/// The mask of one place in one forward pass: 0 where dropped, 1 / (1 − p) where kept.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    key: u64,
    threshold: u32,
    scale: f32,
}

#[cfg(feature = "cuda")]
impl Dropout {
    /// Key, threshold and scale.
    pub(super) fn draws(self) -> (u64, u32, f32) {
        (self.key, self.threshold, self.scale)
    }
}

/// Words drawn together; each gives four values.
const WORDS: usize = 16;

impl Dropout {
    /// Writes the mask of one row. Rows are numbered through; all rows of a mask must be at most `width` long.
    #[inline(always)]
    pub(super) fn fill(&self, row: usize, width: usize, mask: &mut [f32]) {
        let blocks = width.div_ceil(4 * WORDS);
        let mut counter = (row * blocks * WORDS) as u64;
        for mask in mask.chunks_mut(4 * WORDS) {
            let mut words = [0u64; WORDS];
            for (i, word) in words.iter_mut().enumerate() {
                *word = mix(self.key.wrapping_add((counter + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            }
            counter += WORDS as u64;
            let mut drawn = [0.0; 4 * WORDS];
            for lane in 0..4 {
                for i in 0..WORDS {
                    let draw = (words[i] >> (16 * lane)) as u32 & 0xffff;
                    drawn[lane * WORDS + i] = if draw < self.threshold { 0.0 } else { self.scale };
                }
            }
            mask.copy_from_slice(&drawn[..mask.len()]);
        }
    }

    /// The mask of a whole matrix, row-major.
    pub(super) fn matrix(&self, rows: usize, width: usize) -> Vec<f32> {
        let mut mask = vec![0.0; rows * width];
        if width > 0 {
            mask.par_chunks_mut(width)
                .enumerate()
                .for_each(|(row, mask)| super::vectorised(|| self.fill(row, width, mask)));
        }
        mask
    }
}

/// The output function of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn stream(probability: f64, step: u64) -> DropoutStream {
        DropoutStream { probability, seed: 42, round: 1, step }
    }

    #[test]
    fn the_keep_rate_and_the_expectation_are_right() {
        for probability in [0.1, 0.5, 0.9] {
            let mask = stream(probability, 3).at(7).unwrap().matrix(1000, 250);
            let kept = mask.iter().filter(|m| **m > 0.0).count() as f64 / mask.len() as f64;
            assert!((kept - (1.0 - probability)).abs() < 0.005, "kept {kept} at {probability}");
            let mean = mask.iter().map(|m| f64::from(*m)).sum::<f64>() / mask.len() as f64;
            assert!((mean - 1.0).abs() < 0.03, "mean {mean} at {probability}");
        }
    }

    #[test]
    fn a_mask_depends_on_step_and_place_and_on_nothing_else() {
        let of = |step, place| stream(0.5, step).at(place).unwrap().matrix(8, 100);
        assert_eq!(of(1, 1), of(1, 1));
        assert_ne!(of(1, 1), of(2, 1));
        assert_ne!(of(1, 1), of(1, 2));
    }

    #[test]
    fn no_two_rows_share_a_mask() {
        let mask = stream(0.5, 1).at(1).unwrap().matrix(50, 70);
        let rows: std::collections::HashSet<Vec<u32>> =
            mask.chunks(70).map(|row| row.iter().map(|m| m.to_bits()).collect()).collect();
        assert_eq!(rows.len(), 50);
    }

    #[test]
    fn zero_drops_nothing() {
        assert!(stream(0.0, 1).at(1).is_none());
    }
}
