//! The product of rounded matrices out of f32 products, for precisions that the processor has no products of.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{Matrix, Product, exact, threads};

/// Values of one task.
const BLOCK: usize = 1 << 12;

/// As [`super::multiply`], with both operands rounded by `round`, which reads some values and writes as many.
pub(super) fn multiply(
    target: &mut [f32],
    target_stride: usize,
    product: Product<'_>,
    round: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    let Product { left, right, .. } = product;
    let rounded = |matrix: Matrix<'_>| -> Vec<f32> {
        let mut out = vec![0.0; matrix.values.len()];
        matrix.values.par_chunks(BLOCK).zip(out.par_chunks_mut(BLOCK)).for_each(|(values, out)| round(values, out));
        out
    };
    let (l, r) = (rounded(left), rounded(right));
    let parallelism = threads(left.rows * left.columns * right.columns);
    let (left, right) = (Matrix { values: &l, ..left }, Matrix { values: &r, ..right });
    exact(target, target_stride, Product { left, right, ..product }, parallelism);
}

/// Rounds to the nearest f16, ties to even; infinite above 65504.
pub(super) fn to_f16(values: &[f32], out: &mut [f32]) {
    let mut halves = [f16::ZERO; BLOCK];
    for (values, out) in values.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        halves.convert_to_f32_slice(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_f16_is_to_nearest_even_and_overflows_to_infinity() {
        // 1 + 2^-11 lies between 1 and 1 + 2^-10; the smallest f16 above 0 is 2^-24.
        let values = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65504.0, 65520.0, -1e30, 5.9e-8, 2e-8, 0.1];
        let mut out = [0.0; 8];
        to_f16(&values, &mut out);
        let (infinite, least) = (f32::INFINITY, 1.0 / 16_777_216.0);
        assert_eq!(out, [1.0, 1.0 + 4.0 / 2048.0, 65504.0, infinite, -infinite, least, 0.0, 0.099_975_586]);
    }
}
