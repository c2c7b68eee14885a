//! The form that products of bf16 take their operands in.

/// Rows and columns of a tile of results.
pub(super) const SIDE: usize = 16;

/// bf16 values along the depth of a tile.
pub(super) const DEPTH: usize = 32;

/// A part of an operand: pairs of bf16, the earlier in the lower half. On the left a row of the matrix is a row of pairs
/// along the depth; on the right a column of the matrix is a column of pairs.
pub(super) type Tile = [[u32; SIDE]; SIDE];

/// A 2 x 2 block of result tiles, row-major.
pub(super) type Block = [[f32; 2 * SIDE]; 2 * SIDE];
