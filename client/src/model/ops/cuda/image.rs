//! Convolutions, largest values under windows, and norms of channels.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Result, Tensor, bail};

use super::dense::{product_of, rounded_product};
use super::launch::{Argument, Source, Threads, arguments, gpu, launch, room, small, tensor, views};
use super::node::node;
use super::norm::{add_parts, column_sums, parts};
use crate::model::ops::batch_norm::Moments;
use crate::model::ops::{Grid, Normalise, Tape, Window};

/// How images and places lie, as the kernels are told.
#[derive(Clone, Copy)]
struct Grids([u32; 8]);

impl Grids {
    fn new(channels: usize, grid: Grid, places: Grid, window: Window) -> Result<Self> {
        let Window { side, stride, padding } = window;
        let all = [channels, grid.height, grid.width, places.height, places.width, side, stride, padding];
        let mut numbers = [0; 8];
        for (number, value) in numbers.iter_mut().zip(all) {
            *number = small(value)?;
        }
        Ok(Self(numbers))
    }

    fn arguments(self) -> [Argument<'static>; 8] {
        self.0.map(Argument::from)
    }
}

/// What lies under each window of x `[pixels, channels]`, `[places, side · side · channels]`, or with `back` the way back.
fn unfolded(x: &Tensor, grids: Grids, back: bool, shape: (usize, usize)) -> Result<Tensor> {
    let (device, count) = (gpu(x)?, shape.0 * shape.1);
    let mut out = room(device, count)?;
    views!(x);
    let mut arguments = Vec::from(arguments![&x, &mut out, count]);
    for number in grids.arguments() {
        arguments.push(number);
    }
    launch(device, Source::Image, if back { "fold" } else { "unfold" }, Threads::over(count), arguments)?;
    Ok(tensor(out, device, shape))
}

/// A product with what lies under the window, which the backward pass lays out again.
pub(crate) fn convolution(
    tape: &Tape,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    window: Window,
    grid: Grid,
) -> Result<Tensor> {
    let ((pixels, channels), (outer, inner, high, wide)) = (x.dims2()?, weight.dims4()?);
    let places = window.places(grid)?;
    let fits = pixels == grid.pixels()
        && inner == channels
        && (high, wide) == (window.side, window.side)
        && bias.is_none_or(|bias| bias.elem_count() == outer);
    if !fits || channels == 0 {
        bail!("convolution: {:?} with weight {:?} does not fit {grid:?} and {window:?}", x.shape(), weight.shape());
    }
    let (grids, precision) = (Grids::new(channels, grid, places, window)?, tape.precision());
    let laid = (places.pixels(), window.side * window.side * channels);
    // The kernels' order: the window's pixels, and of each its channels.
    let flat = weight.detach().permute((0, 2, 3, 1))?.contiguous()?.flatten_from(1)?;
    let quiet = x.detach();
    let under = unfolded(&quiet, grids, false, laid)?;
    let (mut out, shape) = rounded_product(precision, (&under, false), (&flat, true), 1.0, None)?;
    drop(under);
    let mut inputs = vec![x, weight];
    if let Some(bias) = bias {
        inputs.push(bias);
        views!(bias);
        let count = shape.0 * shape.1;
        let arguments = arguments![&bias, &mut out, count, small(outer)?];
        launch(gpu(x)?, Source::Values, "add_bias", Threads::over(count), arguments)?;
    }
    let wanted: Vec<bool> = inputs.iter().map(|input| input.track_op()).collect();
    node(tape, "convolution", &inputs, out, shape, move |g| {
        let mut gradients = vec![None; wanted.len()];
        if wanted[0] {
            let d_under = product_of(precision, (g, false), (&flat, false), 1.0)?;
            gradients[0] = Some(unfolded(&d_under, grids, true, (pixels, channels))?);
        }
        if wanted[1] {
            let under = unfolded(&quiet, grids, false, laid)?;
            let d_flat = product_of(precision, (g, true), (&under, false), 1.0)?;
            let d_weight = d_flat.reshape((outer, high, wide, channels))?.permute((0, 3, 1, 2))?;
            gradients[1] = Some(d_weight.contiguous()?);
        }
        if wanted.get(2) == Some(&true) {
            gradients[2] = Some(column_sums(g)?);
        }
        Ok(gradients)
    })
}

