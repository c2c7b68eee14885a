//! Cross-entropy on logits and what may be added to it. Rows as long as a vocabulary are exponentiated in single precision
//! where the loss is a plain one; all else is in double precision inside.

use std::borrow::Cow;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::simd::{exp, largest, sum_of, vectorised};
use super::values::{read, slice};

/// The loss of a batch of logits. With `p` the softmax of the logits plus `offset`, `K` labels, `w` the weights, ε the
/// smoothing and γ the focal exponent, a row of label `y` has
/// `Σ_c ((1 − ε)·w_y·[c = y] + ε/K·w_c) · (1 − p_c)^γ · −log p_c`, and the sum over the rows is divided by the sum of their
/// `w_y`. For γ = 0 that is `torch.nn.CrossEntropyLoss(weight=w, label_smoothing=ε)`; for ε = 0 the focal loss of Lin et
/// al. 2017, 1708.02002, eq. 5, with α = w. The default is the plain mean.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loss {
    /// Added to each row of logits first, one for each label; empty for nothing.
    pub offset: Vec<f32>,
    /// The weight of each label, 0 for one that no row has; empty for 1.
    pub class_weights: Vec<f64>,
    /// Share of the target spread over all labels, from 0 to 1.
    pub label_smoothing: f64,
    /// Exponent of the focal loss, at least 0.
    pub focal_gamma: f64,
    /// What the sum over the rows is divided by, where it is not the sum of their own weights: a part of a larger batch is
    /// divided by the weight of the whole, so that losses and gradients of the parts add up.
    pub divisor: Option<f64>,
}

impl Loss {
    /// The sum of the rows' weights.
    pub fn weight(&self, labels: &[u32]) -> f64 {
        labels.iter().map(|label| self.class_weight(*label as usize)).sum()
    }

    /// How much each `(1 − p_c)^γ · −log p_c` counts in a row of this label.
    pub(super) fn target(&self, label: usize, labels: usize) -> Vec<f64> {
        let spread = self.label_smoothing / labels as f64;
        let mut target: Vec<f64> = (0..labels).map(|class| spread * self.class_weight(class)).collect();
        target[label] += (1.0 - self.label_smoothing) * self.class_weight(label);
        target
    }

    pub(super) fn divisor(&self, labels: &[u32]) -> f64 {
        self.divisor.unwrap_or_else(|| self.weight(labels))
    }

    /// Fails unless every part fits `[rows, width]` logits.
    pub(super) fn check(&self, (rows, width): (usize, usize), labels: &[u32]) -> Result<()> {
        if rows != labels.len() || rows == 0 || labels.iter().any(|label| *label as usize >= width) {
            bail!("cross-entropy: logits [{rows}, {width}] do not fit {} labels", labels.len());
        }
        for (what, found) in [("offsets", self.offset.len()), ("weights", self.class_weights.len())] {
            if found != 0 && found != width {
                bail!("cross-entropy: {found} {what} for {width} labels");
            }
        }
        Ok(())
    }

    fn class_weight(&self, label: usize) -> f64 {
        self.class_weights.get(label).copied().unwrap_or(1.0)
    }

