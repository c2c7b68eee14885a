//! AdamW (Loshchilov and Hutter 2019, 1711.05101) by PyTorch's formulas, in place and in one pass on the processor.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use crate::model::names::decays;
use crate::model::network::{Gradient, Parameter};
use crate::model::ops::{read_values, vectorised};

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
/// Values of one task; fixed, so that sums are always formed in the same order.
const BLOCK: usize = 1 << 15;

/// The optimiser with its moments.
#[derive(Debug)]
pub struct AdamW {
    weight_decay: f64,
    steps: i32,
    moments: BTreeMap<String, Moments>,
}

#[derive(Debug)]
enum Moments {
    Processor { first: Vec<f32>, second: Vec<f32> },
    Device { first: Tensor, second: Tensor },
}

/// The L2 norm of all gradients together, summed in double precision.
///
/// # Errors
/// A failure of the device.
pub fn gradient_norm(gradients: &BTreeMap<String, Gradient>) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients.values() {
        let (Gradient::Dense(values) | Gradient::Rows { values, .. }) = gradient;
        sum += if values.device().is_cpu() {
            read_values(values, |values| Ok(sum_of_squares(values)))?
        } else {
            f64::from(values.sqr()?.sum_all()?.to_scalar::<f32>()?)
        };
    }
    Ok(sum.sqrt())
}

fn sum_of_squares(values: &[f32]) -> f64 {
    let parts: Vec<f64> = values
        .par_chunks(BLOCK)
        .map(|block| {
            vectorised(|| {
                let mut lanes = [0.0f64; 8];
                let (blocks, rest) = block.as_chunks::<8>();
                for block in blocks {
                    for i in 0..8 {
                        lanes[i] += f64::from(block[i]) * f64::from(block[i]);
                    }
                }
                lanes.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()
            })
        })
        .collect();
    parts.iter().sum()
}

impl AdamW {
    /// Fresh moments.
    pub fn new(weight_decay: f64) -> Self {
        Self { weight_decay, steps: 0, moments: BTreeMap::new() }
    }

    /// Changes every parameter that has a gradient; gradients are multiplied by `scale` first.
    ///
    /// # Errors
    /// A gradient does not fit its parameter, or a failure of the device.
    pub fn step(
        &mut self,
        parameters: &BTreeMap<String, Parameter>,
        gradients: &BTreeMap<String, Gradient>,
        learning_rate: f64,
        scale: f64,
    ) -> Result<()> {
        self.steps += 1;
        let correction_1 = 1.0 - BETA_1.powi(self.steps);
        let correction_2 = 1.0 - BETA_2.powi(self.steps);
        for (name, gradient) in gradients {
            let Some(parameter) = parameters.get(name) else { bail!("a gradient for {name}, which is no parameter") };
            let decay = if decays(name) { self.weight_decay } else { 0.0 };
            let factors = Factors {
                scale,
                keep: 1.0 - learning_rate * decay,
                step: learning_rate / correction_1,
                root: 1.0 / correction_2.sqrt(),
            };
            let tensor = parameter.var.as_tensor();
            if !self.moments.contains_key(name) {
                self.moments.insert(name.clone(), Moments::new(tensor)?);
            }
            match (self.moments.get_mut(name), gradient) {
                (Some(Moments::Processor { first, second }), Gradient::Dense(values)) => {
                    read_values(values, |g| {
                        let source = Source::Dense(g);
                        tensor.inplace_op1(&Update { source, moments: Mutex::new((first, second)), factors })
                    })?;
                }
                (Some(Moments::Processor { first, second }), Gradient::Rows { rows, values }) => {
                    let width = values.dim(1)?;
                    read_values(values, |g| {
                        let source = Source::Rows { rows, values: g, width };
                        tensor.inplace_op1(&Update { source, moments: Mutex::new((first, second)), factors })
                    })?;
                }
                (Some(Moments::Device { first, second }), Gradient::Dense(values)) => {
                    let g = (values * scale)?;
                    *first = ((&*first * BETA_1)? + (&g * (1.0 - BETA_1))?)?;
                    *second = ((&*second * BETA_2)? + (g.sqr()? * (1.0 - BETA_2))?)?;
                    let root = ((second.sqrt()? * factors.root)? + EPSILON)?;
                    let change = (first.div(&root)? * factors.step)?;
                    parameter.var.set(&(parameter.var.as_detached_tensor() * factors.keep)?.sub(&change)?)?;
                }
                _ => bail!("the gradient of {name} does not fit its device"),
            }
        }
        Ok(())
    }
}

