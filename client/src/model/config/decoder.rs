//! Transformers that see what came before each token, and say the next one.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{MOST_LAYERS, check_sizes, fields};

/// A kind of decoder. All share one function and differ in biases and in the norms of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoder {
    /// Touvron et al. 2023, 2302.13971, and its successors.
    Llama,
    /// Yang et al. 2024, 2407.10671.
    Qwen2,
    /// Yang et al. 2025, 2505.09388.
    Qwen3,
}

impl Decoder {
    /// Every decoder with its `model_type` and what its classes in transformers begin with.
    const ALL: [(Self, &str, &str); 3] =
        [(Self::Llama, "llama", "Llama"), (Self::Qwen2, "qwen2", "Qwen2"), (Self::Qwen3, "qwen3", "Qwen3")];

    pub(super) fn of(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, found, _)| *found == model_type).map(|(decoder, ..)| decoder)
    }

    /// What the names of its classes in transformers begin with.
    pub(in crate::model) fn class_stem(self) -> &'static str {
        Self::ALL.into_iter().find(|(decoder, ..)| *decoder == self).map_or("", |(.., class)| class)
    }

    /// Whether queries, keys and values have biases.
    pub(in crate::model) fn has_biases(self) -> bool {
        self == Self::Qwen2
    }

    /// Whether each head of queries and keys is normalised.
    pub(in crate::model) fn has_head_norms(self) -> bool {
        self == Self::Qwen3
    }
}

/// How Llama 3.1 stretches rotary positions over longer texts than it began with: wavelengths that went round less than
/// `low` times in the original length are made `factor` times as long, those of more than `high` times stay, and
/// between them the two are mixed (`rope_type` "llama3" of transformers).
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct RopeStretch {
    /// How much longer the longest wavelengths become.
    pub factor: f64,
    /// Turns below which a wavelength is stretched in full.
    #[serde(rename = "low_freq_factor")]
    pub low: f64,
    /// Turns above which a wavelength stays.
    #[serde(rename = "high_freq_factor")]
    pub high: f64,
    /// The original length, in tokens.
    #[serde(rename = "original_max_position_embeddings")]
    pub length: usize,
}

impl RopeStretch {
    /// Stretches the wavelengths of these frequencies; in f32, as transformers does it.
    pub(in crate::model) fn apply(&self, frequencies: &mut [f32]) {
        let (factor, low, high) = (self.factor as f32, self.low as f32, self.high as f32);
        let length = self.length as f32;
        for frequency in frequencies {
            let wavelength = std::f32::consts::TAU / *frequency;
            if wavelength > length / low {
                *frequency /= factor;
            } else if wavelength >= length / high {
                let kept = (length / wavelength - low) / (high - low);
                *frequency = (1.0 - kept) * *frequency / factor + kept * *frequency;
            }
        }
    }
}

/// The sizes and settings of a decoder. Absent settings have the defaults of transformers' configurations.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The family.
    pub decoder: Decoder,
    /// Entries of the word embedding table.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; divides that of queries.
    pub num_key_value_heads: usize,
    /// Values of a head; even.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Positions that were trained.
    pub max_position_embeddings: usize,
    /// Added to the mean square in normalisation.
    pub rms_norm_eps: f64,
    /// Base of the wavelengths of rotary positions.
    pub rope_theta: f64,
    /// How they are stretched, if at all.
    pub rope_stretch: Option<RopeStretch>,
    /// Whether the output layer is the table of word embeddings.
    pub tie_word_embeddings: bool,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
}

/// `config.json` of a decoder.
#[derive(Deserialize)]
struct Fields {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_activation")]
    hidden_act: String,
    #[serde(default = "default_epsilon")]
    rms_norm_eps: f64,
    #[serde(default = "default_theta")]
    rope_theta: f64,
    /// The older place of what `rope_parameters` has.
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "default_range")]
    initializer_range: f64,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    layer_types: Option<Vec<String>>,
}

/// `rope_scaling`, or `rope_parameters` as transformers 5 writes it.
#[derive(Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

fn default_activation() -> String {
    "silu".into()
}
fn default_epsilon() -> f64 {
    1e-6
}
fn default_theta() -> f64 {
    10_000.0
}
fn default_range() -> f64 {
    0.02
}

/// Values of a head of Qwen3 where config.json does not say.
const QWEN3_HEAD: usize = 128;
/// Heads of keys and values of Qwen where config.json has no word of them.
const QWEN_KEY_HEADS: usize = 32;

