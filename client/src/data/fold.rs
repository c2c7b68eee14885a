//! When two texts count as the same.

use icu_casemap::CaseMapper;
use icu_normalizer::ComposingNormalizer;

/// What a text is known by: equal for texts that are [`fold`]ed to the same. BLAKE3, cut to 128 bits.
pub type Identity = [u8; 16];

/// A text without what does not tell texts apart: Unicode NFC, full case folding (without a language's own rules), and
/// white space at the ends removed and elsewhere one space.
pub fn fold(text: &str) -> String {
    let normalizer = ComposingNormalizer::new_nfc();
    let composed = normalizer.normalize(text);
    let folded = CaseMapper::new().fold_string(&composed).into_owned();
    let mut out = String::with_capacity(folded.len());
    // Folding can leave a sequence that is not composed.
    for word in normalizer.normalize(&folded).split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// The identity of a text that is folded already.
pub fn identity(folded: &str) -> Identity {
    let mut identity = [0; 16];
    identity.copy_from_slice(&blake3::hash(folded.as_bytes()).as_bytes()[..16]);
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_case_and_white_space_do_not_tell_texts_apart() {
        for (one, other) in [
            ("caf\u{e9}", "cafe\u{301}"),
            ("STRASSE", "stra\u{df}e"),
            ("  a\t b\u{a0}\nc ", "A B C"),
            ("\u{3a3}\u{3a3}", "\u{3c3}\u{3c2}"),
        ] {
            assert_eq!(identity(&fold(one)), identity(&fold(other)), "{one:?} {other:?}");
        }
        for (one, other) in [("a", "b"), ("ab", "a b"), ("e", "\u{e9}"), ("a?", "a")] {
            assert_ne!(identity(&fold(one)), identity(&fold(other)), "{one:?} {other:?}");
        }
        assert_eq!(fold(" \n"), "");
    }
}
