//! Low-rank adapters (LoRA; Hu et al. 2021, 2106.09685) and their files, in peft's layout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use fedtune_config::job::Lora;
use serde::Deserialize;
use serde_json::{Value, json};

use super::anatomy::Anatomy;
use super::error::ModelError;
use super::folder;
use super::objective::Objective;
use super::ops::dropout::DropoutStream;

/// What peft puts before the names of transformers.
pub(super) const PREFIX: &str = "base_model.model.";

/// Which layers have an adapter, and what all adapters share.
#[derive(Debug)]
pub(super) struct Adapters {
    settings: Lora,
    /// The stem of each adapted layer, with its place among them.
    layers: BTreeMap<String, u64>,
}

impl Adapters {
    /// `settings` with the targets written out, and the stems of the layers they fit.
    pub(super) fn new(settings: Lora, stems: BTreeSet<String>) -> Self {
        Self { settings, layers: stems.into_iter().zip(0..).collect() }
    }

    /// The stems of the adapted layers.
    pub(super) fn layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// The number of a layer's adapter; `None` where it has none.
    pub(super) fn place(&self, stem: &str) -> Option<u64> {
        self.layers.get(stem).copied()
    }

    /// What the adapters' product is multiplied by.
    pub(super) fn scale(&self) -> f64 {
        self.settings.alpha / self.settings.rank as f64
    }

    /// The masks of what goes into the adapters.
    pub(super) fn dropout_of(&self, stream: DropoutStream) -> DropoutStream {
        DropoutStream { probability: self.settings.dropout, ..stream }
    }

    /// The text of `adapter_config.json`, as peft writes it.
    pub(super) fn config_json(&self, anatomy: &Anatomy, objective: Objective) -> String {
        let task = match objective {
            // peft has no word for images.
            _ if anatomy.class.ends_with("ForImageClassification") => None,
            Objective::Class | Objective::Sets | Objective::Value => Some("SEQ_CLS"),
            Objective::Tokens => Some("TOKEN_CLS"),
            Objective::NextToken => Some("CAUSAL_LM"),
        };
        let Lora { rank, alpha, dropout, targets } = &self.settings;
        let document = json!({
            "peft_type": "LORA",
            "task_type": task,
            // What config.json names is what the base model was once made of, which may have other weights.
            "base_model_name_or_path": null,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": dropout,
            "target_modules": anatomy.peft_targets(targets),
            "modules_to_save": Some(&anatomy.beside_adapters).filter(|parts| !parts.is_empty()),
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "inference_mode": true,
        });
        let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// `adapter_config.json`, as far as it matters here.
#[derive(Deserialize)]
struct AdapterConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    target_modules: Value,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, Value>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, Value>,
}

/// The settings of the adapters in a folder; `None` where it holds none.
///
/// # Errors
/// adapter_config.json cannot be read or asks for more than plain LoRA, or the adapters' tensors are absent.
pub(super) fn settings_in(model: &Path) -> Result<Option<Lora>, ModelError> {
    let path = model.join(folder::ADAPTER_CONFIG);
    if !path.is_file() {
        return Ok(None);
    }
    if !model.join(folder::ADAPTER_TENSORS).is_file() {
        return Err(ModelError::FileMissing {
            folder: model.into(),
            file: folder::ADAPTER_TENSORS,
            remedy: "It has adapter_config.json, so it should hold adapters; write it again",
        });
    }
    let wrong = |message: String| ModelError::Config { path: path.clone(), message };
    let bytes = folder::read(path.clone(), folder::MAX_CONFIG)?;
    let config: AdapterConfig = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    let plain = config.rank_pattern.is_empty() && config.alpha_pattern.is_empty();
    if config.peft_type != "LORA" || config.use_rslora || config.use_dora || !plain {
        return Err(wrong(format!(
            "found adapters of type {:?} with settings beyond plain LoRA; supported: \"LORA\" without rslora, dora and \
             patterns of rank or alpha",
            config.peft_type
        )));
    }
    if config.bias.as_deref().is_some_and(|bias| bias != "none") {
        return Err(wrong(format!("bias is {:?}; supported: \"none\"", config.bias.unwrap_or_default())));
    }
    if !(1..=4096).contains(&config.r) || !config.lora_alpha.is_finite() {
        return Err(wrong(format!("r is {} and lora_alpha {}; expected r of 1 to 4096", config.r, config.lora_alpha)));
    }
    let targets = match config.target_modules {
        Value::String(target) => vec![target],
        Value::Array(targets) => targets.iter().filter_map(|target| target.as_str().map(str::to_owned)).collect(),
        found => return Err(wrong(format!("target_modules is {found}; expected a list of names"))),
    };
    Ok(Some(Lora { rank: config.r, alpha: config.lora_alpha, dropout: 0.0, targets }))
}
