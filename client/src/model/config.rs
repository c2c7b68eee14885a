//! `config.json` of an encoder, checked before anything is allocated.

use std::path::Path;

use candle_transformers::models::bert;
use candle_transformers::models::bert::HiddenAct;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::ModelError;

/// A family of encoders that share one function and differ in names, head and positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Devlin et al. 2018, 1810.04805.
    Bert,
    /// Sanh et al. 2019, 1910.01108.
    DistilBert,
    /// Liu et al. 2019, 1907.11692.
    Roberta,
    /// Conneau et al. 2019, 1911.02116: RoBERTa with another vocabulary.
    XlmRoberta,
}

impl Architecture {
    /// Every architecture with its `model_type` and the class that transformers loads it with.
    const ALL: [(Self, &str, &str); 4] = [
        (Self::Bert, "bert", "BertForSequenceClassification"),
        (Self::DistilBert, "distilbert", "DistilBertForSequenceClassification"),
        (Self::Roberta, "roberta", "RobertaForSequenceClassification"),
        (Self::XlmRoberta, "xlm-roberta", "XLMRobertaForSequenceClassification"),
    ];

    fn of(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, found, _)| *found == model_type).map(|(architecture, ..)| architecture)
    }

    /// The class of transformers for sequence classification.
    pub(super) fn classifier_class(self) -> &'static str {
        Self::ALL.into_iter().find(|(architecture, ..)| *architecture == self).map_or("", |(.., class)| class)
    }

    /// Whether dropout stands before the head's dense layer too.
    pub(super) fn drops_before_pooler(self) -> bool {
        self.is_roberta()
    }

    fn is_roberta(self) -> bool {
        matches!(self, Self::Roberta | Self::XlmRoberta)
    }
}

/// The sizes and settings of an encoder. Absent settings have the defaults of transformers' configurations.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// The family.
    pub architecture: Architecture,
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
    pub hidden_act: HiddenAct,
    /// Entries of the position table.
    pub max_position_embeddings: usize,
    /// The row of the position table that a sequence starts with; RoBERTa leaves the first ones out.
    pub first_position: usize,
    /// Entries of the token-type table, where the architecture has one.
    pub type_vocab_size: Option<usize>,
    /// Added to the variance in layer normalisation.
    pub layer_norm_eps: f64,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
}

/// `config.json` of BERT and RoBERTa.
#[derive(Deserialize)]
struct BertFields {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "default_activation", deserialize_with = "activation")]
    hidden_act: HiddenAct,
    max_position_embeddings: usize,
    #[serde(default = "default_types")]
    type_vocab_size: usize,
    #[serde(default = "default_epsilon")]
    layer_norm_eps: f64,
    #[serde(default = "default_range")]
    initializer_range: f64,
    #[serde(default)]
    pad_token_id: Option<usize>,
}

impl BertFields {
    fn into_config(self, architecture: Architecture) -> EncoderConfig {
        let padding = self.pad_token_id.unwrap_or(1);
        EncoderConfig {
            architecture,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            hidden_act: self.hidden_act,
            max_position_embeddings: self.max_position_embeddings,
            first_position: if architecture.is_roberta() { padding.saturating_add(1) } else { 0 },
            type_vocab_size: Some(self.type_vocab_size),
            layer_norm_eps: self.layer_norm_eps,
            initializer_range: self.initializer_range,
        }
    }
}

/// `config.json` of DistilBERT.
#[derive(Deserialize)]
struct DistilBertFields {
    vocab_size: usize,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    #[serde(default = "default_activation", deserialize_with = "activation")]
    activation: HiddenAct,
    max_position_embeddings: usize,
    #[serde(default = "default_range")]
    initializer_range: f64,
}

