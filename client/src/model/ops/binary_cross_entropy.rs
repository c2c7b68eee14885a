//! Binary cross-entropy on logits, in double precision inside.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::values::{read, slice};

pub(super) struct BinaryCrossEntropy {
    /// 1 for the labels of a row, 0 for the others, `[rows, labels]`.
    pub(super) hot: Vec<f32>,
    pub(super) divisor: f64,
}

/// The sets as ones and zeros, `[rows, labels]`.
pub(super) fn hot(sets: &[Vec<u32>], (rows, labels): (usize, usize)) -> Result<Vec<f32>> {
    if sets.len() != rows || rows == 0 || sets.iter().flatten().any(|label| *label as usize >= labels) {
        bail!("binary cross-entropy: logits [{rows}, {labels}] do not fit {} sets of labels", sets.len());
    }
    let mut hot = vec![0.0; rows * labels];
    for (row, set) in hot.chunks_exact_mut(labels).zip(sets) {
        set.iter().for_each(|label| row[*label as usize] = 1.0);
    }
    Ok(hot)
}

/// log(1 + exp(x)) without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

impl CustomOp1 for BinaryCrossEntropy {
    fn name(&self) -> &'static str {
        "binary-cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = slice(logits, layout)?;
        let terms = logits.iter().zip(&self.hot).map(|(x, hot)| softplus(f64::from(*x)) - f64::from(x * hot));
        Ok((CpuStorage::F32(vec![(terms.sum::<f64>() / self.divisor) as f32]), Shape::from(())))
    }

    /// (σ(x) − hot) / divisor
    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let factor = f64::from(grad.to_scalar::<f32>()?) / self.divisor;
        let gradient = read(logits, |logits| {
            let sigmoid = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
            let slope = |(x, hot): (&f32, &f32)| ((sigmoid(*x) - f64::from(*hot)) * factor) as f32;
            Ok(logits.iter().zip(&self.hot).map(slope).collect::<Vec<_>>())
        })?;
        Ok(Some(Tensor::from_vec(gradient, logits.shape(), logits.device())?))
    }
}
