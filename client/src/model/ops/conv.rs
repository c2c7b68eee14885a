//! Two-dimensional convolution as matrix products. The pixels under the window are laid out as rows (im2col) for a few
//! images at a time, so the buffer stays in the cache.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use fedtune_config::job::Precision;
use rayon::prelude::*;

use super::gemm::{Cores, Matrix, Onto, multiply};
use super::grid::{Grid, Window};
use super::linear::column_sums;
use super::values::{read, slice};

pub(super) struct Convolution {
    pub(super) grid: Grid,
    pub(super) window: Window,
    /// Whether the bias is one, and not zeros in place of one.
    pub(super) biased: bool,
    pub(super) precision: Precision,
}

/// Values that are laid out at a time, unless one image needs more.
const LAID_OUT: usize = 1 << 19;

/// What a convolution reads and makes.
struct Shapes {
    inputs: usize,
    outputs: usize,
    /// Places of the window.
    places: Grid,
    /// Values under the window.
    depth: usize,
}

impl Convolution {
    fn shapes(&self, x: &Shape, weight: &Shape, bias: &Shape) -> Result<Shapes> {
        let ((rows, inputs), (outputs, depth, height, width)) = (x.dims2()?, weight.dims4()?);
        let side = self.window.side;
        if rows != self.grid.pixels() || depth != inputs || (height, width) != (side, side) || bias.dims1()? != outputs
        {
            bail!("convolution: {:?} of {:?}, x {x:?}, weight {weight:?}, bias {bias:?}", self.window, self.grid);
        }
        Ok(Shapes { inputs, outputs, places: self.window.places(self.grid)?, depth: inputs * side * side })
    }

    /// Images whose windows are laid out at a time.
    fn images_at_a_time(&self, shapes: &Shapes) -> usize {
        if self.window == Window::PIXEL {
            return self.grid.images.max(1);
        }
        (LAID_OUT / (shapes.places.area() * shapes.depth).max(1)).clamp(1, self.grid.images.max(1))
    }

    fn cores(&self) -> Cores {
        Cores::All(self.precision)
    }

