//! What a network is trained to say, and what it should have said.

use std::ops::Range;

use super::ops::Loss;

/// What a network says of its input, and by which loss it learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Objective {
    /// One of the labels; cross-entropy.
    #[default]
    Class,
    /// Any of the labels; binary cross-entropy of each.
    Sets,
    /// A number; squared error.
    Value,
    /// One of the labels for every token; cross-entropy.
    Tokens,
    /// The next token; cross-entropy over the vocabulary.
    NextToken,
}

impl Objective {
    /// What transformers calls it in `problem_type` of config.json, where that has a word for it.
    pub(super) fn problem_type(self) -> Option<&'static str> {
        match self {
            Self::Class => Some("single_label_classification"),
            Self::Sets => Some("multi_label_classification"),
            Self::Value => Some("regression"),
            Self::Tokens | Self::NextToken => None,
        }
    }

    /// Whether outputs stand for labels.
    pub fn has_labels(self) -> bool {
        !matches!(self, Self::Value | Self::NextToken)
    }
}

/// What a network should say of the rows of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// The label of each row.
    Classes(Vec<u32>),
    /// The labels of each row, in any order.
    Sets(Vec<Vec<u32>>),
    /// The number of each row.
    Values(Vec<f32>),
    /// For each row one for every token, `None` where the token does not count: its label, or, for
    /// [`Objective::NextToken`], the token itself as what those before it should have led to.
    Tokens(Vec<Vec<Option<u32>>>),
}

impl Targets {
    /// Those of some of the rows.
    #[must_use]
    pub fn part(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Classes(all) => Self::Classes(all[rows].to_vec()),
            Self::Sets(all) => Self::Sets(all[rows].to_vec()),
            Self::Values(all) => Self::Values(all[rows].to_vec()),
            Self::Tokens(all) => Self::Tokens(all[rows].to_vec()),
        }
    }

    /// What the sum of the rows' losses is divided by, so that a batch may be computed in parts: see [`Loss::divisor`].
    pub fn weight(&self, objective: Objective, loss: &Loss, outputs: usize) -> f64 {
        match self {
            Self::Classes(labels) => loss.weight(labels),
            Self::Sets(sets) => (sets.len() * outputs) as f64,
            Self::Values(values) => values.len() as f64,
            // A first token has none before it that could say so.
            Self::Tokens(rows) => {
                let first = usize::from(objective == Objective::NextToken);
                rows.iter().flat_map(|row| row.iter().skip(first)).flatten().map(|label| loss.weight(&[*label])).sum()
            }
        }
    }
}
