//! Texts that differ a little each time they are trained on.

use std::borrow::Cow;

use chacha20::ChaCha20Rng;
use fedtune_config::job::{Alteration, Eda, Training};
use rand::{RngExt, SeedableRng};

use crate::data::Content;
use crate::model::batch::Tokens;

/// A generator of the draws for one use of a row, for one purpose.
fn draws(purpose: &str, counters: [u64; 4]) -> ChaCha20Rng {
    let mut hasher = blake3::Hasher::new_derive_key(purpose);
    for part in counters {
        hasher.update(&part.to_le_bytes());
    }
    ChaCha20Rng::from_seed(*hasher.finalize().as_bytes())
}

/// A text, or both of a pair, as `training.eda` alters it (Wei and Zou 2019, 1901.11196). What comes out depends on seed,
/// round, step and row only.
pub(super) fn alter<'a>(
    content: Cow<'a, Content>,
    training: &Training,
    round: u32,
    step: u64,
    row: u64,
) -> Cow<'a, Content> {
    let Some(eda) = &training.eda else { return content };
    let mut generator = draws("fedtune eda v1", [training.seed, u64::from(round), step, row]);
    match content.as_ref() {
        Content::Text(text) => match altered(text, eda, &mut generator) {
            Some(text) => Cow::Owned(Content::Text(text)),
            None => content,
        },
        Content::Pair(pair) => {
            let (one, other) = (altered(&pair.0, eda, &mut generator), altered(&pair.1, eda, &mut generator));
            if one.is_none() && other.is_none() {
                return content;
            }
            let pair = (one.unwrap_or_else(|| pair.0.clone()), other.unwrap_or_else(|| pair.1.clone()));
            Cow::Owned(Content::Pair(Box::new(pair)))
        }
        // Labels of words stand for words in their places.
        Content::Words(_) | Content::Exchange(_) | Content::Image(_) | Content::Cells(_) => content,
    }
}

/// The words of a text altered, with a space between; `None` where it stays as it is. At least one word is left.
fn altered(text: &str, eda: &Eda, generator: &mut ChaCha20Rng) -> Option<String> {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    if words.len() < 2 || eda.operations.is_empty() || !generator.random_bool(eda.probability.clamp(0.0, 1.0)) {
        return None;
    }
    let times = ((eda.share * words.len() as f64) as usize).max(1);
    match eda.operations[generator.random_range(0..eda.operations.len())] {
        Alteration::Swap => {
            for _ in 0..times {
                let one = generator.random_range(0..words.len());
                // Any other place.
                let other = (one + generator.random_range(1..words.len())) % words.len();
                words.swap(one, other);
            }
        }
        Alteration::Insert => {
            for _ in 0..times {
                let word = words[generator.random_range(0..words.len())];
                words.insert(generator.random_range(0..=words.len()), word);
            }
        }
        Alteration::Delete => {
            let spared = generator.random_range(0..words.len());
            let mut place = 0;
            words.retain(|_| {
                let stays = place == spared || !generator.random_bool(eda.share.clamp(0.0, 1.0));
                place += 1;
                stays
            });
        }
    }
    Some(words.join(" "))
}

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
    let mut generator = draws("fedtune token dropout v1", [training.seed, u64::from(round), step, row]);
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

    fn eda(operations: &[Alteration], probability: f64, share: f64) -> Training {
        let eda = Eda { probability, share, operations: operations.to_vec() };
        Training { eda: Some(eda), ..Training::default() }
    }

    fn once(text: &str, training: &Training, step: u64) -> String {
        let content = Content::from(text);
        alter(Cow::Borrowed(&content), training, 1, step, 7).texts().concat()
    }

    const LONG: &str = "a b c d e f g h i j k l m n o p q r s t";

    #[test]
    fn each_alteration_does_what_it_says_with_the_texts_own_words() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        let sorted = |text: &str| {
            let mut words = words(text);
            words.sort();
            words
        };
        let mut gone = 0;
        for step in 0..400 {
            let swapped = once(LONG, &eda(&[Alteration::Swap], 1.0, 0.06), step);
            let moved = words(&swapped).iter().zip(words(LONG)).filter(|(one, other)| *one != other).count();
            assert_eq!((sorted(&swapped), moved), (words(LONG), 2), "one pair of twenty words: {swapped}");
            let longer = once(LONG, &eda(&[Alteration::Insert], 1.0, 0.1), step);
            let mut left = words(LONG);
            assert_eq!(words(&longer).len(), 22);
            for word in words(&longer) {
                assert!(LONG.contains(&word));
                left.retain(|other| *other != word);
            }
            assert!(left.is_empty(), "none goes: {longer}");
            let shorter = once(LONG, &eda(&[Alteration::Delete], 1.0, 0.3), step);
            assert!(words(&shorter).is_sorted() && !shorter.is_empty());
            gone += 20 - words(&shorter).len();
            assert!(!once("a b", &eda(&[Alteration::Delete], 1.0, 0.99), step).is_empty());
        }
        // 19 of 20 words may go, 7600 draws: 2280 on average, and six standard deviations are 240.
        assert!((2_040..2_520).contains(&gone), "{gone}");
    }

    #[test]
    fn so_many_texts_are_altered_as_the_probability_says_and_each_use_has_its_own_draw() {
        let all = eda(&[Alteration::Swap, Alteration::Delete, Alteration::Insert], 0.25, 0.2);
        let changed = (0..4000).filter(|step| once(LONG, &all, *step) != LONG).count();
        // 1000 on average less a few deletions of nothing; six standard deviations are 164.
        assert!((820..1_170).contains(&changed), "{changed}");
        let always = eda(&[Alteration::Swap], 1.0, 0.5);
        assert_eq!(once(LONG, &always, 3), once(LONG, &always, 3));
        assert_ne!(once(LONG, &always, 3), once(LONG, &always, 4));
        assert_ne!(once(LONG, &always, 3), once(LONG, &Training { seed: 8, ..always.clone() }, 3));
    }

    #[test]
    fn what_has_one_word_or_labels_for_its_words_stays() {
        let always = eda(&[Alteration::Delete, Alteration::Swap], 1.0, 0.9);
        for content in [
            Content::from("one"),
            Content::from("  "),
            Content::Words(["a", "b", "c"].map(String::from).into()),
            Content::Pair(Box::new(("a".into(), "b".into()))),
        ] {
            assert_eq!(*alter(Cow::Borrowed(&content), &always, 1, 1, 1), content);
        }
        let pair = Content::Pair(Box::new((LONG.into(), LONG.into())));
        let found = alter(Cow::Borrowed(&pair), &eda(&[Alteration::Swap], 1.0, 0.5), 1, 1, 1);
        let Content::Pair(found) = found.as_ref() else { panic!("a pair stays a pair") };
        assert!(found.0 != LONG && found.1 != LONG && found.0 != found.1);
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