pub(crate) fn max_pool(tape: &Tape, x: &Tensor, window: Window, grid: Grid) -> Result<Tensor> {
    let ((rows, channels), device, places) = (x.dims2()?, gpu(x)?, window.places(grid)?);
    if rows != grid.pixels() || channels == 0 {
        bail!("max-pool: {rows} rows of {channels} values for {grid:?}");
    }
    let (grids, count) = (Grids::new(channels, grid, places, window)?, places.pixels() * channels);
    let (mut out, mut origins) = (room(device, count)?, room::<u32>(device, count)?);
    {
        views!(x);
        let mut arguments = Vec::from(arguments![&x, &mut out, &mut origins, count]);
        for number in grids.arguments() {
            arguments.push(number);
        }
        launch(device, Source::Image, "max_pool", Threads::over(count), arguments)?;
    }
    node(tape, "max-pool", &[x], out, (places.pixels(), channels), move |g| {
        let (device, count) = (gpu(g)?, rows * channels);
        let mut dx = room(device, count)?;
        views!(g);
        let mut arguments = Vec::from(arguments![&g, &origins, &mut dx, count]);
        for number in grids.arguments() {
            arguments.push(number);
        }
        launch(device, Source::Image, "max_pool_back", Threads::over(count), arguments)?;
        Ok(vec![Some(tensor(dx, device, (rows, channels)))])
    })
}

/// The moments of the rows of x; the variance by a second pass, since a difference of squares loses its digits.
fn moments_of(x: &Tensor) -> Result<Moments> {
    let ((rows, channels), device) = (x.dims2()?, gpu(x)?);
    let over_rows = |sums: &Tensor| -> Result<Vec<f32>> {
        Ok(sums.to_vec1::<f32>()?.into_iter().map(|sum| (f64::from(sum) / rows as f64) as f32).collect())
    };
    let mean = over_rows(&column_sums(x)?)?;
    let means = device.clone_htod(&mean)?;
    let (part, count) = parts(rows);
    let mut squares = room(device, count * channels)?;
    {
        views!(x);
        let arguments = arguments![&x, &means, &mut squares, rows, small(channels)?, small(part)?];
        launch(device, Source::Image, "square_parts", Threads::columns(count, channels), arguments)?;
    }
    let variance = over_rows(&add_parts(device, &squares, count, channels)?)?;
    Ok(Moments { mean, variance, count: rows })
}

/// What a batch normalisation multiplies by and adds, one a channel.
struct Affine {
    means: CudaSlice<f32>,
    factors: CudaSlice<f32>,
    shifts: CudaSlice<f32>,
}

impl Affine {
    fn new(device: &CudaDevice, moments: &Moments, scales: &[f32], weight: &[f32], bias: &[f32]) -> Result<Self> {
        let factors: Vec<f32> = scales.iter().zip(weight).map(|(scale, weight)| scale * weight).collect();
        let shifts = bias.iter().zip(&moments.mean).zip(&factors).map(|((bias, mean), factor)| bias - mean * factor);
        let shifts: Vec<f32> = shifts.collect();
        Ok(Self {
            means: device.clone_htod(&moments.mean)?,
            factors: device.clone_htod(&factors)?,
            shifts: device.clone_htod(&shifts)?,
        })
    }
}

