//! Layer and root mean square normalisation, and sums over columns.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Result, Tensor, bail};

use super::launch::{Argument, Source, Threads, arguments, gpu, launch, room, small, tensor, views};
use super::node::node;
use crate::model::ops::Tape;

/// Rows that one block adds up, and in how many parts that cuts them.
pub(super) fn parts(rows: usize) -> (usize, usize) {
    let part = rows.div_ceil(128).max(32);
    (part, rows.div_ceil(part))
}

/// The sum of the parts of each column.
pub(super) fn add_parts(device: &CudaDevice, parts: &CudaSlice<f32>, count: usize, width: usize) -> Result<Tensor> {
    let mut out = room(device, width)?;
    let arguments = arguments![parts, &mut out, small(count)?, small(width)?];
    launch(device, Source::Norm, "add_parts", Threads::over(width), arguments)?;
    Ok(tensor(out, device, width))
}

/// The sum of each column of g `[rows, width]`.
pub(super) fn column_sums(g: &Tensor) -> Result<Tensor> {
    let ((rows, width), device) = (g.dims2()?, gpu(g)?);
    let (part, count) = parts(rows);
    let mut sums = room(device, count * width)?;
    views!(g);
    let arguments = arguments![&g, &mut sums, rows, small(width)?, small(part)?];
    launch(device, Source::Norm, "column_parts", Threads::columns(count, width), arguments)?;
    add_parts(device, &sums, count, width)
}

/// What the backward pass of a norm goes by.
struct Rows {
    /// x, `rows` runs of `width` values.
    x: Tensor,
    weight: Tensor,
    /// Of each row; a root mean square norm has none.
    means: Option<CudaSlice<f32>>,
    scales: CudaSlice<f32>,
    rows: usize,
    width: usize,
}

impl Rows {
    /// The kernel's name, with the means among its arguments where there are any.
    fn call<'a>(
        &'a self,
        (layer, rms): (&'static str, &'static str),
        before: Vec<Argument<'a>>,
        after: Vec<Argument<'a>>,
    ) -> (&'static str, Vec<Argument<'a>>) {
        let mut arguments = before;
        arguments.extend(self.means.as_ref().map(Argument::from));
        arguments.push(Argument::from(&self.scales));
        arguments.extend(after);
        (if self.means.is_some() { layer } else { rms }, arguments)
    }

    fn dx(&self, g: &Tensor) -> Result<Tensor> {
        let (device, weight, x) = (gpu(g)?, &self.weight, &self.x);
        let mut dx = room(device, self.rows * self.width)?;
        views!(x, weight, g);
        let names = ("layer_norm_back", "rms_norm_back");
        let after = Vec::from(arguments![&mut dx, small(self.width)?]);
        let (name, arguments) = self.call(names, Vec::from(arguments![&x, &weight, &g]), after);
        launch(device, Source::Norm, name, Threads::by_row(self.rows, self.width), arguments)?;
        Ok(tensor(dx, device, self.x.shape()))
    }

    /// The gradients of weight and, for a layer norm, bias.
    fn affine(&self, g: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let (device, x) = (gpu(g)?, &self.x);
        let (part, count) = parts(self.rows);
        let (mut weight, mut bias) = (room(device, count * self.width)?, None);
        views!(x, g);
        let names = ("layer_norm_parts", "rms_norm_parts");
        let mut after = Vec::from(arguments![&mut weight]);
        if self.means.is_some() {
            after.push(Argument::from(bias.insert(room::<f32>(device, count * self.width)?)));
        }
        after.extend(arguments![self.rows, small(self.width)?, small(part)?]);
        let (name, arguments) = self.call(names, Vec::from(arguments![&x, &g]), after);
        launch(device, Source::Norm, name, Threads::columns(count, self.width), arguments)?;
        let add = |parts: &CudaSlice<f32>| add_parts(device, parts, count, self.width);
        Ok((add(&weight)?, bias.as_ref().map(add).transpose()?))
    }

    /// Gradients of x, weight and, where there is one, bias.
    fn back(&self, g: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let dx = wanted[0].then(|| self.dx(g)).transpose()?;
        let (weight, bias) = match wanted[1..].contains(&true) {
            true => self.affine(g).map(|(weight, bias)| (Some(weight), bias))?,
            false => (None, None),
        };
        Ok([dx, weight, bias].into_iter().zip(wanted).map(|(gradient, wanted)| gradient.filter(|_| *wanted)).collect())
    }
}

pub(crate) fn layer_norm(
    tape: &Tape,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f64,
) -> Result<Tensor> {
    let ((rows, width), device) = (x.dims2()?, gpu(x)?);
    if weight.dims1()? != width || bias.is_some_and(|bias| bias.elem_count() != width) || width == 0 {
        bail!("layer norm: rows have {width} values, weight {:?}, bias {:?}", weight.shape(), bias.map(Tensor::shape));
    }
    let (mut out, mut means, mut scales) = (room(device, rows * width)?, room(device, rows)?, room(device, rows)?);
    {
        let shift = bias.unwrap_or(weight);
        views!(x, weight, shift);
        let numbers = (small(width)?, bias.is_some(), epsilon as f32);
        let arguments =
            arguments![&x, &weight, &shift, &mut out, &mut means, &mut scales, numbers.0, numbers.1, numbers.2];
        launch(device, Source::Norm, "layer_norm", Threads::by_row(rows, width), arguments)?;
    }
    let inputs: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    let wanted: Vec<bool> = inputs.iter().map(|input| input.track_op()).collect();
    let kept = Rows { x: x.detach(), weight: weight.detach(), means: Some(means), scales, rows, width };
    node(tape, "layer-norm", &inputs, out, (rows, width), move |g| kept.back(g, &wanted))
}

pub(crate) fn rms_norm(tape: &Tape, x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    let ((_, row), width, device) = (x.dims2()?, weight.dims1()?, gpu(x)?);
    if width == 0 || !row.is_multiple_of(width) {
        bail!("rms norm: rows of {row} values do not fit a weight of {width}");
    }
    let rows = x.elem_count() / width;
    let (mut out, mut scales) = (room(device, rows * width)?, room(device, rows)?);
    {
        views!(x, weight);
        let arguments = arguments![&x, &weight, &mut out, &mut scales, small(width)?, epsilon as f32];
        launch(device, Source::Norm, "rms_norm", Threads::by_row(rows, width), arguments)?;
    }
    let wanted = [x.track_op(), weight.track_op()];
    let kept = Rows { x: x.detach(), weight: weight.detach(), means: None, scales, rows, width };
    node(tape, "rms-norm", &[x, weight], out, x.shape(), move |g| kept.back(g, &wanted))
}
