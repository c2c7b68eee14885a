//! The export recipe: how the aggregator, which knows no architecture, writes a whole model in Hugging Face layout out
//! of the base model's tensors and a state's.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::folder;
use crate::layout::Layout;

/// Longest export recipe, in bytes.
const BYTES_MAX: usize = 2 << 20;

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

    /// The recipe in the text that a site sent, if a model can be written by it out of a state of this layout.
    ///
    /// # Errors
    /// The text is too long or no recipe, a configuration in it is no JSON object, or it names a tensor twice or one that the
    /// state does not have.
    pub fn checked(text: &str, state: &Layout) -> Result<Self, String> {
        if text.len() > BYTES_MAX {
            return Err(format!("the export recipe has {} bytes; expected at most {BYTES_MAX}", text.len()));
        }
        let recipe: Self = serde_json::from_str(text).map_err(|e| format!("the export recipe cannot be read: {e}"))?;
        let configs = [
            (folder::CONFIG, Some(&recipe.config_json)),
            (folder::ADAPTER_CONFIG, recipe.adapter_config_json.as_ref()),
        ];
        for (name, text) in configs {
            if let Some(Err(e)) = text.map(|text| serde_json::from_str::<Map<String, Value>>(text)) {
                return Err(format!("the export recipe says in {name} what is not an object: {e}"));
            }
        }
        // Sites choose both lists, so neither is gone through for each entry of the other.
        let here: BTreeSet<&str> = state.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let mut names = BTreeSet::new();
        for tensor in &recipe.tensors {
            if !names.insert(&tensor.name) {
                return Err(format!("the export recipe names tensor {:?} twice", tensor.name));
            }
            if let TensorSource::State(name) = &tensor.source
                && !here.contains(name.as_str())
            {
                return Err(format!(
                    "the export recipe takes tensor {name:?} from the state, which has none of this name"
                ));
            }
        }
        Ok(recipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_that_makes_no_model_of_the_state_is_refused() {
        let state = Layout::of_tensors([("w".to_owned(), "F32".to_owned(), vec![2])]).expect("small");
        let text = |config: &str, tensors: &str| {
            serde_json::json!({"config_json": config, "tensors": serde_json::from_str::<Value>(tensors).expect("JSON")})
                .to_string()
        };
        let sound = text("{}", r#"[{"name": "a", "source": {"state": "w"}}, {"name": "b", "source": {"base": "x"}}]"#);
        assert_eq!(ExportRecipe::checked(&sound, &state).expect("sound").tensors.len(), 2);
        let twice = r#"[{"name": "a", "source": {"state": "w"}}, {"name": "a", "source": {"base": "x"}}]"#;
        for (text, reason) in [
            (" ".repeat(BYTES_MAX + 1), "2097153 bytes; expected at most 2097152"),
            ("{}".into(), "cannot be read: missing field `config_json`"),
            (text("[]", "[]"), "in config.json what is not an object"),
            (sound.replacen('{', r#"{"adapter_config_json": "7","#, 1), "in adapter_config.json what is not an object"),
            (text("{}", twice), "tensor \"a\" twice"),
            (text("{}", r#"[{"name": "a", "source": {"state": "x"}}]"#), "tensor \"x\" from the state"),
        ] {
            let error = ExportRecipe::checked(&text, &state).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }
}
