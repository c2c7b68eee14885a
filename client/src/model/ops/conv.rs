//! Two-dimensional convolution as matrix products. The pixels under the window are laid out as rows (im2col) for a few
//! images at a time, so the buffer stays in the cache.

use std::borrow::Cow;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use fedtune_config::job::Precision;
use rayon::prelude::*;

use super::gemm::{Cores, Matrix, Onto, multiply};
use super::grid::{Grid, Window};
use super::linear::column_sums;
use super::simd::vectorised;
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
    /// Places in the window.
    taps: usize,
    /// Values under the window.
    depth: usize,
}

/// In which order the values under a window lie, and the weights with them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// `[side, side, in]`, in which pixels are copied whole; weights are brought into it.
    Taps,
    /// `[in, side, side]`, in which weights come; values are brought into it.
    Channels,
}

impl Shapes {
    /// The order in which less must be moved: there are as many weights as outputs, and as many values as places.
    fn order(&self) -> Order {
        if self.outputs >= self.places.pixels() || self.taps == 1 { Order::Channels } else { Order::Taps }
    }

    /// The weights in that order, `[out, depth]`.
    fn ordered<'a>(&self, weight: &'a [f32]) -> Cow<'a, [f32]> {
        match self.order() {
            Order::Taps => transposed(weight, self.inputs, self.taps).into(),
            Order::Channels => weight.into(),
        }
    }
}

