//! Scaled dot-product attention as one op. The backward pass computes the probabilities again, which is as fast as
//! reading them back and keeps `heads × length²` values for every sequence out of memory.

use candle_core::{CpuStorage, CustomOp3, Layout as Strides, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::dropout::Dropout;
use super::gemm::{Cores, Matrix, Onto, multiply};
use super::simd::{dot, exp, largest, sum_of, vectorised};
use super::values::{read, slice};
use crate::model::batch::Layout;

pub(super) struct Attention {
    pub(super) heads: usize,
    pub(super) queries: Layout,
    pub(super) keys: Layout,
    pub(super) dropout: Option<Dropout>,
}

/// One sequence's rows of the three inputs.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

/// One sequence's rows of the three gradients.
struct Gradients<'a> {
    q: &'a mut [f32],
    k: &'a mut [f32],
    v: &'a mut [f32],
}

impl Attention {
    fn check(&self, q: &Shape, k: &Shape, v: &Shape) -> Result<usize> {
        let width = q.dims2()?.1;
        let fits = self.heads > 0
            && width.is_multiple_of(self.heads)
            && q.dims2()?.0 == self.queries.rows()
            && k.dims2()? == (self.keys.rows(), width)
            && v.dims2()? == (self.keys.rows(), width)
            && self.queries.sequences() == self.keys.sequences();
        if !fits {
            bail!("attention: q {q:?}, k {k:?}, v {v:?} do not fit {} heads and the batch", self.heads);
        }
        Ok(width)
    }

    fn inputs<'a>(&self, (q, k, v): (&'a [f32], &'a [f32], &'a [f32]), sequence: usize, width: usize) -> Inputs<'a> {
        let (queries, keys) = (self.queries.span(sequence), self.keys.span(sequence));
        let rows = |values: &'a [f32], span: std::ops::Range<usize>| &values[span.start * width..span.end * width];
        Inputs { q: rows(q, queries), k: rows(k, keys.clone()), v: rows(v, keys) }
    }

    /// softmax(scale · q kᵀ) of one head, `[queries, keys]`, into `probabilities`.
    fn probabilities(&self, probabilities: &mut [f32], inputs: Inputs<'_>, head: Head) {
        let Head { width, depth, first, queries, keys } = head;
        multiply(
            probabilities,
            keys,
            Matrix::new(&inputs.q[first..], queries, depth, width),
            Matrix::new(&inputs.k[first..], keys, depth, width).transposed(),
            head.scale(),
            Onto::Nothing,
            Cores::One,
        );
        vectorised(|| {
            for row in probabilities.chunks_exact_mut(keys) {
                let top = largest(row);
                for x in row.iter_mut() {
                    *x = exp(*x - top);
                }
                let share = 1.0 / sum_of(row, |x| x);
                for x in row.iter_mut() {
                    *x *= share;
                }
            }
        });
    }

    /// The dropout mask of one head, if any.
    fn mask<'a>(&self, buffer: &'a mut [f32], sequence: usize, index: usize, head: Head) -> Option<&'a [f32]> {
        let dropout = self.dropout?;
        let first = (sequence * self.heads + index) * self.queries.width();
        vectorised(|| {
            for (i, row) in buffer.chunks_exact_mut(head.keys).enumerate() {
                dropout.fill(first + i, self.keys.width(), row);
            }
        });
        Some(buffer)
    }

    fn head(&self, index: usize, width: usize, inputs: Inputs<'_>) -> Head {
        let depth = width / self.heads;
        Head { width, depth, first: index * depth, queries: inputs.q.len() / width, keys: inputs.k.len() / width }
    }

    fn forward(&self, out: &mut [f32], sequence: usize, width: usize, inputs: Inputs<'_>) {
        let Head { queries, keys, .. } = self.head(0, width, inputs);
        let (mut probabilities, mut buffer) = (vec![0.0; queries * keys], Vec::new());
        if self.dropout.is_some() {
            buffer.resize(queries * keys, 0.0);
        }
        for index in 0..self.heads {
            let head = self.head(index, width, inputs);
            self.probabilities(&mut probabilities, inputs, head);
            if let Some(mask) = self.mask(&mut buffer, sequence, index, head) {
                scale_by(&mut probabilities, mask);
            }
            multiply(
                &mut out[head.first..],
                width,
                Matrix::new(&probabilities, queries, keys, keys),
                Matrix::new(&inputs.v[head.first..], keys, head.depth, width),
                1.0,
                Onto::Nothing,
                Cores::One,
            );
        }
    }

    /// With P the probabilities and D the mask: dV = (P∘D)ᵀ g, dP = (g Vᵀ)∘D, dS = P∘(dP − rowsum(dP∘P)),
    /// dQ = scale · dS K, dK = scale · dSᵀ Q.
    fn backward(&self, gradients: &mut Gradients<'_>, grad: &[f32], sequence: usize, width: usize, inputs: Inputs<'_>) {
        let Head { queries, keys, .. } = self.head(0, width, inputs);
        let mut probabilities = vec![0.0; queries * keys];
        let mut scores = vec![0.0; queries * keys];
        let (mut buffer, mut kept) = (Vec::new(), Vec::new());
        if self.dropout.is_some() {
            buffer.resize(queries * keys, 0.0);
        }
        for index in 0..self.heads {
            let head = self.head(index, width, inputs);
            let Head { depth, first, .. } = head;
            self.probabilities(&mut probabilities, inputs, head);
            let mask = self.mask(&mut buffer, sequence, index, head);
            let grad = Matrix::new(&grad[first..], queries, depth, width);
            let values = Matrix::new(&inputs.v[first..], keys, depth, width).transposed();
            multiply(&mut scores, keys, grad, values, 1.0, Onto::Nothing, Cores::One);
            let dropped: &[f32] = match mask {
                Some(mask) => {
                    scale_by(&mut scores, mask);
                    kept.clear();
                    kept.extend_from_slice(&probabilities);
                    scale_by(&mut kept, mask);
                    &kept
                }
                None => &probabilities,
            };
            let dropped = Matrix::new(dropped, queries, keys, keys).transposed();
            multiply(&mut gradients.v[first..], width, dropped, grad, 1.0, Onto::Nothing, Cores::One);
            vectorised(|| {
                for (d, p) in scores.chunks_exact_mut(keys).zip(probabilities.chunks_exact(keys)) {
                    let sum = dot(d, p);
                    for (d, p) in d.iter_mut().zip(p) {
                        *d = p * (*d - sum);
                    }
                }
            });
            let scores = Matrix::new(&scores, queries, keys, keys);
            let k = Matrix::new(&inputs.k[first..], keys, depth, width);
            multiply(&mut gradients.q[first..], width, scores, k, head.scale(), Onto::Nothing, Cores::One);
            let q = Matrix::new(&inputs.q[first..], queries, depth, width);
            multiply(&mut gradients.k[first..], width, scores.transposed(), q, head.scale(), Onto::Nothing, Cores::One);
        }
    }
}

