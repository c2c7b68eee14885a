//! `training.trainable`: which tensors are trained.

use std::fmt;
use std::str::FromStr;

use glob::Pattern;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Problems;
use crate::job::patterns::{check_count, pattern};

/// Which tensors are trained; the others stay as they are in the base model and are never sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trainable {
    /// Every tensor.
    Full,
    /// Pooler and classifier only.
    Head,
    /// Pooler, classifier and the last so many encoder layers.
    Last(usize),
    /// Pooler, classifier and low-rank adapters beside some dense layers; see [`Lora`](super::Lora).
    Lora,
    /// The tensors whose canonical names fit one of these, and no others: `*` stands for any characters, `?` for one,
    /// `[02]` and `[0-3]` for one of several. Running statistics go with the weight of their norm.
    Named(Vec<Pattern>),
}

impl Trainable {
    pub(super) fn validate(&self, p: &mut Problems) {
        if let Self::Named(patterns) = self {
            check_count(p, "training.trainable", patterns.len(), 1);
        }
    }
}

impl fmt::Display for Trainable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => out.write_str("full"),
            Self::Head => out.write_str("head"),
            Self::Last(layers) => write!(out, "last-{layers}"),
            Self::Lora => out.write_str("lora"),
            Self::Named(patterns) => {
                for (place, pattern) in patterns.iter().enumerate() {
                    write!(out, "{}{pattern}", if place == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

impl FromStr for Trainable {
    type Err = String;

    /// Reads one of the words, or patterns with commas between.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "full" => Ok(Self::Full),
            "head" => Ok(Self::Head),
            "lora" => Ok(Self::Lora),
            // No name of a word has these, and no name of a tensor is without a dot.
            _ if text.contains(['.', '*', ',']) => {
                Ok(Self::Named(text.split(',').map(|part| pattern(part.trim())).collect::<Result<_, _>>()?))
            }
            _ => text
                .strip_prefix("last-")
                .and_then(|layers| layers.parse().ok())
                .filter(|layers| *layers > 0)
                .map(Self::Last)
                .ok_or_else(|| {
                    format!(
                        "found {text:?}; expected \"full\", \"head\", \"lora\", \"last-N\" with N of at least 1, or \
                         patterns of tensors' names such as \"bert.encoder.layer.5.*\""
                    )
                }),
        }
    }
}

impl Serialize for Trainable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Named(patterns) => serializer.collect_seq(patterns.iter().map(Pattern::as_str)),
            word => serializer.collect_str(word),
        }
    }
}

impl<'de> Deserialize<'de> for Trainable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Trainable;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("\"full\", \"head\", \"lora\", \"last-N\" or a list of patterns of tensors' names")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Trainable, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Trainable, A::Error> {
                let mut patterns = Vec::new();
                while let Some(text) = list.next_element::<String>()? {
                    patterns.push(pattern(&text).map_err(de::Error::custom)?);
                }
                Ok(Trainable::Named(patterns))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
