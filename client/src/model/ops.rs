//! The differentiable operations under the model. Each has forms with one meaning: a fused one for the processor, with an
//! analytic backward and all cores; one for NVIDIA GPUs, where the program is built with them ([`cuda`]); and a composed one
//! of candle's own differentiable ops, for every other device and as the reference in the tests. The device decides here,
//! and nowhere else.
//!
//! Activations are matrices `[tokens, width]`: all sequences of a batch below each other (see
//! [`super::batch::Layout`]), so weights are never broadcast. Images are matrices `[pixels, channels]` in the same way (see
//! [`Grid`]).

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor, bail};
use candle_transformers::models::bert::HiddenAct;

use super::batch::Layout;
use activation::Activation;

mod activation;
mod attention;
mod batch_norm;
mod binary_cross_entropy;
mod composed;
mod conv;
mod cross_entropy;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod dropout;
mod embed;
mod gated;
mod gemm;
mod grid;
mod linear;
mod low_rank;
mod norm;
mod pool;
mod residual;
mod rms_norm;
mod rotary;
mod rows;
mod sequence;
mod simd;
mod squared_error;
mod swiglu;
mod tape;
mod values;
mod words_loss;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use batch_norm::Moments;
pub use cross_entropy::Loss;
pub(crate) use cross_entropy::row_loss;
pub(crate) use dropout::Dropout;
pub(crate) use embed::Indices;
pub(crate) use grid::{Grid, Window};
pub(crate) use rotary::Rotation;
pub(crate) use simd::{dot, softmax, vectorised};
pub(crate) use tape::{Gradients, Tape};
pub(crate) use values::read as read_values;

/// Where an operation runs.
enum Place {
    Processor,
    #[cfg(feature = "cuda")]
    Gpu,
    /// Where nothing but candle's own ops do.
    Elsewhere,
}

impl Place {
    fn of(x: &Tensor) -> Self {
        match x.device() {
            Device::Cpu => Self::Processor,
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => Self::Gpu,
            _ => Self::Elsewhere,
        }
    }
}

/// Whether the operations on a device are recorded on the tape; elsewhere candle's graph has them.
pub(crate) fn recorded(device: &Device) -> bool {
    device.is_cpu() || (cfg!(feature = "cuda") && device.is_cuda())
}

/// Whether dense layers on a device can multiply in less than f32.
pub(crate) fn rounds(device: &Device) -> bool {
    recorded(device)
}

/// `x wᵀ + b`: x `[rows, in]`, w `[out, in]`, b `[out]`, where there is one; gives `[rows, out]`.
pub(crate) fn linear(tape: &Tape, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => {
            let bias = or_zeros(bias, weight)?;
            tape.apply3(linear::Linear { precision: tape.precision() }, x, weight, &bias)
        }
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::linear(tape, x, weight, bias),
        Place::Elsewhere => composed::linear(x, weight, bias),
    }
}

/// What a low-rank adapter adds to a layer's output (Hu et al. 2021, 2106.09685): `base + scale · (x downᵀ) upᵀ`. base
/// `[rows, out]`, x `[rows, in]`, down `[rank, in]`, up `[out, rank]`.
pub(crate) fn low_rank(
    tape: &Tape,
    base: &Tensor,
    x: &Tensor,
    (down, up): (&Tensor, &Tensor),
    scale: f64,
) -> Result<Tensor> {
    let low = linear(tape, x, down, None)?;
    match Place::of(x) {
        Place::Processor => {
            let op = low_rank::LowRank { scale: scale as f32, precision: tape.precision() };
            tape.apply3(op, base, &low, up)
        }
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::add_low_rank(tape, base, &low, up, scale),
        Place::Elsewhere => composed::add_low_rank(base, &low, up, scale),
    }
}

/// The bias of a layer that has none: zeros, which get no gradient.
fn or_zeros(bias: Option<&Tensor>, weight: &Tensor) -> Result<Tensor> {
    bias.map_or_else(|| Tensor::zeros(weight.dim(0)?, weight.dtype(), weight.device()), |bias| Ok(bias.clone()))
}

/// Layer normalisation over the last dimension (Ba, Kiros and Hinton 2016, 1607.06450): x `[rows, width]`, weight and
/// bias, where there is one, `[width]`.
pub(crate) fn layer_norm(
    tape: &Tape,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f64,
) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => {
            tape.apply3(norm::LayerNorm { epsilon: epsilon as f32 }, x, weight, &or_zeros(bias, weight)?)
        }
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::layer_norm(tape, x, weight, bias, epsilon),
        Place::Elsewhere => composed::layer_norm(x, weight, bias, epsilon),
    }
}

