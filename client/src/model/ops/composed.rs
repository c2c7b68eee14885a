//! The same operations out of candle's own differentiable ops: for every device but the processor, and the reference
//! that the fused ones are tested against. candle's fused `layer_norm` and `softmax_last_dim` have no backward and so
//! are not used.

use candle_core::{D, Result, Tensor, bail};
use candle_transformers::models::bert::HiddenAct;

use super::batch_norm::Moments;
use super::cross_entropy::Loss;
use super::dropout::Dropout;
use super::embed::Indices;
use super::grid::{Grid, Window};
use super::rotary::Rotation;
use super::sequence::Sequence;
use super::{Heads, Normalise, Scope};
use crate::model::batch::Layout;

pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    with_bias(x.matmul(&weight.t()?)?, bias)
}

fn with_bias(x: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => x.broadcast_add(bias),
        None => Ok(x),
    }
}

pub(super) fn add_low_rank(base: &Tensor, low: &Tensor, up: &Tensor, scale: f64) -> Result<Tensor> {
    base + (low.matmul(&up.t()?)? * scale)?
}

pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, epsilon: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    with_bias(centred.broadcast_div(&(variance + epsilon)?.sqrt()?)?.broadcast_mul(weight)?, bias)
}

pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    let runs = x.reshape(((), weight.dim(0)?))?;
    let mean = runs.sqr()?.mean_keepdim(D::Minus1)?;
    runs.broadcast_div(&(mean + epsilon)?.sqrt()?)?.broadcast_mul(weight)?.reshape(x.shape())
}

pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()?.mul(up)
}

pub(super) fn activation(x: &Tensor, kind: HiddenAct) -> Result<Tensor> {
    match kind {
        HiddenAct::Gelu => x.gelu_erf(),
        HiddenAct::GeluApproximate => x.gelu(),
        HiddenAct::Relu => x.relu(),
    }
}

pub(super) fn gated(x: &Tensor, kind: HiddenAct) -> Result<Tensor> {
    let width = x.dim(1)? / 2;
    activation(&x.narrow(1, 0, width)?.contiguous()?, kind)?.mul(&x.narrow(1, width, width)?)
}

pub(super) fn rotary(x: &Tensor, rotation: &Rotation, layout: &Layout) -> Result<Tensor> {
    rotation.check(x.shape(), layout)?;
    let ((rows, width), depth) = (x.dims2()?, rotation.depth());
    let half = depth / 2;
    let (cosines, sines) = rotation.rows(layout);
    let angles = |values: Vec<f32>| Tensor::from_vec(values, (rows, 1, half), x.device());
    let (cosines, sines) = (angles(cosines)?, angles(sines)?);
    let x = x.reshape((rows, width / depth, depth))?;
    let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let first = (a.broadcast_mul(&cosines)? - b.broadcast_mul(&sines)?)?;
    let second = (b.broadcast_mul(&cosines)? + a.broadcast_mul(&sines)?)?;
    Tensor::cat(&[first, second], 2)?.reshape((rows, width))
}

/// As a product with the shares of the rows, `[sequences, rows]`.
pub(super) fn mean_rows(x: &Tensor, layout: &Layout) -> Result<Tensor> {
    let mut shares = vec![0f32; layout.sequences() * layout.rows()];
    for (sequence, row) in shares.chunks_exact_mut(layout.rows().max(1)).enumerate() {
        let span = layout.span(sequence);
        let share = 1.0 / span.len() as f32;
        row[span].fill(share);
    }
    Tensor::from_vec(shares, (layout.sequences(), layout.rows()), x.device())?.matmul(x)
}

/// The mask is drawn by the processor, so that it is the same on every device.
pub(super) fn dropout(x: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
    let Some(dropout) = dropout else { return Ok(x.clone()) };
    let (rows, width) = x.dims2()?;
    x.mul(&Tensor::from_vec(dropout.matrix(rows, width), (rows, width), x.device())?)
}

