//! Cross-entropy, of logits and of the scores of words.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use candle_core::{CudaDevice, Result, Tensor, bail};
use fedtune_config::job::Precision;
use half::{bf16, f16};

use super::launch::{Element, Matrices, Source, Threads, arguments, gpu, launch, multiply, room, small, tensor, views};
use super::node::node;
use super::pointwise::times;
use crate::model::ops::{Loss, Tape};

/// Scores of words that are in memory at once, unless one row has more.
const SCORES: usize = 1 << 28;

/// A loss and the labels that it is of, where the kernels find them.
struct Placed {
    offset: CudaSlice<f32>,
    weights: CudaSlice<f32>,
    labels: CudaSlice<u32>,
    width: u32,
    shifted: bool,
    weighted: bool,
    smoothing: f64,
    gamma: f64,
    divisor: f64,
}

impl Placed {
    fn new(device: &CudaDevice, loss: &Loss, labels: &[u32], width: usize) -> Result<Self> {
        // A kernel is given something to point to, and told whether it is to look.
        let list = |values: Vec<f32>| device.clone_htod(if values.is_empty() { &[0.0][..] } else { &values });
        Ok(Self {
            offset: list(loss.offset.clone())?,
            weights: list(loss.class_weights.iter().map(|weight| *weight as f32).collect())?,
            labels: device.clone_htod(labels)?,
            width: small(width)?,
            shifted: !loss.offset.is_empty(),
            weighted: !loss.class_weights.is_empty(),
            smoothing: loss.label_smoothing,
            gamma: loss.focal_gamma,
            divisor: loss.divisor(labels),
        })
    }

    /// What each of some rows from `first` on adds to the sum, into `values`.
    fn rows(
        &self,
        device: &CudaDevice,
        logits: &CudaView<'_, f32>,
        first: usize,
        values: CudaViewMut<'_, f64>,
    ) -> Result<()> {
        let rows = logits_rows(logits, self.width)?;
        let Some(labels) = self.labels.try_slice(first..first + rows) else { bail!("a loss of rows without labels") };
        let (shifted, weighted) = (self.shifted, self.weighted);
        let arguments = arguments![
            logits,
            &self.offset,
            &self.weights,
            labels,
            values,
            self.width,
            shifted,
            weighted,
            self.smoothing,
            self.gamma
        ];
        launch(device, Source::Loss, "loss_rows", Threads::by_row(rows, self.width as usize), arguments)
    }

    /// `upstream` times the gradient of the loss, in place of the logits of some rows from `first` on.
    fn gradient(
        &self,
        device: &CudaDevice,
        logits: &mut CudaSlice<f32>,
        first: usize,
        upstream: &CudaView<'_, f32>,
    ) -> Result<()> {
        let rows = logits_rows(&logits.as_view(), self.width)?;
        let Some(labels) = self.labels.try_slice(first..first + rows) else { bail!("a loss of rows without labels") };
        let (shifted, weighted) = (self.shifted, self.weighted);
        let arguments = arguments![
            &self.offset,
            &self.weights,
            labels,
            upstream,
            logits,
            self.width,
            shifted,
            weighted,
            self.smoothing,
            self.gamma,
            self.divisor,
        ];
        launch(device, Source::Loss, "loss_gradient", Threads::by_row(rows, self.width as usize), arguments)
    }

    /// The sum of what the rows add, over the divisor.
    fn total(&self, device: &CudaDevice, values: &CudaSlice<f64>, rows: usize) -> Result<CudaSlice<f32>> {
        let mut out = room(device, 1)?;
        let arguments = arguments![values, &mut out, rows, self.divisor];
        launch(device, Source::Loss, "loss_total", Threads::blocks(1), arguments)?;
        Ok(out)
    }
}

fn logits_rows(logits: &CudaView<'_, f32>, width: u32) -> Result<usize> {
    let (count, width) = (logits.len(), width as usize);
    if width == 0 || !count.is_multiple_of(width) {
        bail!("{count} logits in rows of {width}");
    }
    Ok(count / width)
}

pub(crate) fn cross_entropy(tape: &Tape, logits: &Tensor, labels: &[u32], loss: &Loss) -> Result<Tensor> {
    let ((rows, width), device) = (logits.dims2()?, gpu(logits)?);
    loss.check((rows, width), labels)?;
    let placed = Placed::new(device, loss, labels, width)?;
    let mut values = room(device, rows)?;
    {
        views!(logits);
        placed.rows(device, &logits, 0, values.as_view_mut())?;
    }
    let out = placed.total(device, &values, rows)?;
    let quiet = logits.detach();
    node(tape, "cross-entropy", &[logits], out, (), move |g| {
        let (device, logits) = (gpu(g)?, &quiet);
        let mut gradient = room(device, rows * width)?;
        views!(logits, g);
        device.memcpy_dtod(&logits, &mut gradient)?;
        placed.gradient(device, &mut gradient, 0, &g)?;
        Ok(vec![Some(tensor(gradient, device, (rows, width)))])
    })
}

