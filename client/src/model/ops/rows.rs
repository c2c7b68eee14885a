//! Some rows of a matrix.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::values::{read, slice};

pub(super) struct PickRows {
    pub(super) rows: Vec<u32>,
}

impl CustomOp1 for PickRows {
    fn name(&self) -> &'static str {
        "pick-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        if self.rows.iter().any(|row| *row as usize >= rows) {
            bail!("pick rows: a row outside a matrix of {rows}");
        }
        let x = slice(x, layout)?;
        let mut out = Vec::with_capacity(self.rows.len() * width);
        for row in &self.rows {
            out.extend_from_slice(&x[*row as usize * width..][..width]);
        }
        Ok((CpuStorage::F32(out), (self.rows.len(), width).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, width) = x.dims2()?;
        let mut dx = vec![0.0; rows * width];
        read(grad, |g| {
            for (row, g) in self.rows.iter().zip(g.chunks_exact(width.max(1))) {
                for (sum, g) in dx[*row as usize * width..][..width].iter_mut().zip(g) {
                    *sum += g;
                }
            }
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(dx, (rows, width), x.device())?))
    }
}
