//! Usable texts that are seldom meant.

/// Fewer characters than this, white space apart, say little.
const TINY: usize = 3;

/// Words that tables write for a missing value.
const MISSING: [&str; 12] =
    ["null", "none", "nan", "na", "n/a", "#n/a", "nil", "undefined", "missing", "unknown", "(blank)", "-"];

/// What looks wrong about a text, by the name that a report gives it. `folded` is the text without case and spare white
/// space.
pub(super) fn suspicions(text: &str, folded: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut add = |wrong: bool, name| {
        if wrong {
            found.push(name);
        }
    };
    let missing = MISSING.contains(&folded);
    add(missing, "a word for a missing value");
    add(!missing && folded.chars().filter(|c| !c.is_whitespace()).count() < TINY, "fewer than three characters");
    add(text.chars().any(|c| c.is_control() && !c.is_whitespace()), "control characters");
    add(text.chars().any(is_invisible), "invisible or direction-changing characters");
    add(text.contains('\u{fffd}'), "replacement characters (it was decoded wrongly before)");
    add(is_formula(text), "may run as a formula in a spreadsheet");
    found
}

/// Zero-width characters that no script needs, and marks that change the direction of writing. The joiners U+200C and
/// U+200D are left out: Persian, Indic scripts and emoji need them.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}' | '\u{2060}' | '\u{feff}' | '\u{00ad}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Spreadsheets run `=...`, and `@` or a sign before a name or a bracket.
fn is_formula(text: &str) -> bool {
    let mut characters = text.trim_start().chars();
    match (characters.next(), characters.next()) {
        (Some('='), Some(next)) => !next.is_whitespace() && next != '=',
        (Some('@'), Some(next)) => next.is_alphabetic() && text.contains('('),
        (Some('+'), Some(next)) => next == '(' || (next.is_alphabetic() && text.contains('(')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fold::fold;
    use super::*;

    #[test]
    fn what_is_seldom_meant_is_named_and_plain_texts_are_not() {
        for (text, name) in [
            (" NaN ", "a word for a missing value"),
            ("N/A", "a word for a missing value"),
            ("?", "fewer than three characters"),
            ("a b", "fewer than three characters"),
            ("red\u{1b}[31m text", "control characters"),
            ("\u{202e}turned", "invisible or direction-changing characters"),
            ("caf\u{fffd}", "replacement characters (it was decoded wrongly before)"),
            ("=1+1", "may run as a formula in a spreadsheet"),
            ("@SUM(1+1) and more", "may run as a formula in a spreadsheet"),
        ] {
            assert_eq!(suspicions(text, &fold(text)), [name], "{text:?}");
        }
        for text in [
            "How are you?",
            "a\tb\nc d",
            "@someone hello",
            "none of it",
            "\u{646}\u{645}\u{6cc}\u{200c}\u{62e}",
            "+1 yes",
        ] {
            assert!(suspicions(text, &fold(text)).is_empty(), "{text:?}");
        }
    }
}