pub(super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    Scope { queries, keys, window, causal }: Scope<'_>,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    if !queries.is_padded() || !keys.is_padded() {
        bail!("attention on this device needs a padded batch");
    }
    let (sequences, width) = (keys.sequences(), q.dim(1)?);
    if !heads.fit(width, k.dim(1)?) {
        bail!("attention: q {:?} and k {:?} do not fit {heads:?}", q.shape(), k.shape());
    }
    let (depth, group) = (width / heads.queries, heads.queries / heads.keys);
    let split = |x: &Tensor, heads: usize, length: usize| -> Result<Tensor> {
        x.reshape((sequences, length, heads, depth))?.transpose(1, 2)?.contiguous()
    };
    // Each head of keys and values, once for every head of queries that uses it.
    let shared = |x: &Tensor| -> Result<Tensor> {
        let length = keys.width();
        let one = split(x, heads.keys, length)?;
        if group == 1 {
            return Ok(one);
        }
        one.unsqueeze(2)?.broadcast_as((sequences, heads.keys, group, length, depth))?.contiguous()?.reshape((
            sequences,
            heads.queries,
            length,
            depth,
        ))
    };
    let (q, k, v) = (split(q, heads.queries, queries.width())?, shared(k)?, shared(v)?);
    let mut hidden = Vec::with_capacity(sequences * queries.width() * keys.width());
    for sequence in 0..sequences {
        let length = keys.span(sequence).len();
        for query in 0..queries.width() {
            let near = |key: usize| window.is_none_or(|window| key.abs_diff(query) <= window);
            let seen = |key: usize| key < length && near(key) && (key <= query || !causal);
            hidden.extend((0..keys.width()).map(|key| if seen(key) { 0f32 } else { -1e30 }));
        }
    }
    let hidden = Tensor::from_vec(hidden, (sequences, 1, queries.width(), keys.width()), q.device())?;
    let scores = (q.matmul(&k.t()?)? / (depth as f64).sqrt())?.broadcast_add(&hidden)?;
    let mut probabilities = candle_nn::ops::softmax(&scores, D::Minus1)?;
    if let Some(dropout) = dropout {
        let mask = dropout.matrix(sequences * heads.queries * queries.width(), keys.width());
        probabilities = probabilities.mul(&Tensor::from_vec(mask, probabilities.shape(), q.device())?)?;
    }
    probabilities.matmul(&v)?.transpose(1, 2)?.reshape((sequences * queries.width(), width))
}

pub(super) fn embed(words: &Tensor, positions: &Tensor, types: &Tensor, indices: &Indices) -> Result<Tensor> {
    let rows = |table: &Tensor, indices: &[u32]| -> Result<Tensor> {
        table.index_select(&Tensor::new(indices, table.device())?, 0)
    };
    rows(words, &indices.words)?.add(&rows(types, &indices.types)?)?.add(&rows(positions, &indices.positions)?)
}

pub(super) fn convolution(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    window: Window,
    grid: Grid,
) -> Result<Tensor> {
    let outside = Tensor::zeros((1, x.dim(1)?), x.dtype(), x.device())?;
    let under = Tensor::cat(&under_window(x, &outside, window, grid)?, 1)?;
    let weight = weight.permute((0, 2, 3, 1))?.contiguous()?.flatten_from(1)?;
    linear(&under, &weight, bias)
}

/// For each place in the window, what lies there as the window moves, `[places, channels]`; beyond the images the row
/// `outside`. candle's own convolution and max-pool have no backward for every window.
fn under_window(x: &Tensor, outside: &Tensor, window: Window, grid: Grid) -> Result<Vec<Tensor>> {
    let places = window.places(grid)?;
    let x = Tensor::cat(&[x, outside], 0)?;
    let inside = |place: usize, tap: usize, length: usize| {
        (place * window.stride + tap).checked_sub(window.padding).filter(|pixel| *pixel < length)
    };
    let taps = 0..window.side * window.side;
    taps.map(|tap| {
        let pixel = |row: usize| {
            let (image, place) = (row / places.area(), row % places.area());
            let line = inside(place / places.width, tap / window.side, grid.height)?;
            let column = inside(place % places.width, tap % window.side, grid.width)?;
            Some(image * grid.area() + line * grid.width + column)
        };
        let rows: Vec<u32> = (0..places.pixels()).map(|row| pixel(row).unwrap_or(grid.pixels()) as u32).collect();
        x.index_select(&Tensor::new(rows, x.device())?, 0)
    })
    .collect()
}