    fn shifted<'a>(&self, row: &'a [f32]) -> Cow<'a, [f32]> {
        if self.offset.is_empty() {
            return Cow::Borrowed(row);
        }
        row.iter().zip(&self.offset).map(|(logit, offset)| logit + offset).collect()
    }

    /// What a row of this label adds to the sum.
    pub(super) fn row_value(&self, row: &[f32], label: usize) -> f64 {
        let row = self.shifted(row);
        let total = log_sum_exp(&row);
        if self.is_plain() {
            return self.class_weight(label) * (total - f64::from(row[label]));
        }
        let target = self.target(label, row.len());
        let terms = row.iter().zip(target).filter(|(_, target)| *target != 0.0);
        terms.map(|(x, target)| target * self.focal(total - f64::from(*x))).sum()
    }

    /// `factor` times the gradient of [`Self::row_value`] by the row, into `out`. With t the target and f' the slope of each
    /// term, it is t_j·f'_j − p_j·Σ_c t_c·f'_c.
    pub(super) fn row_gradient(&self, row: &[f32], label: usize, factor: f64, out: &mut [f32]) {
        let row = self.shifted(row);
        if self.is_plain() && row.len() > NARROW {
            let (top, sum) = exponentials(&row);
            let factor = factor * self.class_weight(label);
            let share = (factor / sum) as f32;
            vectorised(|| {
                for (out, x) in out.iter_mut().zip(row.iter()) {
                    *out = share * exp(x - top);
                }
            });
            out[label] = (f64::from(out[label]) - factor) as f32;
            return;
        }
        let total = log_sum_exp(&row);
        let mut terms = self.target(label, row.len());
        for (term, x) in terms.iter_mut().zip(row.iter()).filter(|(term, _)| **term != 0.0) {
            *term *= self.focal_slope(total - f64::from(*x));
        }
        let sum: f64 = terms.iter().sum();
        for ((out, x), term) in out.iter_mut().zip(row.iter()).zip(&terms) {
            *out = ((term - (f64::from(*x) - total).exp() * sum) * factor) as f32;
        }
    }

    /// Whether a row's own label is all of its target.
    fn is_plain(&self) -> bool {
        self.label_smoothing == 0.0 && self.focal_gamma == 0.0
    }

    /// `(1 − p)^γ · −log p` of a `−log p`.
    fn focal(&self, surprise: f64) -> f64 {
        if self.focal_gamma == 0.0 { surprise } else { (-(-surprise).exp_m1()).powf(self.focal_gamma) * surprise }
    }

    /// The derivative of [`Self::focal`] by `log p`: `γ·(1 − p)^(γ − 1)·p·log p − (1 − p)^γ`.
    fn focal_slope(&self, surprise: f64) -> f64 {
        if self.focal_gamma == 0.0 {
            return -1.0;
        }
        let rest = -(-surprise).exp_m1();
        // log p / (1 − p) goes to −1 where p goes to 1.
        let ratio = if rest == 0.0 { -1.0 } else { -surprise / rest };
        rest.powf(self.focal_gamma) * (self.focal_gamma * (-surprise).exp() * ratio - 1.0)
    }
}

pub(super) struct CrossEntropy {
    pub(super) labels: Vec<u32>,
    pub(super) loss: Loss,
}

/// The most values of a row for which double precision costs nothing that matters.
const NARROW: usize = 1024;

/// Values whose exponentials are added up in single precision.
const PART: usize = 4096;

/// The largest value m of a row, and Σ exp(x − m).
fn exponentials(row: &[f32]) -> (f32, f64) {
    vectorised(|| {
        let top = largest(row);
        (top, row.chunks(PART).map(|part| f64::from(sum_of(part, |x| exp(x - top)))).sum())
    })
}

/// log Σ exp of a row.
fn log_sum_exp(row: &[f32]) -> f64 {
    if row.len() > NARROW {
        let (top, sum) = exponentials(row);
        return f64::from(top) + sum.ln();
    }
    let largest = row.iter().fold(f64::NEG_INFINITY, |a, b| a.max(f64::from(*b)));
    largest + row.iter().map(|x| (f64::from(*x) - largest).exp()).sum::<f64>().ln()
}

/// −log softmax(row) at `label`.
pub(crate) fn row_loss(row: &[f32], label: usize) -> f64 {
    log_sum_exp(row) - f64::from(row[label])
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        self.loss.check((rows, width), &self.labels)?;
        let logits = slice(logits, layout)?;
        // Added up in the order of the rows, however many threads there are.
        let values: Vec<f64> = logits
            .par_chunks_exact(width)
            .zip(&self.labels)
            .map(|(row, label)| self.loss.row_value(row, *label as usize))
            .collect();
        let sum: f64 = values.iter().sum();
        Ok((CpuStorage::F32(vec![(sum / self.loss.divisor(&self.labels)) as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, width) = logits.dims2()?;
        let factor = f64::from(grad.to_scalar::<f32>()?) / self.loss.divisor(&self.labels);
        let mut gradient = vec![0.0; rows * width];
        read(logits, |logits| {
            let rows = gradient.par_chunks_exact_mut(width).zip(logits.par_chunks_exact(width)).zip(&self.labels);
            rows.for_each(|((out, row), label)| self.loss.row_gradient(row, *label as usize, factor, out));
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(gradient, (rows, width), logits.device())?))
    }
}
