//! The products of pairs of bf16 that AVX-512 BF16 has: AMD since Zen 4, Intel between Cooper Lake and AMX.
#![expect(unsafe_code, reason = "intrinsics of a vector extension; `products` checks the processor and every extent")]

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::tiles::{Block, SIDE, Tile};

/// Rows of the left operand whose sums are in registers at once, two of these each.
const ROWS: usize = 8;

/// Whether the processor has them.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// As the tile registers have it: see [`super::amx::products`].
///
/// # Panics
/// When the operands are no whole pairs of strips, or the processor has no such products: a mistake in this crate.
pub(super) fn products(left: &[Tile], right: &[Tile], mut take: impl FnMut(usize, &Block)) {
    let depth = left.len() / 2;
    assert!(depth > 0 && left.len() == 2 * depth && right.len().is_multiple_of(2 * depth), "unpaired strips");
    assert!(is_available(), "no products of bf16");
    let mut block: Block = [[0.0; 2 * SIDE]; 2 * SIDE];
    for (number, right) in right.chunks_exact(2 * depth).enumerate() {
        for (strip, left) in left.chunks_exact(depth).enumerate() {
            for first in (0..SIDE).step_by(ROWS) {
                let rows = &mut block[strip * SIDE + first..][..ROWS];
                // SAFETY: the processor has the extension (asserted).
                unsafe { sums(left, first, right, rows) };
            }
        }
        take(number, &block);
    }
}

/// The sums of the rows from `first` on of one strip with both strips of the right operand.
#[target_feature(enable = "avx512f,avx512bf16")]
fn sums(left: &[Tile], first: usize, right: &[Tile], out: &mut [[f32; 2 * SIDE]]) {
    let (near, far) = right.split_at(left.len());
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for ((left, near), far) in left.iter().zip(near).zip(far) {
        let Some(left) = left[first..].first_chunk::<ROWS>() else { return };
        for pair in 0..SIDE {
            let columns = [pairs(&near[pair]), pairs(&far[pair])];
            for (sums, left) in sums.iter_mut().zip(left) {
                let row = as_bf16(_mm512_set1_epi32(left[pair].cast_signed()));
                sums[0] = _mm512_dpbf16_ps(sums[0], row, columns[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], row, columns[1]);
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        let (near, far) = out.split_at_mut(SIDE);
        // SAFETY: each half has the 16 values that are stored.
        unsafe {
            _mm512_storeu_ps(near.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(far.as_mut_ptr(), sums[1]);
        }
    }
}

#[target_feature(enable = "avx512f")]
fn pairs(row: &[u32; SIDE]) -> __m512bh {
    // SAFETY: the row has the 64 bytes that are loaded.
    as_bf16(unsafe { _mm512_loadu_si512(row.as_ptr().cast()) })
}

#[target_feature(enable = "avx512f")]
fn as_bf16(pairs: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which all values are valid.
    unsafe { std::mem::transmute(pairs) }
}
