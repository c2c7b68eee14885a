//! The export recipe: how the aggregator, which knows no architecture, writes a whole model in Hugging Face layout out
//! of the base model's tensors and a state's.

use serde::{Deserialize, Serialize};

/// Where a tensor of the exported model comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorSource {
    /// The tensor of this name in the base model's `model.safetensors`.
    Base(String),
    /// The tensor of the exported name in the state.
    State,
}

/// One tensor of the exported model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportTensor {
    /// Its name in the exported `model.safetensors`.
    pub name: String,
    /// Where its bytes come from.
    pub source: TensorSource,
}

/// Everything needed to write the exported model beside the base model's tokenizer files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRecipe {
    /// The text of `config.json`, with architecture, `id2label` and `label2id`.
    pub config_json: String,
    /// Every tensor of the exported model.
    pub tensors: Vec<ExportTensor>,
}
