//! What is done value by value: activations, gates, shortcuts, dropout.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Tensor, bail};

use super::launch::{Argument, Source, Threads, arguments, gpu, launch, room, small, tensor, views};
use super::node::node;
use crate::model::ops::activation::Activation;
use crate::model::ops::{Dropout, Tape};

impl Activation {
    /// What the kernels call it.
    fn number(self) -> u32 {
        match self {
            Self::Gelu => 0,
            Self::GeluTanh => 1,
            Self::Relu => 2,
            Self::Tanh => 3,
        }
    }
}

impl Dropout {
    /// What the kernels draw a mask of: key, threshold and scale; with a threshold of 0 nothing is dropped.
    pub(super) fn numbers(dropout: Option<Self>) -> (u64, u32, f32) {
        dropout.map_or((0, 0, 1.0), |dropout| dropout.draws())
    }
}

/// One kernel over lists of `count` values, which writes one of `room_for` values.
fn fill<const N: usize>(
    name: &str,
    inputs: [&Tensor; N],
    count: usize,
    room_for: usize,
    numbers: impl IntoIterator<Item = Argument<'static>>,
) -> Result<CudaSlice<f32>> {
    let device = gpu(inputs[0])?;
    let mut out = room(device, room_for)?;
    let inputs = inputs.iter().map(|input| input.contiguous()).collect::<Result<Vec<_>>>()?;
    let locked = inputs.iter().map(super::launch::lock).collect::<Result<Vec<_>>>()?;
    let values = locked.iter().map(|input| input.values::<f32>()).collect::<Result<Vec<_>>>()?;
    let mut arguments: Vec<Argument<'_>> = values.iter().map(Argument::from).collect();
    arguments.extend(arguments![&mut out, count]);
    // Not `extend`: these outlive what the list has so far.
    for number in numbers {
        arguments.push(number);
    }
    launch(device, Source::Values, name, Threads::over(count), arguments)?;
    Ok(out)
}

/// As [`fill`], with a result of the first input's shape.
fn map<const N: usize>(
    name: &str,
    inputs: [&Tensor; N],
    numbers: impl IntoIterator<Item = Argument<'static>>,
) -> Result<Tensor> {
    let count = inputs[0].elem_count();
    if inputs.iter().any(|input| input.elem_count() != count) {
        bail!("{name}: {:?} do not agree", inputs.map(|input| input.shape().clone()));
    }
    Ok(tensor(fill(name, inputs, count, count, numbers)?, gpu(inputs[0])?, inputs[0].shape()))
}

/// `x · factor`, the factor being a scalar on the GPU.
pub(super) fn times(x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    Ok(tensor(fill("times_scalar", [x, factor], x.elem_count(), x.elem_count(), [])?, gpu(x)?, x.shape()))
}

pub(crate) fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.shape() != y.shape() {
        bail!("gradients of shapes {:?} and {:?} for one tensor", x.shape(), y.shape());
    }
    map("add", [x, y], [])
}

pub(crate) fn activation(tape: &Tape, x: &Tensor, kind: Activation) -> Result<Tensor> {
    let (kind, count) = (kind.number(), x.elem_count());
    let out = fill("activation", [x], count, count, arguments![kind])?;
    let quiet = x.detach();
    node(tape, "activation", &[x], out, x.shape(), move |g| {
        Ok(vec![Some(map("activation_back", [&quiet, g], arguments![kind])?)])
    })
}

pub(crate) fn gated(tape: &Tape, x: &Tensor, kind: Activation) -> Result<Tensor> {
    let (rows, both) = x.dims2()?;
    if both == 0 || !both.is_multiple_of(2) {
        bail!("gated: rows of {both} values; expected an even number above 0");
    }
    let (width, kind) = (both / 2, kind.number());
    let (count, short) = (rows * width, small(width)?);
    let out = fill("gated", [x], count, count, arguments![short, kind])?;
    let quiet = x.detach();
    node(tape, "gated", &[x], out, (rows, width), move |g| {
        let dx = fill("gated_back", [&quiet, g], count, 2 * count, arguments![short, kind])?;
        Ok(vec![Some(tensor(dx, gpu(g)?, quiet.shape()))])
    })
}

pub(crate) fn swiglu(tape: &Tape, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        bail!("swiglu: the gate is {:?}, what it opens {:?}", gate.shape(), up.shape());
    }
    let (count, arguments) = (gate.elem_count(), [gate, up]);
    let out = fill("swiglu", arguments, count, count, [])?;
    let shape = gate.shape().clone();
    let (gate, up) = (gate.detach(), up.detach());
    node(tape, "swiglu", &arguments, out, shape, move |g| {
        let device = gpu(g)?;
        let (mut d_gate, mut d_up) = (room(device, count)?, room(device, count)?);
        {
            let (gate, up) = (&gate, &up);
            views!(gate, up, g);
            let arguments = arguments![&gate, &up, &g, &mut d_gate, &mut d_up, count];
            launch(device, Source::Values, "swiglu_back", Threads::over(count), arguments)?;
        }
        Ok([d_gate, d_up].map(|values| Some(tensor(values, device, gate.shape()))).into())
    })
}

/// Rows and width of a mask, and what it is drawn of.
fn mask_numbers(x: &Tensor, dropout: Option<Dropout>) -> Result<[Argument<'static>; 4]> {
    let (key, threshold, scale) = Dropout::numbers(dropout);
    Ok(arguments![small(x.dims2()?.1)?, key, threshold, scale])
}

pub(crate) fn dropout(tape: &Tape, x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    let count = x.elem_count();
    let out = fill("drop", [x], count, count, mask_numbers(x, Some(dropout))?)?;
    node(tape, "dropout", &[x], out, x.shape(), move |g| {
        Ok(vec![Some(map("drop", [g], mask_numbers(g, Some(dropout))?)?)])
    })
}

pub(crate) fn residual(tape: &Tape, x: &Tensor, shortcut: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
    if x.shape() != shortcut.shape() {
        bail!("residual: {:?} and {:?} differ", x.shape(), shortcut.shape());
    }
    let count = x.elem_count();
    let out = fill("drop_add", [x, shortcut], count, count, mask_numbers(x, dropout)?)?;
    let wanted = [x, shortcut].map(|input| input.track_op());
    node(tape, "dropout-add", &[x, shortcut], out, x.shape(), move |g| {
        let dx = match dropout {
            _ if !wanted[0] => None,
            Some(dropout) => Some(map("drop", [g], mask_numbers(g, Some(dropout))?)?),
            None => Some(g.clone()),
        };
        Ok(vec![dx, wanted[1].then(|| g.clone())])
    })
}

pub(crate) fn residual_relu(tape: &Tape, x: &Tensor, shortcut: &Tensor) -> Result<Tensor> {
    if x.shape() != shortcut.shape() {
        bail!("residual: {:?} and {:?} differ", x.shape(), shortcut.shape());
    }
    let (count, arguments) = (x.elem_count(), [x, shortcut]);
    let out = fill("add_relu", arguments, count, count, [])?;
    let shape = x.shape().clone();
    let (x, shortcut) = (x.detach(), shortcut.detach());
    node(tape, "add-relu", &arguments, out, shape, move |g| {
        let passed = map("add_relu_back", [&x, &shortcut, g], [])?;
        Ok(vec![Some(passed.clone()), Some(passed)])
    })
}
