//! Layer normalisation with its analytic backward.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::simd::{dot, sum_of, vectorised};
use super::values::{read, slice};

pub(super) struct LayerNorm {
    pub(super) epsilon: f32,
}

/// Rows of one task; fixed, so partial sums are always the same ones.
const ROWS: usize = 32;

impl LayerNorm {
    /// Mean and reciprocal standard deviation (biased variance) of a row.
    #[inline(always)]
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let width = row.len() as f32;
        let mean = sum_of(row, |x| x) / width;
        let variance = sum_of(row, |x| (x - mean) * (x - mean)) / width;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width) = x_layout.shape().dims2()?;
        let (x, weight, bias) = (slice(x, x_layout)?, slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        if weight.len() != width || bias.len() != width || width == 0 {
            bail!("layer norm: rows have {width} values, weight {}, bias {}", weight.len(), bias.len());
        }
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).for_each(|(out, x)| {
            vectorised(|| {
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let (mean, scale) = self.moments(x);
                    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                        *out = (x - mean) * scale * weight + bias;
                    }
                }
            });
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    /// With x̂ the normalised row and g' = g·weight: dx = scale · (g' − mean(g') − x̂ · mean(g'·x̂)).
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (rows, width) = x.dims2()?;
        let mut dx = vec![0.0; rows * width];
        let partial = read(x, |x| {
            read(weight, |weight| {
                read(grad, |g| {
                    Ok(dx
                        .par_chunks_mut(ROWS * width)
                        .zip(x.par_chunks(ROWS * width))
                        .zip(g.par_chunks(ROWS * width))
                        .map(|((dx, x), g)| vectorised(|| self.backward_rows(dx, x, g, weight)))
                        .collect::<Vec<_>>())
                })
            })
        })?;
        let (mut d_weight, mut d_bias) = (vec![0.0; width], vec![0.0; width]);
        for part in &partial {
            let (weight_part, bias_part) = part.split_at(width);
            for (sum, part) in d_weight.iter_mut().zip(weight_part) {
                *sum += part;
            }
            for (sum, part) in d_bias.iter_mut().zip(bias_part) {
                *sum += part;
            }
        }
        let device = x.device();
        let dx = if x.track_op() { Some(Tensor::from_vec(dx, (rows, width), device)?) } else { None };
        let d_weight = if weight.track_op() { Some(Tensor::from_vec(d_weight, width, device)?) } else { None };
        let d_bias = if bias.track_op() { Some(Tensor::from_vec(d_bias, width, device)?) } else { None };
        Ok((dx, d_weight, d_bias))
    }
}

impl LayerNorm {
    /// Writes dx and gives the rows' share of the gradients of weight and bias, one after the other.
    #[inline(always)]
    fn backward_rows(&self, dx: &mut [f32], x: &[f32], g: &[f32], weight: &[f32]) -> Vec<f32> {
        let width = weight.len();
        let mut shares = vec![0.0; 2 * width];
        let (d_weight, d_bias) = shares.split_at_mut(width);
        let mut normalised = vec![0.0; width];
        for ((dx, x), g) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(g.chunks_exact(width)) {
            let (mean, scale) = self.moments(x);
            for (normalised, x) in normalised.iter_mut().zip(x) {
                *normalised = (x - mean) * scale;
            }
            for i in 0..width {
                d_weight[i] += g[i] * normalised[i];
                d_bias[i] += g[i];
                dx[i] = g[i] * weight[i];
            }
            let mean_gradient = sum_of(dx, |d| d) / width as f32;
            let mean_product = dot(dx, &normalised) / width as f32;
            for (dx, normalised) in dx.iter_mut().zip(&normalised) {
                *dx = scale * (*dx - mean_gradient - normalised * mean_product);
            }
        }
        shares
    }
}