impl DecoderConfig {
    pub(super) fn parse(decoder: Decoder, document: &Map<String, Value>) -> Result<Self, String> {
        if document.get("quantization_config").is_some_and(|found| !found.is_null()) {
            return Err("quantization_config is set; supported: weights that are not quantised".into());
        }
        let fields: Fields = fields(document)?;
        fields.refuse()?;
        let (rope_theta, rope_stretch) = fields.rope()?;
        // Before anything is divided by them.
        check_sizes(&[("num_attention_heads", fields.num_attention_heads, 1_024)])?;
        let shared = fields.hidden_size / fields.num_attention_heads;
        let head = if decoder == Decoder::Qwen3 { QWEN3_HEAD } else { shared };
        let config = Self {
            decoder,
            vocab_size: fields.vocab_size,
            hidden_size: fields.hidden_size,
            num_hidden_layers: fields.num_hidden_layers,
            num_attention_heads: fields.num_attention_heads,
            num_key_value_heads: match fields.num_key_value_heads {
                Some(heads) => heads,
                None if decoder != Decoder::Llama && !document.contains_key("num_key_value_heads") => QWEN_KEY_HEADS,
                None => fields.num_attention_heads,
            },
            head_dim: fields.head_dim.unwrap_or(head),
            intermediate_size: fields.intermediate_size,
            max_position_embeddings: fields.max_position_embeddings,
            rms_norm_eps: fields.rms_norm_eps,
            rope_theta,
            rope_stretch,
            tie_word_embeddings: fields.tie_word_embeddings,
            initializer_range: fields.initializer_range,
        };
        config.check(fields.head_dim.is_none() && decoder != Decoder::Qwen3)?;
        Ok(config)
    }

    /// Width of the queries of all heads.
    pub(in crate::model) fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the keys, and of the values, of all heads.
    pub(in crate::model) fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Bounds far above every published decoder, so that a damaged file cannot ask for absurd memory.
    fn check(&self, heads_share_width: bool) -> Result<(), String> {
        check_sizes(&[
            ("vocab_size", self.vocab_size, 4_000_000),
            ("hidden_size", self.hidden_size, 32_768),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_key_value_heads", self.num_key_value_heads, 1_024),
            ("intermediate_size", self.intermediate_size, 262_144),
            ("max_position_embeddings", self.max_position_embeddings, 16_777_216),
        ])?;
        let (heads, keys) = (self.num_attention_heads, self.num_key_value_heads);
        if heads_share_width && !self.hidden_size.is_multiple_of(heads) {
            return Err(format!(
                "num_attention_heads is {heads}; expected a divisor of hidden_size, which is {}, or head_dim beside it",
                self.hidden_size
            ));
        }
        check_sizes(&[("head_dim", self.head_dim, 1_024)])?;
        if !heads.is_multiple_of(keys) {
            return Err(format!(
                "num_key_value_heads is {keys}; expected a divisor of num_attention_heads, which is {heads}"
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!(
                "head_dim (or hidden_size / num_attention_heads) is {}; expected an even number, as rotary positions turn \
                 pairs",
                self.head_dim
            ));
        }
        for (field, found, least, most) in [
            ("rms_norm_eps", self.rms_norm_eps, 0.0, 0.1),
            ("initializer_range", self.initializer_range, 0.0, 10.0),
            ("rope_theta", self.rope_theta, 1.0, 1e12),
        ] {
            if !(found > least && found <= most) {
                return Err(format!("{field} is {found}; expected more than {least} and at most {most:?}"));
            }
        }
        self.rope_stretch.as_ref().map_or(Ok(()), RopeStretch::check)
    }
}

impl RopeStretch {
    fn check(&self) -> Result<(), String> {
        check_sizes(&[("original_max_position_embeddings of the rotary settings", self.length, 16_777_216)])?;
        let finite = self.factor.is_finite() && self.high.is_finite();
        let fits = finite && self.factor >= 1.0 && self.low > 0.0 && self.high > self.low;
        if !fits {
            return Err(format!(
                "the rotary settings \"llama3\" have factor {}, low_freq_factor {} and high_freq_factor {}; expected a \
                 factor of 1 or more, and a positive low_freq_factor below high_freq_factor",
                self.factor, self.low, self.high
            ));
        }
        Ok(())
    }
}

impl Fields {
    /// Fails for what would change the function and is not built.
    fn refuse(&self) -> Result<(), String> {
        if self.hidden_act != "silu" {
            return Err(format!("hidden_act is {:?}; supported: \"silu\"", self.hidden_act));
        }
        let flags = [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            ("use_sliding_window", self.use_sliding_window),
        ];
        if let Some((field, _)) = flags.into_iter().find(|(_, set)| *set) {
            return Err(format!("{field} is true; supported: false"));
        }
        match self.layer_types.iter().flatten().find(|kind| *kind != "full_attention") {
            Some(kind) => Err(format!("layer_types has {kind:?}; supported: \"full_attention\"")),
            None => Ok(()),
        }
    }

    /// Base of the wavelengths, and how they are stretched.
    fn rope(&self) -> Result<(f64, Option<RopeStretch>), String> {
        let (mut theta, mut stretch) = (self.rope_theta, None);
        for (field, settings) in [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)] {
            let Some(settings) = settings else { continue };
            let rope: Rope = fields(settings).map_err(|e| format!("{field}: {e}"))?;
            if let Some(found) = rope.partial_rotary_factor.filter(|found| *found != 1.0) {
                return Err(format!("{field}.partial_rotary_factor is {found}; supported: 1"));
            }
            theta = rope.rope_theta.unwrap_or(theta);
            match rope.rope_type.as_deref() {
                None | Some("default") => {}
                Some("llama3") => stretch = Some(fields(settings).map_err(|e| format!("{field}: {e}"))?),
                Some(found) => {
                    return Err(format!("{field}.rope_type is {found:?}; supported: \"default\" and \"llama3\""));
                }
            }
        }
        Ok((theta, stretch))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(changes: Value) -> Map<String, Value> {
        let mut document = json!({
            "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 96, "max_position_embeddings": 128,
        });
        let document = document.as_object_mut().unwrap();
        document.extend(changes.as_object().unwrap().clone());
        document.clone()
    }

