//! What suits a base model where nobody chose: told by its config.json alone.

use std::path::Path;

use serde_json::Value;

use super::task::TaskKind;
use super::training::Training;

/// Widest model, by `hidden_size`, that counts as small.
const SMALL_HIDDEN_SIZE: u64 = 512;

/// `model_type` of a model of tables, which is our own.
pub const TABLE_MODEL: &str = "fedtune-table";

/// Learning rates for models of tables, which are not pre-trained: linear ones, and those with dense layers.
const TABLE_LEARNING_RATES: [f64; 2] = [1e-2, 1e-3];

/// Epochs a round of a job on tables, which have few rows and take little time.
pub(super) const TABLE_EPOCHS: usize = 7;

fn config(model: &Path) -> Value {
    let text = std::fs::read_to_string(model.join("config.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// A peak learning rate for the model in this folder, where nobody chose one: 1e-4 for encoders of a hidden size up to
/// 512, which need larger steps, 1e-2 for linear models of tables and 1e-3 for others, and the default of [`Training`] for
/// wider encoders and for folders that cannot be read.
pub fn suggested_learning_rate(model: &Path) -> f64 {
    let config = config(model);
    match config["hidden_size"].as_u64() {
        _ if config["model_type"] == TABLE_MODEL => {
            let layers = config["hidden_sizes"].as_array().is_some_and(|sizes| !sizes.is_empty());
            TABLE_LEARNING_RATES[usize::from(layers)]
        }
        Some(width) if width <= SMALL_HIDDEN_SIZE => 1e-4,
        _ => Training::default().learning_rate,
    }
}

/// The kind of task for the model in this folder, where nobody chose one: what a model of tables was made for, images or
/// responses for the models that have no other, and text classification for any else.
pub fn suggested_kind(model: &Path) -> TaskKind {
    let config = config(model);
    match (config["model_type"].as_str(), config["problem_type"].as_str()) {
        (Some(TABLE_MODEL), Some("regression")) => TaskKind::TableRegression,
        (Some(TABLE_MODEL), _) => TaskKind::TableClassification,
        (Some("resnet" | "vit"), _) => TaskKind::ImageClassification,
        (Some("llama" | "qwen2" | "qwen3"), _) => TaskKind::CausalLm,
        _ => TaskKind::TextClassification,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_kind_follows_from_what_a_model_can_do() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(suggested_kind(folder.path()), TaskKind::TextClassification);
        for (text, kind) in [
            (r#"{"model_type": "bert"}"#, TaskKind::TextClassification),
            (r#"{"model_type": "vit"}"#, TaskKind::ImageClassification),
            (r#"{"model_type": "qwen3"}"#, TaskKind::CausalLm),
            (r#"{"model_type": "fedtune-table"}"#, TaskKind::TableClassification),
            (r#"{"model_type": "fedtune-table", "problem_type": "regression"}"#, TaskKind::TableRegression),
            ("{", TaskKind::TextClassification),
        ] {
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            assert_eq!(suggested_kind(folder.path()), kind, "{text}");
        }
    }
}
