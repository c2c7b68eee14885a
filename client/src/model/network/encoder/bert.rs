//! The encoder of BERT, DistilBERT and RoBERTa: learnt positions, norms behind each part of a layer.

use candle_core::{DType, Result, Tensor};

use super::{Encoder, Reach};
use crate::model::anatomy::BertNames;
use crate::model::batch::{Batch, Layout};
use crate::model::ops::{self, Heads, Indices, Scope};

pub(super) struct Bert<'a> {
    pub(super) encoder: Encoder<'a>,
    pub(super) names: &'a BertNames,
}

impl Bert<'_> {
    pub(super) fn encode(&self, batch: &Batch, reach: Reach) -> Result<Tensor> {
        let mut hidden = self.embed(batch)?;
        let Self { encoder, names } = *self;
        for index in 0..encoder.config.num_hidden_layers {
            let reach = encoder.reach_of(index, reach);
            hidden = encoder.network.layer(index, &hidden, encoder.mode, |mode, hidden| {
                Bert { encoder: Encoder { mode, ..encoder }, names }.layer(index, hidden, &batch.layout, reach)
            })?;
        }
        Ok(hidden)
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let Self { encoder, names } = *self;
        let Encoder { network, config, mode, .. } = encoder;
        let (table, words) = network.words(&batch.indices.words, mode)?;
        let mut indices = Indices { words, ..batch.indices.clone() };
        indices.positions.iter_mut().for_each(|position| *position += config.first_position as u32);
        let types = match names.types {
            Some(types) => network.tensor(types, mode)?,
            None => {
                // One row of zeros for all, whatever types the tokenizer gave.
                indices.types.fill(0);
                Tensor::zeros((1, config.hidden_size), DType::F32, &network.device)?
            }
        };
        let sum = ops::embed(&mode.tape, &table, &network.tensor(names.positions, mode)?, &types, indices)?;
        encoder.embedded(&sum)
    }

    /// One encoder layer. The classifier sees the first token of each sequence only, so the last layer computes
    /// nothing but keys and values for the others; the result and every gradient stay the same.
    pub(super) fn layer(&self, index: usize, hidden: &Tensor, layout: &Layout, reach: Reach) -> Result<Tensor> {
        let Self { encoder, names } = *self;
        let Encoder { network, config, mode, .. } = encoder;
        let linear = |x: &Tensor, part: &str| network.linear(x, &encoder.names.layer(index, part), mode);
        let norm = |x: &Tensor, part: &str| encoder.norm(x, &encoder.names.layer(index, part));
        let (targets, queries) = reach.targets(hidden, layout, mode)?;
        let q = linear(&targets, names.query)?;
        let k = linear(hidden, names.key)?;
        let v = linear(hidden, names.value)?;
        let heads = Heads::equal(config.num_attention_heads);
        let scope = Scope { queries: &queries, keys: layout, window: None, causal: false };
        let context = ops::attention(&mode.tape, &q, &k, &v, heads, scope, mode.dropout(index, 0))?;
        let context = linear(&context, names.attention_output)?;
        let attended = ops::residual(&mode.tape, &context, &targets, mode.dropout(index, 1))?;
        let attended = norm(&attended, names.attention_norm)?;
        let wide = linear(&attended, names.intermediate)?;
        let wide = ops::activation(&mode.tape, &wide, config.hidden_act)?;
        let narrow = linear(&wide, names.output)?;
        let out = ops::residual(&mode.tape, &narrow, &attended, mode.dropout(index, 2))?;
        norm(&out, names.output_norm)
    }
}
