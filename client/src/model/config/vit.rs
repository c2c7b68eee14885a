//! Transformers of image patches.

use candle_transformers::models::bert::HiddenAct;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::encoder::activation;
use super::{MOST_LAYERS, check_sizes, fields};

/// The sizes and settings of a ViT (Dosovitskiy et al. 2020, 2010.11929). Absent settings have the defaults of
/// transformers' configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VitConfig {
    /// Pixels of a side of the images, which are square.
    #[serde(default = "default_image")]
    pub image_size: usize,
    /// Pixels of a side of a patch.
    #[serde(default = "default_patch")]
    pub patch_size: usize,
    /// Channels of an image.
    #[serde(default = "default_channels")]
    pub num_channels: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Activation of the feed-forward part.
    #[serde(default = "default_activation", deserialize_with = "activation")]
    pub hidden_act: HiddenAct,
    /// Added to the variance in layer normalisation.
    #[serde(default = "default_epsilon")]
    pub layer_norm_eps: f64,
    /// Standard deviation of new weights.
    #[serde(default = "default_range")]
    pub initializer_range: f64,
    /// Whether queries, keys and values have biases.
    #[serde(default = "default_bias")]
    pub qkv_bias: bool,
}

fn default_image() -> usize {
    224
}
fn default_patch() -> usize {
    16
}
fn default_channels() -> usize {
    3
}
fn default_activation() -> HiddenAct {
    HiddenAct::Gelu
}
fn default_epsilon() -> f64 {
    1e-12
}
fn default_range() -> f64 {
    0.02
}
fn default_bias() -> bool {
    true
}

impl VitConfig {
    /// The settings in a `config.json`.
    pub(super) fn parse(document: &Map<String, Value>) -> Result<Self, String> {
        let config: Self = fields(document)?;
        check_sizes(&[
            ("image_size", config.image_size, 4_096),
            ("patch_size", config.patch_size, config.image_size.min(256)),
            ("num_channels", config.num_channels, 256),
            ("hidden_size", config.hidden_size, 16_384),
            ("num_hidden_layers", config.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", config.num_attention_heads, 1_024),
            ("intermediate_size", config.intermediate_size, 131_072),
            ("image_size / patch_size, squared,", config.patches(), 65_536),
        ])?;
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(format!(
                "num_attention_heads is {}; expected a divisor of hidden_size, which is {}",
                config.num_attention_heads, config.hidden_size
            ));
        }
        for (field, found, most) in
            [("layer_norm_eps", config.layer_norm_eps, 0.1), ("initializer_range", config.initializer_range, 10.0)]
        {
            if !(found > 0.0 && found <= most) {
                return Err(format!("{field} is {found}; expected more than 0 and at most {most}"));
            }
        }
        Ok(config)
    }

    /// Patches of an image.
    pub fn patches(&self) -> usize {
        self.image_size.checked_div(self.patch_size).map_or(0, |side| side.saturating_mul(side))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(changes: &[(&str, Value)]) -> Result<VitConfig, String> {
        let sizes = json!({
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        });
        let mut fields = sizes.as_object().unwrap().clone();
        fields.extend(changes.iter().map(|(field, value)| ((*field).to_owned(), value.clone())));
        VitConfig::parse(&fields)
    }

    #[test]
    fn absent_settings_are_those_of_a_vit_base() {
        let config = parse(&[]).unwrap();
        assert_eq!((config.image_size, config.patch_size, config.patches()), (224, 16, 196));
    }

    #[test]
    fn damaged_settings_are_refused_with_their_name() {
        for (field, value, expected) in [
            ("patch_size", json!(0), "patch_size is 0; expected 1 to 224"),
            ("patch_size", json!(500), "patch_size is 500; expected 1 to 224"),
            ("patch_size", json!([16, 16]), "patch_size"),
            ("image_size", json!(1_000_000_000_u64), "image_size is 1000000000"),
            ("num_attention_heads", json!(5), "num_attention_heads is 5; expected a divisor of hidden_size"),
            ("hidden_act", json!("swish"), "hidden_act"),
            ("layer_norm_eps", json!(0.0), "layer_norm_eps is 0"),
            ("hidden_size", json!("wide"), "hidden_size"),
        ] {
            let error = parse(&[(field, value)]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(parse(&[("image_size", json!(4_096)), ("patch_size", json!(1))]).is_err());
    }
}
