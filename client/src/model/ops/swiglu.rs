//! The gate of decoders: one matrix through SiLU, times another.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::simd::{exp, vectorised};
use super::values::{read, slice};

pub(super) struct SwiGlu;

/// Values of one task.
const BLOCK: usize = 1 << 14;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = gate_layout.shape();
        if up_layout.shape() != shape {
            bail!("swiglu: the gate is {shape:?}, what it opens {:?}", up_layout.shape());
        }
        let (gate, up) = (slice(gate, gate_layout)?, slice(up, up_layout)?);
        let mut out = vec![0.0; gate.len()];
        out.par_chunks_mut(BLOCK).zip(gate.par_chunks(BLOCK)).zip(up.par_chunks(BLOCK)).for_each(
            |((out, gate), up)| {
                vectorised(|| {
                    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                        *out = gate * sigmoid(*gate) * up;
                    }
                });
            },
        );
        Ok((CpuStorage::F32(out), shape.clone()))
    }

    /// With σ the sigmoid of the gate a: da = g ∘ b ∘ σ·(1 + a·(1 − σ)), db = g ∘ a·σ.
    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut d_gate, mut d_up) = (vec![0.0; gate.elem_count()], vec![0.0; up.elem_count()]);
        read(gate, |gate| {
            read(up, |up| {
                read(grad, |g| {
                    let targets = d_gate.par_chunks_mut(BLOCK).zip(d_up.par_chunks_mut(BLOCK));
                    let sources = gate.par_chunks(BLOCK).zip(up.par_chunks(BLOCK)).zip(g.par_chunks(BLOCK));
                    targets.zip(sources).for_each(|((d_gate, d_up), ((gate, up), g))| {
                        vectorised(|| {
                            let targets = d_gate.iter_mut().zip(d_up);
                            for ((d_gate, d_up), ((gate, up), g)) in targets.zip(gate.iter().zip(up).zip(g)) {
                                let open = sigmoid(*gate);
                                *d_gate = g * up * open * (1.0 + gate * (1.0 - open));
                                *d_up = g * gate * open;
                            }
                        });
                    });
                    Ok(())
                })
            })
        })?;
        let tensor = |like: &Tensor, values: Vec<f32>| -> Result<Option<Tensor>> {
            if like.track_op() { Ok(Some(Tensor::from_vec(values, like.shape(), like.device())?)) } else { Ok(None) }
        };
        Ok((tensor(gate, d_gate)?, tensor(up, d_up)?))
    }
}
