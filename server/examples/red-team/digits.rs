//! Digits of 8 x 8 grey pixels, from a CSV file.

use std::path::Path;

use anyhow::{Context, bail, ensure};

/// Pixels of a digit.
pub(crate) const PIXELS: usize = 64;

/// Labels are 0 to 9.
pub(crate) const CLASSES: usize = 10;

/// The largest grey.
const WHITE: f32 = 16.0;

/// Rows in the order of their file.
pub(crate) struct Digits {
    /// Scaled to 0 to 1.
    pub(crate) pixels: Vec<[f32; PIXELS]>,
    /// Below [`CLASSES`].
    pub(crate) labels: Vec<usize>,
}

impl Digits {
    /// Reads a CSV with 64 columns of pixels, 0 to 16, and then the column `label`.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        let mut reader = csv::Reader::from_path(path).with_context(|| format!("cannot read {}", path.display()))?;
        let header = reader.headers().with_context(|| format!("cannot read {}", path.display()))?;
        if header.len() != PIXELS + 1 || header.get(PIXELS) != Some("label") {
            bail!("{} has other columns; expected {PIXELS} of pixels, then label", path.display());
        }
        for (row, record) in reader.deserialize::<Vec<f32>>().enumerate() {
            let at = || format!("{}, row {}", path.display(), row + 1);
            let mut values = record.with_context(at)?;
            let label = values.pop().unwrap_or(f32::NAN);
            ensure!((0.0..CLASSES as f32).contains(&label), "{}: the label is {label}; expected 0 to 9", at());
            ensure!(
                values.iter().all(|value| (0.0..=WHITE).contains(value)),
                "{}: a pixel is not within 0 and {WHITE}",
                at()
            );
            values.iter_mut().for_each(|value| *value /= WHITE);
            pixels.push(values.as_slice().try_into().with_context(at)?);
            labels.push(label as usize);
        }
        ensure!(!labels.is_empty(), "{} has no rows", path.display());
        Ok(Self { pixels, labels })
    }
}
