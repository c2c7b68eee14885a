//! A gated activation: one half of each row, activated, times the other.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::Activation;
use super::simd::vectorised;
use super::values::{read, slice};

pub(super) struct Gated {
    pub(super) activation: Activation,
}

impl Gated {
    fn width(shape: &Shape) -> Result<usize> {
        match shape.dims2()? {
            (_, both) if both > 0 && both.is_multiple_of(2) => Ok(both / 2),
            (_, both) => bail!("gated: rows of {both} values; expected an even number above 0"),
        }
    }
}

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = Self::width(layout.shape())?;
        let rows = layout.shape().dims2()?.0;
        let x = slice(x, layout)?;
        let mut out = vec![0.0; rows * width];
        out.par_chunks_mut(width).zip(x.par_chunks(2 * width)).for_each(|(out, row)| {
            let (x, gate) = row.split_at(width);
            self.activation.value(x, out);
            times(out, gate);
        });
        Ok((CpuStorage::F32(out), (rows, width).into()))
    }

    /// With y = f(a) ∘ b: da = g ∘ b ∘ f'(a), db = g ∘ f(a).
    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let width = Self::width(x.shape())?;
        let mut dx = vec![0.0; x.elem_count()];
        read(x, |x| {
            read(grad, |g| {
                let rows = dx.par_chunks_mut(2 * width).zip(x.par_chunks(2 * width)).zip(g.par_chunks(width));
                rows.for_each(|((dx, row), g)| {
                    let (x, gate) = row.split_at(width);
                    let (dx, d_gate) = dx.split_at_mut(width);
                    self.activation.slope(x, dx);
                    times(dx, gate);
                    times(dx, g);
                    self.activation.value(x, d_gate);
                    times(d_gate, g);
                });
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

fn times(out: &mut [f32], factors: &[f32]) {
    vectorised(|| {
        for (out, factor) in out.iter_mut().zip(factors) {
            *out *= factor;
        }
    });
}
