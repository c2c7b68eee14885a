//! The product of matrices rounded to bf16, summed in f32: on tile registers or by products of pairs where the processor
//! has them.

use super::{Product, rounded};

/// x rounded to the nearest bf16, ties to even; its upper half as f32 has it.
#[inline(always)]
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    // A NaN whose payload were rounded could become an infinity.
    if x.is_nan() { 0x7fc0 } else { (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}

/// As [`super::multiply`], with both operands rounded to bf16.
pub(super) fn multiply(target: &mut [f32], target_stride: usize, product: Product<'_>) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if super::amx::is_available() {
        return tiled::multiply(target, target_stride, product, |left, right, take| {
            super::amx::products(left, right, take);
        });
    }
    #[cfg(target_arch = "x86_64")]
    if super::dots::is_available() {
        return tiled::multiply(target, target_stride, product, |left, right, take| {
            super::dots::products(left, right, take);
        });
    }
    rounded::multiply(target, target_stride, product, |values, out| {
        for (x, out) in values.iter().zip(out) {
            *out = f32::from_bits(u32::from(round(*x)) << 16);
        }
    });
}

#[cfg(target_arch = "x86_64")]
mod tiled {
    use rayon::prelude::*;

    use super::super::tiles::{Block, DEPTH, SIDE, Tile};
    use super::super::{Matrix, Onto, Product};
    use super::round;
    use crate::model::ops::simd::vectorised;

    /// Rows of the target that one task computes: two pairs of tiles, so that a row of a transposed operand is read by
    /// whole cache lines.
    const ROWS: usize = 4 * SIDE;

    const EMPTY: Tile = [[0; SIDE]; SIDE];

    /// `products` is that of [`super::super::amx`] or [`super::super::dots`].
    pub(super) fn multiply(
        target: &mut [f32],
        target_stride: usize,
        product: Product<'_>,
        products: impl Fn(&[Tile], &[Tile], &mut dyn FnMut(usize, &Block)) + Sync,
    ) {
        let Product { left, right, scale, onto } = product;
        let (m, n, depth) = (left.rows, right.columns, left.columns.div_ceil(DEPTH));
        if depth == 0 {
            if onto == Onto::Nothing {
                target.chunks_mut(target_stride).take(m).for_each(|row| row[..n].fill(0.0));
            }
            return;
        }
        let mut strips = vec![EMPTY; n.div_ceil(2 * SIDE) * 2 * depth];
        strips.par_chunks_mut(depth).enumerate().for_each(|(strip, tiles)| {
            vectorised(|| fill_strip(right.transposed(), strip * SIDE, tiles, Side::Right));
        });
        let group = vec![EMPTY; ROWS / SIDE * depth];
        target.par_chunks_mut(ROWS * target_stride).take(m.div_ceil(ROWS)).enumerate().for_each_init(
            || group.clone(),
            |group, (number, rows)| {
                let first = number * ROWS;
                vectorised(|| {
                    for (strip, tiles) in group.chunks_exact_mut(depth).enumerate() {
                        fill_strip(left, first + strip * SIDE, tiles, Side::Left);
                    }
                });
                let pairs = rows.chunks_mut(2 * SIDE * target_stride).zip(group.chunks_exact(2 * depth));
                for (pair, (rows, left)) in pairs.enumerate() {
                    let present = m.saturating_sub(first + pair * 2 * SIDE).min(2 * SIDE);
                    products(left, &strips, &mut |number, block| {
                        let columns = number * 2 * SIDE..n.min((number + 1) * 2 * SIDE);
                        vectorised(|| {
                            for (row, sums) in rows.chunks_mut(target_stride).zip(block).take(present) {
                                store(&mut row[columns.clone()], sums, scale, onto);
                            }
                        });
                    });
                }
            },
        );
    }