impl DistilBertFields {
    fn into_config(self) -> EncoderConfig {
        EncoderConfig {
            architecture: Architecture::DistilBert,
            vocab_size: self.vocab_size,
            hidden_size: self.dim,
            num_hidden_layers: self.n_layers,
            num_attention_heads: self.n_heads,
            intermediate_size: self.hidden_dim,
            hidden_act: self.activation,
            max_position_embeddings: self.max_position_embeddings,
            first_position: 0,
            type_vocab_size: None,
            layer_norm_eps: default_epsilon(),
            initializer_range: self.initializer_range,
        }
    }
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

impl EncoderConfig {
    /// Reads the text of `config.json` at `path`; gives the settings and the whole document.
    ///
    /// # Errors
    /// Not JSON, another architecture, or a size that is absent or out of bounds.
    pub fn parse(path: &Path, text: &[u8]) -> Result<(Self, Map<String, Value>), ModelError> {
        let wrong = |message: String| ModelError::Config { path: path.to_path_buf(), message };
        let document: Value = serde_json::from_slice(text).map_err(|e| wrong(format!("not valid JSON: {e}")))?;
        let Value::Object(document) = document else {
            return Err(wrong("found JSON that is not an object; expected the config.json of a model".into()));
        };
        let kind = document.get("model_type");
        let Some(architecture) = kind.and_then(Value::as_str).and_then(Architecture::of) else {
            let found = kind.map_or_else(|| "absent".into(), Value::to_string);
            return Err(ModelError::Architecture { path: path.to_path_buf(), found });
        };
        if let Some(Value::String(kind)) = document.get("position_embedding_type")
            && kind != "absolute"
        {
            return Err(wrong(format!("position_embedding_type is {kind:?}; supported: \"absolute\"")));
        }
        if document.get("is_decoder") == Some(&Value::Bool(true)) {
            return Err(wrong("is_decoder is true; supported: encoders".into()));
        }
        if document.get("sinusoidal_pos_embds") == Some(&Value::Bool(true)) {
            return Err(wrong("sinusoidal_pos_embds is true; supported: learnt positions".into()));
        }
        let config = match architecture {
            Architecture::DistilBert => fields::<DistilBertFields>(&document).map(DistilBertFields::into_config),
            _ => fields::<BertFields>(&document).map(|fields| fields.into_config(architecture)),
        };
        let config = config.map_err(wrong)?;
        config.check().map_err(wrong)?;
        Ok((config, document))
    }

    /// Longest sequence, in tokens.
    pub fn positions(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.first_position)
    }

    /// Bounds far above every published encoder, so that a damaged file cannot ask for absurd memory.
    fn check(&self) -> Result<(), String> {
        let [width, layers, heads, wide] = match self.architecture {
            Architecture::DistilBert => ["dim", "n_layers", "n_heads", "hidden_dim"],
            _ => ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"],
        };
        for (field, found, most) in [
            ("vocab_size", self.vocab_size, 4_000_000),
            (width, self.hidden_size, 16_384),
            (layers, self.num_hidden_layers, 256),
            (heads, self.num_attention_heads, 1_024),
            (wide, self.intermediate_size, 131_072),
            ("max_position_embeddings", self.max_position_embeddings, 131_072),
            ("type_vocab_size", self.type_vocab_size.unwrap_or(1), 1_024),
        ] {
            if found == 0 || found > most {
                return Err(format!("{field} is {found}; expected 1 to {most}"));
            }
        }
        if self.positions() == 0 {
            return Err(format!(
                "max_position_embeddings is {}; expected more than pad_token_id + 1, which is {}",
                self.max_position_embeddings, self.first_position
            ));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(format!(
                "{heads} is {}; expected a divisor of {width}, which is {}",
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

fn fields<T: for<'de> Deserialize<'de>>(document: &Map<String, Value>) -> Result<T, String> {
    serde_path_to_error::deserialize(Value::Object(document.clone())).map_err(|e| {
        let field = e.path().to_string();
        if field == "." { e.into_inner().to_string() } else { format!("{field}: {}", e.into_inner()) }
    })
}

/// The form that candle's own BERT takes; it has no backward and serves as a reference for inference.
impl From<&EncoderConfig> for bert::Config {
    fn from(config: &EncoderConfig) -> Self {
        Self {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            intermediate_size: config.intermediate_size,
            hidden_act: config.hidden_act,
            max_position_embeddings: config.max_position_embeddings,
            type_vocab_size: config.type_vocab_size.unwrap_or(0),
            layer_norm_eps: config.layer_norm_eps,
            initializer_range: config.initializer_range,
            hidden_dropout_prob: 0.0,
            ..Self::default()
        }
    }
}
