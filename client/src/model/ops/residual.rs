//! Dropout alone, dropout with the shortcut added, and the shortcut added before ReLU.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::dropout::Dropout;
use super::simd::vectorised;
use super::values::{read, slice};

/// Rows of one task.
const ROWS: usize = 32;

pub(super) struct Residual {
    pub(super) dropout: Option<Dropout>,
}

pub(super) struct DropRows {
    pub(super) dropout: Dropout,
}

/// `relu(x + shortcut)`.
pub(super) struct ResidualRelu;

/// Values of one task where rows do not matter.
const BLOCK: usize = 1 << 13;

impl CustomOp2 for ResidualRelu {
    fn name(&self) -> &'static str {
        "add-relu"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        shortcut: &CpuStorage,
        shortcut_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if shortcut_layout.shape() != x_layout.shape() {
            bail!("residual: {:?} and {:?} differ", x_layout.shape(), shortcut_layout.shape());
        }
        let (x, shortcut) = (slice(x, x_layout)?, slice(shortcut, shortcut_layout)?);
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).zip(shortcut.par_chunks(BLOCK)).for_each(
            |((out, x), shortcut)| {
                vectorised(|| {
                    for ((out, x), shortcut) in out.iter_mut().zip(x).zip(shortcut) {
                        let sum = x + shortcut;
                        *out = if sum < 0.0 { 0.0 } else { sum };
                    }
                });
            },
        );
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        shortcut: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut passed = vec![0.0; out.elem_count()];
        read(out, |y| {
            read(grad, |g| {
                passed.par_chunks_mut(BLOCK).zip(y.par_chunks(BLOCK)).zip(g.par_chunks(BLOCK)).for_each(
                    |((passed, y), g)| {
                        vectorised(|| {
                            for ((passed, y), g) in passed.iter_mut().zip(y).zip(g) {
                                *passed = if *y > 0.0 { *g } else { 0.0 };
                            }
                        });
                    },
                );
                Ok(())
            })
        })?;
        let passed = Tensor::from_vec(passed, out.shape(), out.device())?;
        Ok((x.track_op().then(|| passed.clone()), shortcut.track_op().then_some(passed)))
    }
}

impl CustomOp2 for Residual {
    fn name(&self) -> &'static str {
        "dropout-add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        shortcut: &CpuStorage,
        shortcut_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = x_layout.shape().dims2()?;
        if shortcut_layout.shape() != x_layout.shape() {
            bail!("residual: {:?} and {:?} differ", x_layout.shape(), shortcut_layout.shape());
        }
        let (x, shortcut) = (slice(x, x_layout)?, slice(shortcut, shortcut_layout)?);
        let mut out = match self.dropout {
            Some(dropout) => masked(x, rows, width, dropout),
            None => x.to_vec(),
        };
        out.par_chunks_mut(ROWS * width.max(1)).zip(shortcut.par_chunks(ROWS * width.max(1))).for_each(
            |(out, shortcut)| {
                vectorised(|| {
                    for (out, shortcut) in out.iter_mut().zip(shortcut) {
                        *out += shortcut;
                    }
                });
            },
        );
        Ok((CpuStorage::F32(out), (rows, width).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        shortcut: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = match self.dropout {
            _ if !x.track_op() => None,
            Some(dropout) => Some(backward(dropout, grad)?),
            None => Some(grad.clone()),
        };
        Ok((dx, shortcut.track_op().then(|| grad.clone())))
    }
}

impl CustomOp1 for DropRows {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        Ok((CpuStorage::F32(masked(slice(x, layout)?, rows, width, self.dropout)), (rows, width).into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(backward(self.dropout, grad)?))
    }
}

fn backward(dropout: Dropout, grad: &Tensor) -> Result<Tensor> {
    let (rows, width) = grad.dims2()?;
    let values = read(grad, |g| Ok(masked(g, rows, width, dropout)))?;
    Tensor::from_vec(values, (rows, width), grad.device())
}

fn masked(x: &[f32], rows: usize, width: usize, dropout: Dropout) -> Vec<f32> {
    let mut out = vec![0.0; rows * width];
    if width == 0 {
        return out;
    }
    out.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).enumerate().for_each(|(block, (out, x))| {
        vectorised(|| {
            for (i, (out, x)) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                dropout.fill(block * ROWS + i, width, out);
                for (out, x) in out.iter_mut().zip(x) {
                    *out *= x;
                }
            }
        });
    });
    out
}