    #[inline(always)]
    fn store(target: &mut [f32], sums: &[f32], scale: f32, onto: Onto) {
        match onto {
            Onto::Present => target.iter_mut().zip(sums).for_each(|(target, sum)| *target += scale * sum),
            Onto::Nothing => target.iter_mut().zip(sums).for_each(|(target, sum)| *target = scale * sum),
        }
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Side {
        Left,
        Right,
    }

    /// The rows of `matrix` from `first` on as tiles; rows and columns that it lacks are zero. The right operand comes
    /// transposed, so that the depth lies along the columns of either.
    #[inline(always)]
    fn fill_strip(matrix: Matrix<'_>, first: usize, tiles: &mut [Tile], side: Side) {
        let rows = matrix.rows.saturating_sub(first).min(SIDE);
        for (number, tile) in tiles.iter_mut().enumerate() {
            let start = number * DEPTH;
            let depth = matrix.columns.saturating_sub(start).min(DEPTH);
            if rows == 0 || depth == 0 {
                *tile = EMPTY;
                continue;
            }
            // A row of the tile holds either the pairs of one row, or a pair of every row.
            let (by_row, wanted) = if matrix.column_stride == 1 {
                (paired(matrix, first..first + rows, start..start + depth), Side::Left)
            } else {
                (interleaved(matrix, first..first + rows, start..start + depth), Side::Right)
            };
            *tile = if wanted == side { by_row } else { transposed(&by_row) };
        }
    }

    type Span = std::ops::Range<usize>;

    /// Row by row, neighbouring columns in pairs.
    #[inline(always)]
    fn paired(matrix: Matrix<'_>, rows: Span, columns: Span) -> Tile {
        let mut tile = EMPTY;
        for (pairs, row) in tile.iter_mut().zip(rows) {
            let start = row * matrix.row_stride + columns.start;
            let values = &matrix.values[start..start + columns.len()];
            if let Some(values) = values.first_chunk::<DEPTH>() {
                for i in 0..SIDE {
                    pairs[i] = u32::from(round(values[2 * i])) | u32::from(round(values[2 * i + 1])) << 16;
                }
            } else {
                for (i, value) in values.iter().enumerate() {
                    pairs[i / 2] |= u32::from(round(*value)) << (16 * (i % 2));
                }
            }
        }
        tile
    }

    /// Two columns at a time, a pair of every row.
    #[inline(always)]
    fn interleaved(matrix: Matrix<'_>, rows: Span, columns: Span) -> Tile {
        let mut tile = EMPTY;
        let column = |column: usize| {
            let start = column * matrix.column_stride + rows.start * matrix.row_stride;
            (0..rows.len()).map(move |row| &matrix.values[start + row * matrix.row_stride])
        };
        for (pairs, first) in tile.iter_mut().zip(columns.clone().step_by(2)) {
            let second = first + 1;
            let start = |column: usize| column * matrix.column_stride + rows.start;
            let whole = matrix.row_stride == 1 && rows.len() == SIDE && second < columns.end;
            if whole
                && let Some(low) = matrix.values[start(first)..].first_chunk::<SIDE>()
                && let Some(high) = matrix.values[start(second)..].first_chunk::<SIDE>()
            {
                for i in 0..SIDE {
                    pairs[i] = u32::from(round(low[i])) | u32::from(round(high[i])) << 16;
                }
                continue;
            }
            for (pair, value) in pairs.iter_mut().zip(column(first)) {
                *pair = u32::from(round(*value));
            }
            if second < columns.end {
                for (pair, value) in pairs.iter_mut().zip(column(second)) {
                    *pair |= u32::from(round(*value)) << 16;
                }
            }
        }
        tile
    }

    #[inline(always)]
    fn transposed(tile: &Tile) -> Tile {
        let mut out = EMPTY;
        for i in 0..SIDE {
            for j in 0..SIDE {
                out[j][i] = tile[i][j];
            }
        }
        out
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use fedtune_config::job::Precision;

    use super::super::{self as gemm, Cores, Matrix, Onto};
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even_and_keeps_what_is_not_finite() {
        let back = |x: f32| f32::from_bits(u32::from(round(x)) << 16);
        // 1 + 2^-8 lies between 1 and 1 + 2^-7; the even neighbour of 1 + 3·2^-8 is above.
        for (x, expected) in [
            (0.0, 0.0),
            (-2.5, -2.5),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
            (1.0 + 1.1 / 256.0, 1.0 + 2.0 / 256.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            assert_eq!(back(x), expected, "{x}");
        }
        assert!(back(f32::from_bits(0x7fff_ffff)).is_nan() && back(f32::from_bits(0xff80_0001)).is_nan());
    }

    /// Values that differ from place to place and are no bf16.
    fn values(count: usize, salt: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + salt) % 1013) as f32 / 506.3 - 1.0).collect()
    }

    #[test]
    fn every_shape_and_layout_gives_the_sums_of_rounded_products() {
        let shapes = [(1, 1, 1), (16, 16, 32), (33, 17, 7), (64, 96, 64), (70, 50, 100), (130, 3, 33), (5, 200, 31)];
        for (m, n, k) in shapes {
            let (l, r) = (values(m * k, 1), values(k * n, 2));
            for transposed in [[false, false], [true, false], [false, true], [true, true]] {
                let side = |values, rows, columns, transposed: bool| {
                    if transposed {
                        Matrix::new(values, columns, rows, rows).transposed()
                    } else {
                        Matrix::new(values, rows, columns, columns)
                    }
                };
                let (left, right) = (side(&l, m, k, transposed[0]), side(&r, k, n, transposed[1]));
                let stride = n + 3;
                let before = values(m * stride, 3);
                for onto in [Onto::Nothing, Onto::Present] {
                    let mut found = before.clone();
                    gemm::multiply(&mut found, stride, left, right, 0.5, onto, Cores::All(Precision::Bf16));
                    let at = |matrix: Matrix<'_>, row: usize, column: usize| {
                        let x = matrix.values[row * matrix.row_stride + column * matrix.column_stride];
                        f64::from(f32::from_bits(u32::from(round(x)) << 16))
                    };
                    for (place, found) in found.iter().enumerate() {
                        let (row, column) = (place / stride, place % stride);
                        let kept = f64::from(before[place]);
                        let sum: f64 = (0..k).map(|i| at(left, row, i) * at(right, i, column.min(n - 1))).sum();
                        let expected = match onto {
                            _ if column >= n => kept,
                            Onto::Nothing => 0.5 * sum,
                            Onto::Present => kept + 0.5 * sum,
                        };
                        let off = (f64::from(*found) - expected).abs();
                        assert!(off < 1e-4, "{m} x {n} x {k} {transposed:?} at {row}, {column}: {found} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_product_repeats_bit_for_bit_on_any_number_of_threads() {
        let (m, n, k) = (200, 70, 300);
        let (l, r) = (values(m * k, 1), values(k * n, 2));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut out = vec![0.0; m * n];
                let (left, right) = (Matrix::new(&l, m, k, k), Matrix::new(&r, k, n, n));
                gemm::multiply(&mut out, n, left, right, 1.0, Onto::Nothing, Cores::All(Precision::Bf16));
                out
            })
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(2), run(3));
    }
}
