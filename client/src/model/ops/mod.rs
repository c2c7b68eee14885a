//! The differentiable operations under the model. Each has two forms with the same meaning: a fused one for the
//! processor, with an analytic backward and all cores, and a composed one of candle's own differentiable ops, for every
//! other device and as the reference in the tests. The device decides here, and nowhere else.
//!
//! Activations are matrices `[tokens, width]`: all sequences of a batch below each other (see
//! [`super::batch::Layout`]), so weights are never broadcast.

use candle_core::{Result, Tensor};
use candle_transformers::models::bert::HiddenAct;

use super::batch::Layout;

mod attention;
mod composed;
mod cross_entropy;
pub(crate) mod dropout;
mod embed;
mod gelu;
mod gemm;
mod linear;
mod norm;
mod residual;
mod simd;
mod values;

#[cfg(test)]
mod tests;

pub(crate) use dropout::Dropout;
pub(crate) use values::read as read_values;

pub(crate) use simd::vectorised;

/// `x wᵀ + b`: x `[rows, in]`, w `[out, in]`, b `[out]`; gives `[rows, out]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.apply_op3(weight, bias, linear::Linear) } else { composed::linear(x, weight, bias) }
}

/// Layer normalisation over the last dimension (Ba, Kiros and Hinton 2016, 1607.06450): x `[rows, width]`, weight and
/// bias `[width]`.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op3(weight, bias, norm::LayerNorm { epsilon: epsilon as f32 })
    } else {
        composed::layer_norm(x, weight, bias, epsilon)
    }
}

/// The activation of the feed-forward part; any shape.
pub(crate) fn activation(x: &Tensor, kind: HiddenAct) -> Result<Tensor> {
    match kind {
        HiddenAct::Gelu if x.device().is_cpu() => x.apply_op1(gelu::Gelu),
        HiddenAct::Gelu => x.gelu_erf(),
        HiddenAct::GeluApproximate => x.gelu(),
        HiddenAct::Relu => x.relu(),
    }
}

/// `dropout(x) + shortcut`, both `[rows, width]`.
pub(crate) fn residual(x: &Tensor, shortcut: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op2(shortcut, residual::Residual { dropout })
    } else {
        composed::dropout(x, dropout)? + shortcut
    }
}

/// Inverted dropout of `[rows, width]`: kept values are scaled so that the expectation stays.
pub(crate) fn dropout(x: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
    match dropout {
        None => Ok(x.clone()),
        Some(dropout) if x.device().is_cpu() => x.apply_op1(residual::DropRows { dropout }),
        Some(_) => composed::dropout(x, dropout),
    }
}

/// Multi-head scaled dot-product attention inside each sequence (Vaswani et al. 2017, 1706.03762).
///
/// `q` `[query tokens, width]` lies as `queries` says; `k` and `v` `[tokens, width]` lie as `keys` says. Rows that
/// belong to no sequence (padding) come out as zero on the processor and as something unspecified elsewhere.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    (queries, keys): (&Layout, &Layout),
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    if q.device().is_cpu() {
        let op = attention::Attention { heads, queries: queries.clone(), keys: keys.clone(), dropout };
        q.apply_op3(k, v, op)
    } else {
        composed::attention(q, k, v, heads, (queries, keys), dropout)
    }
}

/// Sum of word, position and token-type embeddings: tables `[entries, width]`, one index into each for every token.
pub(crate) fn embed(words: &Tensor, positions: &Tensor, types: &Tensor, indices: embed::Indices) -> Result<Tensor> {
    if words.device().is_cpu() {
        words.apply_op3(positions, types, embed::Embed { indices })
    } else {
        composed::embed(words, positions, types, &indices)
    }
}

pub(crate) use cross_entropy::row_loss;
pub(crate) use embed::Indices;

/// Mean cross-entropy of `logits` `[rows, labels]` against the label indices; a scalar.
pub(crate) fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    if logits.device().is_cpu() {
        logits.apply_op1(cross_entropy::CrossEntropy { labels: labels.to_vec() })
    } else {
        composed::cross_entropy(logits, labels)
    }
}
