//! Images as sequences: what stands before the patches, and the positions.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::simd::vectorised;
use super::values::{read, slice};

/// See [`super::sequence`].
pub(super) struct Sequence {
    /// Patches of an image.
    pub(super) patches: usize,
}

impl Sequence {
    /// Number of images and width, of what fits together.
    pub(super) fn check(&self, patches: &Shape, first: &Shape, positions: &Shape) -> Result<(usize, usize)> {
        let (rows, width) = patches.dims2()?;
        let length = self.patches + 1;
        if self.patches == 0
            || !rows.is_multiple_of(self.patches)
            || first.elem_count() != width
            || positions.elem_count() != length * width
        {
            bail!(
                "sequence: {patches:?} in images of {} patches, first {first:?}, positions {positions:?}",
                self.patches
            );
        }
        Ok((rows / self.patches, width))
    }
}

impl CustomOp3 for Sequence {
    fn name(&self) -> &'static str {
        "sequence"
    }

    fn cpu_fwd(
        &self,
        patches: &CpuStorage,
        patches_layout: &Layout,
        first: &CpuStorage,
        first_layout: &Layout,
        positions: &CpuStorage,
        positions_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (images, width) = self.check(patches_layout.shape(), first_layout.shape(), positions_layout.shape())?;
        let (patches, first, positions) =
            (slice(patches, patches_layout)?, slice(first, first_layout)?, slice(positions, positions_layout)?);
        let length = (self.patches + 1) * width;
        let mut out = vec![0.0; images * length];
        out.par_chunks_mut(length.max(1)).zip(patches.par_chunks((self.patches * width).max(1))).for_each(
            |(out, patches)| {
                vectorised(|| {
                    out[..width].copy_from_slice(first);
                    out[width..].copy_from_slice(patches);
                    out.iter_mut().zip(positions).for_each(|(out, position)| *out += position);
                });
            },
        );
        Ok((CpuStorage::F32(out), (images * (self.patches + 1), width).into()))
    }

    fn bwd(
        &self,
        patches: &Tensor,
        first: &Tensor,
        positions: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, width) = self.check(patches.shape(), first.shape(), positions.shape())?;
        let (length, device) = ((self.patches + 1) * width, grad.device());
        read(grad, |g| {
            let d_patches = if patches.track_op() {
                let values: Vec<f32> = g.chunks_exact(length).flat_map(|g| &g[width..]).copied().collect();
                Some(Tensor::from_vec(values, patches.shape(), device)?)
            } else {
                None
            };
            let mut sums = vec![0.0f32; length];
            for g in g.chunks_exact(length) {
                vectorised(|| sums.iter_mut().zip(g).for_each(|(sum, g)| *sum += g));
            }
            let d_first = match first.track_op() {
                true => Some(Tensor::from_slice(&sums[..width], first.shape(), device)?),
                false => None,
            };
            let d_positions = match positions.track_op() {
                true => Some(Tensor::from_vec(sums, positions.shape(), device)?),
                false => None,
            };
            Ok((d_patches, d_first, d_positions))
        })
    }
}
