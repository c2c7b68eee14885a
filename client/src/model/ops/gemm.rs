//! The one place that calls the matrix product's raw interface: bounds are checked here, so every caller is safe.
//! Here, and in [`amx`] and [`dots`] below it, is all that is unsafe.
#![expect(unsafe_code, reason = "gemm::gemm takes pointers; `multiply` checks every extent before it passes them on")]

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod bf16;
#[cfg(target_arch = "x86_64")]
mod dots;
mod rounded;
#[cfg(target_arch = "x86_64")]
mod tiles;

use fedtune_config::job::Precision;

/// A matrix read from a slice: element (r, c) is `values[r * row_stride + c * column_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix whose rows start `row_stride` apart.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    /// How many rows it has.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The same values, transposed.
    pub(super) fn transposed(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// What becomes of the values already in the target.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Onto {
    /// They are overwritten.
    Nothing,
    /// The product is added to them.
    Present,
}

/// Who computes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cores {
    /// All threads of the pool, on operands rounded to this precision.
    All(Precision),
    /// The calling thread, on operands as they are.
    One,
}

/// What [`multiply`] computes, its extents checked.
#[derive(Clone, Copy)]
struct Product<'a> {
    left: Matrix<'a>,
    right: Matrix<'a>,
    scale: f32,
    onto: Onto,
}

/// `target = scale · left · right`, added to the target for [`Onto::Present`]. The target is row-major with rows
/// `target_stride` apart and has the rows of `left` and the columns of `right`. The sum over the inner dimension runs
/// in an order that does not depend on the number of threads, in f32.
///
/// # Panics
/// When the inner dimensions differ or a slice is too short: a mistake in this crate, never in an input.
pub(super) fn multiply(
    target: &mut [f32],
    target_stride: usize,
    left: Matrix<'_>,
    right: Matrix<'_>,
    scale: f32,
    onto: Onto,
    cores: Cores,
) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(k, right.rows, "inner dimensions of a matrix product differ");
    if m == 0 || n == 0 {
        return;
    }
    assert!(target_stride >= n, "rows of the target overlap");
    assert!(extent(m, n, target_stride, 1) <= target.len(), "the target of a matrix product is too short");
    for side in [left, right] {
        if side.rows > 0 && side.columns > 0 {
            let extent = extent(side.rows, side.columns, side.row_stride, side.column_stride);
            assert!(extent <= side.values.len(), "an operand of a matrix product is too short");
        }
    }
    let product = Product { left, right, scale, onto };
    match cores {
        Cores::All(Precision::Bf16) => bf16::multiply(target, target_stride, product),
        Cores::All(Precision::F16) => rounded::multiply(target, target_stride, product, rounded::to_f16),
        Cores::All(Precision::F32) => exact(target, target_stride, product, threads(m * n * k)),
        Cores::One => exact(target, target_stride, product, gemm::Parallelism::None),
    }
}

/// Small products are not worth waking anybody for.
fn threads(multiplications: usize) -> gemm::Parallelism {
    if multiplications > 64 * 64 * 64 {
        gemm::Parallelism::Rayon(rayon::current_num_threads())
    } else {
        gemm::Parallelism::None
    }
}

/// The product in f32; [`multiply`] has checked the extents.
fn exact(target: &mut [f32], target_stride: usize, product: Product<'_>, parallelism: gemm::Parallelism) {
    let Product { left, right, scale, onto } = product;
    let (m, n, k) = (left.rows, right.columns, left.columns);
    // SAFETY: every element the three matrices reach lies inside its slice (asserted by `multiply`), the target is borrowed
    // mutably and so overlaps neither operand, its rows do not overlap each other, and slices never exceed
    // isize::MAX bytes, so the strides fit isize.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            target.as_mut_ptr(),
            1,
            target_stride as isize,
            onto == Onto::Present,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0f32,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// One more than the largest index reached; saturates, so an overflow fails the comparison.
fn extent(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    let last_row = (rows - 1).saturating_mul(row_stride);
    let last_column = (columns - 1).saturating_mul(column_stride);
    last_row.saturating_add(last_column).saturating_add(1)
}