/// What is one number a channel is computed on the host, which keeps running statistics anyway.
pub(crate) fn batch_norm(
    tape: &Tape,
    x: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    by: Normalise<'_>,
    epsilon: f64,
    relu: bool,
) -> Result<(Tensor, Option<Moments>)> {
    let ((rows, channels), device) = (x.dims2()?, gpu(x)?);
    if weight.dims1()? != channels || bias.dims1()? != channels || channels == 0 || rows == 0 {
        bail!("batch norm: {rows} rows of {channels} values, weight {:?}, bias {:?}", weight.shape(), bias.shape());
    }
    let of_batch = matches!(by, Normalise::Batch);
    let moments = match by {
        Normalise::Batch => moments_of(&x.detach())?,
        Normalise::Running(mean, variance) => {
            Moments { mean: mean.to_vec1()?, variance: variance.to_vec1()?, count: rows }
        }
    };
    if moments.mean.len() != channels || moments.variance.len() != channels {
        bail!("batch norm: {} means for {channels} channels", moments.mean.len());
    }
    let scales: Vec<f32> = moments.variance.iter().map(|variance| 1.0 / (variance + epsilon as f32).sqrt()).collect();
    let (weights, biases) = (weight.to_vec1::<f32>()?, bias.to_vec1::<f32>()?);
    let affine = Affine::new(device, &moments, &scales, &weights, &biases)?;
    let (count, width) = (rows * channels, small(channels)?);
    let mut out = room(device, count)?;
    {
        views!(x);
        let arguments = arguments![&x, &affine.factors, &affine.shifts, &mut out, count, width, relu];
        launch(device, Source::Image, "scale_shift", Threads::over(count), arguments)?;
    }
    let arguments = [x, weight, bias];
    let wanted = arguments.map(|argument| argument.track_op());
    let quiet = x.detach();
    let out = node(tape, "batch-norm", &arguments, out, (rows, channels), move |g| {
        let (device, x) = (gpu(g)?, &quiet);
        let (part, pieces) = parts(rows);
        let (mut products, mut sums) = (room(device, pieces * channels)?, room(device, pieces * channels)?);
        views!(x, g);
        let Affine { means, factors, shifts } = &affine;
        let arguments =
            arguments![&x, &g, means, factors, shifts, &mut products, &mut sums, rows, width, small(part)?, relu];
        launch(device, Source::Image, "batch_norm_parts", Threads::columns(pieces, channels), arguments)?;
        let products = add_parts(device, &products, pieces, channels)?;
        let sums = add_parts(device, &sums, pieces, channels)?;
        let dx = if wanted[0] {
            // dx = scale · weight · (g − mean(g) − y · mean(g·y)), without the means where the moments are fixed.
            let (mut b, mut c) = (vec![0.0f32; channels], vec![0.0f32; channels]);
            if of_batch {
                let (products, sums) = (products.to_vec1::<f32>()?, sums.to_vec1::<f32>()?);
                for i in 0..channels {
                    let (scale, share) = (f64::from(scales[i]), 1.0 / rows as f64);
                    // As the kernel has it, rounded: what it multiplies by cancels.
                    let a = f64::from(scales[i] * weights[i]);
                    b[i] = (-a * scale * scale * f64::from(products[i]) * share) as f32;
                    c[i] = (-a * f64::from(sums[i]) * share) as f32;
                }
            }
            let (b, c) = (device.clone_htod(&b)?, device.clone_htod(&c)?);
            let mut dx = room(device, count)?;
            let arguments = arguments![&x, &g, means, factors, shifts, &b, &c, &mut dx, count, width, relu];
            launch(device, Source::Image, "batch_norm_back", Threads::over(count), arguments)?;
            Some(tensor(dx, device, (rows, channels)))
        } else {
            None
        };
        let d_weight = match wanted[1] {
            true => Some(products.mul(&Tensor::new(scales.as_slice(), products.device())?)?),
            false => None,
        };
        Ok(vec![dx, d_weight, wanted[2].then_some(sums)])
    })?;
    Ok((out, of_batch.then_some(moments)))
}
