//! Residual networks of images (He et al. 2015, 1512.03385).

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{MOST_LAYERS, check_sizes, fields};

/// What a residual layer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResidualKind {
    /// Two convolutions of 3 x 3: ResNet-18 and 34.
    Basic,
    /// One of 1 x 1 to a quarter of the width, one of 3 x 3, and one of 1 x 1 back: ResNet-50 and deeper.
    Bottleneck,
}

/// The sizes and settings of a ResNet. Absent settings have the defaults of transformers' configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ResNetConfig {
    /// Channels of an image.
    #[serde(default = "default_channels")]
    pub num_channels: usize,
    /// Channels behind the first convolution.
    #[serde(default = "default_embedding")]
    pub embedding_size: usize,
    /// Channels of each stage.
    #[serde(default = "default_widths")]
    pub hidden_sizes: Vec<usize>,
    /// Residual layers of each stage.
    #[serde(default = "default_depths")]
    pub depths: Vec<usize>,
    /// What they are made of.
    #[serde(default = "default_kind")]
    pub layer_type: ResidualKind,
    /// Whether the first stage halves the image too, as all others do.
    #[serde(default)]
    pub downsample_in_first_stage: bool,
    /// Whether a bottleneck halves the image in its first convolution and not in its second.
    #[serde(default)]
    pub downsample_in_bottleneck: bool,
    #[serde(default = "default_activation")]
    hidden_act: String,
}

fn default_channels() -> usize {
    3
}
fn default_embedding() -> usize {
    64
}
fn default_widths() -> Vec<usize> {
    vec![256, 512, 1024, 2048]
}
fn default_depths() -> Vec<usize> {
    vec![3, 4, 6, 3]
}
fn default_kind() -> ResidualKind {
    ResidualKind::Bottleneck
}
fn default_activation() -> String {
    "relu".into()
}

/// More stages than any published ResNet has; each halves the image.
const MOST_STAGES: usize = 16;

impl ResNetConfig {
    /// How much narrower a bottleneck is than its stage.
    pub(in crate::model) const REDUCTION: usize = 4;

    /// The settings in a `config.json`.
    pub(super) fn parse(document: &Map<String, Value>) -> Result<Self, String> {
        let config: Self = fields(document)?;
        if config.hidden_act != "relu" {
            return Err(format!("hidden_act is {:?}; supported: \"relu\"", config.hidden_act));
        }
        let (stages, depths) = (config.hidden_sizes.len(), config.depths.len());
        if stages != depths {
            return Err(format!("hidden_sizes has {stages} entries and depths has {depths}; expected as many"));
        }
        check_sizes(&[
            ("num_channels", config.num_channels, 256),
            ("embedding_size", config.embedding_size, 16_384),
            ("the length of hidden_sizes", stages, MOST_STAGES),
        ])?;
        for (width, depth) in config.hidden_sizes.iter().zip(&config.depths) {
            check_sizes(&[("an entry of hidden_sizes", *width, 16_384), ("an entry of depths", *depth, MOST_LAYERS)])?;
            if config.layer_type == ResidualKind::Bottleneck && *width < Self::REDUCTION {
                return Err(format!("an entry of hidden_sizes is {width}; expected {} or more", Self::REDUCTION));
            }
        }
        check_sizes(&[("the sum of depths", config.layers(), MOST_LAYERS)])?;
        Ok(config)
    }

    /// Residual layers of all stages.
    pub fn layers(&self) -> usize {
        self.depths.iter().sum()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(fields: &Value) -> Result<ResNetConfig, String> {
        ResNetConfig::parse(fields.as_object().unwrap())
    }

    #[test]
    fn absent_settings_are_those_of_a_resnet_50() {
        let config = parse(&json!({ "model_type": "resnet" })).unwrap();
        assert_eq!((config.layers(), config.layer_type), (16, ResidualKind::Bottleneck));
    }

    #[test]
    fn damaged_settings_are_refused_with_their_name() {
        for (fields, expected) in [
            (json!({ "hidden_act": "gelu" }), "hidden_act is \"gelu\"; supported: \"relu\""),
            (json!({ "layer_type": "wide" }), "layer_type"),
            (json!({ "num_channels": 0 }), "num_channels is 0; expected 1 to 256"),
            (json!({ "hidden_sizes": [64, 128], "depths": [1] }), "hidden_sizes has 2 entries and depths has 1"),
            (json!({ "hidden_sizes": [], "depths": [] }), "the length of hidden_sizes is 0"),
            (json!({ "hidden_sizes": [2], "depths": [1] }), "an entry of hidden_sizes is 2; expected 4 or more"),
            (json!({ "hidden_sizes": [64], "depths": [100_000_000_u64] }), "an entry of depths is 100000000"),
            (json!({ "hidden_sizes": vec![8; 3], "depths": vec![200; 3] }), "the sum of depths is 600"),
            (json!({ "hidden_sizes": vec![64; 40], "depths": vec![1; 40] }), "the length of hidden_sizes is 40"),
            (json!({ "depths": "many" }), "depths"),
        ] {
            let error = parse(&fields).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
