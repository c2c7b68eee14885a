//! Activations, value by value.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use candle_transformers::models::bert::HiddenAct;
use rayon::prelude::*;

use super::simd::{normal, vectorised};
use super::values::{read, slice};

/// Which activation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Activation {
    /// GELU by the error function (Hendrycks and Gimpel 2016, 1606.08415): x Φ(x).
    Gelu,
    /// The same paper's approximation by tanh.
    GeluTanh,
    Relu,
    Tanh,
}

/// Values of one task.
const BLOCK: usize = 1 << 14;
/// √(2/π) and the cubic's factor in the approximation by tanh.
const ROOT: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

impl From<HiddenAct> for Activation {
    fn from(kind: HiddenAct) -> Self {
        match kind {
            HiddenAct::Gelu => Self::Gelu,
            HiddenAct::GeluApproximate => Self::GeluTanh,
            HiddenAct::Relu => Self::Relu,
        }
    }
}

impl Activation {
    pub(super) fn value(self, x: &[f32], out: &mut [f32]) {
        match self {
            // Only this one is worth vector code; the others are rare or small.
            Self::Gelu => vectorised(|| each(x, out, |x| x * normal(x).0)),
            Self::GeluTanh => each(x, out, |x| 0.5 * x * (1.0 + (ROOT * (x + CUBIC * x * x * x)).tanh())),
            Self::Relu => vectorised(|| each(x, out, |x| if x > 0.0 { x } else { 0.0 })),
            Self::Tanh => each(x, out, f32::tanh),
        }
    }

    /// The derivative at x, into `out`.
    pub(super) fn slope(self, x: &[f32], out: &mut [f32]) {
        match self {
            Self::Gelu => vectorised(|| {
                each(x, out, |x| {
                    let (cumulative, density) = normal(x);
                    cumulative + x * density
                });
            }),
            Self::GeluTanh => each(x, out, |x| {
                let t = (ROOT * (x + CUBIC * x * x * x)).tanh();
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * ROOT * (1.0 + 3.0 * CUBIC * x * x)
            }),
            Self::Relu => vectorised(|| each(x, out, |x| if x > 0.0 { 1.0 } else { 0.0 })),
            Self::Tanh => each(x, out, |x| 1.0 - x.tanh() * x.tanh()),
        }
    }
}

#[inline(always)]
fn each(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f(*x);
    }
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(out, x)| self.value(x, out));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; x.elem_count()];
        read(x, |x| {
            read(grad, |g| {
                dx.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).zip(g.par_chunks(BLOCK)).for_each(|((dx, x), g)| {
                    self.slope(x, dx);
                    vectorised(|| {
                        for (dx, g) in dx.iter_mut().zip(g) {
                            *dx *= g;
                        }
                    });
                });
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
