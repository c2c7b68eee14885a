//! `config.json` of a model, checked before anything is allocated. Each family of architectures has a module of its own.

mod decoder;
mod encoder;
mod resnet;
mod table;
mod vit;

use std::path::Path;

use fedtune_config::job::TABLE_MODEL;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::ModelError;
pub use decoder::{Decoder, DecoderConfig, RopeStretch};
pub use fedtune_config::job::Reads;

pub use encoder::{Architecture, EncoderConfig, Pooling, Rotary};
pub use resnet::{ResNetConfig, ResidualKind};
pub use table::{Column, ColumnKind, Scale, TableConfig};
pub use vit::VitConfig;

/// The sizes and settings of a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Config {
    /// A transformer that sees the whole text: BERT and its kin, ModernBERT.
    Encoder(EncoderConfig),
    /// A residual network of images.
    ResNet(ResNetConfig),
    /// A transformer of image patches.
    Vit(VitConfig),
    /// Dense layers over the columns of a table.
    Table(TableConfig),
    /// A transformer that sees what came before each token: Llama, Qwen.
    Decoder(DecoderConfig),
}

/// More layers than any published model has.
const MOST_LAYERS: usize = 256;

impl Config {
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
        let config = match kind.and_then(Value::as_str) {
            Some(kind) if let Some(architecture) = Architecture::of(kind) => {
                EncoderConfig::parse(architecture, &document).map(Self::Encoder)
            }
            Some("resnet") => ResNetConfig::parse(&document).map(Self::ResNet),
            Some("vit") => VitConfig::parse(&document).map(Self::Vit),
            Some(TABLE_MODEL) => TableConfig::parse(&document).map(Self::Table),
            Some(kind) if let Some(decoder) = Decoder::of(kind) => {
                DecoderConfig::parse(decoder, &document).map(Self::Decoder)
            }
            _ => {
                let found = kind.map_or_else(|| "absent".into(), Value::to_string);
                return Err(ModelError::Architecture { path: path.to_path_buf(), found });
            }
        };
        Ok((config.map_err(wrong)?, document))
    }

    /// Longest sequence, in tokens; `None` where the input is no text.
    pub fn positions(&self) -> Option<usize> {
        match self {
            Self::Encoder(config) => Some(config.positions()),
            Self::Decoder(config) => Some(config.max_position_embeddings),
            Self::ResNet(_) | Self::Vit(_) | Self::Table(_) => None,
        }
    }

    /// What the model reads.
    pub fn reads(&self) -> Reads {
        match self {
            Self::Encoder(_) | Self::Decoder(_) => Reads::Texts,
            Self::ResNet(_) | Self::Vit(_) => Reads::Images,
            Self::Table(_) => Reads::Tables,
        }
    }

    /// Channels of an image, and its side where only one will do; `None` where the input is no image.
    pub fn image(&self) -> Option<(usize, Option<usize>)> {
        match self {
            Self::ResNet(config) => Some((config.num_channels, None)),
            Self::Vit(config) => Some((config.num_channels, Some(config.image_size))),
            Self::Encoder(_) | Self::Decoder(_) | Self::Table(_) => None,
        }
    }

    /// Entries of the table of words; `None` where the input is no text.
    pub fn vocabulary(&self) -> Option<usize> {
        match self {
            Self::Encoder(config) => Some(config.vocab_size),
            Self::Decoder(config) => Some(config.vocab_size),
            Self::ResNet(_) | Self::Vit(_) | Self::Table(_) => None,
        }
    }

    /// Layers between embeddings and head.
    pub fn layers(&self) -> usize {
        match self {
            Self::Encoder(config) => config.num_hidden_layers,
            Self::ResNet(config) => config.layers(),
            Self::Vit(config) => config.num_hidden_layers,
            Self::Table(config) => config.hidden_sizes.len(),
            Self::Decoder(config) => config.num_hidden_layers,
        }
    }
}

/// The settings of `document` that `T` names.
fn fields<T: for<'de> Deserialize<'de>>(document: &Map<String, Value>) -> Result<T, String> {
    serde_path_to_error::deserialize(Value::Object(document.clone())).map_err(|e| {
        let field = e.path().to_string();
        if field == "." { e.into_inner().to_string() } else { format!("{field}: {}", e.into_inner()) }
    })
}

/// Fails unless each number is 1 to its largest: bounds far above every published model, so that a damaged file cannot ask
/// for absurd memory.
fn check_sizes(sizes: &[(&str, usize, usize)]) -> Result<(), String> {
    match sizes.iter().find(|(_, found, most)| *found == 0 || found > most) {
        Some((field, found, most)) => Err(format!("{field} is {found}; expected 1 to {most}")),
        None => Ok(()),
    }
}
