//! The export recipe: how the aggregator, which knows no architecture, writes a whole model in Hugging Face layout out
//! of the base model's tensors and a state's.

use serde::{Deserialize, Serialize};

/// The tensors of a whole model.
pub const MODEL_TENSORS: &str = "model.safetensors";
/// The settings of adapters, as peft names the file.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The tensors of adapters, as peft names the file.
pub const ADAPTER_TENSORS: &str = "adapter_model.safetensors";

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
        if self.adapter_config_json.is_some() { ADAPTER_TENSORS } else { MODEL_TENSORS }
    }
}
