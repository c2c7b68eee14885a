//! Decoders: rotary positions, norms before each part of a layer, heads of keys and values that several of queries share,
//! a gated feed-forward part. A token sees itself and what came before it.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::{Foreseen, Mode, Network};
use crate::model::anatomy::decoder::{FINAL_NORM, OUTPUT, WORDS, layer};
use crate::model::batch::{Batch, Layout};
use crate::model::config::DecoderConfig;
use crate::model::ops::{self, Heads, Rotation, Scope};

/// Tokens whose scores are in memory at once.
const ROWS: usize = 256;

/// A decoder at work on a batch.
pub(super) struct Decoder<'a> {
    network: &'a Network,
    pub(super) config: &'a DecoderConfig,
    pub(super) mode: &'a Mode,
    pub(super) rotation: Rotation,
}

impl<'a> Decoder<'a> {
    /// Computes the angles of so many positions.
    pub(super) fn new(network: &'a Network, config: &'a DecoderConfig, positions: usize, mode: &'a Mode) -> Self {
        let mut frequencies = Rotation::frequencies(config.rope_theta, config.head_dim);
        if let Some(stretch) = &config.rope_stretch {
            stretch.apply(&mut frequencies);
        }
        Self { network, config, mode, rotation: Rotation::of(&frequencies, positions) }
    }

    /// The scores of every word as what follows each token, or those tokens whose rows `tokens` names.
    pub(super) fn forward(&self, batch: &Batch, tokens: Option<Vec<u32>>) -> Result<Tensor> {
        let seen = self.seen(batch, tokens)?;
        ops::linear(&self.mode.tape, &seen, &self.output()?, None)
    }

    /// How well each token that counts is foreseen.
    pub(super) fn foreseen(&self, batch: &Batch, targets: &[Vec<Option<u32>>]) -> Result<Vec<Foreseen>> {
        let (rows, labels) = batch.counted(targets, true)?;
        let (seen, output) = (self.seen(batch, Some(rows))?, self.output()?);
        let mut all = Vec::with_capacity(labels.len());
        for (part, labels) in labels.chunks(ROWS).enumerate() {
            let seen = seen.narrow(0, part * ROWS, labels.len())?.contiguous()?;
            let scores = ops::linear(&self.mode.tape, &seen, &output, None)?.to_device(&Device::Cpu)?;
            let words = output.dim(0)?;
            ops::read_values(&scores, |scores| {
                if labels.iter().any(|label| *label as usize >= words) {
                    bail!("a token outside the vocabulary of {words}");
                }
                let rows = scores.par_chunks_exact(words.max(1)).zip(labels);
                all.par_extend(rows.map(|(row, label)| {
                    let label = *label as usize;
                    Foreseen { loss: ops::row_loss(row, label), first: row.iter().all(|score| *score <= row[label]) }
                }));
                Ok(())
            })?;
        }
        Ok(all)
    }

    /// What the output layer sees of each token, or those tokens whose rows `tokens` names.
    pub(super) fn seen(&self, batch: &Batch, tokens: Option<Vec<u32>>) -> Result<Tensor> {
        self.finished(self.hidden_states(batch)?, tokens)
    }

    /// The same of hidden states after the last layer.
    pub(super) fn finished(&self, mut hidden: Tensor, tokens: Option<Vec<u32>>) -> Result<Tensor> {
        if let Some(rows) = tokens {
            hidden = ops::pick_rows(&self.mode.tape, &hidden, rows)?;
        }
        self.norm(&hidden, FINAL_NORM.to_owned())
    }

    /// The output layer, `[words, hidden]`.
    pub(super) fn output(&self) -> Result<Tensor> {
        self.network.tensor(if self.config.tie_word_embeddings { WORDS } else { OUTPUT }, self.mode)
    }

    /// Hidden states of every token after the last layer.
    pub(super) fn hidden_states(&self, batch: &Batch) -> Result<Tensor> {
        let mut hidden = self.embedded(&batch.indices.words)?;
        for index in 0..self.config.num_hidden_layers {
            hidden = self.network.layer(index, &hidden, self.mode, |mode, hidden| {
                Decoder { mode, rotation: self.rotation.clone(), ..*self }.layer(index, hidden, &batch.layout)
            })?;
        }
        Ok(hidden)
    }

    /// The rows of the table of words.
    pub(super) fn embedded(&self, words: &[u32]) -> Result<Tensor> {
        let (table, rows) = self.network.words(words, self.mode)?;
        ops::pick_rows(&self.mode.tape, &table, rows)
    }

    /// One layer.
    pub(super) fn layer(&self, index: usize, hidden: &Tensor, layout: &Layout) -> Result<Tensor> {
        let Self { config, mode, .. } = *self;
        let turn = |x: Tensor| ops::rotary(&mode.tape, &x, &self.rotation, layout);
        let [q, k, v] = self.projections(index, hidden, turn)?;
        let scope = Scope { queries: layout, keys: layout, window: None, causal: true };
        // The one place of dropout in these architectures.
        let context = ops::attention(&mode.tape, &q, &k, &v, heads(config), scope, mode.dropout(index, 0))?;
        self.behind_attention(index, hidden, &context)
    }

    /// Queries, keys and values of a layer; `turn` gives the first two their positions.
    pub(super) fn projections(
        &self,
        index: usize,
        hidden: &Tensor,
        turn: impl Fn(Tensor) -> Result<Tensor>,
    ) -> Result<[Tensor; 3]> {
        let normed = self.norm(hidden, layer(index, "input_layernorm"))?;
        let linear = |part: &str| self.network.linear(&normed, &layer(index, part), self.mode);
        let turned = |part: &str, head_norm: &str| {
            let x = linear(part)?;
            turn(if self.config.decoder.has_head_norms() { self.norm(&x, layer(index, head_norm))? } else { x })
        };
        Ok([
            turned("self_attn.q_proj", "self_attn.q_norm")?,
            turned("self_attn.k_proj", "self_attn.k_norm")?,
            linear("self_attn.v_proj")?,
        ])
    }

    /// The output of a layer whose attention gave `context`.
    pub(super) fn behind_attention(&self, index: usize, hidden: &Tensor, context: &Tensor) -> Result<Tensor> {
        let mode = self.mode;
        let linear = |x: &Tensor, part: &str| self.network.linear(x, &layer(index, part), mode);
        let context = linear(context, "self_attn.o_proj")?;
        let attended = ops::residual(&mode.tape, &context, hidden, None)?;
        let normed = self.norm(&attended, layer(index, "post_attention_layernorm"))?;
        let (gate, up) = (linear(&normed, "mlp.gate_proj")?, linear(&normed, "mlp.up_proj")?);
        let wide = ops::swiglu(&mode.tape, &gate, &up)?;
        ops::residual(&mode.tape, &linear(&wide, "mlp.down_proj")?, &attended, None)
    }

    /// Of whole rows, or of each head, by the width of the weight.
    fn norm(&self, x: &Tensor, stem: String) -> Result<Tensor> {
        let weight = self.network.tensor(&(stem + ".weight"), self.mode)?;
        ops::rms_norm(&self.mode.tape, x, &weight, self.config.rms_norm_eps)
    }
}

/// The heads of its attention.
pub(super) fn heads(config: &DecoderConfig) -> Heads {
    Heads { queries: config.num_attention_heads, keys: config.num_key_value_heads }
}
