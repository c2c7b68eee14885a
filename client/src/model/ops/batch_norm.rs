//! Batch normalisation, and the ReLU behind it, with its analytic backward.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::simd::vectorised;
use super::values::{read, slice};

/// Mean and biased variance of each channel.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    /// One a channel.
    pub(crate) mean: Vec<f32>,
    /// One a channel.
    pub(crate) variance: Vec<f32>,
    /// Values that each was computed from.
    pub(crate) count: usize,
}

pub(super) struct BatchNorm {
    pub(super) epsilon: f32,
    /// Whether ReLU follows.
    pub(super) relu: bool,
    /// Whether the moments are those of this batch, and so depend on it.
    pub(super) of_batch: bool,
    /// Filled by the forward pass where they are those of the batch.
    pub(super) moments: Arc<OnceLock<Moments>>,
}

/// Rows of one task; fixed, so partial sums are always the same ones.
const ROWS: usize = 128;

/// For each channel the sums over all rows of what `f` writes for a row into its two arguments; in a fixed order.
fn sums<const N: usize>(
    rows: usize,
    channels: usize,
    block_sums: impl Fn(std::ops::Range<usize>, &mut [Vec<f32>; N]) + Sync,
) -> [Vec<f64>; N] {
    let partial: Vec<[Vec<f32>; N]> = (0..rows.div_ceil(ROWS))
        .into_par_iter()
        .map(|block| {
            let mut sums = std::array::from_fn(|_| vec![0.0; channels]);
            vectorised(|| block_sums(block * ROWS..rows.min((block + 1) * ROWS), &mut sums));
            sums
        })
        .collect();
    let mut all = std::array::from_fn(|_| vec![0.0; channels]);
    for part in &partial {
        for (all, part) in all.iter_mut().zip(part) {
            all.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(*part));
        }
    }
    all
}

impl Moments {
    /// Of the rows of a matrix; the variance by a second pass, since a difference of squares loses its digits.
    fn of(x: &[f32], channels: usize) -> Self {
        let rows = x.len() / channels;
        let [mean] = sums(rows, channels, |rows, [sum]| {
            for x in x[rows.start * channels..rows.end * channels].chunks_exact(channels) {
                sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
            }
        });
        let mean: Vec<f32> = mean.into_iter().map(|sum| (sum / rows as f64) as f32).collect();
        let [squares] = sums(rows, channels, |rows, [sum]| {
            for x in x[rows.start * channels..rows.end * channels].chunks_exact(channels) {
                for ((sum, x), mean) in sum.iter_mut().zip(x).zip(&mean) {
                    *sum += (x - mean) * (x - mean);
                }
            }
        });
        Self { mean, variance: squares.into_iter().map(|sum| (sum / rows as f64) as f32).collect(), count: rows }
    }

    /// The estimate that running variances are made of; `None` where there is one value a channel, which has none.
    pub(crate) fn unbiased_variance(&self) -> Option<Vec<f32>> {
        let (count, more) = (self.count as f64, self.count.checked_sub(1).filter(|more| *more > 0)?);
        Some(self.variance.iter().map(|variance| (f64::from(*variance) * count / more as f64) as f32).collect())
    }

