//! `training.eda`: words of a text moved about.

use serde::{Deserialize, Serialize};

use super::unit;
use crate::error::Problems;

/// What is done to the words of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alteration {
    /// Two words change places.
    Swap,
    /// A word goes.
    Delete,
    /// A word of the text comes once more, at another place. The paper inserts synonyms, for which there is no dictionary
    /// of every language.
    Insert,
}

/// Easy data augmentation (EDA; Wei and Zou 2019, 1901.11196).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eda {
    /// Probability that a text is altered, each time it is used.
    pub probability: f64,
    /// Share of its words that are altered (the paper's α), at least one.
    pub share: f64,
    /// What may be done; one of these is drawn for each text.
    pub operations: Vec<Alteration>,
}

impl Default for Eda {
    fn default() -> Self {
        Self {
            probability: 0.5,
            share: 0.1,
            operations: vec![Alteration::Swap, Alteration::Delete, Alteration::Insert],
        }
    }
}

impl Eda {
    pub(super) fn validate(&self, p: &mut Problems) {
        unit(p, "training.eda.probability", self.probability, true);
        unit(p, "training.eda.share", self.share, false);
        for (field, found) in [("training.eda.probability", self.probability), ("training.eda.share", self.share)] {
            p.check(found != 0.0, field, || "found 0, with which nothing is altered; leave training.eda out".into());
        }
        let operations = &self.operations;
        let twice = operations.iter().enumerate().any(|(place, one)| operations[..place].contains(one));
        p.check(!operations.is_empty() && !twice, "training.eda.operations", || {
            format!("found {operations:?}; expected some of \"swap\", \"delete\", \"insert\", each once")
        });
    }
}