/// The extents of one head of one sequence.
#[derive(Clone, Copy)]
struct Head {
    width: usize,
    depth: usize,
    first: usize,
    queries: usize,
    keys: usize,
}

impl Head {
    fn scale(&self) -> f32 {
        1.0 / (self.depth as f32).sqrt()
    }
}

fn scale_by(values: &mut [f32], mask: &[f32]) {
    vectorised(|| {
        for (value, mask) in values.iter_mut().zip(mask) {
            *value *= mask;
        }
    });
}

/// Cuts a matrix into the rows of each sequence.
fn split<'a>(mut values: &'a mut [f32], layout: &Layout, width: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(layout.sequences());
    let mut at = 0;
    for sequence in 0..layout.sequences() {
        let span = layout.span(sequence);
        let (_, rest) = values.split_at_mut((span.start - at) * width);
        let (part, rest) = rest.split_at_mut(span.len() * width);
        parts.push(part);
        (values, at) = (rest, span.end);
    }
    parts
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Strides,
        k: &CpuStorage,
        k_layout: &Strides,
        v: &CpuStorage,
        v_layout: &Strides,
    ) -> Result<(CpuStorage, Shape)> {
        let width = self.check(q_layout.shape(), k_layout.shape(), v_layout.shape())?;
        let inputs = (slice(q, q_layout)?, slice(k, k_layout)?, slice(v, v_layout)?);
        let mut out = vec![0.0; self.queries.rows() * width];
        split(&mut out, &self.queries, width)
            .into_par_iter()
            .enumerate()
            .for_each(|(sequence, out)| self.forward(out, sequence, width, self.inputs(inputs, sequence, width)));
        Ok((CpuStorage::F32(out), (self.queries.rows(), width).into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = self.check(q.shape(), k.shape(), v.shape())?;
        let (queries, keys) = (self.queries.rows() * width, self.keys.rows() * width);
        let (mut dq, mut dk, mut dv) = (vec![0.0; queries], vec![0.0; keys], vec![0.0; keys]);
        read(q, |q| {
            read(k, |k| {
                read(v, |v| {
                    read(grad, |g| {
                        split(&mut dq, &self.queries, width)
                            .into_par_iter()
                            .zip(split(&mut dk, &self.keys, width))
                            .zip(split(&mut dv, &self.keys, width))
                            .enumerate()
                            .for_each(|(sequence, ((q_part, k_part), v_part))| {
                                let mut gradients = Gradients { q: q_part, k: k_part, v: v_part };
                                let span = self.queries.span(sequence);
                                let grad = &g[span.start * width..span.end * width];
                                let inputs = self.inputs((q, k, v), sequence, width);
                                self.backward(&mut gradients, grad, sequence, width, inputs);
                            });
                        Ok(())
                    })
                })
            })
        })?;
        let tensor = |like: &Tensor, values: Vec<f32>| -> Result<Option<Tensor>> {
            if like.track_op() { Ok(Some(Tensor::from_vec(values, like.shape(), like.device())?)) } else { Ok(None) }
        };
        Ok((tensor(q, dq)?, tensor(k, dk)?, tensor(v, dv)?))
    }
}
