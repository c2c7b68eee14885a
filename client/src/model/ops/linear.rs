//! Matrix product and bias as one op.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use fedtune_config::job::Precision;
use rayon::prelude::*;

use super::gemm::{Cores, Matrix, Onto, multiply};
use super::simd::vectorised;
use super::values::{read, slice};

pub(super) struct Linear {
    pub(super) precision: Precision,
}

/// Columns that one task of [`column_sums`] adds up; fixed, so the order of the sums is.
const COLUMNS: usize = 128;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inner) = x_layout.shape().dims2()?;
        let (outer, weight_inner) = weight_layout.shape().dims2()?;
        if inner != weight_inner || bias_layout.shape().dims1()? != outer {
            bail!("linear: x is [{rows}, {inner}], weight [{outer}, {weight_inner}], bias {:?}", bias_layout.shape());
        }
        let (x, weight, bias) = (slice(x, x_layout)?, slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        // Starting from the bias saves a pass over the result.
        let mut out = Vec::with_capacity(rows * outer);
        for _ in 0..rows {
            out.extend_from_slice(bias);
        }
        multiply(
            &mut out,
            outer,
            Matrix::new(x, rows, inner, inner),
            Matrix::new(weight, outer, inner, inner).transposed(),
            1.0,
            Onto::Present,
            Cores::All(self.precision),
        );
        Ok((CpuStorage::F32(out), (rows, outer).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((rows, inner), outer) = (x.dims2()?, weight.dim(0)?);
        let device = x.device();
        read(grad, |g| {
            let gradient = Matrix::new(g, rows, outer, outer);
            let dx = if x.track_op() {
                let mut dx = vec![0.0; rows * inner];
                read(weight, |w| {
                    let weight = Matrix::new(w, outer, inner, inner);
                    multiply(&mut dx, inner, gradient, weight, 1.0, Onto::Nothing, Cores::All(self.precision));
                    Ok(())
                })?;
                Some(Tensor::from_vec(dx, (rows, inner), device)?)
            } else {
                None
            };
            let dw = if weight.track_op() {
                let mut dw = vec![0.0; outer * inner];
                read(x, |x| {
                    let x = Matrix::new(x, rows, inner, inner);
                    multiply(&mut dw, inner, gradient.transposed(), x, 1.0, Onto::Nothing, Cores::All(self.precision));
                    Ok(())
                })?;
                Some(Tensor::from_vec(dw, (outer, inner), device)?)
            } else {
                None
            };
            let db = if bias.track_op() { Some(Tensor::from_vec(column_sums(g, outer), outer, device)?) } else { None };
            Ok((dx, dw, db))
        })
    }
}

/// The sum of each column of a row-major matrix, over all cores and in a fixed order.
pub(super) fn column_sums(values: &[f32], columns: usize) -> Vec<f32> {
    let mut sums = vec![0.0; columns];
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(block, sums)| {
        let first = block * COLUMNS;
        vectorised(|| {
            for row in values.chunks_exact(columns) {
                for (sum, value) in sums.iter_mut().zip(&row[first..]) {
                    *sum += value;
                }
            }
        });
    });
    sums
}
