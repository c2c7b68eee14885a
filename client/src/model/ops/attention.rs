//! Scaled dot-product attention as one op. The backward pass computes the probabilities again, which is as fast as
//! reading them back and keeps `heads × length²` values for every sequence out of memory. With a window, or where a query
//! sees nothing behind its place, the scores are computed in blocks of queries and the keys that these see. Several heads
//! of queries may share one of keys and values, which is read in place.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, Layout as Strides, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::Heads;
use super::dropout::Dropout;
use super::gemm::{Cores, Matrix, Onto, multiply};
use super::simd::{dot, softmax, vectorised};
use super::values::{read, slice, split};
use crate::model::batch::Layout;

pub(super) struct Attention {
    pub(super) heads: Heads,
    pub(super) queries: Layout,
    pub(super) keys: Layout,
    /// The largest distance between a query and a key that it sees.
    pub(super) window: Option<usize>,
    /// Whether a query sees no key behind its place.
    pub(super) causal: bool,
    pub(super) dropout: Option<Dropout>,
}

/// How many values one row of queries and one of keys has.
#[derive(Clone, Copy)]
struct Widths {
    query: usize,
    key: usize,
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
    fn check(&self, q: &Shape, k: &Shape, v: &Shape) -> Result<Widths> {
        let widths = Widths { query: q.dims2()?.1, key: k.dims2()?.1 };
        let fits = self.heads.fit(widths.query, widths.key)
            && q.dims2()?.0 == self.queries.rows()
            && k.dims2()?.0 == self.keys.rows()
            && v.dims2()? == k.dims2()?
            && self.queries.sequences() == self.keys.sequences()
            && (0..self.keys.sequences()).all(|i| (1..=self.keys.span(i).len()).contains(&self.queries.span(i).len()));
        if !fits {
            bail!("attention: q {q:?}, k {k:?}, v {v:?} do not fit {:?} and the batch", self.heads);
        }
        Ok(widths)
    }

