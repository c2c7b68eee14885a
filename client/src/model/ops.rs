//! The differentiable operations under the model. Each has two forms with the same meaning: a fused one for the
//! processor, with an analytic backward and all cores, and a composed one of candle's own differentiable ops, for every
//! other device and as the reference in the tests. The device decides here, and nowhere else.
//!
//! Activations are matrices `[tokens, width]`: all sequences of a batch below each other (see
//! [`super::batch::Layout`]), so weights are never broadcast.

use candle_core::{Result, Tensor, bail};
use candle_transformers::models::bert::HiddenAct;

use super::batch::Layout;
use activation::Activation;

mod activation;
mod attention;
mod binary_cross_entropy;
mod composed;
mod cross_entropy;
pub(crate) mod dropout;
mod embed;
mod gated;
mod gemm;
mod linear;
mod low_rank;
mod norm;
mod residual;
mod rotary;
mod rows;
mod simd;
mod squared_error;
mod tape;
mod values;

#[cfg(test)]
mod tests;

pub use cross_entropy::Loss;
pub(crate) use cross_entropy::row_loss;
pub(crate) use dropout::Dropout;
pub(crate) use embed::Indices;
pub(crate) use rotary::Rotation;
pub(crate) use simd::vectorised;
pub(crate) use tape::{Gradients, Tape};
pub(crate) use values::read as read_values;

