//! The differentiable operations under the model. Each has two forms with the same meaning: a fused one for the
//! processor, with an analytic backward and all cores, and a composed one of candle's own differentiable ops, for every
//! other device and as the reference in the tests. The device decides here, and nowhere else.
//!
//! Activations are matrices `[tokens, width]`: all sequences of a batch below each other (see
//! [`super::batch::Layout`]), so weights are never broadcast.

use candle_core::{Result, Tensor};
use candle_transformers::models::bert::HiddenAct;

use super::batch::Layout;
use activation::Activation;

mod activation;
mod attention;
mod composed;
mod cross_entropy;
pub(crate) mod dropout;
mod embed;
mod gemm;
mod linear;
mod low_rank;
mod norm;
mod residual;
mod rows;
mod simd;
mod tape;
mod values;

#[cfg(test)]
mod tests;

pub use cross_entropy::Loss;
pub(crate) use cross_entropy::row_loss;
pub(crate) use dropout::Dropout;
pub(crate) use embed::Indices;
pub(crate) use simd::vectorised;
pub(crate) use tape::{Gradients, Tape};
pub(crate) use values::read as read_values;

/// `x wᵀ + b`: x `[rows, in]`, w `[out, in]`, b `[out]`; gives `[rows, out]`.
pub(crate) fn linear(tape: &Tape, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        tape.apply3(linear::Linear { precision: tape.precision() }, x, weight, bias)
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
    let low = linear(tape, x, down, &Tensor::zeros(down.dim(0)?, x.dtype(), x.device())?)?;
    if x.device().is_cpu() {
        let op = low_rank::LowRank { scale: scale as f32, precision: tape.precision() };
        tape.apply3(op, base, &low, up)
    } else {
        base + (low.matmul(&up.t()?)? * scale)?
    }
}

/// Layer normalisation over the last dimension (Ba, Kiros and Hinton 2016, 1607.06450): x `[rows, width]`, weight and
/// bias `[width]`.
pub(crate) fn layer_norm(tape: &Tape, x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        tape.apply3(norm::LayerNorm { epsilon: epsilon as f32 }, x, weight, bias)
    } else {
        composed::layer_norm(x, weight, bias, epsilon)
    }
}

/// The activation of the feed-forward part; any shape.
pub(crate) fn activation(tape: &Tape, x: &Tensor, kind: HiddenAct) -> Result<Tensor> {
    let fused = match kind {
        HiddenAct::Gelu => Activation::Gelu,
        HiddenAct::GeluApproximate => Activation::GeluTanh,
        HiddenAct::Relu => Activation::Relu,
    };
    if x.device().is_cpu() { tape.apply1(fused, x) } else { composed::activation(x, kind) }
}

/// The hyperbolic tangent; any shape.
pub(crate) fn tanh(tape: &Tape, x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { tape.apply1(Activation::Tanh, x) } else { x.tanh() }
}

/// Some rows of `[rows, width]`, each at most once.
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
/// `q` `[query tokens, width]` lies as `queries` says; `k` and `v` `[tokens, width]` lie as `keys` says. Rows that
/// belong to no sequence (padding) come out as zero on the processor and as something unspecified elsewhere.
pub(crate) fn attention(
    tape: &Tape,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    (queries, keys): (&Layout, &Layout),
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    if q.device().is_cpu() {
        let op = attention::Attention { heads, queries: queries.clone(), keys: keys.clone(), dropout };
        tape.apply3(op, q, k, v)
    } else {
        composed::attention(q, k, v, heads, (queries, keys), dropout)
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

/// The sum of two gradients of one tensor; a new one, as either may be shared.
pub(crate) fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { tape::sum(x, y) } else { x + y }
}