/// A loss with the gradients of x and weight, where they are wanted.
type WithGradients = (CudaSlice<f32>, [Option<Tensor>; 2]);

/// The loss of the scores `x weightᵀ`, and its gradients at once, so that the scores are computed once and never all in
/// memory (Hsu et al. 2024, 2410.10989). With G the gradient of the scores: dx = G weight, d weight = Gᵀ x.
fn words<T: Element>(
    x: &Tensor,
    weight: &Tensor,
    labels: &[u32],
    loss: &Loss,
    wanted: [bool; 2],
) -> Result<WithGradients> {
    let ((rows, hidden), count, device) = (x.dims2()?, weight.dim(0)?, gpu(x)?);
    let placed = Placed::new(device, loss, labels, count)?;
    let mut values = room(device, rows)?;
    let one = device.clone_htod(&[1.0f32])?;
    let mut dx = wanted[0].then(|| room(device, rows * hidden)).transpose()?;
    let mut d_weight = wanted[1].then(|| room(device, count * hidden)).transpose()?;
    {
        let (x, weight) = (x.to_dtype(T::DTYPE)?, weight.to_dtype(T::DTYPE)?);
        views!(x: T, weight: T);
        let weight = Matrices::new(&weight, count, hidden);
        let most = (SCORES / count.max(1)).max(1);
        for first in (0..rows).step_by(most) {
            let last = rows.min(first + most);
            let part = last - first;
            let x = x.slice(first * hidden..last * hidden);
            let x = Matrices::new(&x, part, hidden);
            let mut scores = room::<f32>(device, part * count)?;
            multiply(device, &mut scores.as_view_mut(), 1, x, weight.transposed(), 1.0, 0.0)?;
            placed.rows(device, &scores.as_view(), first, values.slice_mut(first..last))?;
            if wanted == [false; 2] {
                continue;
            }
            placed.gradient(device, &mut scores, first, &one.as_view())?;
            let gradient = tensor(scores, device, (part, count)).to_dtype(T::DTYPE)?;
            views!(gradient: T);
            let gradient = Matrices::new(&gradient, part, count);
            if let Some(dx) = &mut dx {
                let out = &mut dx.slice_mut(first * hidden..last * hidden);
                multiply::<T, f32>(device, out, 1, gradient, weight, 1.0, 0.0)?;
            }
            if let Some(d_weight) = &mut d_weight {
                let onto = if first == 0 { 0.0 } else { 1.0 };
                let out = &mut d_weight.as_view_mut();
                multiply::<T, f32>(device, out, 1, gradient.transposed(), x, 1.0, onto)?;
            }
        }
    }
    let out = placed.total(device, &values, rows)?;
    let of = |values: Option<CudaSlice<f32>>, like: &Tensor| values.map(|values| tensor(values, device, like.shape()));
    Ok((out, [of(dx, x), of(d_weight, weight)]))
}

pub(crate) fn words_loss(tape: &Tape, x: &Tensor, weight: &Tensor, labels: &[u32], loss: &Loss) -> Result<Tensor> {
    let ((rows, hidden), (count, weight_hidden)) = (x.dims2()?, weight.dims2()?);
    if hidden != weight_hidden || hidden == 0 {
        bail!("words loss: x is [{rows}, {hidden}], weight [{count}, {weight_hidden}]");
    }
    loss.check((rows, count), labels)?;
    let (arguments, wanted) = ([x, weight], [x.track_op(), weight.track_op()]);
    let (out, gradients) = match tape.precision() {
        Precision::F32 => words::<f32>(&x.detach(), &weight.detach(), labels, loss, wanted)?,
        Precision::Bf16 => words::<bf16>(&x.detach(), &weight.detach(), labels, loss, wanted)?,
        Precision::F16 => words::<f16>(&x.detach(), &weight.detach(), labels, loss, wanted)?,
    };
    node(tape, "words-loss", &arguments, out, (), move |g| {
        gradients.iter().map(|gradient| gradient.as_ref().map(|gradient| times(gradient, g)).transpose()).collect()
    })
}