/// Root mean square normalisation (Zhang and Sennrich 2019, 1910.07467) of each run of `width` values in the rows of x
/// `[rows, runs · width]`, weight `[width]`: of whole rows, or of each head by itself.
pub(crate) fn rms_norm(tape: &Tape, x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => tape.apply2(rms_norm::RmsNorm { epsilon: epsilon as f32 }, x, weight),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::rms_norm(tape, x, weight, epsilon),
        Place::Elsewhere => composed::rms_norm(x, weight, epsilon),
    }
}

/// The activation of the feed-forward part; any shape.
pub(crate) fn activation(tape: &Tape, x: &Tensor, kind: HiddenAct) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => tape.apply1(Activation::from(kind), x),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::activation(tape, x, kind.into()),
        Place::Elsewhere => composed::activation(x, kind),
    }
}

/// `activation(a) ∘ b` of x `[rows, 2 · width]`, whose rows hold a and then b (Shazeer 2020, 2002.05202); gives
/// `[rows, width]`.
pub(crate) fn gated(tape: &Tape, x: &Tensor, kind: HiddenAct) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => tape.apply1(gated::Gated { activation: kind.into() }, x),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::gated(tape, x, kind.into()),
        Place::Elsewhere => composed::gated(x, kind),
    }
}

/// `silu(gate) ∘ up` (Shazeer 2020, 2002.05202), both `[rows, width]`.
pub(crate) fn swiglu(tape: &Tape, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match Place::of(gate) {
        Place::Processor => tape.apply2(swiglu::SwiGlu, gate, up),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::swiglu(tape, gate, up),
        Place::Elsewhere => composed::swiglu(gate, up),
    }
}

/// Rotary positions (Su et al. 2021, 2104.09864) on x `[tokens, heads · depth]`: in each head, the pair of the values i and
/// i + depth / 2 turns by the token's position in its sequence times the i-th frequency.
pub(crate) fn rotary(tape: &Tape, x: &Tensor, rotation: &Rotation, layout: &Layout) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => tape.apply1(rotary::Rotary { rotation: rotation.clone(), layout: layout.clone() }, x),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::rotary(tape, x, rotation, layout),
        Place::Elsewhere => composed::rotary(x, rotation, layout),
    }
}

/// The mean of each sequence's rows of `[tokens, width]`; gives `[sequences, width]`.
pub(crate) fn mean_rows(tape: &Tape, x: &Tensor, layout: &Layout) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => tape.apply1(rows::MeanRows { layout: layout.clone() }, x),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::mean_rows(tape, x, layout),
        Place::Elsewhere => composed::mean_rows(x, layout),
    }
}

/// The hyperbolic tangent; any shape.
pub(crate) fn tanh(tape: &Tape, x: &Tensor) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => tape.apply1(Activation::Tanh, x),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::activation(tape, x, Activation::Tanh),
        Place::Elsewhere => x.tanh(),
    }
}

/// Some rows of `[rows, width]`.
pub(crate) fn pick_rows(tape: &Tape, x: &Tensor, rows: Vec<u32>) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => tape.apply1(rows::PickRows { rows }, x),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::pick_rows(tape, x, rows),
        Place::Elsewhere => x.index_select(&Tensor::new(rows.as_slice(), x.device())?, 0),
    }
}

/// Adds values `[rows, width]` to some rows of a matrix on the processor, in place.
pub(crate) fn add_rows(matrix: &Tensor, rows: &[u32], values: &Tensor) -> Result<()> {
    read_values(values, |values| matrix.inplace_op1(&rows::AddRows { rows, values }))
}

/// `dropout(x) + shortcut`, both `[rows, width]`.
pub(crate) fn residual(tape: &Tape, x: &Tensor, shortcut: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => tape.apply2(residual::Residual { dropout }, x, shortcut),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::residual(tape, x, shortcut, dropout),
        Place::Elsewhere => composed::dropout(x, dropout)? + shortcut,
    }
}

/// Inverted dropout of `[rows, width]`: kept values are scaled so that the expectation stays.
pub(crate) fn dropout(tape: &Tape, x: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
    let Some(dropout) = dropout else { return Ok(x.clone()) };
    match Place::of(x) {
        Place::Processor => tape.apply1(residual::DropRows { dropout }, x),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::dropout(tape, x, dropout),
        Place::Elsewhere => composed::dropout(x, Some(dropout)),
    }
}

