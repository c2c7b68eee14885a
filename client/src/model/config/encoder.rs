//! Transformers that see the whole text.

use candle_transformers::models::bert;
use candle_transformers::models::bert::HiddenAct;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{MOST_LAYERS, check_sizes, fields};

/// A kind of encoder. All but ModernBERT share one function and differ in names, head and positions.
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
    /// Warner et al. 2024, 2412.13663.
    ModernBert,
}

impl Architecture {
    /// Every architecture with its `model_type` and what its classes in transformers begin with.
    const ALL: [(Self, &str, &str); 5] = [
        (Self::Bert, "bert", "Bert"),
        (Self::DistilBert, "distilbert", "DistilBert"),
        (Self::Roberta, "roberta", "Roberta"),
        (Self::XlmRoberta, "xlm-roberta", "XLMRoberta"),
        (Self::ModernBert, "modernbert", "ModernBert"),
    ];

    pub(super) fn of(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, found, _)| *found == model_type).map(|(architecture, ..)| architecture)
    }

    /// What the names of its classes in transformers begin with.
    pub(in crate::model) fn class_stem(self) -> &'static str {
        Self::ALL.into_iter().find(|(architecture, ..)| *architecture == self).map_or("", |(.., class)| class)
    }

    /// Whether dropout stands before the dense layer of the head of a whole text too.
    pub(in crate::model) fn drops_before_pooler(self) -> bool {
        self.is_roberta()
    }

    fn is_roberta(self) -> bool {
        matches!(self, Self::Roberta | Self::XlmRoberta)
    }
}

/// What the head sees of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The mean of all tokens.
    Mean,
}

/// Rotary positions, and attention that in some layers sees near tokens only.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Base of the wavelengths where a layer sees the whole sequence.
    pub global_theta: f64,
    /// Base of the wavelengths in the other layers.
    pub local_theta: f64,
    /// The largest distance that the other layers see.
    pub window: usize,
    /// For each layer, whether it sees the whole sequence.
    pub global: Vec<bool>,
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
    /// Activation of the head; `None`: the hyperbolic tangent.
    pub head_act: Option<HiddenAct>,
    /// What the head sees.
    pub pooling: Pooling,
    /// Entries of the position table, or positions that were trained where there is none.
    pub max_position_embeddings: usize,
    /// The row of the position table that a sequence starts with; RoBERTa leaves the first ones out.
    pub first_position: usize,
    /// Entries of the token-type table, where the architecture has one.
    pub type_vocab_size: Option<usize>,
    /// The positions, where they are no table.
    pub rotary: Option<Rotary>,
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
            head_act: None,
            pooling: Pooling::Cls,
            max_position_embeddings: self.max_position_embeddings,
            first_position: if architecture.is_roberta() { padding.saturating_add(1) } else { 0 },
            type_vocab_size: Some(self.type_vocab_size),
            rotary: None,
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
            head_act: Some(HiddenAct::Relu),
            pooling: Pooling::Cls,
            max_position_embeddings: self.max_position_embeddings,
            first_position: 0,
            type_vocab_size: None,
            rotary: None,
            layer_norm_eps: default_epsilon(),
            initializer_range: self.initializer_range,
        }
    }
}

/// `config.json` of ModernBERT, by its older names and by those of transformers 5.
#[derive(Deserialize)]
struct ModernBertFields {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "default_activation", deserialize_with = "activation")]
    hidden_activation: HiddenAct,
    #[serde(default = "default_activation", deserialize_with = "activation")]
    classifier_activation: HiddenAct,
    #[serde(default = "default_pooling")]
    classifier_pooling: Pooling,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_norm_epsilon")]
    norm_eps: f64,
    #[serde(default = "default_range")]
    initializer_range: f64,
    #[serde(default = "default_window")]
    local_attention: usize,
    #[serde(default = "default_period")]
    global_attn_every_n_layers: usize,
    #[serde(default)]
    layer_types: Option<Vec<LayerType>>,
    #[serde(default = "default_global_theta")]
    global_rope_theta: f64,
    #[serde(default = "default_local_theta")]
    local_rope_theta: Option<f64>,
    #[serde(default)]
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    rope_scaling: Option<Value>,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    classifier_bias: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LayerType {
    FullAttention,
    SlidingAttention,
}

#[derive(Default, Deserialize)]
struct RopeParameters {
    #[serde(default)]
    full_attention: Option<Rope>,
    #[serde(default)]
    sliding_attention: Option<Rope>,
}

#[derive(Deserialize)]
struct Rope {
    #[serde(default)]
    rope_type: Option<String>,
    #[serde(default)]
    rope_theta: Option<f64>,
}

