//! The export recipe: how the aggregator, which knows no architecture, writes a whole model in Hugging Face layout out
//! of the base model's tensors and a state's.

use serde::{Deserialize, Serialize};

use crate::folder;

/// Where a tensor of the exported model comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorSource {
    /// The tensor of this name in the base model's `model.safetensors`.
    Base(String),
    /// The tensor of this name in the state.
    State(String),
}

/// One tensor of the exported model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportTensor {
    /// Its name in the exported file.
    pub name: String,
    /// Where its bytes come from.
    pub source: TensorSource,
}

/// Everything needed to write the exported model, or adapters in peft's layout, beside the base model's tokenizer files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRecipe {
    /// The text of `config.json`, with architecture, `id2label` and `label2id`.
    pub config_json: String,
    /// The text of `adapter_config.json`, where what is exported is adapters for the base model and not a whole model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_config_json: Option<String>,
    /// Every tensor of the exported model.
    pub tensors: Vec<ExportTensor>,
}

impl ExportRecipe {
    /// The file that the tensors are written to.
    pub fn tensors_file(&self) -> &'static str {
        if self.adapter_config_json.is_some() { folder::ADAPTER_TENSORS } else { folder::TENSORS }
    }
}
