//! An output layer over a vocabulary and its cross-entropy as one op. Scores are computed for some rows at a time, and again
//! in the backward pass, so that memory does not grow with rows times words.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use fedtune_config::job::Precision;
use rayon::prelude::*;

use super::cross_entropy::Loss;
use super::gemm::{Cores, Matrix, Onto, multiply};
use super::values::{read, slice};

/// Rows whose scores are in memory at once; fixed, so that the sums over them are.
const ROWS: usize = 256;

/// The loss of `x weightᵀ`: x `[rows, hidden]`, weight `[words, hidden]`.
pub(super) struct WordsLoss {
    pub(super) labels: Vec<u32>,
    pub(super) loss: Loss,
    pub(super) precision: Precision,
}

/// The extents of the operands.
#[derive(Clone, Copy)]
struct Extents {
    rows: usize,
    hidden: usize,
    words: usize,
}

impl WordsLoss {
    fn check(&self, x: &Shape, weight: &Shape) -> Result<Extents> {
        let ((rows, hidden), (words, weight_hidden)) = (x.dims2()?, weight.dims2()?);
        if hidden != weight_hidden || hidden == 0 {
            bail!("words loss: x is [{rows}, {hidden}], weight [{words}, {weight_hidden}]");
        }
        self.loss.check((rows, words), &self.labels)?;
        Ok(Extents { rows, hidden, words })
    }

    /// The scores of some rows of x, into `scores`.
    fn scores(&self, scores: &mut Vec<f32>, x: &[f32], weight: &[f32], Extents { hidden, words, .. }: Extents) {
        let rows = x.len() / hidden;
        scores.resize(rows * words, 0.0);
        let (x, weight) = (Matrix::new(x, rows, hidden, hidden), Matrix::new(weight, words, hidden, hidden));
        multiply(scores, words, x, weight.transposed(), 1.0, Onto::Nothing, Cores::All(self.precision));
    }
}

impl CustomOp2 for WordsLoss {
    fn name(&self) -> &'static str {
        "words-loss"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let extents = self.check(x_layout.shape(), weight_layout.shape())?;
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let (mut scores, mut values) = (Vec::new(), Vec::with_capacity(extents.rows));
        for (x, labels) in x.chunks(ROWS * extents.hidden).zip(self.labels.chunks(ROWS)) {
            self.scores(&mut scores, x, weight, extents);
            let rows = scores.par_chunks_exact(extents.words).zip(labels);
            values.par_extend(rows.map(|(row, label)| self.loss.row_value(row, *label as usize)));
        }
        // Added up in the order of the rows, however many threads there are.
        let sum: f64 = values.iter().sum();
        Ok((CpuStorage::F32(vec![(sum / self.loss.divisor(&self.labels)) as f32]), Shape::from(())))
    }

    /// With G the gradient of the scores: dx = G weight, d weight = Gᵀ x.
    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let extents = self.check(x.shape(), weight.shape())?;
        let Extents { hidden, words, .. } = extents;
        let factor = f64::from(grad.to_scalar::<f32>()?) / self.loss.divisor(&self.labels);
        let cores = Cores::All(self.precision);
        let mut dx = x.track_op().then(|| vec![0.0; x.elem_count()]);
        let mut d_weight = weight.track_op().then(|| vec![0.0; weight.elem_count()]);
        read(x, |x| {
            read(weight, |weight| {
                let mut scores = Vec::new();
                for (number, (x, labels)) in x.chunks(ROWS * hidden).zip(self.labels.chunks(ROWS)).enumerate() {
                    self.scores(&mut scores, x, weight, extents);
                    scores.par_chunks_exact_mut(words).zip(labels).for_each_init(Vec::new, |row, (scores, label)| {
                        row.clear();
                        row.extend_from_slice(scores);
                        self.loss.row_gradient(row, *label as usize, factor, scores);
                    });
                    let gradient = Matrix::new(&scores, labels.len(), words, words);
                    if let Some(dx) = &mut dx {
                        let (target, weight) =
                            (&mut dx[number * ROWS * hidden..], Matrix::new(weight, words, hidden, hidden));
                        multiply(target, hidden, gradient, weight, 1.0, Onto::Nothing, cores);
                    }
                    if let Some(d_weight) = &mut d_weight {
                        let x = Matrix::new(x, labels.len(), hidden, hidden);
                        multiply(d_weight, hidden, gradient.transposed(), x, 1.0, Onto::Present, cores);
                    }
                }
                Ok(())
            })
        })?;
        let tensor = |like: &Tensor, values: Option<Vec<f32>>| {
            values.map(|values| Tensor::from_vec(values, like.shape(), like.device())).transpose()
        };
        Ok((tensor(x, dx)?, tensor(weight, d_weight)?))
    }
}
