//! AdamW (Loshchilov and Hutter 2019, 1711.05101) as `torch.optim.AdamW` has it.

use candle_core::{Result, Tensor};

use super::Change;

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    change: Change,
    /// Learning rate over the first moment's correction.
    step: f64,
    /// 1 over the root of the second moment's correction.
    root: f64,
}

impl Kernel {
    /// For the step of this number, counted from 1.
    pub(super) fn new(change: Change, step: i32) -> Self {
        let correction_1 = 1.0 - BETA_1.powi(step);
        let correction_2 = 1.0 - BETA_2.powi(step);
        Self { change, step: change.rate / correction_1, root: 1.0 / correction_2.sqrt() }
    }
}

impl super::Kernel<2> for Kernel {
    #[inline(always)]
    fn update(self, p: &mut [f32], [m, v]: [&mut [f32]; 2], g: impl Iterator<Item = f32>) {
        let (scale, keep) = (self.change.scale as f32, self.change.keep as f32);
        let (step, root) = (self.step as f32, self.root as f32);
        let (beta_1, beta_2, epsilon) = (BETA_1 as f32, BETA_2 as f32, EPSILON as f32);
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * scale;
            *m = beta_1 * *m + (1.0 - beta_1) * g;
            *v = beta_2 * *v + (1.0 - beta_2) * g * g;
            *p = keep * *p - step * (*m / (v.sqrt() * root + epsilon));
        }
    }

    #[cfg(feature = "cuda")]
    fn step(self) -> crate::model::ops::cuda::Step {
        crate::model::ops::cuda::Step::AdamW {
            scale: self.change.scale as f32,
            keep: self.change.keep as f32,
            step: self.step as f32,
            root: self.root as f32,
            betas: [BETA_1 as f32, BETA_2 as f32],
            epsilon: EPSILON as f32,
        }
    }

    fn update_on_device(self, p: &Tensor, [m, v]: &mut [Tensor; 2], g: &Tensor) -> Result<Tensor> {
        let g = (g * self.change.scale)?;
        *m = ((&*m * BETA_1)? + (&g * (1.0 - BETA_1))?)?;
        *v = ((&*v * BETA_2)? + (g.sqr()? * (1.0 - BETA_2))?)?;
        let root = ((v.sqrt()? * self.root)? + EPSILON)?;
        (p * self.change.keep)? - (m.div(&root)? * self.step)?
    }
}
