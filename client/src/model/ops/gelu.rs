//! GELU by the error function (Hendrycks and Gimpel 2016, 1606.08415): x Φ(x).

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::simd::{normal, vectorised};
use super::values::{read, slice};

pub(super) struct Gelu;

/// Values of one task.
const BLOCK: usize = 1 << 14;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu-erf"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(out, x)| {
            vectorised(|| {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = x * normal(*x).0;
                }
            });
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    /// d/dx x Φ(x) = Φ(x) + x φ(x).
    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; x.elem_count()];
        read(x, |x| {
            read(grad, |g| {
                dx.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).zip(g.par_chunks(BLOCK)).for_each(|((dx, x), g)| {
                    vectorised(|| {
                        for ((dx, x), g) in dx.iter_mut().zip(x).zip(g) {
                            let (cumulative, density) = normal(*x);
                            *dx = g * (cumulative + x * density);
                        }
                    });
                });
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
