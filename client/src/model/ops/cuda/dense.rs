//! Dense layers and what adapters add to them.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Tensor, bail};
use fedtune_config::job::Precision;
use half::{bf16, f16};

use super::launch::{Element, Matrices, Source, Threads, arguments, gpu, launch, multiply, room, small, tensor, views};
use super::node::node;
use super::norm::column_sums;
use crate::model::ops::Tape;

/// `factor · left right` in f32 of factors in this type: left `[m, k]`, right `[k, n]`, each as it lies or, where the flag
/// says so, transposed.
fn product<T: Element>(
    left: (&Tensor, bool),
    right: (&Tensor, bool),
    factor: f32,
    onto: Option<CudaSlice<f32>>,
) -> Result<(CudaSlice<f32>, (usize, usize))> {
    let device = gpu(left.0)?;
    let ((left_rows, left_columns), (right_rows, right_columns)) = (left.0.dims2()?, right.0.dims2()?);
    // Without effect where the type is that already.
    let (x, y) = (left.0.to_dtype(T::DTYPE)?, right.0.to_dtype(T::DTYPE)?);
    views!(x: T, y: T);
    let (mut x, mut y) = (Matrices::new(&x, left_rows, left_columns), Matrices::new(&y, right_rows, right_columns));
    let mut shape = (left_rows, right_columns);
    if left.1 {
        (x, shape.0) = (x.transposed(), left_columns);
    }
    if right.1 {
        (y, shape.1) = (y.transposed(), right_rows);
    }
    let present = onto.is_some();
    let mut out = match onto {
        Some(out) => out,
        None => room(device, shape.0 * shape.1)?,
    };
    multiply(device, &mut out.as_view_mut(), 1, x, y, factor, if present { 1.0 } else { 0.0 })?;
    Ok((out, shape))
}

/// [`product`] in the type that the precision is.
pub(super) fn rounded_product(
    precision: Precision,
    left: (&Tensor, bool),
    right: (&Tensor, bool),
    factor: f32,
    onto: Option<CudaSlice<f32>>,
) -> Result<(CudaSlice<f32>, (usize, usize))> {
    match precision {
        Precision::F32 => product::<f32>(left, right, factor, onto),
        Precision::Bf16 => product::<bf16>(left, right, factor, onto),
        Precision::F16 => product::<f16>(left, right, factor, onto),
    }
}

/// [`rounded_product`] as a tensor of its own.
pub(super) fn product_of(
    precision: Precision,
    left: (&Tensor, bool),
    right: (&Tensor, bool),
    factor: f32,
) -> Result<Tensor> {
    let (values, shape) = rounded_product(precision, left, right, factor, None)?;
    Ok(tensor(values, gpu(left.0)?, shape))
}

pub(crate) fn linear(tape: &Tape, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (precision, outer) = (tape.precision(), weight.dim(0)?);
    let (mut out, shape) = rounded_product(precision, (x, false), (weight, true), 1.0, None)?;
    let mut inputs = vec![x, weight];
    if let Some(bias) = bias {
        if bias.dims1()? != outer {
            bail!("linear: a bias of {:?} for {outer} outputs", bias.shape());
        }
        inputs.push(bias);
        views!(bias);
        let count = shape.0 * shape.1;
        let arguments = arguments![&bias, &mut out, count, small(outer)?];
        launch(gpu(x)?, Source::Values, "add_bias", Threads::over(count), arguments)?;
    }
    let wanted: Vec<bool> = inputs.iter().map(|input| input.track_op()).collect();
    let (x, weight) = (x.detach(), weight.detach());
    node(tape, "linear", &inputs, out, shape, move |g| {
        let mut gradients = vec![None; wanted.len()];
        // Rounded once for both products.
        let rounded = match precision {
            Precision::F32 => g.clone(),
            Precision::Bf16 => g.to_dtype(bf16::DTYPE)?,
            Precision::F16 => g.to_dtype(f16::DTYPE)?,
        };
        if wanted[0] {
            gradients[0] = Some(product_of(precision, (&rounded, false), (&weight, false), 1.0)?);
        }
        if wanted[1] {
            gradients[1] = Some(product_of(precision, (&rounded, true), (&x, false), 1.0)?);
        }
        if wanted.get(2) == Some(&true) {
            gradients[2] = Some(column_sums(g)?);
        }
        Ok(gradients)
    })
}

/// `base + scale · low upᵀ`
pub(crate) fn add_low_rank(tape: &Tape, base: &Tensor, low: &Tensor, up: &Tensor, scale: f64) -> Result<Tensor> {
    let (precision, scale) = (tape.precision(), scale as f32);
    if (base.dim(0)?, base.dim(1)?) != (low.dim(0)?, up.dim(0)?) {
        bail!("low-rank: base is {:?}, low {:?}, up {:?}", base.shape(), low.shape(), up.shape());
    }
    let copy = {
        let device = gpu(base)?;
        let values = base.detach();
        views!(values);
        let mut copy = room(device, base.elem_count())?;
        device.memcpy_dtod(&values, &mut copy)?;
        copy
    };
    let (out, shape) = rounded_product(precision, (low, false), (up, true), scale, Some(copy))?;
    let wanted = [base, low, up].map(|input| input.track_op());
    let arguments = [base, low, up];
    let (low, up) = (low.detach(), up.detach());
    node(tape, "low-rank", &arguments, out, shape, move |g| {
        let d_low = wanted[1].then(|| product_of(precision, (g, false), (&up, false), scale)).transpose()?;
        let d_up = wanted[2].then(|| product_of(precision, (g, true), (&low, false), scale)).transpose()?;
        Ok(vec![wanted[0].then(|| g.clone()), d_low, d_up])
    })
}
