//! Some rows of a matrix, and means of rows.

use candle_core::{CpuStorage, CustomOp1, InplaceOp1, Layout as Strides, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::values::{read, slice, split};
use crate::model::batch::Layout;

pub(super) struct PickRows {
    pub(super) rows: Vec<u32>,
}

impl CustomOp1 for PickRows {
    fn name(&self) -> &'static str {
        "pick-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Strides) -> Result<(CpuStorage, Shape)> {
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

/// Adds a matrix to some rows of another.
pub(super) struct AddRows<'a> {
    pub(super) rows: &'a [u32],
    pub(super) values: &'a [f32],
}

impl InplaceOp1 for AddRows<'_> {
    fn name(&self) -> &'static str {
        "add-rows"
    }

    fn cpu_fwd(&self, matrix: &mut CpuStorage, layout: &Strides) -> Result<()> {
        let (rows, width) = layout.shape().dims2()?;
        let (CpuStorage::F32(matrix), Some((start, end))) = (matrix, layout.contiguous_offsets()) else {
            bail!("add rows: expected a contiguous f32 matrix");
        };
        if self.values.len() != self.rows.len() * width || self.rows.iter().any(|row| *row as usize >= rows) {
            bail!("add rows: {} values for {} rows of a matrix [{rows}, {width}]", self.values.len(), self.rows.len());
        }
        let matrix = &mut matrix[start..end];
        for (row, values) in self.rows.iter().zip(self.values.chunks_exact(width.max(1))) {
            for (sum, value) in matrix[*row as usize * width..][..width].iter_mut().zip(values) {
                *sum += value;
            }
        }
        Ok(())
    }
}

pub(super) struct MeanRows {
    pub(super) layout: Layout,
}

impl CustomOp1 for MeanRows {
    fn name(&self) -> &'static str {
        "mean-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, strides: &Strides) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = strides.shape().dims2()?;
        if rows != self.layout.rows() {
            bail!("mean rows: {rows} rows, and {} in the batch", self.layout.rows());
        }
        let x = slice(x, strides)?;
        let mut out = vec![0.0; self.layout.sequences() * width];
        if width > 0 {
            out.par_chunks_mut(width).enumerate().for_each(|(sequence, out)| {
                let span = self.layout.span(sequence);
                let share = 1.0 / span.len() as f32;
                for row in x[span.start * width..span.end * width].chunks_exact(width) {
                    for (out, x) in out.iter_mut().zip(row) {
                        *out += share * x;
                    }
                }
            });
        }
        Ok((CpuStorage::F32(out), (self.layout.sequences(), width).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, width) = x.dims2()?;
        let mut dx = vec![0.0; rows * width];
        if width > 0 {
            read(grad, |g| {
                let parts = split(&mut dx, &self.layout, width);
                parts.into_par_iter().zip(g.par_chunks(width)).for_each(|(part, g)| {
                    let share = width as f32 / part.len() as f32;
                    for row in part.chunks_exact_mut(width) {
                        for (dx, g) in row.iter_mut().zip(g) {
                            *dx = share * g;
                        }
                    }
                });
                Ok(())
            })?;
        }
        Ok(Some(Tensor::from_vec(dx, (rows, width), x.device())?))
    }
}
