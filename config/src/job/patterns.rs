//! Patterns of tensors' names: `*` stands for any characters, `?` for one, `[02]` and `[0-3]` for one of several.

use glob::Pattern;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Problems;

/// Most patterns of a list.
const PATTERNS_MAX: usize = 1000;

/// A list of patterns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patterns(Vec<Pattern>);

impl Patterns {
    /// A list of these.
    ///
    /// # Errors
    /// Which is none, and why.
    pub fn new<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<Self, String> {
        texts.into_iter().map(|text| pattern(text.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a name fits one of them.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }

    /// The first that none of the names fits.
    pub fn idle<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Option<&str> {
        self.0.iter().find(|pattern| !names.clone().any(|name| pattern.matches(name))).map(Pattern::as_str)
    }
}

/// Reads one pattern.
pub(super) fn pattern(text: &str) -> Result<Pattern, String> {
    let wrong = |why: &str| format!("found the pattern {text:?}, {why}; expected a name, with * for any characters");
    if text.trim().is_empty() {
        return Err(wrong("which is empty"));
    }
    Pattern::new(text).map_err(|e| wrong(&format!("which is none: {}", e.msg)))
}

/// Checks that there are not too many.
pub(super) fn check_count(p: &mut Problems, field: &str, patterns: usize, least: usize) {
    p.check((least..=PATTERNS_MAX).contains(&patterns), field, || {
        format!("found {patterns} patterns; expected {least} to {PATTERNS_MAX}")
    });
}

impl Patterns {
    pub(super) fn validate(&self, p: &mut Problems, field: &str) {
        check_count(p, field, self.0.len(), 0);
    }
}

impl Serialize for Patterns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Pattern::as_str))
    }
}

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::<String>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