    fn inputs<'a>(&self, (q, k, v): (&'a [f32], &'a [f32], &'a [f32]), sequence: usize, widths: Widths) -> Inputs<'a> {
        let (queries, keys) = (self.queries.span(sequence), self.keys.span(sequence));
        let rows = |values: &'a [f32], span: Range<usize>, width| &values[span.start * width..span.end * width];
        Inputs { q: rows(q, queries, widths.query), k: rows(k, keys.clone(), widths.key), v: rows(v, keys, widths.key) }
    }

    /// The parts that the scores of a sequence are computed in: all at once, or else blocks of queries with the keys that
    /// any of them sees.
    fn blocks(&self, queries: usize, keys: usize) -> Vec<Block> {
        if self.window.is_none() && !self.causal {
            return vec![Block { first_query: 0, queries, first_key: 0, keys }];
        }
        let length = self.window.unwrap_or(0).max(SHORTEST_BLOCK);
        (0..queries)
            .step_by(length)
            .map(|first_query| {
                let queries = length.min(queries - first_query);
                let (first, last) = (self.sight(first_query), self.sight(first_query + queries - 1));
                let first_key = first.start.min(keys);
                Block { first_query, queries, first_key, keys: last.end.min(keys) - first_key }
            })
            .collect()
    }

    /// The keys that the query at a place sees, were the sequence long enough.
    #[inline(always)]
    fn sight(&self, query: usize) -> Range<usize> {
        let window = self.window.unwrap_or(usize::MAX);
        let end = if self.causal { query } else { query.saturating_add(window) };
        query.saturating_sub(window)..end.saturating_add(1)
    }

    /// Of the block's keys, those that its `query`-th query sees.
    #[inline(always)]
    fn seen(&self, block: Block, query: usize) -> Range<usize> {
        let sight = self.sight(block.first_query + query);
        let place = |key: usize| key.saturating_sub(block.first_key).min(block.keys);
        place(sight.start)..place(sight.end)
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
                softmax(&mut row[seen]);
            }
        });
    }

    /// The dropout mask of one head and block, if any.
    fn mask<'a>(&self, buffer: &'a mut Vec<f32>, sequence: usize, head: Head, block: Block) -> Option<&'a [f32]> {
        let dropout = self.dropout?;
        let first = (sequence * self.heads.queries + head.index) * self.queries.width() + block.first_query;
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

    fn head(&self, index: usize, widths: Widths) -> Head {
        let depth = widths.query / self.heads.queries;
        let key = index / (self.heads.queries / self.heads.keys);
        Head {
            index,
            depth,
            queries: Columns { width: widths.query, first: index * depth },
            keys: Columns { width: widths.key, first: key * depth },
        }
    }

    fn forward(&self, out: &mut [f32], sequence: usize, widths: Widths, inputs: Inputs<'_>) {
        let (mut probabilities, mut buffer) = (Vec::new(), Vec::new());
        for block in self.blocks(inputs.q.len() / widths.query, inputs.k.len() / widths.key) {
            probabilities.resize(block.queries * block.keys, 0.0);
            for index in 0..self.heads.queries {
                let head = self.head(index, widths);
                self.probabilities(&mut probabilities, inputs, head, block);
                if let Some(mask) = self.mask(&mut buffer, sequence, head, block) {
                    scale_by(&mut probabilities, mask);
                }
                multiply(
                    &mut out[head.queries.start(block.first_query)..],
                    widths.query,
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
    /// dQ = scale · dS K, dK = scale · dSᵀ Q. Blocks and heads share keys, so what these get is added up.
    fn backward(
        &self,
        gradients: &mut Gradients<'_>,
        grad: &[f32],
        sequence: usize,
        widths: Widths,
        inputs: Inputs<'_>,
    ) {
        let (mut probabilities, mut scores) = (Vec::new(), Vec::new());
        let (mut buffer, mut kept) = (Vec::new(), Vec::new());
        for block in self.blocks(inputs.q.len() / widths.query, inputs.k.len() / widths.key) {
            let keys = block.keys;
            probabilities.resize(block.queries * keys, 0.0);
            scores.resize(block.queries * keys, 0.0);
            for index in 0..self.heads.queries {
                let head = self.head(index, widths);
                let (at_queries, at_keys) = (head.queries.start(block.first_query), head.keys.start(block.first_key));
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
                multiply(&mut gradients.v[at_keys..], widths.key, dropped, grad, 1.0, Onto::Present, Cores::One);
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
                let target = &mut gradients.q[at_queries..];
                multiply(target, widths.query, scores, k, head.scale(), Onto::Nothing, Cores::One);
                let target = &mut gradients.k[at_keys..];
                multiply(target, widths.key, scores.transposed(), q, head.scale(), Onto::Present, Cores::One);
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

/// One head of the queries, with that of keys and values which it uses.
#[derive(Clone, Copy)]
struct Head {
    index: usize,
    depth: usize,
    queries: Columns,
    keys: Columns,
}

/// Where a head's columns lie in a matrix.
#[derive(Clone, Copy)]
struct Columns {
    width: usize,
    first: usize,
}

impl Columns {
    /// Where the head's part of a row begins.
    fn start(self, row: usize) -> usize {
        row * self.width + self.first
    }
}

impl Head {
    fn scale(&self) -> f32 {
        1.0 / (self.depth as f32).sqrt()
    }

    fn queries_of<'a>(&self, values: &'a [f32], block: Block) -> Matrix<'a> {
        Matrix::new(&values[self.queries.start(block.first_query)..], block.queries, self.depth, self.queries.width)
    }

    fn keys_of<'a>(&self, values: &'a [f32], block: Block) -> Matrix<'a> {
        Matrix::new(&values[self.keys.start(block.first_key)..], block.keys, self.depth, self.keys.width)
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
        let widths = self.check(q_layout.shape(), k_layout.shape(), v_layout.shape())?;
        let inputs = (slice(q, q_layout)?, slice(k, k_layout)?, slice(v, v_layout)?);
        let mut out = vec![0.0; self.queries.rows() * widths.query];
        split(&mut out, &self.queries, widths.query)
            .into_par_iter()
            .enumerate()
            .for_each(|(sequence, out)| self.forward(out, sequence, widths, self.inputs(inputs, sequence, widths)));
        Ok((CpuStorage::F32(out), (self.queries.rows(), widths.query).into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let widths = self.check(q.shape(), k.shape(), v.shape())?;
        let (queries, keys) = (self.queries.rows() * widths.query, self.keys.rows() * widths.key);
        let (mut dq, mut dk, mut dv) = (vec![0.0; queries], vec![0.0; keys], vec![0.0; keys]);
        read(q, |q| {
            read(k, |k| {
                read(v, |v| {
                    read(grad, |g| {
                        split(&mut dq, &self.queries, widths.query)
                            .into_par_iter()
                            .zip(split(&mut dk, &self.keys, widths.key))
                            .zip(split(&mut dv, &self.keys, widths.key))
                            .enumerate()
                            .for_each(|(sequence, ((q_part, k_part), v_part))| {
                                let mut gradients = Gradients { q: q_part, k: k_part, v: v_part };
                                let span = self.queries.span(sequence);
                                let grad = &g[span.start * widths.query..span.end * widths.query];
                                let inputs = self.inputs((q, k, v), sequence, widths);
                                self.backward(&mut gradients, grad, sequence, widths, inputs);
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
