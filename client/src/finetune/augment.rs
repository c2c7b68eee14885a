//! Texts that differ a little each time they are trained on.

use std::borrow::Cow;

use fedtune_config::job::Training;
use rand::{RngExt, SeedableRng};

use crate::model::batch::Tokens;

/// The tokens without those that `training.token_dropout` takes away. The first and the last, which mark the ends, stay, and
/// so does one between them. What goes depends on seed, round, step and row only.
pub(super) fn drop_tokens<'a>(
    tokens: &'a Tokens,
    training: &Training,
    round: u32,
    step: u64,
    row: u64,
) -> Cow<'a, Tokens> {
    let length = tokens.words.len();
    if training.token_dropout <= 0.0 || length <= 3 {
        return Cow::Borrowed(tokens);
    }
    let mut hasher = blake3::Hasher::new_derive_key("fedtune token dropout v1");
    for part in [training.seed, u64::from(round), step, row] {
        hasher.update(&part.to_le_bytes());
    }
    let mut generator = chacha20::ChaCha20Rng::from_seed(*hasher.finalize().as_bytes());
    let mut keep: Vec<bool> = (0..length)
        .map(|place| place == 0 || place == length - 1 || !generator.random_bool(training.token_dropout))
        .collect();
    if keep.iter().filter(|keep| **keep).count() == 2 {
        keep[generator.random_range(1..length - 1)] = true;
    }
    let kept = |values: &[u32]| values.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(value, _)| *value).collect();
    Cow::Owned(Tokens { words: kept(&tokens.words), types: kept(&tokens.types) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(token_dropout: f64) -> Training {
        Training { token_dropout, ..Training::default() }
    }

    fn tokens(length: u32) -> Tokens {
        Tokens { words: (0..length).collect(), types: vec![0; length as usize] }
    }

    #[test]
    fn the_share_that_goes_is_the_probability_and_the_ends_stay() {
        let long = tokens(1002);
        let mut gone = 0;
        for step in 0..20 {
            let thinned = drop_tokens(&long, &training(0.3), 1, step, 5);
            assert_eq!((thinned.words[0], thinned.words.last()), (0, Some(&1001)));
            assert!(thinned.words.is_sorted() && thinned.words.len() == thinned.types.len());
            gone += 1002 - thinned.words.len();
        }
        // 20 000 draws: six standard deviations are 390.
        assert!((5_610..6_390).contains(&gone), "{gone}");
    }

    #[test]
    fn each_use_of_a_text_has_its_own_draw_and_repeats_it() {
        let text = tokens(60);
        let drop = |seed, round, step, row| {
            drop_tokens(&text, &Training { seed, ..training(0.5) }, round, step, row).into_owned()
        };
        assert_eq!(drop(1, 1, 1, 1), drop(1, 1, 1, 1));
        for other in [drop(2, 1, 1, 1), drop(1, 2, 1, 1), drop(1, 1, 2, 1), drop(1, 1, 1, 2)] {
            assert_ne!(drop(1, 1, 1, 1), other);
        }
    }

    #[test]
    fn something_of_a_text_is_always_left() {
        for length in 1..6 {
            for step in 0..50 {
                let text = tokens(length);
                let left = drop_tokens(&text, &training(0.99), 1, step, 0).words.len();
                assert!(left >= 3.min(length as usize), "{length} {left}");
            }
        }
        assert!(matches!(drop_tokens(&tokens(9), &training(0.0), 1, 0, 0), Cow::Borrowed(_)));
    }
}
