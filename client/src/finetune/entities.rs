//! Entities in labels of words, as seqeval finds them where it is not told to be strict: by the rules of conlleval (Tjong Kim
//! Sang and De Meulder 2003, cs/0306050), under which `I-X` after `O` or after another type begins an entity too.

use std::collections::BTreeSet;
use std::ops::Range;

/// The entities among the labels of a row's words: their words and their types.
pub(super) fn entities<'a>(labels: impl Iterator<Item = &'a str>) -> BTreeSet<(usize, usize, &'a str)> {
    let mut found = BTreeSet::new();
    let mut open: Option<(Range<usize>, &str)> = None;
    let mut close = |open: &mut Option<(Range<usize>, &'a str)>| {
        if let Some((words, kind)) = open.take() {
            found.insert((words.start, words.end, kind));
        }
    };
    let (mut before, mut kind_before) = ('O', "");
    for (place, label) in labels.enumerate() {
        let (tag, kind) = parts(label);
        let other = kind != kind_before;
        let ends = matches!(before, 'E' | 'S') || matches!(tag, 'B' | 'S' | 'O') || other;
        if before != 'O' && ends {
            close(&mut open);
        }
        let begins = matches!(tag, 'B' | 'S') || (tag != 'O' && (matches!(before, 'E' | 'S' | 'O') || other));
        if begins {
            open = Some((place..place, kind));
        }
        if let Some((words, _)) = &mut open {
            words.end = place + 1;
        }
        (before, kind_before) = (tag, kind);
    }
    close(&mut open);
    found
}

/// `B-PER` is of tag B and type PER. What has no tag is outside.
fn parts(label: &str) -> (char, &str) {
    match label.split_once('-') {
        Some((tag @ ("B" | "I" | "E" | "S"), kind)) => (tag.chars().next().unwrap_or('O'), kind),
        _ => ('O', ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entities_are_those_of_seqeval() {
        // get_entities(...) of seqeval 1.2.2; ends are behind the last word here.
        for (labels, expected) in [
            ("O B-PER I-PER O B-LOC", vec![(1, 3, "PER"), (4, 5, "LOC")]),
            ("I-PER I-PER O", vec![(0, 2, "PER")]),
            ("B-PER I-LOC", vec![(0, 1, "PER"), (1, 2, "LOC")]),
            ("B-PER B-PER I-PER", vec![(0, 1, "PER"), (1, 3, "PER")]),
            ("S-X B-Y I-Y E-Y O", vec![(0, 1, "X"), (1, 4, "Y")]),
            ("I-A-B I-A-B", vec![(0, 2, "A-B")]),
            ("O O", vec![]),
            ("", vec![]),
        ] {
            let found = entities(labels.split_whitespace());
            assert_eq!(found.into_iter().collect::<Vec<_>>(), expected, "{labels}");
        }
    }
}
