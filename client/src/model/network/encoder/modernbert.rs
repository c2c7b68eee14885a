//! The encoder of ModernBERT: rotary positions, norms before each part of a layer, a gated feed-forward part, no biases,
//! and layers that see near tokens only between those that see all.

use candle_core::{Result, Tensor, bail};

use super::{Encoder, Reach};
use crate::model::anatomy::ModernBertNames;
use crate::model::batch::{Batch, Layout};
use crate::model::config::Rotary;
use crate::model::ops::{self, Heads, Rotation, Scope};

pub(super) struct ModernBert<'a> {
    encoder: Encoder<'a>,
    names: &'a ModernBertNames,
    settings: &'a Rotary,
    global: Rotation,
    local: Rotation,
}

impl<'a> ModernBert<'a> {
    /// Computes the angles of the batch's positions.
    pub(super) fn new(encoder: Encoder<'a>, names: &'a ModernBertNames, batch: &Batch) -> Result<Self> {
        let config = encoder.config;
        let Some(settings) = &config.rotary else { bail!("the configuration has no rotary positions") };
        let depth = config.hidden_size / config.num_attention_heads;
        let rotation = |theta| Rotation::new(theta, depth, batch.layout.width());
        let (global, local) = (rotation(settings.global_theta), rotation(settings.local_theta));
        Ok(Self { encoder, names, settings, global, local })
    }

    pub(super) fn encode(&self, batch: &Batch, reach: Reach) -> Result<Tensor> {
        let Self { encoder, names, .. } = *self;
        let (table, words) = encoder.network.words(&batch.indices.words, encoder.mode)?;
        let words = ops::pick_rows(&encoder.mode.tape, &table, words)?;
        let mut hidden = encoder.embedded(&words)?;
        for index in 0..encoder.config.num_hidden_layers {
            let reach = encoder.reach_of(index, reach);
            hidden = encoder.network.layer(index, &hidden, encoder.mode, |mode, hidden| {
                let (global, local) = (self.global.clone(), self.local.clone());
                let encoder = Encoder { mode, ..encoder };
                ModernBert { encoder, global, local, ..*self }.layer(index, hidden, &batch.layout, reach)
            })?;
        }
        encoder.norm(&hidden, names.final_norm)
    }

    /// One encoder layer, which sees the whole sequence or what is near. As in BERT, the last one computes nothing but keys
    /// and values for tokens that the head does not see.
    pub(super) fn layer(&self, index: usize, hidden: &Tensor, layout: &Layout, reach: Reach) -> Result<Tensor> {
        let global = self.settings.global.get(index).copied().unwrap_or(true);
        let Self { encoder, names, .. } = *self;
        let Encoder { network, config, mode, .. } = encoder;
        let name = |part: &str| encoder.names.layer(index, part);
        let (targets, queries) = reach.targets(hidden, layout, mode)?;
        // The embeddings are normalised already.
        let normed = if index == 0 { hidden.clone() } else { encoder.norm(hidden, &name(names.attention_norm))? };
        let (asking, _) = reach.targets(&normed, layout, mode)?;
        let width = config.hidden_size;
        let part = |x: &Tensor, place: usize| {
            network.linear_part(x, &name(names.qkv), place * width..(place + 1) * width, mode)
        };
        let (rotation, window) = if global { (&self.global, None) } else { (&self.local, Some(self.settings.window)) };
        let q = ops::rotary(&mode.tape, &part(&asking, 0)?, rotation, &queries)?;
        let k = ops::rotary(&mode.tape, &part(&normed, 1)?, rotation, layout)?;
        let v = part(&normed, 2)?;
        let heads = Heads::equal(config.num_attention_heads);
        let scope = Scope { queries: &queries, keys: layout, window, causal: false };
        let context = ops::attention(&mode.tape, &q, &k, &v, heads, scope, mode.dropout(index, 0))?;
        let context = network.linear(&context, &name(names.attention_output), mode)?;
        let attended = ops::residual(&mode.tape, &context, &targets, mode.dropout(index, 1))?;
        let wide = encoder.norm(&attended, &name(names.output_norm))?;
        let wide = network.linear(&wide, &name(names.intermediate), mode)?;
        let wide = ops::gated(&mode.tape, &wide, config.hidden_act)?;
        let wide = ops::dropout(&mode.tape, &wide, mode.dropout(index, 2))?;
        let narrow = network.linear(&wide, &name(names.output), mode)?;
        ops::residual(&mode.tape, &narrow, &attended, None)
    }
}
