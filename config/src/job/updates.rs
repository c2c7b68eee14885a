//! `[updates]`: how updates travel, and the states that come of them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::aggregation::Rule;
use crate::error::Problems;

/// How an update is made smaller before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Not at all: a safetensors file of F32.
    None,
    /// Bit for bit.
    Lossless,
    /// 11 bits of precision.
    F16,
    /// Eight bits a value, rounded at random.
    Int8,
    /// Four bits a value, rounded at random.
    Int4,
    /// The largest values alone.
    TopK,
}

/// How a new state is sent to a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Download {
    /// As its difference to the state before, bit for bit, where the site has that one.
    Difference,
    /// As it is.
    Whole,
}

/// How updates travel, and the states that come of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Updates {
    /// How an update is made smaller.
    pub compression: Compression,
    /// The share of values that [`Compression::TopK`] keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<f64>,
    /// Whether a site adds what compression lost of its last update to the next one (Karimireddy et al. 2019, 1901.09847).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_feedback: Option<bool>,
    /// How a new state is sent to a site.
    pub download: Download,
}

impl Default for Updates {
    fn default() -> Self {
        Self { compression: Compression::F16, top_k: None, error_feedback: None, download: Download::Difference }
    }
}

impl Compression {
    fn loses_much(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4 | Self::TopK)
    }
}

impl Updates {
    pub(super) fn complete(&mut self) {
        if self.compression == Compression::TopK {
            self.top_k.get_or_insert(0.1);
        }
        if self.compression.loses_much() {
            // Eight bits rounded at random lose too little for a site to keep count of.
            self.error_feedback.get_or_insert(self.compression != Compression::Int8);
        }
    }

    /// The container's codec as it is written, `None` where an update is sent as it is.
    pub fn codec(&self) -> Option<String> {
        match self.compression {
            Compression::None => None,
            Compression::Lossless => Some("none".into()),
            Compression::TopK => Some(format!("top-k:{}", self.top_k.unwrap_or(0.1))),
            other => Some(other.to_string()),
        }
    }

    pub(super) fn validate(&self, p: &mut Problems, rule: Rule) {
        let compression = self.compression;
        if let Some(share) = self.top_k {
            p.check(share > 0.0 && share <= 1.0, "updates.top_k", || {
                format!("found {share}; expected more than 0 and at most 1")
            });
        }
        for (field, given, used) in [
            ("updates.top_k", self.top_k.is_some(), compression == Compression::TopK),
            ("updates.error_feedback", self.error_feedback == Some(true), compression.loses_much()),
        ] {
            p.check(!given || used, field, || {
                format!("stands beside updates.compression = \"{compression}\", which makes no use of it; leave it out")
            });
        }
        let by_value = matches!(rule, Rule::Median | Rule::TrimmedMean | Rule::Bulyan);
        p.check(compression != Compression::TopK || !by_value, "updates.compression", || {
            format!(
                "found \"top-k\" beside aggregation.rule = \"{rule}\", which looks at each value by itself: most updates have \
                 nothing there; choose another compression or another rule"
            )
        });
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(out)
    }
}
