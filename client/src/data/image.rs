//! Images for training: encoded bytes to the values a network takes.
//!
//! Read in this order: [`fault`] (what can be wrong with an image), [`decode`] (bytes to 8-bit RGB), [`prepare`] (one size,
//! cropped, scaled and normalised, as the model folder's `preprocessor_config.json` says), [`statistics`] (mean and
//! deviation of a site's own images), [`augment`] (images that differ a little each time they are trained on).

pub mod augment;
pub mod decode;
pub mod fault;
pub mod prepare;
pub mod statistics;

pub use augment::{Augmentation, Use};
pub use decode::{MAX_BYTES, MAX_PIXELS, decode};
pub use fault::ImageFault;
pub use prepare::{Preparation, PreparationError};
pub use statistics::ChannelStatistics;

/// An image as 8-bit RGB, row by row from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    width: u32,
    height: u32,
    /// `3 · width · height` values.
    rgb: Vec<u8>,
}

impl Pixels {
    /// An image of these values; `None` unless there are `3 · width · height` of them and at least one pixel.
    pub fn new(width: u32, height: u32, rgb: Vec<u8>) -> Option<Self> {
        let values = u64::from(width) * u64::from(height) * 3;
        (values > 0 && values == rgb.len() as u64).then_some(Self { width, height, rgb })
    }

    /// Columns; at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows; at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The values, `height` times `width` times red, green, blue.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}
