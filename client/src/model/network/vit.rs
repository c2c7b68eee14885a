//! Transformers of image patches: norms before each part of a layer, and a first token that is classified.

use candle_core::{Result, Tensor, bail};

use super::{Mode, Network};
use crate::model::anatomy::VitNames;
use crate::model::batch::Layout;
use crate::model::config::VitConfig;
use crate::model::ops::{self, Heads, Scope, Window};

/// A ViT at work on a batch.
#[derive(Clone, Copy)]
pub(super) struct Vit<'a> {
    pub(super) network: &'a Network,
    pub(super) config: &'a VitConfig,
    pub(super) mode: &'a Mode,
}

impl Vit<'_> {
    /// The outputs for each image of `[images, channels, image_size, image_size]`.
    pub(super) fn forward(self, images: &Tensor) -> Result<Tensor> {
        let Self { network, config, mode } = self;
        let mut hidden = self.embed(images)?;
        let layout = self.layout(images)?;
        for index in 0..config.num_hidden_layers {
            let run = |mode: &Mode, hidden: &Tensor| Vit { mode, ..self }.layer(index, hidden, &layout);
            hidden = network.layer(index, &hidden, mode, run)?;
        }
        let hidden = network.layer_norm(&hidden, VitNames::FINAL_NORM, config.layer_norm_eps, mode)?;
        network.linear(&hidden, VitNames::CLASSIFIER, mode)
    }

    /// How the rows of the hidden states lie.
    pub(super) fn layout(self, images: &Tensor) -> Result<Layout> {
        Ok(Layout::packed(&vec![self.config.patches() + 1; images.dim(0)?]))
    }

    fn embed(self, images: &Tensor) -> Result<Tensor> {
        let Self { network, config, mode } = self;
        let (pixels, grid) = super::pixels(images, config.num_channels)?;
        let size = config.image_size;
        if (grid.height, grid.width) != (size, size) {
            bail!("images of {} x {} for a network of {size} x {size}", grid.height, grid.width);
        }
        let window = Window { side: config.patch_size, stride: config.patch_size, padding: 0 };
        let weight = network.tensor(&format!("{}.weight", VitNames::PATCHES), mode)?;
        let bias = network.bias(VitNames::PATCHES, mode)?;
        let (patches, _) = ops::convolution(&mode.tape, &pixels, &weight, bias.as_ref(), window, grid)?;
        let first = network.tensor(VitNames::FIRST, mode)?;
        let positions = network.tensor(VitNames::POSITIONS, mode)?;
        let hidden = ops::sequence(&mode.tape, &patches, &first, &positions, config.patches())?;
        ops::dropout(&mode.tape, &hidden, mode.dropout(config.num_hidden_layers, 0))
    }

    /// One layer. The classifier sees the first token of each image only, so the last layer computes nothing but keys and
    /// values for the others, and gives one row an image; the result and every gradient stay the same.
    pub(super) fn layer(self, index: usize, hidden: &Tensor, layout: &Layout) -> Result<Tensor> {
        let Self { network, config, mode } = self;
        let tape = &mode.tape;
        let linear = |x: &Tensor, part: &str| network.linear(x, &VitNames::layer(index, part), mode);
        let norm =
            |x: &Tensor, part: &str| network.layer_norm(x, &VitNames::layer(index, part), config.layer_norm_eps, mode);
        let seen = norm(hidden, VitNames::NORM_BEFORE)?;
        let (targets, wanted, queries) = if index + 1 == config.num_hidden_layers {
            let starts = |x: &Tensor| ops::pick_rows(tape, x, layout.starts());
            (starts(hidden)?, starts(&seen)?, Layout::packed(&vec![1; layout.sequences()]))
        } else {
            (hidden.clone(), seen.clone(), layout.clone())
        };
        let q = linear(&wanted, VitNames::QUERY)?;
        let k = linear(&seen, VitNames::KEY)?;
        let v = linear(&seen, VitNames::VALUE)?;
        let scope = Scope { queries: &queries, keys: layout, window: None, causal: false };
        let context =
            ops::attention(tape, &q, &k, &v, Heads::equal(config.num_attention_heads), scope, mode.dropout(index, 0))?;
        let context = linear(&context, VitNames::ATTENTION_OUTPUT)?;
        let attended = ops::residual(tape, &context, &targets, mode.dropout(index, 1))?;
        let wide = linear(&norm(&attended, VitNames::NORM_AFTER)?, VitNames::INTERMEDIATE)?;
        let wide = ops::activation(tape, &wide, config.hidden_act)?;
        let narrow = linear(&wide, VitNames::OUTPUT)?;
        ops::residual(tape, &narrow, &attended, mode.dropout(index, 2))
    }
}