impl Moments {
    fn new(parameter: &Tensor) -> Result<Self> {
        if parameter.device().is_cpu() {
            let count = parameter.elem_count();
            Ok(Self::Processor { first: vec![0.0; count], second: vec![0.0; count] })
        } else {
            Ok(Self::Device { first: parameter.zeros_like()?, second: parameter.zeros_like()? })
        }
    }
}

/// What one step multiplies by.
#[derive(Debug, Clone, Copy)]
struct Factors {
    /// Clipping.
    scale: f64,
    /// 1 − learning rate × weight decay.
    keep: f64,
    /// Learning rate over the first moment's correction.
    step: f64,
    /// 1 over the root of the second moment's correction.
    root: f64,
}

/// Where the gradient's values stand.
#[derive(Clone, Copy)]
enum Source<'a> {
    Dense(&'a [f32]),
    /// Ascending rows of a table; the gradient of all others is zero.
    Rows {
        rows: &'a [u32],
        values: &'a [f32],
        width: usize,
    },
}

struct Update<'a> {
    source: Source<'a>,
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
    factors: Factors,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("adamw needs contiguous f32 parameters");
        };
        let values = &mut values[start..end];
        let Ok(mut moments) = self.moments.lock() else { bail!("the moments are in use") };
        let (first, second) = &mut *moments;
        let factors = self.factors;
        match self.source {
            Source::Dense(g) => {
                if g.len() != values.len() || first.len() != values.len() {
                    bail!("adamw: {} parameters, {} gradients", values.len(), g.len());
                }
                values
                    .par_chunks_mut(BLOCK)
                    .zip(first.par_chunks_mut(BLOCK))
                    .zip(second.par_chunks_mut(BLOCK))
                    .zip(g.par_chunks(BLOCK))
                    .for_each(|(((p, m), v), g)| vectorised(|| update(p, m, v, g.iter().copied(), factors)));
            }
            Source::Rows { rows, values: g, width } => {
                let fits = width > 0 && values.len().is_multiple_of(width) && rows.len() * width == g.len();
                if !fits || first.len() != values.len() {
                    bail!("adamw: {} parameters, {} rows of {width} gradients", values.len(), rows.len());
                }
                let block = (BLOCK / width).max(1);
                values
                    .par_chunks_mut(block * width)
                    .zip(first.par_chunks_mut(block * width))
                    .zip(second.par_chunks_mut(block * width))
                    .enumerate()
                    .for_each(|(i, ((p, m), v))| {
                        let mut next = rows.partition_point(|row| (*row as usize) < i * block);
                        let table = p.chunks_exact_mut(width).zip(m.chunks_exact_mut(width));
                        for (row, ((p, m), v)) in table.zip(v.chunks_exact_mut(width)).enumerate() {
                            if rows.get(next).is_some_and(|found| *found as usize == i * block + row) {
                                let g = &g[next * width..(next + 1) * width];
                                next += 1;
                                vectorised(|| update(p, m, v, g.iter().copied(), factors));
                            } else {
                                vectorised(|| update(p, m, v, std::iter::repeat(0.0), factors));
                            }
                        }
                    });
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: impl Iterator<Item = f32>, factors: Factors) {
    let Factors { scale, keep, step, root } = factors;
    let (scale, keep, step, root) = (scale as f32, keep as f32, step as f32, root as f32);
    let (beta_1, beta_2, epsilon) = (BETA_1 as f32, BETA_2 as f32, EPSILON as f32);
    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
        let g = g * scale;
        *m = beta_1 * *m + (1.0 - beta_1) * g;
        *v = beta_2 * *v + (1.0 - beta_2) * g * g;
        *p = keep * *p - step * (*m / (v.sqrt() * root + epsilon));
    }
}