    /// Calls `f` for a few images at a time, with their first place and the values under the window at each of their
    /// places, `[places, depth]`.
    fn each_part(&self, x: &[f32], shapes: &Shapes, mut f: impl FnMut(usize, Matrix<'_>)) {
        let (area, depth) = (shapes.places.area(), shapes.depth);
        if self.window == Window::PIXEL {
            return f(0, Matrix::new(x, shapes.places.pixels(), depth, depth));
        }
        let images = self.images_at_a_time(shapes);
        let mut laid_out = vec![0.0; images * area * depth];
        for (part, x) in x.chunks(images * self.grid.area() * shapes.inputs).enumerate() {
            let rows = x.len() / shapes.inputs / self.grid.area() * area;
            let laid_out = &mut laid_out[..rows * depth];
            self.lay_out(x, laid_out, shapes);
            f(part * images * area, Matrix::new(laid_out, rows, depth, depth));
        }
    }

    /// Writes the values under the window, line by line of the places.
    fn lay_out(&self, x: &[f32], out: &mut [f32], shapes: &Shapes) {
        let Shapes { inputs, places, depth, .. } = *shapes;
        let (side, image) = (self.window.side, self.grid.area() * inputs);
        let band = side * inputs;
        out.par_chunks_mut(places.width * depth).enumerate().for_each(|(line, out)| {
            let x = &x[line / places.height * image..][..image];
            let rows = self.window.span(line % places.height, self.grid.height);
            for (place, out) in out.chunks_exact_mut(depth).enumerate() {
                let columns = self.window.span(place, self.grid.width);
                let (before, inside) = (columns.outside * inputs, columns.count * inputs);
                out[..rows.outside * band].fill(0.0);
                out[(rows.outside + rows.count) * band..].fill(0.0);
                let bands = out[rows.outside * band..].chunks_exact_mut(band).take(rows.count);
                for (out, row) in bands.zip(rows.first..) {
                    let start = (row * self.grid.width + columns.first) * inputs;
                    out[..before].fill(0.0);
                    out[before..before + inside].copy_from_slice(&x[start..start + inside]);
                    out[before + inside..].fill(0.0);
                }
            }
        });
    }

    /// Adds what [`Self::lay_out`] would write back to where it came from; one task an image.
    fn gather(&self, laid_out: &[f32], dx: &mut [f32], shapes: &Shapes) {
        let Shapes { inputs, places, depth, .. } = *shapes;
        let band = self.window.side * inputs;
        let image = self.grid.area() * inputs;
        dx.par_chunks_mut(image).zip(laid_out.par_chunks(places.area() * depth)).for_each(|(dx, laid_out)| {
            super::simd::vectorised(|| {
                for (place, values) in laid_out.chunks_exact(depth).enumerate() {
                    let rows = self.window.span(place / places.width, self.grid.height);
                    let columns = self.window.span(place % places.width, self.grid.width);
                    let (before, inside) = (columns.outside * inputs, columns.count * inputs);
                    let bands = values[rows.outside * band..].chunks_exact(band).take(rows.count);
                    for (values, row) in bands.zip(rows.first..) {
                        let start = (row * self.grid.width + columns.first) * inputs;
                        let target = &mut dx[start..start + inside];
                        for (dx, value) in target.iter_mut().zip(&values[before..before + inside]) {
                            *dx += value;
                        }
                    }
                }
            });
        });
    }
}

/// Weights `[out, in, side, side]` as `[out, side, side, in]`, in which order the values under a window lie; or back, with
/// `in` and the places swapped.
fn reordered(weight: &[f32], outer: usize, inner: usize) -> Vec<f32> {
    let mut out = vec![0.0; weight.len()];
    let block = outer * inner;
    if block > 0 {
        out.par_chunks_mut(block).zip(weight.par_chunks(block)).for_each(|(out, weight)| {
            for (i, out) in out.chunks_exact_mut(outer).enumerate() {
                for (out, from) in out.iter_mut().zip(weight[i..].iter().step_by(inner)) {
                    *out = *from;
                }
            }
        });
    }
    out
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shapes = self.shapes(x_layout.shape(), weight_layout.shape(), bias_layout.shape())?;
        let (x, weight, bias) = (slice(x, x_layout)?, slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        let Shapes { inputs, outputs, places, depth } = shapes;
        let weight = reordered(weight, inputs, self.window.side * self.window.side);
        let weight = Matrix::new(&weight, outputs, depth, depth).transposed();
        let mut out = vec![0.0; places.pixels() * outputs];
        let onto = if self.biased {
            out.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
            Onto::Present
        } else {
            Onto::Nothing
        };
        self.each_part(x, &shapes, |first, part| {
            multiply(&mut out[first * outputs..], outputs, part, weight, 1.0, onto, self.cores());
        });
        Ok((CpuStorage::F32(out), (places.pixels(), outputs).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let shapes = self.shapes(x.shape(), weight.shape(), bias.shape())?;
        let Shapes { inputs, outputs, places, depth } = shapes;
        let (taps, device) = (self.window.side * self.window.side, x.device());
        read(grad, |g| {
            let rows_of = |first: usize, rows: usize| Matrix::new(&g[first * outputs..], rows, outputs, outputs);
            let dx = if x.track_op() {
                let weight = read(weight, |weight| Ok(reordered(weight, inputs, taps)))?;
                let weight = Matrix::new(&weight, outputs, depth, depth);
                let mut dx = vec![0.0; self.grid.pixels() * inputs];
                if self.window == Window::PIXEL {
                    let g = rows_of(0, places.pixels());
                    multiply(&mut dx, depth, g, weight, 1.0, Onto::Nothing, self.cores());
                } else {
                    let images = self.images_at_a_time(&shapes);
                    let rows = images * places.area();
                    let mut laid_out = vec![0.0; rows * depth];
                    for (part, dx) in dx.chunks_mut(images * self.grid.area() * inputs).enumerate() {
                        let rows_here = dx.len() / (self.grid.area() * inputs) * places.area();
                        let g = rows_of(part * rows, rows_here);
                        multiply(&mut laid_out, depth, g, weight, 1.0, Onto::Nothing, self.cores());
                        self.gather(&laid_out[..rows_here * depth], dx, &shapes);
                    }
                }
                Some(Tensor::from_vec(dx, (self.grid.pixels(), inputs), device)?)
            } else {
                None
            };
            let dw = if weight.track_op() {
                let mut dw = vec![0.0; outputs * depth];
                read(x, |x| {
                    let mut onto = Onto::Nothing;
                    self.each_part(x, &shapes, |first, part| {
                        let g = rows_of(first, part.rows()).transposed();
                        multiply(&mut dw, depth, g, part, 1.0, onto, self.cores());
                        onto = Onto::Present;
                    });
                    Ok(())
                })?;
                Some(Tensor::from_vec(reordered(&dw, taps, inputs), weight.shape(), device)?)
            } else {
                None
            };
            let db = if self.biased && bias.track_op() {
                Some(Tensor::from_vec(column_sums(g, outputs), outputs, device)?)
            } else {
                None
            };
            Ok((dx, dw, db))
        })
    }
}