    fn parse(decoder: Decoder, changes: Value) -> Result<DecoderConfig, String> {
        DecoderConfig::parse(decoder, &document(changes))
    }

    #[test]
    fn absent_settings_have_the_defaults_of_transformers() {
        let config = parse(Decoder::Llama, json!({})).unwrap();
        assert_eq!((config.num_key_value_heads, config.head_dim, config.rope_theta), (4, 16, 10_000.0));
        assert!(!config.tie_word_embeddings && config.rope_stretch.is_none());
        assert_eq!(parse(Decoder::Qwen3, json!({"num_key_value_heads": null})).unwrap().head_dim, 128);
        assert!(parse(Decoder::Qwen3, json!({})).unwrap_err().contains("num_key_value_heads is 32"));
        let config = parse(Decoder::Qwen2, json!({"head_dim": null, "num_key_value_heads": 2})).unwrap();
        assert_eq!((config.key_width(), config.query_width()), (32, 64));
    }

    #[test]
    fn rotary_settings_are_read_by_both_names() {
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
        });
        let newer = parse(Decoder::Llama, json!({"rope_parameters": llama3})).unwrap();
        let older = parse(Decoder::Llama, json!({"rope_scaling": llama3, "rope_theta": 500000.0})).unwrap();
        assert_eq!(newer, older);
        assert_eq!((newer.rope_theta, newer.rope_stretch.unwrap().factor), (500_000.0, 8.0));
        let plain = parse(Decoder::Llama, json!({"rope_scaling": {"type": "default"}, "rope_theta": 1e6})).unwrap();
        assert_eq!((plain.rope_theta, plain.rope_stretch), (1e6, None));
    }

    #[test]
    fn what_is_not_built_or_absurd_is_refused_by_name() {
        let llama3 = |field: &str, value: Value| {
            let mut settings = json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            });
            settings[field] = value;
            json!({ "rope_scaling": settings })
        };
        for (changes, named) in [
            (json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), "rope_scaling.rope_type is \"yarn\""),
            (json!({"rope_parameters": {"rope_type": "dynamic"}}), "rope_parameters.rope_type is \"dynamic\""),
            (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor is 0.5"),
            (json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}), "low_freq_factor"),
            (llama3("factor", json!(0.5)), "factor 0.5"),
            (llama3("high_freq_factor", json!(1.0)), "high_freq_factor 1"),
            (llama3("original_max_position_embeddings", json!(0)), "original_max_position_embeddings"),
            (json!({"hidden_act": "gelu"}), "hidden_act is \"gelu\""),
            (json!({"attention_bias": true}), "attention_bias is true"),
            (json!({"mlp_bias": true}), "mlp_bias is true"),
            (json!({"use_sliding_window": true}), "use_sliding_window is true"),
            (json!({"layer_types": ["full_attention", "sliding_attention"]}), "\"sliding_attention\""),
            (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
            (json!({"num_attention_heads": 0}), "num_attention_heads is 0"),
            (json!({"num_attention_heads": 5}), "num_attention_heads is 5"),
            (json!({"num_key_value_heads": 0}), "num_key_value_heads is 0"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads is 3"),
            (json!({"head_dim": 0}), "head_dim is 0"),
            (json!({"head_dim": 7}), "is 7; expected an even number"),
            (json!({"head_dim": 1u64 << 40}), "head_dim is 1099511627776"),
            (json!({"hidden_size": 1u64 << 40}), "hidden_size is 1099511627776"),
            (json!({"num_hidden_layers": 100_000}), "num_hidden_layers is 100000"),
            (json!({"vocab_size": -1}), "vocab_size"),
            (json!({"rms_norm_eps": 0.0}), "rms_norm_eps is 0"),
            (json!({"rope_theta": 0.5}), "rope_theta is 0.5"),
        ] {
            let message = parse(Decoder::Llama, changes.clone()).unwrap_err();
            assert!(message.contains(named), "{changes}: {message}");
        }
    }

    #[test]
    fn stretched_wavelengths_are_kept_mixed_or_made_longer() {
        let stretch = RopeStretch { factor: 8.0, low: 1.0, high: 4.0, length: 64 };
        let frequency = |wavelength: f32| std::f32::consts::TAU / wavelength;
        let mut frequencies = [frequency(10.0), frequency(32.0), frequency(100.0)];
        stretch.apply(&mut frequencies);
        // The second went round twice: (2 − 1) / (4 − 1) of it is kept.
        let mixed = frequency(32.0) * (2.0 / 3.0 / 8.0 + 1.0 / 3.0);
        for (found, expected) in frequencies.into_iter().zip([frequency(10.0), mixed, frequency(800.0)]) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} for {expected}");
        }
    }
}