    fn scales(&self, epsilon: f32) -> Vec<f32> {
        self.variance.iter().map(|variance| 1.0 / (variance + epsilon).sqrt()).collect()
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
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
        let (rows, channels) = x_layout.shape().dims2()?;
        let (x, weight, bias) = (slice(x, x_layout)?, slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        if weight.len() != channels || bias.len() != channels || channels == 0 || rows == 0 {
            bail!("batch norm: {rows} rows of {channels} values, weight {}, bias {}", weight.len(), bias.len());
        }
        let moments = self.moments.get_or_init(|| Moments::of(x, channels));
        if moments.mean.len() != channels || moments.variance.len() != channels {
            bail!("batch norm: {} means for {channels} channels", moments.mean.len());
        }
        // y = x · factor + shift
        let factor: Vec<f32> = moments.scales(self.epsilon).iter().zip(weight).map(|(s, w)| s * w).collect();
        let shift: Vec<f32> =
            bias.iter().zip(&moments.mean).zip(&factor).map(|((bias, mean), factor)| bias - mean * factor).collect();
        let least = if self.relu { 0.0 } else { f32::NEG_INFINITY };
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(ROWS * channels).zip(x.par_chunks(ROWS * channels)).for_each(|(out, x)| {
            vectorised(|| {
                for (out, x) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                    for (((out, x), factor), shift) in out.iter_mut().zip(x).zip(&factor).zip(&shift) {
                        let y = x * factor + shift;
                        // A NaN stays one.
                        *out = if y < least { least } else { y };
                    }
                }
            });
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    /// With x̂ the normalised values, g the gradient where ReLU let them through and means over the rows: dweight = Σ g·x̂,
    /// dbias = Σ g, and dx = scale · weight · (g − mean(g) − x̂ · mean(g·x̂)), without the means where the moments are fixed.
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((rows, channels), device) = (x.dims2()?, x.device());
        let Some(moments) = self.moments.get() else { bail!("batch norm: backward before forward") };
        let (mean, scale) = (&moments.mean, moments.scales(self.epsilon));
        let weights = read(weight, |weight| Ok(weight.to_vec()))?;
        // Everything is positive where there is no ReLU.
        let least = if self.relu { 0.0 } else { f32::NEG_INFINITY };
        let mut dx = if x.track_op() { vec![0.0; rows * channels] } else { Vec::new() };
        let [product_sums, gradient_sums] = read(x, |x| {
            read(grad, |g| {
                read(out, |y| {
                    let block = |values: std::ops::Range<usize>| values.start * channels..values.end * channels;
                    let all = sums(rows, channels, |rows, [products, gradients]| {
                        let (x, g, y) = (&x[block(rows.clone())], &g[block(rows.clone())], &y[block(rows)]);
                        let lines =
                            x.chunks_exact(channels).zip(g.chunks_exact(channels)).zip(y.chunks_exact(channels));
                        for ((x, g), y) in lines {
                            let sums = products.iter_mut().zip(gradients.iter_mut()).zip(mean);
                            for (((x, g), y), ((product, gradient), mean)) in x.iter().zip(g).zip(y).zip(sums) {
                                let g = if *y > least { *g } else { 0.0 };
                                *product += g * (x - mean);
                                *gradient += g;
                            }
                        }
                    });
                    // dx = g · a + (x − mean) · b + c
                    let mut factors = vec![[0.0f32; 3]; channels];
                    for (i, [a, b, c]) in factors.iter_mut().enumerate() {
                        *a = scale[i] * weights[i];
                        if self.of_batch {
                            let share = 1.0 / rows as f64;
                            let (scale, a) = (f64::from(scale[i]), f64::from(*a));
                            *b = (-a * scale * scale * all[0][i] * share) as f32;
                            *c = (-a * all[1][i] * share) as f32;
                        }
                    }
                    let part = |which: usize| factors.iter().map(|factors| factors[which]).collect::<Vec<f32>>();
                    let (a, b, c) = (part(0), part(1), part(2));
                    let size = ROWS * channels;
                    dx.par_chunks_mut(size)
                        .zip(x.par_chunks(size))
                        .zip(g.par_chunks(size))
                        .zip(y.par_chunks(size))
                        .for_each(|(((dx, x), g), y)| {
                            vectorised(|| {
                                let lines = dx
                                    .chunks_exact_mut(channels)
                                    .zip(x.chunks_exact(channels))
                                    .zip(g.chunks_exact(channels))
                                    .zip(y.chunks_exact(channels));
                                for (((dx, x), g), y) in lines {
                                    let factors = a.iter().zip(&b).zip(&c).zip(mean);
                                    for ((((dx, x), g), y), (((a, b), c), mean)) in
                                        dx.iter_mut().zip(x).zip(g).zip(y).zip(factors)
                                    {
                                        let g = if *y > least { *g } else { 0.0 };
                                        *dx = g * a + (x - mean) * b + c;
                                    }
                                }
                            });
                        });
                    Ok(all)
                })
            })
        })?;
        let dx = if x.track_op() { Some(Tensor::from_vec(dx, (rows, channels), device)?) } else { None };
        let d_weight: Vec<f32> = product_sums.iter().zip(&scale).map(|(sum, s)| (sum * f64::from(*s)) as f32).collect();
        let d_bias: Vec<f32> = gradient_sums.iter().map(|sum| *sum as f32).collect();
        let d_weight = if weight.track_op() { Some(Tensor::from_vec(d_weight, channels, device)?) } else { None };
        let d_bias = if bias.track_op() { Some(Tensor::from_vec(d_bias, channels, device)?) } else { None };
        Ok((dx, d_weight, d_bias))
    }
}
