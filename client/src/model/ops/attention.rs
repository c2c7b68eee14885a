//! Scaled dot-product attention as one op. The backward pass computes the probabilities again, which is as fast as
//! reading them back and keeps `heads × length²` values for every sequence out of memory. With a window, the scores are
//! computed in blocks of queries and the keys near them.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, Layout as Strides, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::dropout::Dropout;
use super::gemm::{Cores, Matrix, Onto, multiply};
use super::simd::{dot, exp, largest, sum_of, vectorised};
use super::values::{read, slice, split};
use crate::model::batch::Layout;

pub(super) struct Attention {
    pub(super) heads: usize,
    pub(super) queries: Layout,
    pub(super) keys: Layout,
    /// The largest distance between a query and a key that it sees.
    pub(super) window: Option<usize>,
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
            && self.queries.sequences() == self.keys.sequences()
            && (0..self.keys.sequences()).all(|i| (1..=self.keys.span(i).len()).contains(&self.queries.span(i).len()));
        if !fits {
            bail!("attention: q {q:?}, k {k:?}, v {v:?} do not fit {} heads and the batch", self.heads);
        }
        Ok(width)
    }

    fn inputs<'a>(&self, (q, k, v): (&'a [f32], &'a [f32], &'a [f32]), sequence: usize, width: usize) -> Inputs<'a> {
        let (queries, keys) = (self.queries.span(sequence), self.keys.span(sequence));
        let rows = |values: &'a [f32], span: Range<usize>| &values[span.start * width..span.end * width];
        Inputs { q: rows(q, queries), k: rows(k, keys.clone()), v: rows(v, keys) }
    }

    /// The parts that the scores of a sequence are computed in: all at once, or else blocks of queries with the keys that
    /// any of them sees.
    fn blocks(&self, queries: usize, keys: usize) -> Vec<Block> {
        let Some(window) = self.window else {
            return vec![Block { first_query: 0, queries, first_key: 0, keys }];
        };
        let length = window.max(SHORTEST_BLOCK);
        (0..queries)
            .step_by(length)
            .map(|first_query| {
                let queries = length.min(queries - first_query);
                let first_key = first_query.saturating_sub(window).min(keys);
                let end = (first_query + queries).saturating_add(window).min(keys);
                Block { first_query, queries, first_key, keys: end - first_key }
            })
            .collect()
    }

    /// Of the block's keys, those that its `query`-th query sees.
    #[inline(always)]
    fn seen(&self, block: Block, query: usize) -> Range<usize> {
        let Some(window) = self.window else { return 0..block.keys };
        let query = block.first_query + query;
        let place = |key: usize| key.saturating_sub(block.first_key).min(block.keys);
        place(query.saturating_sub(window))..place(query.saturating_add(window).saturating_add(1))
    }

    /// softmax(scale · q kᵀ) of one head and block, `[queries, keys]`, into `probabilities`; 0 for keys out of sight.
    fn probabilities(&self, probabilities: &mut [f32], inputs: Inputs<'_>, head: Head, block: Block) {
        multiply(
            probabilities,
            block.keys,
            head.queries_of(inputs.q, block),
            head.keys_of(inputs.k, block).transposed(),
            head.scale(),
            Onto::Nothing,
            Cores::One,
        );
        vectorised(|| {
            for (query, row) in probabilities.chunks_exact_mut(block.keys).enumerate() {
                let seen = self.seen(block, query);
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
                let row = &mut row[seen];
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

    /// The dropout mask of one head and block, if any.
    fn mask<'a>(&self, buffer: &'a mut Vec<f32>, sequence: usize, head: Head, block: Block) -> Option<&'a [f32]> {
        let dropout = self.dropout?;
        let first = (sequence * self.heads + head.index) * self.queries.width() + block.first_query;
        // A row of the mask covers all keys, so that it is the same however the scores are cut.
        let mut whole = vec![0.0; block.first_key + block.keys];
        buffer.resize(block.queries * block.keys, 0.0);
        vectorised(|| {
            for (query, row) in buffer.chunks_exact_mut(block.keys).enumerate() {
                dropout.fill(first + query, self.keys.width(), &mut whole);
                row.copy_from_slice(&whole[block.first_key..]);
            }
        });
        Some(buffer)
    }

    fn head(&self, index: usize, width: usize) -> Head {
        let depth = width / self.heads;
        Head { index, width, depth, first: index * depth }
    }

    fn forward(&self, out: &mut [f32], sequence: usize, width: usize, inputs: Inputs<'_>) {
        let (mut probabilities, mut buffer) = (Vec::new(), Vec::new());
        for block in self.blocks(inputs.q.len() / width, inputs.k.len() / width) {
            probabilities.resize(block.queries * block.keys, 0.0);
            for index in 0..self.heads {
                let head = self.head(index, width);
                self.probabilities(&mut probabilities, inputs, head, block);
                if let Some(mask) = self.mask(&mut buffer, sequence, head, block) {
                    scale_by(&mut probabilities, mask);
                }
                multiply(
                    &mut out[head.start(block.first_query)..],
                    width,
                    Matrix::new(&probabilities, block.queries, block.keys, block.keys),
                    head.keys_of(inputs.v, block),
                    1.0,
                    Onto::Nothing,
                    Cores::One,
                );
            }
        }
    }

    /// With P the probabilities and D the mask: dV = (P∘D)ᵀ g, dP = (g Vᵀ)∘D, dS = P∘(dP − rowsum(dP∘P)),
    /// dQ = scale · dS K, dK = scale · dSᵀ Q. Blocks share keys, so what these get is added up.
    fn backward(&self, gradients: &mut Gradients<'_>, grad: &[f32], sequence: usize, width: usize, inputs: Inputs<'_>) {
        let (mut probabilities, mut scores) = (Vec::new(), Vec::new());
        let (mut buffer, mut kept) = (Vec::new(), Vec::new());
        for block in self.blocks(inputs.q.len() / width, inputs.k.len() / width) {
            let keys = block.keys;
            probabilities.resize(block.queries * keys, 0.0);
            scores.resize(block.queries * keys, 0.0);
            for index in 0..self.heads {
                let head = self.head(index, width);
                let (at_queries, at_keys) = (head.start(block.first_query), head.start(block.first_key));
                self.probabilities(&mut probabilities, inputs, head, block);
                let mask = self.mask(&mut buffer, sequence, head, block);
                let grad = head.queries_of(grad, block);
                let values = head.keys_of(inputs.v, block).transposed();
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
                let dropped = Matrix::new(dropped, block.queries, keys, keys).transposed();
                multiply(&mut gradients.v[at_keys..], width, dropped, grad, 1.0, Onto::Present, Cores::One);
                vectorised(|| {
                    for (d, p) in scores.chunks_exact_mut(keys).zip(probabilities.chunks_exact(keys)) {
                        let sum = dot(d, p);
                        for (d, p) in d.iter_mut().zip(p) {
                            *d = p * (*d - sum);
                        }
                    }
                });
                let scores = Matrix::new(&scores, block.queries, keys, keys);
                let (q, k) = (head.queries_of(inputs.q, block), head.keys_of(inputs.k, block));
                multiply(&mut gradients.q[at_queries..], width, scores, k, head.scale(), Onto::Nothing, Cores::One);
                let target = &mut gradients.k[at_keys..];
                multiply(target, width, scores.transposed(), q, head.scale(), Onto::Present, Cores::One);
            }
        }
    }
}

/// Queries of a block at least, so that its products are worth their overhead.
const SHORTEST_BLOCK: usize = 64;

/// Some queries of a sequence and the keys that they see.
#[derive(Clone, Copy)]
struct Block {
    first_query: usize,
    queries: usize,
    first_key: usize,
    keys: usize,
}

/// The columns of one head.
#[derive(Clone, Copy)]
struct Head {
    index: usize,
    width: usize,
    depth: usize,
    first: usize,
}

impl Head {
    fn scale(&self) -> f32 {
        1.0 / (self.depth as f32).sqrt()
    }

    /// Where the head's part of a row begins.
    fn start(&self, row: usize) -> usize {
        row * self.width + self.first
    }

    fn queries_of<'a>(&self, values: &'a [f32], block: Block) -> Matrix<'a> {
        Matrix::new(&values[self.start(block.first_query)..], block.queries, self.depth, self.width)
    }

    fn keys_of<'a>(&self, values: &'a [f32], block: Block) -> Matrix<'a> {
        Matrix::new(&values[self.start(block.first_key)..], block.keys, self.depth, self.width)
    }
}

fn scale_by(values: &mut [f32], mask: &[f32]) {
    vectorised(|| {
        for (value, mask) in values.iter_mut().zip(mask) {
            *value *= mask;
        }
    });
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
