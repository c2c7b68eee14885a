//! How rows become what a network takes.

use std::path::Path;

use super::cells::CellPreparation;
use super::config::Config;
use super::error::ModelError;
use super::folder;
use super::tokens::TextTokenizer;
use crate::data::image::Preparation;

/// How rows become what a network takes.
#[derive(Debug)]
pub(super) enum Preparing {
    /// Texts become tokens.
    Texts(Box<TextTokenizer>),
    /// Images become values of one size.
    Images(Preparation),
    /// Cells of a table become inputs.
    Cells(CellPreparation),
}

impl Preparing {
    /// Reads it from a model folder, for a network of the settings in `config`, which stand in another folder where there
    /// are adapters.
    pub(super) fn of_folder(folder: &Path, config: &Config, max_length: Option<usize>) -> Result<Self, ModelError> {
        match config {
            Config::Table(config) => Ok(Self::Cells(CellPreparation::new(config))),
            Config::Encoder(_) | Config::Decoder(_) => {
                let (positions, vocabulary) =
                    (config.positions().unwrap_or(usize::MAX), config.vocabulary().unwrap_or(usize::MAX));
                let tokenizer = TextTokenizer::load(folder, vocabulary, positions, max_length)?;
                Ok(Self::Texts(Box::new(tokenizer)))
            }
            Config::ResNet(_) | Config::Vit(_) => {
                let preparation = Preparation::of_folder(folder)?;
                let wrong = |message| ModelError::Config { path: folder.join(folder::CONFIG), message };
                let (channels, side) = config.image().unwrap_or_default();
                if channels != 3 {
                    let message = format!("num_channels is {channels}; images have 3, red, green and blue");
                    return Err(wrong(message));
                }
                let [height, width] = preparation.size().map(|side| side as usize);
                match side {
                    Some(side) if [height, width] != [side; 2] => Err(wrong(format!(
                        "image_size is {side}, but {} makes images of {height} x {width}; correct one of the two",
                        folder::PREPROCESSOR
                    ))),
                    _ => Ok(Self::Images(preparation)),
                }
            }
        }
    }
}