/// Two-dimensional convolution: x `[pixels, in]`, the pixels lying as `grid` says, weight `[out, in, side, side]`, bias
/// `[out]`, where there is one; gives `[places, out]` and how the places lie.
pub(crate) fn convolution(
    tape: &Tape,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    window: Window,
    grid: Grid,
) -> Result<(Tensor, Grid)> {
    let places = window.places(grid)?;
    let out = match Place::of(x) {
        Place::Processor => {
            let op = conv::Convolution { grid, window, biased: bias.is_some(), precision: tape.precision() };
            tape.apply3(op, x, weight, &or_zeros(bias, weight)?)
        }
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::convolution(tape, x, weight, bias, window, grid),
        Place::Elsewhere => composed::convolution(x, weight, bias, window, grid),
    };
    Ok((out?, places))
}

/// Whose mean and variance a batch normalisation goes by.
pub(crate) enum Normalise<'a> {
    /// The batch's own: training.
    Batch,
    /// The running ones, each `[channels]`.
    Running(&'a Tensor, &'a Tensor),
}

/// Batch normalisation (Ioffe and Szegedy 2015, 1502.03167) of each channel, and ReLU behind it where `relu` says so: x
/// `[pixels, channels]`, weight and bias `[channels]`. Also gives the moments of the batch, where it goes by them.
pub(crate) fn batch_norm(
    tape: &Tape,
    x: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    by: Normalise<'_>,
    epsilon: f64,
    relu: bool,
) -> Result<(Tensor, Option<Moments>)> {
    match Place::of(x) {
        Place::Processor => (),
        #[cfg(feature = "cuda")]
        Place::Gpu => return cuda::batch_norm(tape, x, (weight, bias), by, epsilon, relu),
        Place::Elsewhere => return composed::batch_norm(x, (weight, bias), by, epsilon, relu),
    }
    let moments = Arc::new(OnceLock::new());
    let of_batch = matches!(by, Normalise::Batch);
    if let Normalise::Running(mean, variance) = by {
        let fixed = Moments { mean: mean.to_vec1()?, variance: variance.to_vec1()?, count: x.dim(0)? };
        moments.get_or_init(|| fixed);
    }
    let op = batch_norm::BatchNorm { epsilon: epsilon as f32, relu, of_batch, moments: moments.clone() };
    let out = tape.apply3(op, x, weight, bias)?;
    Ok((out, moments.get().filter(|_| of_batch).cloned()))
}

/// The largest value of each channel under the window: x `[pixels, channels]`; gives `[places, channels]` and how the
/// places lie.
pub(crate) fn max_pool(tape: &Tape, x: &Tensor, window: Window, grid: Grid) -> Result<(Tensor, Grid)> {
    let out = match Place::of(x) {
        Place::Processor => tape.apply1(pool::MaxPool::new(grid, window)?, x),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::max_pool(tape, x, window, grid),
        Place::Elsewhere => composed::max_pool(x, window, grid),
    };
    Ok((out?, window.places(grid)?))
}

/// Images as sequences: patches `[images · patches, width]`, before those of each image `first` of width values, and to each
/// place of the sequence its row of `positions`, (patches + 1) · width values, is added; gives `[images · (patches + 1),
/// width]`.
pub(crate) fn sequence(tape: &Tape, x: &Tensor, first: &Tensor, positions: &Tensor, patches: usize) -> Result<Tensor> {
    let op = sequence::Sequence { patches };
    match Place::of(x) {
        Place::Processor => tape.apply3(op, x, first, positions),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::sequence(tape, x, first, positions, &op),
        Place::Elsewhere => composed::sequence(x, first, positions, &op),
    }
}

/// `relu(x + shortcut)`; one shape.
pub(crate) fn residual_relu(tape: &Tape, x: &Tensor, shortcut: &Tensor) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => tape.apply2(residual::ResidualRelu, x, shortcut),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::residual_relu(tape, x, shortcut),
        Place::Elsewhere => (x + shortcut)?.relu(),
    }
}

/// Multi-head scaled dot-product attention inside each sequence (Vaswani et al. 2017, 1706.03762).
///
/// `q` `[query tokens, query heads · depth]` and `k` and `v` `[tokens, key heads · depth]` lie as `scope` says. Rows that belong to no sequence
/// (padding) come out as zero on the processor and as something unspecified elsewhere.
pub(crate) fn attention(
    tape: &Tape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    scope: Scope<'_>,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    match Place::of(q) {
        Place::Processor => {
            let Scope { queries, keys, window, causal } = scope;
            let (queries, keys) = (queries.clone(), keys.clone());
            tape.apply3(attention::Attention { heads, queries, keys, window, causal, dropout }, q, k, v)
        }
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::attention(tape, q, k, v, heads, scope, dropout),
        Place::Elsewhere => composed::attention(q, k, v, heads, scope, dropout),
    }
}

