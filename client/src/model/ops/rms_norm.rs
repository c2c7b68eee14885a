//! Root mean square normalisation with its analytic backward.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::simd::{dot, sum_of, vectorised};
use super::values::{read, slice};

pub(super) struct RmsNorm {
    pub(super) epsilon: f32,
}

/// Values of one task at least; with the width it fixes the partial sums.
const BLOCK: usize = 1 << 13;

/// Values of one task: whole runs.
fn block(width: usize) -> usize {
    BLOCK.div_ceil(width) * width
}

impl RmsNorm {
    /// Reciprocal root of the mean square.
    #[inline(always)]
    fn scale(&self, run: &[f32]) -> f32 {
        1.0 / (sum_of(run, |x| x * x) / run.len() as f32 + self.epsilon).sqrt()
    }

    fn check(x: &Shape, weight: &Shape) -> Result<usize> {
        let ((_, row), width) = (x.dims2()?, weight.dims1()?);
        if width == 0 || !row.is_multiple_of(width) {
            bail!("rms norm: rows of {row} values do not fit a weight of {width}");
        }
        Ok(width)
    }

    /// With x̂ the normalised run and g' = g·weight: dx = scale · (g' − x̂ · mean(g'·x̂)). Writes dx and gives the runs'
    /// share of the weight's gradient.
    #[inline(always)]
    fn backward_runs(&self, dx: &mut [f32], x: &[f32], g: &[f32], weight: &[f32]) -> Vec<f32> {
        let width = weight.len();
        let (mut d_weight, mut normalised) = (vec![0.0; width], vec![0.0; width]);
        for ((dx, x), g) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(g.chunks_exact(width)) {
            let scale = self.scale(x);
            for i in 0..width {
                normalised[i] = x[i] * scale;
                d_weight[i] += g[i] * normalised[i];
                dx[i] = g[i] * weight[i];
            }
            let mean = dot(dx, &normalised) / width as f32;
            for (dx, normalised) in dx.iter_mut().zip(&normalised) {
                *dx = scale * (*dx - normalised * mean);
            }
        }
        d_weight
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = Self::check(x_layout.shape(), weight_layout.shape())?;
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(block(width)).zip(x.par_chunks(block(width))).for_each(|(out, x)| {
            vectorised(|| {
                for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let scale = self.scale(x);
                    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                        *out = x * scale * weight;
                    }
                }
            });
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = Self::check(x.shape(), weight.shape())?;
        let mut dx = vec![0.0; x.elem_count()];
        let partial = read(x, |x| {
            read(weight, |weight| {
                read(grad, |g| {
                    Ok(dx
                        .par_chunks_mut(block(width))
                        .zip(x.par_chunks(block(width)))
                        .zip(g.par_chunks(block(width)))
                        .map(|((dx, x), g)| vectorised(|| self.backward_runs(dx, x, g, weight)))
                        .collect::<Vec<_>>())
                })
            })
        })?;
        let mut d_weight = vec![0.0; width];
        for part in &partial {
            for (sum, part) in d_weight.iter_mut().zip(part) {
                *sum += part;
            }
        }
        let dx = if x.track_op() { Some(Tensor::from_vec(dx, x.shape(), x.device())?) } else { None };
        let d_weight = if weight.track_op() { Some(Tensor::from_vec(d_weight, width, x.device())?) } else { None };
        Ok((dx, d_weight))
    }
}
