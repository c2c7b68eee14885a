//! `config.json` of a BERT model, checked before anything is allocated.

use std::path::Path;

use candle_transformers::models::bert;
use candle_transformers::models::bert::HiddenAct;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::ModelError;

/// The sizes and settings of a BERT encoder. Absent settings have the defaults of transformers' `BertConfig`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BertConfig {
    /// Entries of the word embedding table.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Activation of the feed-forward part.
    #[serde(default = "default_activation", deserialize_with = "activation")]
    pub hidden_act: HiddenAct,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Entries of the token-type table.
    #[serde(default = "default_types")]
    pub type_vocab_size: usize,
    /// Added to the variance in layer normalisation.
    #[serde(default = "default_epsilon")]
    pub layer_norm_eps: f64,
    /// Standard deviation of new weights.
    #[serde(default = "default_range")]
    pub initializer_range: f64,
}

fn default_activation() -> HiddenAct {
    HiddenAct::Gelu
}
fn default_types() -> usize {
    2
}
fn default_epsilon() -> f64 {
    1e-12
}
fn default_range() -> f64 {
    0.02
}

fn activation<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<HiddenAct, D::Error> {
    let name = String::deserialize(deserializer)?;
    match name.as_str() {
        "gelu" => Ok(HiddenAct::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(HiddenAct::GeluApproximate),
        "relu" => Ok(HiddenAct::Relu),
        _ => Err(serde::de::Error::custom(format!(
            "found {name:?}; expected \"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\" or \"relu\""
        ))),
    }
}

impl BertConfig {
    /// Reads the text of `config.json` at `path`; gives the settings and the whole document.
    ///
    /// # Errors
    /// Not JSON, not BERT, or a size that is absent or out of bounds.
    pub fn parse(path: &Path, text: &[u8]) -> Result<(Self, Map<String, Value>), ModelError> {
        let wrong = |message: String| ModelError::Config { path: path.to_path_buf(), message };
        let document: Value = serde_json::from_slice(text).map_err(|e| wrong(format!("not valid JSON: {e}")))?;
        let Value::Object(document) = document else {
            return Err(wrong("found JSON that is not an object; expected the config.json of a model".into()));
        };
        match document.get("model_type") {
            Some(Value::String(kind)) if kind == "bert" => {}
            found => {
                let found = found.map_or_else(|| "absent".into(), Value::to_string);
                return Err(ModelError::Architecture { path: path.to_path_buf(), found });
            }
        }
        if let Some(Value::String(kind)) = document.get("position_embedding_type")
            && kind != "absolute"
        {
            return Err(wrong(format!("position_embedding_type is {kind:?}; supported: \"absolute\"")));
        }
        if document.get("is_decoder") == Some(&Value::Bool(true)) {
            return Err(wrong("is_decoder is true; supported: encoders".into()));
        }
        let config: Self = serde_path_to_error::deserialize(Value::Object(document.clone())).map_err(|e| {
            let field = e.path().to_string();
            wrong(if field == "." { e.into_inner().to_string() } else { format!("{field}: {}", e.into_inner()) })
        })?;
        config.check().map_err(wrong)?;
        Ok((config, document))
    }

    /// Bounds far above every published BERT, so that a damaged file cannot ask for absurd memory.
    fn check(&self) -> Result<(), String> {
        for (field, found, most) in [
            ("vocab_size", self.vocab_size, 4_000_000),
            ("hidden_size", self.hidden_size, 16_384),
            ("num_hidden_layers", self.num_hidden_layers, 256),
            ("num_attention_heads", self.num_attention_heads, 1_024),
            ("intermediate_size", self.intermediate_size, 131_072),
            ("max_position_embeddings", self.max_position_embeddings, 131_072),
            ("type_vocab_size", self.type_vocab_size, 1_024),
        ] {
            if found == 0 || found > most {
                return Err(format!("{field} is {found}; expected 1 to {most}"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(format!(
                "num_attention_heads is {}; expected a divisor of hidden_size, which is {}",
                self.num_attention_heads, self.hidden_size
            ));
        }
        for (field, found, most) in
            [("layer_norm_eps", self.layer_norm_eps, 0.1), ("initializer_range", self.initializer_range, 10.0)]
        {
            if !(found > 0.0 && found <= most) {
                return Err(format!("{field} is {found}; expected more than 0 and at most {most}"));
            }
        }
        Ok(())
    }
}

/// The form that candle's own BERT takes; it has no backward and serves as a reference for inference.
impl From<&BertConfig> for bert::Config {
    fn from(config: &BertConfig) -> Self {
        Self {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            intermediate_size: config.intermediate_size,
            hidden_act: config.hidden_act,
            max_position_embeddings: config.max_position_embeddings,
            type_vocab_size: config.type_vocab_size,
            layer_norm_eps: config.layer_norm_eps,
            initializer_range: config.initializer_range,
            hidden_dropout_prob: 0.0,
            ..Self::default()
        }
    }
}
