//! The operations on NVIDIA GPUs, by kernels of our own (`client/kernels`) and products by cuBLAS. Each computes its result
//! at once and leaves a [`node`] on the tape, which has what its gradient needs. What has no kernel runs as a function of
//! candle's ops, whose graph the backward pass makes again.
//!
//! Sums are formed in a fixed order, without atomics: the same input gives the same bits on one kind of GPU.

use candle_core::{Result, Tensor};

use super::{Tape, composed};

mod attention;
mod dense;
mod image;
mod launch;
mod loss;
mod node;
mod norm;
mod optimizer;
mod pointwise;
mod rows;

pub(super) use attention::attention;
pub(super) use dense::{add_low_rank, linear};
pub(super) use image::{batch_norm, convolution, max_pool};
pub(crate) use launch::open;
pub(super) use loss::{cross_entropy, words_loss};
pub(super) use norm::{layer_norm, rms_norm};
pub(crate) use optimizer::{Step, square_sum, update};
pub(super) use pointwise::{activation, dropout, gated, residual, residual_relu, sum, swiglu};
pub(super) use rows::{embed, mean_rows, pick_rows, rotary, sequence};

pub(super) fn binary_cross_entropy(tape: &Tape, logits: &Tensor, hot: Vec<f32>, divisor: f64) -> Result<Tensor> {
    node::composed(tape, "binary-cross-entropy", &[logits], move |t| {
        composed::binary_cross_entropy(&t[0], hot.clone(), divisor)
    })
}

pub(super) fn squared_error(tape: &Tape, outputs: &Tensor, values: &[f32], divisor: f64) -> Result<Tensor> {
    let values = values.to_vec();
    node::composed(tape, "squared-error", &[outputs], move |t| composed::squared_error(&t[0], &values, divisor))
}