impl ModernBertFields {
    fn into_config(self) -> Result<EncoderConfig, String> {
        for (field, found) in [
            ("norm_bias", self.norm_bias),
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            ("classifier_bias", self.classifier_bias),
        ] {
            if found {
                return Err(format!("{field} is true; supported: false"));
            }
        }
        let RopeParameters { full_attention, sliding_attention } = self.rope_parameters.unwrap_or_default();
        for (place, rope) in [("full_attention", &full_attention), ("sliding_attention", &sliding_attention)] {
            if let Some(found) = rope.as_ref().and_then(|rope| rope.rope_type.as_ref())
                && found != "default"
            {
                return Err(format!("rope_parameters.{place}.rope_type is {found:?}; supported: \"default\""));
            }
        }
        if let Some(found) = self.rope_scaling {
            return Err(format!("rope_scaling is {found}; supported: null"));
        }
        let layers = self.num_hidden_layers;
        let global = match self.layer_types {
            Some(types) if types.len() == layers => {
                types.into_iter().map(|kind| kind == LayerType::FullAttention).collect()
            }
            Some(types) => {
                return Err(format!("layer_types has {} entries; expected num_hidden_layers, {layers}", types.len()));
            }
            None if self.global_attn_every_n_layers == 0 => {
                return Err("global_attn_every_n_layers is 0; expected 1 or more".into());
            }
            // A damaged number of layers is refused later; it must not be allocated for here.
            None => (0..layers.min(MOST_LAYERS)).map(|i| i % self.global_attn_every_n_layers == 0).collect(),
        };
        let theta = |rope: Option<Rope>, older: f64| rope.and_then(|rope| rope.rope_theta).unwrap_or(older);
        let rotary = Rotary {
            global_theta: theta(full_attention, self.global_rope_theta),
            local_theta: theta(sliding_attention, self.local_rope_theta.unwrap_or(self.global_rope_theta)),
            window: self.local_attention / 2,
            global,
        };
        Ok(EncoderConfig {
            architecture: Architecture::ModernBert,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            hidden_act: self.hidden_activation,
            head_act: Some(self.classifier_activation),
            pooling: self.classifier_pooling,
            max_position_embeddings: self.max_position_embeddings,
            first_position: 0,
            type_vocab_size: None,
            rotary: Some(rotary),
            layer_norm_eps: self.norm_eps,
            initializer_range: self.initializer_range,
        })
    }
}

fn default_pooling() -> Pooling {
    Pooling::Cls
}
fn default_positions() -> usize {
    8192
}
fn default_norm_epsilon() -> f64 {
    1e-5
}
fn default_window() -> usize {
    128
}
fn default_period() -> usize {
    3
}
fn default_global_theta() -> f64 {
    160_000.0
}
fn default_local_theta() -> Option<f64> {
    Some(10_000.0)
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
pub(super) fn default_range() -> f64 {
    0.02
}

pub(super) fn activation<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<HiddenAct, D::Error> {
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
    /// The settings in a `config.json`.
    pub(super) fn parse(architecture: Architecture, document: &Map<String, Value>) -> Result<Self, String> {
        if let Some(Value::String(kind)) = document.get("position_embedding_type")
            && kind != "absolute"
        {
            return Err(format!("position_embedding_type is {kind:?}; supported: \"absolute\""));
        }
        if document.get("is_decoder") == Some(&Value::Bool(true)) {
            return Err("is_decoder is true; supported: encoders".into());
        }
        if document.get("sinusoidal_pos_embds") == Some(&Value::Bool(true)) {
            return Err("sinusoidal_pos_embds is true; supported: learnt positions".into());
        }
        let config = match architecture {
            Architecture::DistilBert => fields::<DistilBertFields>(document)?.into_config(),
            Architecture::ModernBert => fields::<ModernBertFields>(document)?.into_config()?,
            _ => fields::<BertFields>(document)?.into_config(architecture),
        };
        config.check()?;
        Ok(config)
    }

    /// Longest sequence, in tokens.
    pub fn positions(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.first_position)
    }

    fn check(&self) -> Result<(), String> {
        let [width, layers, heads, wide] = match self.architecture {
            Architecture::DistilBert => ["dim", "n_layers", "n_heads", "hidden_dim"],
            _ => ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"],
        };
        check_sizes(&[
            ("vocab_size", self.vocab_size, 4_000_000),
            (width, self.hidden_size, 16_384),
            (layers, self.num_hidden_layers, MOST_LAYERS),
            (heads, self.num_attention_heads, 1_024),
            (wide, self.intermediate_size, 131_072),
            ("max_position_embeddings", self.max_position_embeddings, 131_072),
            ("type_vocab_size", self.type_vocab_size.unwrap_or(1), 1_024),
        ])?;
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
        if let Some(rotary) = &self.rotary {
            self.check_rotary(rotary)?;
        }
        let epsilon = if self.architecture == Architecture::ModernBert { "norm_eps" } else { "layer_norm_eps" };
        for (field, found, most) in
            [(epsilon, self.layer_norm_eps, 0.1), ("initializer_range", self.initializer_range, 10.0)]
        {
            if !(found > 0.0 && found <= most) {
                return Err(format!("{field} is {found}; expected more than 0 and at most {most}"));
            }
        }
        Ok(())
    }

    fn check_rotary(&self, rotary: &Rotary) -> Result<(), String> {
        let depth = self.hidden_size / self.num_attention_heads;
        if !depth.is_multiple_of(2) {
            return Err(format!(
                "hidden_size / num_attention_heads is {depth}; expected an even number, as rotary positions turn pairs"
            ));
        }
        for (field, found) in [("global_rope_theta", rotary.global_theta), ("local_rope_theta", rotary.local_theta)] {
            if !(1.0..=1e12).contains(&found) {
                return Err(format!("{field} (or rope_theta of rope_parameters) is {found}; expected 1 to 1e12"));
            }
        }
        Ok(())
    }
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
