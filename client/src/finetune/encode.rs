//! From rows to what a model takes, and to what it should say of them.

use std::borrow::Borrow;
use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::error::FinetuneError;
use crate::data::image::{Augmentation, Preparation, Use, decode};
use crate::data::{Content, TargetRef};
use crate::model::{Classifier, Encoded, Input, Network, Objective, Targets, Text};

/// Rows as a model takes them.
#[derive(Debug)]
pub(super) enum Prepared {
    /// Tokens, with what each stands for.
    Texts(Vec<Encoded>),
    /// The values of one image after another, each `[3, height, width]`.
    Images {
        values: Vec<f32>,
        /// Height and width.
        size: [usize; 2],
    },
    /// The inputs of one row of a table after another.
    Cells {
        values: Vec<f32>,
        /// Inputs of a row.
        inputs: usize,
    },
}

impl Prepared {
    /// The network's input of some of the rows.
    ///
    /// # Errors
    /// A failure of the device.
    pub(super) fn input(&self, network: &Network, rows: Range<usize>) -> Result<Input, FinetuneError> {
        match self {
            Self::Texts(encoded) => {
                Ok(network.batch(&encoded[rows].iter().map(|encoded| &encoded.tokens).collect::<Vec<_>>()))
            }
            Self::Images { values, size: [height, width] } => {
                let (count, each) = (rows.len(), 3 * height * width);
                let values = &values[rows.start * each..rows.end * each];
                let images = Tensor::from_slice(values, (count, 3, *height, *width), network.device())?;
                Ok(Input::Images(images))
            }
            Self::Cells { values, inputs } => {
                let shape = (rows.len(), *inputs);
                let values = &values[rows.start * inputs..rows.end * inputs];
                Ok(Input::Table(Tensor::from_slice(values, shape, network.device())?))
            }
        }
    }

    /// The tokens; none of images and tables.
    pub(super) fn texts(&self) -> &[Encoded] {
        match self {
            Self::Texts(encoded) => encoded,
            Self::Images { .. } | Self::Cells { .. } => &[],
        }
    }
}

/// How the images of a step are changed: by what, and for each row at what use.
pub(super) struct Changes<'a> {
    pub(super) augmentation: &'a Augmentation,
    pub(super) uses: Vec<Use>,
}

/// The content of a row as the tokenizer takes it; `None` of an image and of cells.
pub(crate) fn text(content: &Content) -> Option<Text<'_>> {
    Some(match content {
        Content::Text(text) => Text::Single(text),
        Content::Pair(pair) => Text::Pair(&pair.0, &pair.1),
        Content::Words(words) => Text::Words(words),
        Content::Exchange(exchange) => Text::Exchange { prompt: &exchange.prompt, response: &exchange.response },
        Content::Image(_) | Content::Cells(_) => return None,
    })
}

/// Contents as the model takes them; images changed where they are trained on.
///
/// # Errors
/// Rows of another kind than the model reads, an image that is none any more, or the tokenizer fails.
pub(super) fn prepare<C: Borrow<Content> + Sync>(
    classifier: &Classifier,
    contents: &[C],
    changes: Option<&Changes<'_>>,
) -> Result<Prepared, FinetuneError> {
    if let Some(preparation) = classifier.preparation() {
        return images(preparation, contents, changes);
    }
    if let Some(preparation) = classifier.cells() {
        let inputs = preparation.inputs();
        let mut values = vec![0.0; contents.len() * inputs];
        for (content, row) in contents.iter().zip(values.chunks_exact_mut(inputs)) {
            let Content::Cells(cells) = content.borrow() else { return Err(FinetuneError::OtherTargets) };
            if !preparation.fill(cells, row) {
                return Err(FinetuneError::OtherTargets);
            }
        }
        return Ok(Prepared::Cells { values, inputs });
    }
    let texts: Option<Vec<Text<'_>>> = contents.iter().map(|content| text(content.borrow())).collect();
    Ok(Prepared::Texts(classifier.encode(&texts.ok_or(FinetuneError::OtherTargets)?)?))
}

/// Every image depends on itself and its use alone, so that threads change nothing.
fn images<C: Borrow<Content> + Sync>(
    preparation: &Preparation,
    contents: &[C],
    changes: Option<&Changes<'_>>,
) -> Result<Prepared, FinetuneError> {
    let mut values = vec![0.0; contents.len() * preparation.len()];
    values.par_chunks_mut(preparation.len()).zip(contents).enumerate().try_for_each(|(place, (values, content))| {
        let Content::Image(picture) = content.borrow() else { return Err(FinetuneError::OtherTargets) };
        let pixels = decode(&picture.bytes).map_err(|fault| FinetuneError::Image(fault.to_string()))?;
        let use_of = |changes: &Changes<'_>| {
            changes.uses.get(place).map(|at| changes.augmentation.fit(&pixels, preparation, *at))
        };
        let fitted = changes.and_then(use_of).unwrap_or_else(|| preparation.fit(&pixels));
        match preparation.values(&fitted, values) {
            true => Ok(()),
            false => Err(FinetuneError::Image("it has another size than the others".into())),
        }
    })?;
    Ok(Prepared::Images { values, size: preparation.size().map(|side| side as usize) })
}

/// What the network should say of rows with these targets. A word counts by its first token; what is cut off does not
/// count.
///
/// # Errors
/// The targets are of another kind than the network was made for.
pub(super) fn targets<'a>(
    classifier: &Classifier,
    prepared: &Prepared,
    rows: impl Iterator<Item = TargetRef<'a>>,
) -> Result<Targets, FinetuneError> {
    let (mut classes, mut sets, mut values, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let objective = classifier.network().objective();
    let output = |value: f32| classifier.cells().map_or(value, |cells| cells.to_output(value));
    let mut encoded = prepared.texts().iter();
    for target in rows {
        match (objective, target, encoded.next()) {
            (Objective::Class, TargetRef::Class(label), _) => classes.push(label as u32),
            (Objective::Sets, TargetRef::Set(labels), _) => {
                sets.push(labels.iter().map(|label| u32::from(*label)).collect())
            }
            (Objective::Value, TargetRef::Value(value), _) => values.push(output(value)),
            (Objective::Tokens, TargetRef::Tags(tags), Some(encoded)) => {
                let tag = |word: u32| tags.get(word as usize).map(|tag| u32::from(*tag));
                tokens.push(encoded.marks.iter().map(|mark| mark.and_then(tag)).collect());
            }
            (Objective::NextToken, TargetRef::Response(_), Some(encoded)) => {
                let words = encoded.tokens.words.iter();
                tokens.push(words.zip(&encoded.marks).map(|(word, mark)| mark.map(|_| *word)).collect());
            }
            _ => return Err(FinetuneError::OtherTargets),
        }
    }
    Ok(match objective {
        Objective::Class => Targets::Classes(classes),
        Objective::Sets => Targets::Sets(sets),
        Objective::Value => Targets::Values(values),
        Objective::Tokens | Objective::NextToken => Targets::Tokens(tokens),
    })
}
