//! Squared error, in double precision inside.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::values::{read, slice};

pub(super) struct SquaredError {
    pub(super) values: Vec<f32>,
    pub(super) divisor: f64,
}

impl CustomOp1 for SquaredError {
    fn name(&self) -> &'static str {
        "squared-error"
    }

    fn cpu_fwd(&self, outputs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let outputs = slice(outputs, layout)?;
        let terms = outputs.iter().zip(&self.values).map(|(x, value)| (f64::from(*x) - f64::from(*value)).powi(2));
        Ok((CpuStorage::F32(vec![(terms.sum::<f64>() / self.divisor) as f32]), Shape::from(())))
    }

    /// 2 (x − value) / divisor
    fn bwd(&self, outputs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let factor = 2.0 * f64::from(grad.to_scalar::<f32>()?) / self.divisor;
        let gradient = read(outputs, |outputs| {
            let slope = |(x, value): (&f32, &f32)| ((f64::from(*x) - f64::from(*value)) * factor) as f32;
            Ok(outputs.iter().zip(&self.values).map(slope).collect::<Vec<_>>())
        })?;
        Ok(Some(Tensor::from_vec(gradient, outputs.shape(), outputs.device())?))
    }
}
