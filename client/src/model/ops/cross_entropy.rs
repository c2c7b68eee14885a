//! Mean cross-entropy on logits, in double precision inside.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::values::{read, slice};

pub(super) struct CrossEntropy {
    pub(super) labels: Vec<u32>,
    /// Added to each row of logits first; empty for nothing.
    pub(super) offset: Vec<f32>,
}

impl CrossEntropy {
    fn shifted(&self, row: &[f32]) -> Vec<f32> {
        let offset = self.offset.iter().copied().chain(std::iter::repeat(0.0));
        row.iter().zip(offset).map(|(logit, offset)| logit + offset).collect()
    }
}

/// log Σ exp of a row, by the largest value.
fn log_sum_exp(row: &[f32]) -> f64 {
    let largest = row.iter().fold(f64::NEG_INFINITY, |a, b| a.max(f64::from(*b)));
    largest + row.iter().map(|x| (f64::from(*x) - largest).exp()).sum::<f64>().ln()
}

/// −log softmax(row) at `label`.
pub(crate) fn row_loss(row: &[f32], label: usize) -> f64 {
    log_sum_exp(row) - f64::from(row[label])
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        if rows != self.labels.len() || rows == 0 || self.labels.iter().any(|l| *l as usize >= width) {
            bail!("cross-entropy: logits [{rows}, {width}] do not fit {} labels", self.labels.len());
        }
        let logits = slice(logits, layout)?;
        let sum: f64 = logits
            .chunks_exact(width)
            .zip(&self.labels)
            .map(|(row, label)| row_loss(&self.shifted(row), *label as usize))
            .sum();
        Ok((CpuStorage::F32(vec![(sum / rows as f64) as f32]), Shape::from(())))
    }

    /// d/dlogits = (softmax of the shifted logits − one-hot) / rows.
    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, width) = logits.dims2()?;
        let factor = f64::from(grad.to_scalar::<f32>()?) / rows as f64;
        let gradient = read(logits, |logits| {
            let mut out = Vec::with_capacity(logits.len());
            for (row, label) in logits.chunks_exact(width).zip(&self.labels) {
                let row = self.shifted(row);
                let total = log_sum_exp(&row);
                out.extend(row.iter().enumerate().map(|(i, x)| {
                    let target = if i == *label as usize { 1.0 } else { 0.0 };
                    (((f64::from(*x) - total).exp() - target) * factor) as f32
                }));
            }
            Ok(out)
        })?;
        Ok(Some(Tensor::from_vec(gradient, (rows, width), logits.device())?))
    }
}
