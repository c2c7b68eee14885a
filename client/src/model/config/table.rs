//! Models of tables: dense layers over columns that are made numbers, or none for a linear model. There is no standard for
//! these; config.json is our own.

use std::collections::HashSet;

use candle_transformers::models::bert::HiddenAct;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::encoder::{activation, default_range};
use super::{check_sizes, fields};
use crate::data::MAX_COLUMNS;

/// The settings of a model of tables.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TableConfig {
    /// What the inputs are made of, in this order.
    pub columns: Vec<Column>,
    /// Widths of the dense layers; none is a linear (or logistic) regression.
    #[serde(default)]
    pub hidden_sizes: Vec<usize>,
    /// Activation behind each of them.
    #[serde(default = "default_activation", deserialize_with = "activation")]
    pub hidden_act: HiddenAct,
    /// Standard deviation of new weights.
    #[serde(default = "default_range")]
    pub initializer_range: f64,
    /// For a model that says numbers: what it says stands for `target.mean + target.deviation · output`, so that numbers of
    /// any size are learnt alike. Outputs are the numbers themselves where it is absent.
    #[serde(default)]
    pub target: Option<Scale>,
}

/// Where numbers lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub deviation: f64,
}

impl Scale {
    /// Whether it can be calculated with.
    fn is_usable(self) -> bool {
        self.mean.is_finite() && self.deviation.is_finite() && self.deviation > 0.0
    }
}

/// A column of a table and how it becomes inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Its name in the files.
    pub name: String,
    /// What it holds.
    #[serde(flatten)]
    pub kind: ColumnKind,
}

/// What a column holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ColumnKind {
    /// Numbers: one input, `(x − mean) / deviation`, 0 where the value is missing, and another that is 1 there.
    Number {
        /// Mean of the training rows.
        mean: f64,
        /// Their standard deviation.
        deviation: f64,
    },
    /// One of some words: an input for each, 1 for the one that is there; all 0 for a missing or an unknown one.
    Category {
        /// The words, sorted.
        values: Vec<String>,
    },
}

impl Column {
    /// How many inputs it makes.
    pub fn width(&self) -> usize {
        match &self.kind {
            ColumnKind::Number { .. } => 2,
            ColumnKind::Category { values } => values.len(),
        }
    }
}

fn default_activation() -> HiddenAct {
    HiddenAct::Relu
}

impl TableConfig {
    /// The settings in a `config.json`.
    pub(super) fn parse(document: &Map<String, Value>) -> Result<Self, String> {
        let config: Self = fields(document)?;
        config.check()?;
        Ok(config)
    }

    /// Inputs of the first layer.
    pub fn inputs(&self) -> usize {
        self.columns.iter().map(Column::width).sum()
    }

    fn check(&self) -> Result<(), String> {
        check_sizes(&[
            ("the number of columns", self.columns.len(), MAX_COLUMNS),
            ("the inputs of columns", self.inputs(), 1_000_000),
        ])?;
        if self.hidden_sizes.len() > 32 {
            return Err(format!("hidden_sizes has {} entries; expected at most 32", self.hidden_sizes.len()));
        }
        for size in &self.hidden_sizes {
            check_sizes(&[("an entry of hidden_sizes", *size, 65_536)])?;
        }
        let mut names = HashSet::new();
        for Column { name, kind } in &self.columns {
            if name.is_empty() || !names.insert(name) {
                return Err(format!("columns: found the name {name:?} empty or twice; expected every column once"));
            }
            match kind {
                ColumnKind::Number { mean, deviation } => {
                    if !(Scale { mean: *mean, deviation: *deviation }).is_usable() {
                        return Err(format!(
                            "columns: {name:?} has mean {mean} and deviation {deviation}; expected finite numbers, the \
                             deviation above 0"
                        ));
                    }
                }
                ColumnKind::Category { values } => {
                    let distinct: HashSet<_> = values.iter().collect();
                    if values.is_empty() || distinct.len() < values.len() {
                        return Err(format!("columns: the values of {name:?} are none or repeat; expected each once"));
                    }
                }
            }
        }
        if let Some(Scale { mean, deviation }) = self.target.filter(|target| !target.is_usable()) {
            return Err(format!(
                "target has mean {mean} and deviation {deviation}; expected finite numbers, the deviation above 0"
            ));
        }
        if !(self.initializer_range > 0.0 && self.initializer_range <= 10.0) {
            let found = self.initializer_range;
            return Err(format!("initializer_range is {found}; expected more than 0 and at most 10"));
        }
        Ok(())
    }
}
