//! The product of a low-rank adapter, added to what the frozen layer gave.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use fedtune_config::job::Precision;

use super::gemm::{Cores, Matrix, Onto, multiply};
use super::values::{read, slice};

/// `base + scale · low upᵀ`: base `[rows, out]`, low `[rows, rank]`, up `[out, rank]`.
pub(super) struct LowRank {
    pub(super) scale: f32,
    pub(super) precision: Precision,
}

impl CustomOp3 for LowRank {
    fn name(&self) -> &'static str {
        "low-rank"
    }

    fn cpu_fwd(
        &self,
        base: &CpuStorage,
        base_layout: &Layout,
        low: &CpuStorage,
        low_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((rows, outer), (low_rows, rank)) = (base_layout.shape().dims2()?, low_layout.shape().dims2()?);
        if low_rows != rows || up_layout.shape().dims2()? != (outer, rank) {
            bail!("low-rank: base is [{rows}, {outer}], low [{low_rows}, {rank}], up {:?}", up_layout.shape());
        }
        let mut out = slice(base, base_layout)?.to_vec();
        let low = Matrix::new(slice(low, low_layout)?, rows, rank, rank);
        let up = Matrix::new(slice(up, up_layout)?, outer, rank, rank);
        multiply(&mut out, outer, low, up.transposed(), self.scale, Onto::Present, Cores::All(self.precision));
        Ok((CpuStorage::F32(out), (rows, outer).into()))
    }

    fn bwd(
        &self,
        base: &Tensor,
        low: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((rows, rank), outer) = (low.dims2()?, up.dim(0)?);
        let (d_low, d_up) = read(grad, |g| {
            let gradient = Matrix::new(g, rows, outer, outer);
            let product = |left: Matrix<'_>, other: &Tensor, (m, k): (usize, usize)| -> Result<Tensor> {
                let mut out = vec![0.0; m * rank];
                read(other, |other| {
                    let right = Matrix::new(other, k, rank, rank);
                    multiply(&mut out, rank, left, right, self.scale, Onto::Nothing, Cores::All(self.precision));
                    Ok(())
                })?;
                Tensor::from_vec(out, (m, rank), grad.device())
            };
            let d_low = low.track_op().then(|| product(gradient, up, (rows, outer))).transpose()?;
            let d_up = up.track_op().then(|| product(gradient.transposed(), low, (outer, rows))).transpose()?;
            Ok((d_low, d_up))
        })?;
        Ok((base.track_op().then(|| grad.clone()), d_low, d_up))
    }
}
