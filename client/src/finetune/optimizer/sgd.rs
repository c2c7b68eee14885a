//! Stochastic gradient descent as `torch.optim.SGD` has it, without dampening, but with decoupled weight decay: SGDW of
//! Loshchilov and Hutter 2019, 1711.05101.

use candle_core::{Result, Tensor};

use super::{Change, Kernel};

/// With a velocity: `v ← momentum·v + g`, `p ← keep·p − rate·v`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Momentum {
    pub(super) change: Change,
    pub(super) momentum: f64,
}

impl Kernel<1> for Momentum {
    #[inline(always)]
    fn update(self, p: &mut [f32], [v]: [&mut [f32]; 1], g: impl Iterator<Item = f32>) {
        let Change { scale, keep, rate } = self.change;
        let (scale, keep, rate, momentum) = (scale as f32, keep as f32, rate as f32, self.momentum as f32);
        for ((p, v), g) in p.iter_mut().zip(v).zip(g) {
            *v = momentum * *v + g * scale;
            *p = keep * *p - rate * *v;
        }
    }

    #[cfg(feature = "cuda")]
    fn step(self) -> crate::model::ops::cuda::Step {
        let Change { scale, keep, rate } = self.change;
        crate::model::ops::cuda::Step::Momentum {
            scale: scale as f32,
            keep: keep as f32,
            rate: rate as f32,
            momentum: self.momentum as f32,
        }
    }

    fn update_on_device(self, p: &Tensor, [v]: &mut [Tensor; 1], g: &Tensor) -> Result<Tensor> {
        *v = ((&*v * self.momentum)? + (g * self.change.scale)?)?;
        (p * self.change.keep)? - (&*v * self.change.rate)?
    }
}

/// Without: `p ← keep·p − rate·g`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain {
    pub(super) change: Change,
}

impl Kernel<0> for Plain {
    #[inline(always)]
    fn update(self, p: &mut [f32], []: [&mut [f32]; 0], g: impl Iterator<Item = f32>) {
        let Change { scale, keep, rate } = self.change;
        let (keep, step) = (keep as f32, (rate * scale) as f32);
        for (p, g) in p.iter_mut().zip(g) {
            *p = keep * *p - step * g;
        }
    }

    #[cfg(feature = "cuda")]
    fn step(self) -> crate::model::ops::cuda::Step {
        let Change { scale, keep, rate } = self.change;
        crate::model::ops::cuda::Step::Plain { keep: keep as f32, step: (rate * scale) as f32 }
    }

    fn update_on_device(self, p: &Tensor, []: &mut [Tensor; 0], g: &Tensor) -> Result<Tensor> {
        let Change { scale, keep, rate } = self.change;
        (p * keep)? - (g * (rate * scale))?
    }
}