/// `x wᵀ + b`: x `[rows, in]`, w `[out, in]`, b `[out]`, where there is one; gives `[rows, out]`.
pub(crate) fn linear(tape: &Tape, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if x.device().is_cpu() {
        let bias = or_zeros(bias, weight)?;
        tape.apply3(linear::Linear { precision: tape.precision() }, x, weight, &bias)
    } else {
        composed::linear(x, weight, bias)
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
    if x.device().is_cpu() {
        let op = low_rank::LowRank { scale: scale as f32, precision: tape.precision() };
        tape.apply3(op, base, &low, up)
    } else {
        base + (low.matmul(&up.t()?)? * scale)?
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
    if x.device().is_cpu() {
        tape.apply3(norm::LayerNorm { epsilon: epsilon as f32 }, x, weight, &or_zeros(bias, weight)?)
    } else {
        composed::layer_norm(x, weight, bias, epsilon)
    }
}

/// The activation of the feed-forward part; any shape.
pub(crate) fn activation(tape: &Tape, x: &Tensor, kind: HiddenAct) -> Result<Tensor> {
    if x.device().is_cpu() { tape.apply1(Activation::from(kind), x) } else { composed::activation(x, kind) }
}

/// `activation(a) ∘ b` of x `[rows, 2 · width]`, whose rows hold a and then b (Shazeer 2020, 2002.05202); gives
/// `[rows, width]`.
pub(crate) fn gated(tape: &Tape, x: &Tensor, kind: HiddenAct) -> Result<Tensor> {
    if x.device().is_cpu() {
        tape.apply1(gated::Gated { activation: kind.into() }, x)
    } else {
        composed::gated(x, kind)
    }
}

/// Rotary positions (Su et al. 2021, 2104.09864) on x `[tokens, heads · depth]`: in each head, the pair of the values i and
/// i + depth / 2 turns by the token's position in its sequence times the i-th frequency.
pub(crate) fn rotary(tape: &Tape, x: &Tensor, rotation: &Rotation, layout: &Layout) -> Result<Tensor> {
    if x.device().is_cpu() {
        tape.apply1(rotary::Rotary { rotation: rotation.clone(), layout: layout.clone() }, x)
    } else {
        composed::rotary(x, rotation, layout)
    }
}

/// The mean of each sequence's rows of `[tokens, width]`; gives `[sequences, width]`.
pub(crate) fn mean_rows(tape: &Tape, x: &Tensor, layout: &Layout) -> Result<Tensor> {
    if x.device().is_cpu() {
        tape.apply1(rows::MeanRows { layout: layout.clone() }, x)
    } else {
        composed::mean_rows(x, layout)
    }
}

/// The hyperbolic tangent; any shape.
pub(crate) fn tanh(tape: &Tape, x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { tape.apply1(Activation::Tanh, x) } else { x.tanh() }
}

/// Some rows of `[rows, width]`.
pub(crate) fn pick_rows(tape: &Tape, x: &Tensor, rows: Vec<u32>) -> Result<Tensor> {
    if x.device().is_cpu() {
        tape.apply1(rows::PickRows { rows }, x)
    } else {
        x.index_select(&Tensor::new(rows.as_slice(), x.device())?, 0)
    }
}

/// `dropout(x) + shortcut`, both `[rows, width]`.
pub(crate) fn residual(tape: &Tape, x: &Tensor, shortcut: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
    if x.device().is_cpu() {
        tape.apply2(residual::Residual { dropout }, x, shortcut)
    } else {
        composed::dropout(x, dropout)? + shortcut
    }
}

/// Inverted dropout of `[rows, width]`: kept values are scaled so that the expectation stays.
pub(crate) fn dropout(tape: &Tape, x: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
    match dropout {
        None => Ok(x.clone()),
        Some(dropout) if x.device().is_cpu() => tape.apply1(residual::DropRows { dropout }, x),
        Some(_) => composed::dropout(x, dropout),
    }
}

/// Multi-head scaled dot-product attention inside each sequence (Vaswani et al. 2017, 1706.03762).
///
/// `q` `[query tokens, width]` and `k` and `v` `[tokens, width]` lie as `scope` says. Rows that belong to no sequence
/// (padding) come out as zero on the processor and as something unspecified elsewhere.
pub(crate) fn attention(
    tape: &Tape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    scope: Scope<'_>,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    if q.device().is_cpu() {
        let Scope { queries, keys, window } = scope;
        let op = attention::Attention { heads, queries: queries.clone(), keys: keys.clone(), window, dropout };
        tape.apply3(op, q, k, v)
    } else {
        composed::attention(q, k, v, heads, scope, dropout)
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
}

/// Sum of word, position and token-type embeddings: tables `[entries, width]`, one index into each for every token.
pub(crate) fn embed(
    tape: &Tape,
    words: &Tensor,
    positions: &Tensor,
    types: &Tensor,
    indices: embed::Indices,
) -> Result<Tensor> {
    if words.device().is_cpu() {
        tape.apply3(embed::Embed { indices }, words, positions, types)
    } else {
        composed::embed(words, positions, types, &indices)
    }
}

/// The loss of `logits` `[rows, labels]` against the label indices; a scalar.
pub(crate) fn cross_entropy(tape: &Tape, logits: &Tensor, labels: &[u32], loss: &Loss) -> Result<Tensor> {
    if logits.device().is_cpu() {
        tape.apply1(cross_entropy::CrossEntropy { labels: labels.to_vec(), loss: loss.clone() }, logits)
    } else {
        composed::cross_entropy(logits, labels, loss)
    }
}

/// `torch.nn.BCEWithLogitsLoss` with another divisor: the sum over the logits `[rows, labels]` of −log σ(x) for the labels in
/// a row's set and −log(1 − σ(x)) for the others, over `divisor`; a scalar.
pub(crate) fn binary_cross_entropy(tape: &Tape, logits: &Tensor, sets: &[Vec<u32>], divisor: f64) -> Result<Tensor> {
    let hot = binary_cross_entropy::hot(sets, logits.dims2()?)?;
    if logits.device().is_cpu() {
        tape.apply1(binary_cross_entropy::BinaryCrossEntropy { hot, divisor }, logits)
    } else {
        composed::binary_cross_entropy(logits, hot, divisor)
    }
}

/// The sum of the squared differences between `outputs` `[rows, 1]` and the values, over `divisor`; a scalar.
pub(crate) fn squared_error(tape: &Tape, outputs: &Tensor, values: &[f32], divisor: f64) -> Result<Tensor> {
    if outputs.dims2()? != (values.len(), 1) {
        bail!("squared error: outputs {:?} do not fit {} values", outputs.shape(), values.len());
    }
    if outputs.device().is_cpu() {
        tape.apply1(squared_error::SquaredError { values: values.to_vec(), divisor }, outputs)
    } else {
        composed::squared_error(outputs, values, divisor)
    }
}

/// The sum of two gradients of one tensor; a new one, as either may be shared.
pub(crate) fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { tape::sum(x, y) } else { x + y }
}