pub(super) fn batch_norm(
    x: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    by: Normalise<'_>,
    epsilon: f64,
    relu: bool,
) -> Result<(Tensor, Option<Moments>)> {
    let (mean, variance, moments) = match by {
        Normalise::Running(mean, variance) => (mean.unsqueeze(0)?, variance.unsqueeze(0)?, None),
        Normalise::Batch => {
            let mean = x.mean_keepdim(0)?;
            let variance = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?;
            let values = |moments: &Tensor| moments.flatten_all()?.to_vec1();
            let moments = Moments { mean: values(&mean)?, variance: values(&variance)?, count: x.dim(0)? };
            (mean, variance, Some(moments))
        }
    };
    let normalised = x.broadcast_sub(&mean)?.broadcast_div(&(variance + epsilon)?.sqrt()?)?;
    let out = normalised.broadcast_mul(weight)?.broadcast_add(bias)?;
    Ok((if relu { out.relu()? } else { out }, moments))
}

pub(super) fn sequence(patches: &Tensor, first: &Tensor, positions: &Tensor, op: &Sequence) -> Result<Tensor> {
    let (images, width) = op.check(patches.shape(), first.shape(), positions.shape())?;
    let first = first.reshape((1, 1, width))?.repeat((images, 1, 1))?;
    let all = Tensor::cat(&[first, patches.reshape((images, op.patches, width))?], 1)?;
    all.broadcast_add(&positions.reshape((1, op.patches + 1, width))?)?.reshape((images * (op.patches + 1), width))
}

/// Equal largest values share the gradient.
pub(super) fn max_pool(x: &Tensor, window: Window, grid: Grid) -> Result<Tensor> {
    let outside = (Tensor::ones((1, x.dim(1)?), x.dtype(), x.device())? * f64::from(f32::MIN))?;
    let under = under_window(x, &outside, window, grid)?.into_iter().map(Ok);
    let largest = under.reduce(|largest, seen| largest?.maximum(&seen?));
    largest.unwrap_or_else(|| bail!("max-pool: an empty window"))
}

pub(super) fn cross_entropy(logits: &Tensor, labels: &[u32], loss: &Loss) -> Result<Tensor> {
    let (shape, device) = (logits.dims2()?, logits.device());
    loss.check(shape, labels)?;
    let shifted = match loss.offset.as_slice() {
        [] => logits.clone(),
        offset => logits.broadcast_add(&Tensor::new(offset, device)?)?,
    };
    let log_p = candle_nn::ops::log_softmax(&shifted, D::Minus1)?;
    let target: Vec<f32> =
        labels.iter().flat_map(|label| loss.target(*label as usize, shape.1)).map(|target| target as f32).collect();
    let mut terms = log_p.mul(&Tensor::from_vec(target, shape, device)?)?;
    if loss.focal_gamma > 0.0 {
        // The power has no finite slope at 0 for exponents below 1.
        let rest = (1.0 - log_p.exp()?)?.maximum(1e-7)?;
        terms = terms.mul(&rest.powf(loss.focal_gamma)?)?;
    }
    terms.sum_all()? * (-1.0 / loss.divisor(labels))
}

pub(super) fn binary_cross_entropy(logits: &Tensor, hot: Vec<f32>, divisor: f64) -> Result<Tensor> {
    let hot = Tensor::from_vec(hot, logits.shape(), logits.device())?;
    // log(1 + exp(x)) = max(x, 0) + log(1 + exp(−|x|))
    let softplus = (logits.relu()? + (logits.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    (softplus - logits.mul(&hot)?)?.sum_all()? / divisor
}

pub(super) fn squared_error(outputs: &Tensor, values: &[f32], divisor: f64) -> Result<Tensor> {
    let values = Tensor::new(values, outputs.device())?.reshape(outputs.shape())?;
    (outputs - values)?.sqr()?.sum_all()? / divisor
}