/// Which tokens attend to which.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    /// How the queries lie. The i-th of a sequence is at the place of its i-th key.
    pub(crate) queries: &'a Layout,
    /// How keys and values lie.
    pub(crate) keys: &'a Layout,
    /// The largest distance between a query and a key that it sees; `None`: it sees all of its sequence.
    pub(crate) window: Option<usize>,
    /// Whether a query sees no key behind its own place.
    pub(crate) causal: bool,
}

/// Heads of queries, and those of keys and values that groups of as many of them share (Ainslie et al. 2023, 2305.13245).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    /// Of the queries.
    pub(crate) queries: usize,
    /// Of keys and values; divides that of the queries.
    pub(crate) keys: usize,
}

impl Heads {
    /// As many heads of keys and values as of queries.
    pub(crate) fn equal(heads: usize) -> Self {
        Self { queries: heads, keys: heads }
    }

    /// Whether rows of these widths can be cut into the heads.
    fn fit(self, query_width: usize, key_width: usize) -> bool {
        let Self { queries, keys } = self;
        keys > 0
            && queries > 0
            && queries.is_multiple_of(keys)
            && query_width.is_multiple_of(queries)
            && key_width.is_multiple_of(keys)
            && query_width / queries == key_width / keys
    }
}

/// Sum of word, position and token-type embeddings: tables `[entries, width]`, one index into each for every token.
pub(crate) fn embed(
    tape: &Tape,
    words: &Tensor,
    positions: &Tensor,
    types: &Tensor,
    indices: embed::Indices,
) -> Result<Tensor> {
    match Place::of(words) {
        Place::Processor => tape.apply3(embed::Embed { indices }, words, positions, types),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::embed(tape, words, positions, types, indices),
        Place::Elsewhere => composed::embed(words, positions, types, &indices),
    }
}

/// The loss of `logits` `[rows, labels]` against the label indices; a scalar.
pub(crate) fn cross_entropy(tape: &Tape, logits: &Tensor, labels: &[u32], loss: &Loss) -> Result<Tensor> {
    match Place::of(logits) {
        Place::Processor => {
            tape.apply1(cross_entropy::CrossEntropy { labels: labels.to_vec(), loss: loss.clone() }, logits)
        }
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::cross_entropy(tape, logits, labels, loss),
        Place::Elsewhere => composed::cross_entropy(logits, labels, loss),
    }
}

/// `torch.nn.BCEWithLogitsLoss` with another divisor: the sum over the logits `[rows, labels]` of −log σ(x) for the labels in
/// a row's set and −log(1 − σ(x)) for the others, over `divisor`; a scalar.
pub(crate) fn binary_cross_entropy(tape: &Tape, logits: &Tensor, sets: &[Vec<u32>], divisor: f64) -> Result<Tensor> {
    let hot = binary_cross_entropy::hot(sets, logits.dims2()?)?;
    match Place::of(logits) {
        Place::Processor => tape.apply1(binary_cross_entropy::BinaryCrossEntropy { hot, divisor }, logits),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::binary_cross_entropy(tape, logits, hot, divisor),
        Place::Elsewhere => composed::binary_cross_entropy(logits, hot, divisor),
    }
}

/// The sum of the squared differences between `outputs` `[rows, 1]` and the values, over `divisor`; a scalar.
pub(crate) fn squared_error(tape: &Tape, outputs: &Tensor, values: &[f32], divisor: f64) -> Result<Tensor> {
    if outputs.dims2()? != (values.len(), 1) {
        bail!("squared error: outputs {:?} do not fit {} values", outputs.shape(), values.len());
    }
    match Place::of(outputs) {
        Place::Processor => tape.apply1(squared_error::SquaredError { values: values.to_vec(), divisor }, outputs),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::squared_error(tape, outputs, values, divisor),
        Place::Elsewhere => composed::squared_error(outputs, values, divisor),
    }
}

/// The loss of the scores `x weightᵀ` against the label indices; a scalar. x `[rows, hidden]`, weight `[words, hidden]`. Neither
/// processor nor GPU has the scores of all rows in memory.
pub(crate) fn words_loss(tape: &Tape, x: &Tensor, weight: &Tensor, labels: &[u32], loss: &Loss) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => {
            let (labels, loss, precision) = (labels.to_vec(), loss.clone(), tape.precision());
            tape.apply2(words_loss::WordsLoss { labels, loss, precision }, x, weight)
        }
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::words_loss(tape, x, weight, labels, loss),
        Place::Elsewhere => composed::cross_entropy(&composed::linear(x, weight, None)?, labels, loss),
    }
}

/// The sum of two gradients of one tensor; a new one, as either may be shared.
pub(crate) fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    match Place::of(x) {
        Place::Processor => tape::sum(x, y),
        #[cfg(feature = "cuda")]
        Place::Gpu => cuda::sum(x, y),
        Place::Elsewhere => x + y,
    }
}
