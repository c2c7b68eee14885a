//! Rotary positions. A rotation's backward is the rotation back.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout as Strides, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::simd::vectorised;
use super::values::{read, slice, split};
use crate::model::batch::Layout;

/// Cosine and sine of the angles at every position; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    /// Values of a head that turn together in pairs; even.
    depth: usize,
    /// `[positions, depth / 2]`
    cosines: Arc<[f32]>,
    /// `[positions, depth / 2]`
    sines: Arc<[f32]>,
    /// Both on the GPU that asked for them first.
    #[cfg(feature = "cuda")]
    placed: Arc<std::sync::OnceLock<[Tensor; 2]>>,
}

impl Rotation {
    /// The angles `position · theta^(−2i / depth)` for positions from 0 and heads of an even depth.
    pub(crate) fn new(theta: f64, depth: usize, positions: usize) -> Self {
        Self::of(&Self::frequencies(theta, depth), positions)
    }

    /// `theta^(−2i / depth)` for every i below `depth / 2`. Frequencies and angles are rounded to f32, as transformers does
    /// it: far positions would differ otherwise.
    pub(crate) fn frequencies(theta: f64, depth: usize) -> Vec<f32> {
        (0..depth / 2).map(|i| theta.powf(-2.0 * i as f64 / depth as f64) as f32).collect()
    }

    /// The angles `position · frequency` for positions from 0; a head has two values for each frequency.
    pub(crate) fn of(frequencies: &[f32], positions: usize) -> Self {
        let (cosines, sines): (Vec<f32>, Vec<f32>) = (0..positions)
            .flat_map(|position| frequencies.iter().map(move |frequency| position as f32 * frequency))
            .map(|angle| (angle.cos(), angle.sin()))
            .unzip();
        Self {
            depth: 2 * frequencies.len(),
            cosines: cosines.into(),
            sines: sines.into(),
            #[cfg(feature = "cuda")]
            placed: Arc::default(),
        }
    }

    /// Cosines and sines at a position; nothing behind the last one.
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.depth / 2;
        let range = position * half..(position + 1) * half;
        (self.cosines.get(range.clone()).unwrap_or_default(), self.sines.get(range).unwrap_or_default())
    }

    /// Turns each head of a row by the angles of a position times `direction`, which is 1 or −1; not at all behind the last
    /// position.
    #[inline(always)]
    pub(crate) fn turn(&self, row: &mut [f32], position: usize, direction: f32) {
        let (cosines, sines) = self.at(position);
        for head in row.chunks_exact_mut(self.depth) {
            let (first, second) = head.split_at_mut(self.depth / 2);
            for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                let sine = direction * sine;
                (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
            }
        }
    }

    /// Cosines and sines of all positions, `[positions, depth / 2]` each.
    #[cfg(feature = "cuda")]
    pub(super) fn on(&self, device: &candle_core::Device) -> Result<[Tensor; 2]> {
        if let Some(placed) = self.placed.get().filter(|placed| placed[0].device().same_device(device)) {
            return Ok(placed.clone());
        }
        let shape = (self.cosines.len() / (self.depth / 2).max(1), self.depth / 2);
        let place = |values: &[f32]| Tensor::from_slice(values, shape, device);
        let placed = [place(&self.cosines)?, place(&self.sines)?];
        let _ = self.placed.set(placed.clone());
        Ok(placed)
    }

    /// Values of a head.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Cosines and sines of every row of a batch, `[rows, depth / 2]`; those of padding turn nothing.
    pub(super) fn rows(&self, layout: &Layout) -> (Vec<f32>, Vec<f32>) {
        let half = self.depth / 2;
        let (mut cosines, mut sines) = (vec![1.0; layout.rows() * half], vec![0.0; layout.rows() * half]);
        for sequence in 0..layout.sequences() {
            let span = layout.span(sequence);
            let (from, to) = (span.start * half..span.end * half, span.len() * half);
            cosines[from.clone()].copy_from_slice(&self.cosines[..to]);
            sines[from].copy_from_slice(&self.sines[..to]);
        }
        (cosines, sines)
    }

    /// Whether every row of a batch has its angles.
    pub(super) fn check(&self, shape: &Shape, layout: &Layout) -> Result<()> {
        let (rows, width) = shape.dims2()?;
        let known = self.cosines.len() / (self.depth / 2).max(1);
        if self.depth == 0 || !width.is_multiple_of(self.depth) || rows != layout.rows() || layout.width() > known {
            bail!("rotary: {shape:?} does not fit heads of {}, {known} positions and the batch", self.depth);
        }
        Ok(())
    }
}

pub(super) struct Rotary {
    pub(super) rotation: Rotation,
    pub(super) layout: Layout,
}

impl Rotary {
    /// Turns every row by its angles times `direction`, which is 1 or −1.
    fn turn(&self, values: &mut [f32], width: usize, direction: f32) {
        split(values, &self.layout, width).into_par_iter().for_each(|rows| {
            vectorised(|| {
                for (position, row) in rows.chunks_exact_mut(width).enumerate() {
                    self.rotation.turn(row, position, direction);
                }
            });
        });
    }
}

impl CustomOp1 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, x: &CpuStorage, strides: &Strides) -> Result<(CpuStorage, Shape)> {
        self.rotation.check(strides.shape(), &self.layout)?;
        let mut out = slice(x, strides)?.to_vec();
        self.turn(&mut out, strides.shape().dims2()?.1, 1.0);
        Ok((CpuStorage::F32(out), strides.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = read(grad, |g| Ok(g.to_vec()))?;
        self.turn(&mut dx, x.dims2()?.1, -1.0);
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
