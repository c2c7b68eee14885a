//! How the cells of a row become inputs of a model of tables, and its outputs numbers.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::config::{Column, ColumnKind, Config, Reads, Scale, TableConfig};
use super::error::ModelError;
use super::folder;
use crate::data::{Cell, CellColumn, CellKind, Columns};

/// So many deviations from the mean is as far as an input goes: no cell makes an infinite one.
const FARTHEST: f64 = 1e6;

/// How cells become inputs: see [`ColumnKind`].
#[derive(Debug)]
pub struct CellPreparation {
    columns: Arc<[CellColumn]>,
    /// What each column's inputs are made by, and where the first of them stands.
    makers: Vec<(Maker, usize)>,
    inputs: usize,
    target: Option<Scale>,
}

#[derive(Debug)]
enum Maker {
    Number(Scale),
    Word(HashMap<String, usize>),
}

impl CellPreparation {
    pub(super) fn new(config: &TableConfig) -> Self {
        let mut makers = Vec::with_capacity(config.columns.len());
        let mut inputs = 0;
        for column in &config.columns {
            let maker = match &column.kind {
                ColumnKind::Number { mean, deviation } => Maker::Number(Scale { mean: *mean, deviation: *deviation }),
                ColumnKind::Category { values } => {
                    Maker::Word(values.iter().enumerate().map(|(place, word)| (word.clone(), place)).collect())
                }
            };
            makers.push((maker, inputs));
            inputs += column.width();
        }
        Self { columns: cell_columns(config), makers, inputs, target: config.target }
    }

    /// The columns whose cells it takes.
    pub fn columns(&self) -> &Arc<[CellColumn]> {
        &self.columns
    }

    /// How many inputs a row has.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Writes the inputs of a row into `inputs`, which are zero; whether the cells are of such a row.
    #[must_use]
    pub fn fill(&self, cells: &[Cell], inputs: &mut [f32]) -> bool {
        if cells.len() != self.makers.len() || inputs.len() != self.inputs {
            return false;
        }
        for (cell, (maker, place)) in cells.iter().zip(&self.makers) {
            match (maker, cell) {
                (Maker::Number(Scale { mean, deviation }), Cell::Number(number)) => {
                    inputs[*place] = ((number - mean) / deviation).clamp(-FARTHEST, FARTHEST) as f32;
                }
                (Maker::Number(_), Cell::Missing) => inputs[place + 1] = 1.0,
                (Maker::Word(words), Cell::Word(word)) => {
                    if let Some(word) = words.get(&**word) {
                        inputs[place + word] = 1.0;
                    }
                }
                (Maker::Word(_), Cell::Missing) => {}
                (Maker::Number(_), Cell::Word(_)) | (Maker::Word(_), Cell::Number(_)) => return false,
            }
        }
        true
    }

    /// What the network should say where a number is to be learnt.
    pub fn to_output(&self, number: f32) -> f32 {
        self.target.map_or(number, |Scale { mean, deviation }| ((f64::from(number) - mean) / deviation) as f32)
    }

    /// The number that the network's output stands for.
    pub fn of_output(&self, output: f32) -> f32 {
        self.target.map_or(output, |Scale { mean, deviation }| (mean + deviation * f64::from(output)) as f32)
    }
}

fn cell_columns(config: &TableConfig) -> Arc<[CellColumn]> {
    let column = |Column { name, kind }: &Column| {
        let kind = match kind {
            ColumnKind::Number { .. } => CellKind::Number,
            ColumnKind::Category { values } => {
                let mut known = values.clone();
                known.sort_unstable();
                CellKind::Word { known }
            }
        };
        CellColumn { name: name.clone(), kind }
    };
    config.columns.iter().map(column).collect()
}

/// The columns to read, with those that the model in a folder takes where rows are cells of a table.
///
/// # Errors
/// The folder holds no model, or one that reads no tables.
pub fn taken_by(model: &Path, columns: Columns) -> Result<Columns, ModelError> {
    if !columns.is_table() {
        return Ok(columns);
    }
    match folder::open(model)?.0 {
        Config::Table(config) => Ok(columns.taking(cell_columns(&config))),
        other => Err(ModelError::Reads {
            path: model.join(folder::CONFIG),
            found: other.reads(),
            expected: Reads::Tables.to_string(),
        }),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn preparation() -> CellPreparation {
        let document = serde_json::json!({
            "model_type": "fedtune-table",
            "columns": [
                { "name": "age", "kind": "number", "mean": 50.0, "deviation": 10.0 },
                { "name": "pain", "kind": "category", "values": ["some", "none"] },
                { "name": "dose", "kind": "number", "mean": 0.0, "deviation": 1e-30 },
            ],
            "target": { "mean": 100.0, "deviation": 4.0 },
        });
        let (config, _) = Config::parse("config.json".as_ref(), document.to_string().as_bytes()).unwrap();
        let Config::Table(config) = config else { panic!("it is a model of tables") };
        CellPreparation::new(&config)
    }

    #[test]
    fn cells_become_inputs() {
        let preparation = preparation();
        let row = |cells: [Cell; 3]| {
            let mut inputs = vec![0.0; preparation.inputs()];
            preparation.fill(&cells, &mut inputs).then_some(inputs)
        };
        let word = |word: &str| Cell::Word(word.into());
        assert_eq!(row([Cell::Number(65.0), word("none"), Cell::Missing]), Some(vec![1.5, 0.0, 0.0, 1.0, 0.0, 1.0]));
        assert_eq!(row([Cell::Missing, word("other"), Cell::Number(0.0)]), Some(vec![0.0, 1.0, 0.0, 0.0, 0.0, 0.0]));
        assert_eq!(
            row([Cell::Number(50.0), Cell::Missing, Cell::Number(-1.0)]),
            Some(vec![0.0, 0.0, 0.0, 0.0, -1e6, 0.0])
        );
        assert_eq!(row([word("none"), word("none"), Cell::Missing]), None);
        assert!(!preparation.fill(&[Cell::Missing], &mut [0.0; 6]));
        let [CellColumn { kind: CellKind::Word { known }, .. }] = &preparation.columns()[1..2] else {
            panic!("words stay words")
        };
        assert_eq!(known, &["none", "some"]);
    }

    #[test]
    fn outputs_stand_for_numbers() {
        let preparation = preparation();
        assert_eq!((preparation.to_output(108.0), preparation.of_output(2.0)), (2.0, 108.0));
    }

    proptest! {
        #[test]
        fn every_input_is_finite(age in any::<f32>(), dose in any::<f32>(), word in "[a-z]{0,4}") {
            let preparation = preparation();
            let number = |x: f32| if x.is_finite() { Cell::Number(x.into()) } else { Cell::Missing };
            let mut inputs = vec![0.0; preparation.inputs()];
            prop_assert!(preparation.fill(&[number(age), Cell::Word(word.into()), number(dose)], &mut inputs));
            prop_assert!(inputs.iter().all(|input| input.is_finite()));
        }
    }
}
