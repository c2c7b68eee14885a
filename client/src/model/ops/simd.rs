//! Arithmetic over slices, compiled for each vector extension and chosen at run time. Sums run in sixteen fixed lanes,
//! so their result depends neither on the extension nor on the number of threads.

/// Runs `f` compiled for the widest vector extension of this processor. Whatever `f` calls must be
/// `#[inline(always)]` to gain from it.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

const LANES: usize = 16;

#[inline(always)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Σ f(x).
#[inline(always)]
pub(super) fn sum_of(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = xs.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += f(block[i]);
        }
    }
    fold(lanes, |a, b| a + b) + rest.iter().map(|x| f(*x)).sum::<f32>()
}

/// Σ x y.
#[inline(always)]
pub(crate) fn dot(xs: &[f32], ys: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (x_blocks, x_rest) = xs.as_chunks::<LANES>();
    let (y_blocks, y_rest) = ys.as_chunks::<LANES>();
    for (x, y) in x_blocks.iter().zip(y_blocks) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    fold(lanes, |a, b| a + b) + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f32>()
}

/// The largest value; negative infinity for none.
#[inline(always)]
pub(super) fn largest(xs: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = xs.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = if block[i] > lanes[i] { block[i] } else { lanes[i] };
        }
    }
    rest.iter().fold(fold(lanes, f32::max), |a, b| a.max(*b))
}

/// eˣ to about 1e-7 relative, without branches or calls. Range reduction and polynomial of Cephes' `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ leaves the nearest whole number in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    // Written so that a NaN stays a NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// Values that add up to 1: eˣ over the sum of all.
#[inline(always)]
pub(crate) fn softmax(xs: &mut [f32]) {
    let top = largest(xs);
    for x in xs.iter_mut() {
        *x = exp(*x - top);
    }
    let share = 1.0 / sum_of(xs, |x| x);
    for x in xs.iter_mut() {
        *x *= share;
    }
}

/// The standard normal distribution's cumulative probability and density at x; absolute error below 2e-7
/// (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(super) fn normal(x: f32) -> (f32, f32) {
    let u = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * u);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    let e = exp(-u * u);
    let tail = 0.5 * p * t * e;
    let cumulative = if x >= 0.0 { 1.0 - tail } else { tail };
    (cumulative, e * 0.398_942_3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_seven_digits() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 3e-7, "exp({x})");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e9) < 1e-37);
    }

    #[test]
    fn normal_is_symmetric_and_exact_to_six_digits() {
        // From a table of the standard normal distribution.
        for (x, expected) in
            [(0.0, 0.5), (0.5, 0.691_462_46), (1.0, 0.841_344_8), (2.0, 0.977_249_87), (3.0, 0.998_650_1)]
        {
            assert!((normal(x).0 - expected).abs() < 1e-6, "at {x}");
            assert!((normal(-x).0 - (1.0 - expected)).abs() < 1e-6, "at -{x}");
        }
        assert!((normal(1.0).1 - 0.241_970_72).abs() < 1e-6);
    }

    #[test]
    fn reductions_cover_the_rest_after_the_last_whole_block() {
        for length in [0, 1, 15, 16, 17, 40] {
            let xs: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let sum: f32 = xs.iter().sum();
            assert_eq!(sum_of(&xs, |x| x), sum);
            assert_eq!(dot(&xs, &xs), xs.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(largest(&xs), if length == 0 { f32::NEG_INFINITY } else { (length - 1) as f32 });
        }
    }
}