impl Convolution {
    fn shapes(&self, x: &Shape, weight: &Shape, bias: &Shape) -> Result<Shapes> {
        let ((rows, inputs), (outputs, depth, height, width)) = (x.dims2()?, weight.dims4()?);
        let side = self.window.side;
        if rows != self.grid.pixels() || depth != inputs || (height, width) != (side, side) || bias.dims1()? != outputs
        {
            bail!("convolution: {:?} of {:?}, x {x:?}, weight {weight:?}, bias {bias:?}", self.window, self.grid);
        }
        let (places, taps) = (self.window.places(self.grid)?, side * side);
        Ok(Shapes { inputs, outputs, places, taps, depth: inputs * taps })
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

    /// The gradient of the pixels by that of the places, `weight` in the order of the values under the window.
    fn input_gradient(&self, g: &[f32], weight: &[f32], shapes: &Shapes) -> Vec<f32> {
        let Shapes { inputs, outputs, places, depth, .. } = *shapes;
        let weight = Matrix::new(weight, outputs, depth, depth);
        let mut dx = vec![0.0; self.grid.pixels() * inputs];
        if self.window == Window::PIXEL {
            let g = Matrix::new(g, places.pixels(), outputs, outputs);
            multiply(&mut dx, depth, g, weight, 1.0, Onto::Nothing, self.cores());
            return dx;
        }
        let images = self.images_at_a_time(shapes);
        let mut laid_out = vec![0.0; images * places.area() * depth];
        let (image, places_of) = (self.grid.area() * inputs, places.area() * outputs);
        for (dx, g) in dx.chunks_mut(images * image).zip(g.chunks(images * places_of)) {
            let rows = g.len() / outputs;
            let g = Matrix::new(g, rows, outputs, outputs);
            multiply(&mut laid_out, depth, g, weight, 1.0, Onto::Nothing, self.cores());
            self.gather(&laid_out[..rows * depth], dx, shapes);
        }
        dx
    }

    /// Writes the values under the window, line by line of the places.
    fn lay_out(&self, x: &[f32], out: &mut [f32], shapes: &Shapes) {
        let Shapes { inputs, places, depth, .. } = *shapes;
        let (side, image) = (self.window.side, self.grid.area() * inputs);
        let band = side * inputs;
        let turned = if turns(shapes) { vec![0.0; depth] } else { Vec::new() };
        let lines = out.par_chunks_mut(places.width * depth).enumerate();
        lines.for_each_with(turned, |turned, (line, out)| {
            let x = &x[line / places.height * image..][..image];
            let rows = self.window.span(line % places.height, self.grid.height);
            for (place, target) in out.chunks_exact_mut(depth).enumerate() {
                let out = if turned.is_empty() { &mut *target } else { &mut turned[..] };
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
                if !turned.is_empty() {
                    vectorised(|| transpose(turned, target, shapes.taps, inputs));
                }
            }
        });
    }

    /// Adds what [`Self::lay_out`] would write back to where it came from; one task an image.
    fn gather(&self, laid_out: &[f32], dx: &mut [f32], shapes: &Shapes) {
        let Shapes { inputs, places, depth, .. } = *shapes;
        let band = self.window.side * inputs;
        let image = self.grid.area() * inputs;
        let turned = if turns(shapes) { vec![0.0; depth] } else { Vec::new() };
        let images = dx.par_chunks_mut(image).zip(laid_out.par_chunks(places.area() * depth));
        images.for_each_with(turned, |turned, (dx, laid_out)| {
            vectorised(|| {
                for (place, values) in laid_out.chunks_exact(depth).enumerate() {
                    let values = if turned.is_empty() {
                        values
                    } else {
                        transpose(values, turned, inputs, shapes.taps);
                        &*turned
                    };
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

/// Whether the values under a window are brought into another order than that of the pixels.
fn turns(shapes: &Shapes) -> bool {
    shapes.order() == Order::Channels && shapes.taps > 1
}

/// `[outer, inner]` as `[inner, outer]`.
#[inline(always)]
fn transpose(from: &[f32], to: &mut [f32], outer: usize, inner: usize) {
    for (i, to) in to.chunks_exact_mut(outer).enumerate() {
        for (to, from) in to.iter_mut().zip(from[i..].iter().step_by(inner)) {
            *to = *from;
        }
    }
}

/// Each block `[outer, inner]` of a matrix as `[inner, outer]`.
fn transposed(blocks: &[f32], outer: usize, inner: usize) -> Vec<f32> {
    let mut out = vec![0.0; blocks.len()];
    let block = (outer * inner).max(1);
    out.par_chunks_mut(block).zip(blocks.par_chunks(block)).for_each(|(out, block)| {
        vectorised(|| transpose(block, out, outer, inner));
    });
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
        let Shapes { outputs, places, depth, .. } = shapes;
        let weight = shapes.ordered(weight);
        let weight = Matrix::new(&weight, outputs, depth, depth);
        let mut out = vec![0.0; places.pixels() * outputs];
        let onto = if self.biased {
            out.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
            Onto::Present
        } else {
            Onto::Nothing
        };
        self.each_part(x, &shapes, |first, part| {
            let out = &mut out[first * outputs..][..part.rows() * outputs];
            if shapes.order() == Order::Taps || part.rows() >= outputs {
                return multiply(out, outputs, part, weight.transposed(), 1.0, onto, self.cores());
            }
            // The product packs what stands on its right across the depth; with few places that are the values.
            let mut across = vec![0.0; out.len()];
            let rows = part.rows();
            multiply(&mut across, rows, weight, part.transposed(), 1.0, Onto::Nothing, self.cores());
            for (row, out) in out.chunks_exact_mut(outputs).enumerate() {
                out.iter_mut().zip(across[row..].iter().step_by(rows)).for_each(|(out, value)| *out += value);
            }
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
        let Shapes { inputs, outputs, taps, depth, .. } = shapes;
        let device = x.device();
        read(grad, |g| {
            let dx = if x.track_op() {
                let dx = read(weight, |weight| Ok(self.input_gradient(g, &shapes.ordered(weight), &shapes)))?;
                Some(Tensor::from_vec(dx, (self.grid.pixels(), inputs), device)?)
            } else {
                None
            };
            let dw = if weight.track_op() {
                let mut dw = vec![0.0; outputs * depth];
                read(x, |x| {
                    let mut onto = Onto::Nothing;
                    self.each_part(x, &shapes, |first, part| {
                        let g = Matrix::new(&g[first * outputs..], part.rows(), outputs, outputs).transposed();
                        multiply(&mut dw, depth, g, part, 1.0, onto, self.cores());
                        onto = Onto::Present;
                    });
                    Ok(())
                })?;
                let dw = match shapes.order() {
                    Order::Taps => transposed(&dw, taps, inputs),
                    Order::Channels => dw,
                };
                Some(Tensor::from_vec(dw, weight.shape(), device)?)
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
