//! How training images are changed each time they are used.

use serde::{Deserialize, Serialize};

use crate::error::Problems;

/// How training images are changed each time they are used; evaluation uses them as they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Whether left and right are swapped in every other image.
    pub flip: bool,
    /// Largest rotation about the middle, in degrees either way.
    pub rotate: f64,
    /// The smallest share of an image's area that is cut out and resized (Szegedy et al. 2014, 1409.4842); 1 cuts nothing.
    pub crop: f64,
    /// Brightness, contrast and saturation are multiplied by between 1 − this and 1 + this.
    pub colour: f64,
    /// Standard deviation of the noise added to each value, as a share of the full range.
    pub noise: f64,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self { flip: false, rotate: 0.0, crop: 1.0, colour: 0.0, noise: 0.0 }
    }
}

impl Augmentation {
    pub(super) fn validate(&self, p: &mut Problems) {
        for (field, found, ok, expected) in [
            ("rotate", self.rotate, (0.0..=45.0).contains(&self.rotate), "0 to 45 degrees"),
            ("crop", self.crop, self.crop > 0.0 && self.crop <= 1.0, "more than 0 and at most 1 (no crop)"),
            ("colour", self.colour, (0.0..=1.0).contains(&self.colour), "0 to 1"),
            ("noise", self.noise, (0.0..=1.0).contains(&self.noise), "0 to 1"),
        ] {
            let field = format!("training.augmentation.{field}");
            p.check(ok, &field, || format!("found {found}; expected {expected}"));
        }
    }
}
