//! The largest value under a window, channel by channel.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::grid::{Grid, Window};
use super::simd::vectorised;
use super::values::{read, slice};

pub(super) struct MaxPool {
    grid: Grid,
    window: Window,
    places: Grid,
    /// Which place of the window each result comes from: the first of the largest, as PyTorch has it.
    origins: OnceLock<Vec<u32>>,
}

impl MaxPool {
    pub(super) fn new(grid: Grid, window: Window) -> Result<Self> {
        Ok(Self { grid, window, places: window.places(grid)?, origins: OnceLock::new() })
    }

    /// Calls `f` with the number of each pixel of the image under the window at `place`, and its place in the window.
    #[inline(always)]
    fn each_under(&self, place: usize, mut f: impl FnMut(usize, u32)) {
        let rows = self.window.span(place / self.places.width, self.grid.height);
        let columns = self.window.span(place % self.places.width, self.grid.width);
        for row in 0..rows.count {
            for column in 0..columns.count {
                let pixel = (rows.first + row) * self.grid.width + columns.first + column;
                f(pixel, ((rows.outside + row) * self.window.side + columns.outside + column) as u32);
            }
        }
    }

    #[inline(always)]
    fn forward_image(&self, x: &[f32], out: &mut [f32], origins: &mut [u32], channels: usize) {
        let results = out.chunks_exact_mut(channels).zip(origins.chunks_exact_mut(channels));
        for (place, (out, origins)) in results.enumerate() {
            out.fill(f32::NEG_INFINITY);
            self.each_under(place, |pixel, tap| {
                let x = &x[pixel * channels..][..channels];
                for ((out, origin), x) in out.iter_mut().zip(origins.iter_mut()).zip(x) {
                    // A NaN is kept, so that it is not lost.
                    let larger = *x > *out || x.is_nan();
                    *out = if larger { *x } else { *out };
                    *origin = if larger { tap } else { *origin };
                }
            });
        }
    }

    #[inline(always)]
    fn backward_image(&self, dx: &mut [f32], g: &[f32], origins: &[u32], channels: usize) {
        for (place, (g, origins)) in g.chunks_exact(channels).zip(origins.chunks_exact(channels)).enumerate() {
            self.each_under(place, |pixel, tap| {
                let dx = &mut dx[pixel * channels..][..channels];
                for ((dx, g), origin) in dx.iter_mut().zip(g).zip(origins) {
                    *dx += if *origin == tap { *g } else { 0.0 };
                }
            });
        }
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, channels) = layout.shape().dims2()?;
        if rows != self.grid.pixels() || channels == 0 {
            bail!("max-pool: {rows} rows of {channels} values for {:?}", self.grid);
        }
        let x = slice(x, layout)?;
        let mut out = vec![0.0; self.places.pixels() * channels];
        let mut origins = vec![0; out.len()];
        let (from, to) = (self.grid.area() * channels, self.places.area() * channels);
        out.par_chunks_mut(to)
            .zip(origins.par_chunks_mut(to))
            .zip(x.par_chunks(from))
            .for_each(|((out, origins), x)| vectorised(|| self.forward_image(x, out, origins, channels)));
        // A pass runs once; were it to run again, the origins would be the same.
        let _ = self.origins.set(origins);
        Ok((CpuStorage::F32(out), (self.places.pixels(), channels).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, channels) = x.dims2()?;
        let Some(origins) = self.origins.get() else { bail!("max-pool: backward before forward") };
        let mut dx = vec![0.0; rows * channels];
        let (from, to) = (self.grid.area() * channels, self.places.area() * channels);
        read(grad, |g| {
            dx.par_chunks_mut(from).zip(g.par_chunks(to)).zip(origins.par_chunks(to)).for_each(|((dx, g), origins)| {
                vectorised(|| self.backward_image(dx, g, origins, channels));
            });
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(dx, (rows, channels), x.device())?))
    }
}
