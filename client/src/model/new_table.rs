//! A new model of a table: nobody has pre-trained one for its columns.

use std::path::Path;

use fedtune_config::job::TABLE_MODEL;
use serde_json::{Map, Value, json};

use super::anatomy::{Anatomy, Place, Role};
use super::config::{Column, Config, Scale};
use super::error::ModelError;
use super::objective::Objective;
use super::tensor_file::Named;
use super::{folder, initial, tensor_file};

/// What a new model of a table is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTable {
    /// The columns that it takes.
    pub columns: Vec<Column>,
    /// Widths of the dense layers; none is a linear (or logistic) regression.
    pub hidden_sizes: Vec<usize>,
    /// Every label, in the order of the outputs; none where it says numbers.
    pub labels: Vec<String>,
    /// Where the numbers lie that it says.
    pub target: Option<Scale>,
    /// Seed of its weights.
    pub seed: u64,
}

/// Writes config.json and model.safetensors into a folder that is there. Weights of a dense layer are drawn from
/// N(0, 2 / inputs) (He et al. 2015, 1502.01852), those of the last one are small, and biases are 0.
///
/// # Errors
/// No such model can be, or a file cannot be written.
pub fn write_new_table(folder: &Path, new: &NewTable) -> Result<(), ModelError> {
    let path = folder.join(folder::CONFIG);
    let objective = if new.target.is_some() { Objective::Value } else { Objective::Class };
    let labels = match objective {
        // As exported models of numbers have it.
        Objective::Value => vec!["LABEL_0".to_owned()],
        _ => new.labels.clone(),
    };
    let ids: Map<String, Value> = labels.iter().enumerate().map(|(id, label)| (id.to_string(), json!(label))).collect();
    let label_ids: Map<String, Value> =
        labels.iter().enumerate().map(|(id, label)| (label.clone(), json!(id))).collect();
    let mut document = json!({
        "model_type": TABLE_MODEL,
        "columns": new.columns,
        "hidden_sizes": new.hidden_sizes,
        "hidden_act": "relu",
        "problem_type": objective.problem_type(),
        "id2label": ids,
        "label2id": label_ids,
    });
    if let Some(target) = new.target {
        document["target"] = json!(target);
    }
    let text = |document: &Value| serde_json::to_string_pretty(document).unwrap_or_default() + "\n";
    let (config, _) = Config::parse(&path, text(&document).as_bytes())?;
    let anatomy = Anatomy::of(&config, objective, labels.len())?;
    document["architectures"] = json!([anatomy.class]);
    let tensors: Vec<Named> = anatomy
        .tensors
        .iter()
        .map(|tensor| {
            let count = tensor.shape.iter().product();
            let deviation = match (tensor.place, tensor.shape.as_slice()) {
                (Place::Layer(_), [_, inputs]) => (2.0 / *inputs as f64).sqrt(),
                _ => anatomy.deviation,
            };
            let values = match tensor.role {
                Role::Weight => initial::normal(new.seed, &tensor.name, count, deviation),
                Role::Bias | Role::Norm | Role::Statistic => vec![0.0; count],
            };
            Named { name: tensor.name.clone(), shape: tensor.shape.clone(), values }
        })
        .collect();
    let write = |path: &Path, source| ModelError::Write { path: path.to_path_buf(), source };
    tensor_file::write(&folder.join(folder::TENSORS), &tensors, &[])?;
    std::fs::write(&path, text(&document)).map_err(|source| write(&path, source))
}
