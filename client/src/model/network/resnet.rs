//! Residual networks.

use candle_core::{Result, Tensor};

use super::{Mode, Network};
use crate::model::anatomy::{ConvNorm, ResNetNames, Residual};
use crate::model::batch::Layout;
use crate::model::config::ResNetConfig;
use crate::model::ops::{self, Grid, Window};

/// Added to the variance; transformers leaves PyTorch's default.
const EPSILON: f64 = 1e-5;

/// A ResNet at work on a batch.
#[derive(Clone, Copy)]
pub(super) struct ResNet<'a> {
    pub(super) network: &'a Network,
    pub(super) config: &'a ResNetConfig,
    pub(super) mode: &'a Mode,
}

impl ResNet<'_> {
    /// The outputs for each image of `[images, channels, height, width]`.
    pub(super) fn forward(self, images: &Tensor) -> Result<Tensor> {
        let Self { network, config, mode } = self;
        let (pixels, grid) = super::pixels(images, config.num_channels)?;
        let (first, grid) = self.conv_norm(&pixels, grid, &ResNetNames::first(config), true)?;
        let window = Window { side: 3, stride: 2, padding: 1 };
        let (mut hidden, mut grid) = ops::max_pool(&mode.tape, &first, window, grid)?;
        for layer in ResNetNames::layers(config) {
            (hidden, grid) = self.residual(&hidden, grid, &layer)?;
        }
        let pooled = ops::mean_rows(&mode.tape, &hidden, &Layout::packed(&vec![grid.area(); grid.images]))?;
        network.linear(&pooled, ResNetNames::CLASSIFIER, mode)
    }

    fn residual(self, hidden: &Tensor, grid: Grid, layer: &Residual) -> Result<(Tensor, Grid)> {
        let (mut out, mut places) = (hidden.clone(), grid);
        for (index, conv) in layer.convolutions.iter().enumerate() {
            (out, places) = self.conv_norm(&out, places, conv, index + 1 < layer.convolutions.len())?;
        }
        let shortcut = match &layer.shortcut {
            Some(conv) => self.conv_norm(hidden, grid, conv, false)?.0,
            None => hidden.clone(),
        };
        Ok((ops::residual_relu(&self.mode.tape, &out, &shortcut)?, places))
    }

    fn conv_norm(self, x: &Tensor, grid: Grid, conv: &ConvNorm, relu: bool) -> Result<(Tensor, Grid)> {
        let Self { network, mode, .. } = self;
        let window = Window { side: conv.side, stride: conv.stride, padding: conv.side / 2 };
        let weight = network.tensor(&format!("{}.convolution.weight", conv.stem), mode)?;
        let (x, places) = ops::convolution(&mode.tape, x, &weight, None, window, grid)?;
        Ok((network.batch_norm(&x, &format!("{}.normalization", conv.stem), EPSILON, relu, mode)?, places))
    }
}
