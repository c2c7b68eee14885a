//! Arithmetic on the gradients of all parameters together.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::model::network::Gradient;
use crate::model::ops::{self, read_values, vectorised};

/// Values of one task; fixed, so that sums are always formed in the same order.
pub(super) const BLOCK: usize = 1 << 15;

/// The L2 norm of all gradients together, summed in double precision.
///
/// # Errors
/// A failure of the device.
pub fn gradient_norm(gradients: &BTreeMap<String, Gradient>) -> Result<f64> {
    let mut sum = 0.0;
    let all = gradients.values().map(|(Gradient::Dense(values) | Gradient::Rows { values, .. })| values);
    #[cfg(feature = "cuda")]
    if all.clone().all(|values| values.device().is_cuda()) {
        return Ok(ops::cuda::square_sum(&all.collect::<Vec<_>>())?.sqrt());
    }
    for values in all {
        sum += if values.device().is_cpu() {
            read_values(values, |values| Ok(sum_of_squares(values)))?
        } else {
            f64::from(values.sqr()?.sum_all()?.to_scalar::<f32>()?)
        };
    }
    Ok(sum.sqrt())
}

fn sum_of_squares(values: &[f32]) -> f64 {
    let parts: Vec<f64> = values
        .par_chunks(BLOCK)
        .map(|block| {
            vectorised(|| {
                let mut lanes = [0.0f64; 8];
                let (blocks, rest) = block.as_chunks::<8>();
                for block in blocks {
                    for i in 0..8 {
                        lanes[i] += f64::from(block[i]) * f64::from(block[i]);
                    }
                }
                lanes.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()
            })
        })
        .collect();
    parts.iter().sum()
}

/// Divides all gradients.
///
/// # Errors
/// A failure of the device.
pub(super) fn divide(gradients: &mut BTreeMap<String, Gradient>, divisor: f64) -> Result<()> {
    for gradient in gradients.values_mut() {
        let (Gradient::Dense(values) | Gradient::Rows { values, .. }) = gradient;
        *values = values.affine(1.0 / divisor, 0.0)?;
    }
    Ok(())
}

/// Adds the gradients of another part of a batch.
///
/// # Errors
/// They are not of the same parameters and shapes, or a failure of the device.
pub(super) fn add(sum: &mut BTreeMap<String, Gradient>, part: BTreeMap<String, Gradient>) -> Result<()> {
    for (name, gradient) in part {
        match sum.remove(&name) {
            Some(earlier) => sum.insert(name, added(earlier, gradient)?),
            None => bail!("a gradient for {name} in one part of a batch only"),
        };
    }
    Ok(())
}

fn added(x: Gradient, y: Gradient) -> Result<Gradient> {
    match (x, y) {
        (Gradient::Dense(x), Gradient::Dense(y)) => Ok(Gradient::Dense(ops::sum(&x, &y)?)),
        (Gradient::Rows { rows: x_rows, values: x }, Gradient::Rows { rows: y_rows, values: y }) => {
            let width = x.dim(1)?;
            if y.dim(1)? != width {
                bail!("gradients of {width} and {} columns for one table", y.dim(1)?);
            }
            let mut rows: Vec<u32> = x_rows.iter().chain(&y_rows).copied().collect();
            rows.sort_unstable();
            rows.dedup();
            let mut sums = vec![0.0; rows.len() * width];
            for (from, values) in [(&x_rows, &x), (&y_rows, &y)] {
                read_values(values, |values| {
                    for (row, values) in from.iter().zip(values.chunks_exact(width.max(1))) {
                        let Ok(place) = rows.binary_search(row) else { bail!("row {row} is lost") };
                        for (sum, value) in sums[place * width..][..width].iter_mut().zip(values) {
                            *sum += value;
                        }
                    }
                    Ok(())
                })?;
            }
            let values = Tensor::from_vec(sums, (rows.len(), width), x.device())?;
            Ok(Gradient::Rows { rows, values })
        }
        _ => bail!("gradients of two forms for one parameter"),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_norm_is_that_of_all_values_on_every_device() {
        for device in crate::model::ops::tests::devices() {
            let values = |count: usize| (0..count).map(|i| (i % 13) as f32 - 6.0).collect::<Vec<f32>>();
            let gradients: BTreeMap<String, Gradient> = [1, 7, 5000, 100_003]
                .map(|count| (count.to_string(), Gradient::Dense(Tensor::new(values(count), device).unwrap())))
                .into();
            let all = [1, 7, 5000, 100_003].map(|count| values(count).iter().map(|x| f64::from(x * x)).sum::<f64>());
            let (found, expected) = (gradient_norm(&gradients).unwrap(), all.iter().sum::<f64>().sqrt());
            assert!((found / expected - 1.0).abs() < 1e-9, "{found} for {expected}");
        }
    }

    #[test]
    fn sums_have_every_row_of_either_part() {
        let tensor =
            |values: &[[f32; 2]]| Tensor::from_slice(values.as_flattened(), (values.len(), 2), &Device::Cpu).unwrap();
        let part = |rows: &[u32], words: &[[f32; 2]], bias: [f32; 2]| {
            BTreeMap::from([
                ("words".to_owned(), Gradient::Rows { rows: rows.to_vec(), values: tensor(words) }),
                ("bias".to_owned(), Gradient::Dense(tensor(&[bias]))),
            ])
        };
        let mut sum = part(&[1, 4], &[[1.0, 2.0], [3.0, 4.0]], [1.0, 2.0]);
        add(&mut sum, part(&[0, 4], &[[5.0, 6.0], [7.0, 8.0]], [10.0, 20.0])).unwrap();
        let Gradient::Rows { rows, values } = &sum["words"] else { panic!("words are rows") };
        assert_eq!(rows, &[0, 1, 4]);
        assert_eq!(values.to_vec2::<f32>().unwrap(), [[5.0, 6.0], [1.0, 2.0], [10.0, 12.0]]);
        let Gradient::Dense(bias) = &sum["bias"] else { panic!("bias is dense") };
        assert_eq!(bias.to_vec2::<f32>().unwrap(), [[11.0, 22.0]]);
        assert!(add(&mut BTreeMap::new(), sum).is_err());
    }
}
