//! Transformers that see the whole text: embeddings and layers are in `bert` and `modernbert`, here is what they share and
//! the head.

mod bert;
mod modernbert;

use candle_core::{Result, Tensor};

use super::{Mode, Network};
use crate::model::anatomy::{Function, Names};
use crate::model::batch::{Batch, Layout};
use crate::model::config::{EncoderConfig, Pooling};
use crate::model::objective::Objective;
use crate::model::ops;
use bert::Bert;
use modernbert::ModernBert;

/// An encoder at work on a batch.
#[derive(Clone, Copy)]
pub(super) struct Encoder<'a> {
    network: &'a Network,
    config: &'a EncoderConfig,
    names: &'static Names,
    mode: &'a Mode,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(network: &'a Network, config: &'a EncoderConfig, mode: &'a Mode) -> Self {
        Self { network, config, names: Names::of(config.architecture), mode }
    }

    /// The outputs for each text, or for each token; `tokens` names the rows that are wanted of these.
    pub(super) fn forward(self, batch: &Batch, tokens: Option<Vec<u32>>) -> Result<Tensor> {
        let Self { network, config, mode, .. } = self;
        let hidden = self.encode(batch, self.reach())?;
        if network.objective == Objective::Tokens {
            let wanted = match tokens {
                Some(rows) => ops::pick_rows(&mode.tape, &hidden, rows)?,
                None => hidden,
            };
            return self.head(&wanted);
        }
        let mut seen = match config.pooling {
            Pooling::Cls => hidden,
            Pooling::Mean => ops::mean_rows(&mode.tape, &hidden, &batch.layout)?,
        };
        if config.architecture.drops_before_pooler() {
            seen = ops::dropout(&mode.tape, &seen, mode.dropout(config.num_hidden_layers, 2))?;
        }
        self.head(&seen)
    }

    /// Hidden states of every token after the last layer.
    pub(super) fn hidden_states(self, batch: &Batch) -> Result<Tensor> {
        self.encode(batch, Reach::AllTokens)
    }

    /// One layer, as [`Self::forward`] computes it.
    pub(super) fn layer(self, batch: &Batch, index: usize, hidden: &Tensor) -> Result<Tensor> {
        let (layout, reach) = (&batch.layout, self.reach_of(index, self.reach()));
        match &self.names.function {
            Function::Bert(names) => Bert { encoder: self, names }.layer(index, hidden, layout, reach),
            Function::ModernBert(names) => ModernBert::new(self, names, batch)?.layer(index, hidden, layout, reach),
        }
    }

    /// What the head looks at.
    fn reach(self) -> Reach {
        match self.config.pooling {
            Pooling::Cls if self.network.objective != Objective::Tokens => Reach::FirstTokens,
            _ => Reach::AllTokens,
        }
    }

    fn head(self, seen: &Tensor) -> Result<Tensor> {
        let Self { network, config, mode, names } = self;
        let names = names.head(network.objective);
        let mut pooled = seen.clone();
        if let Some(pooler) = names.pooler {
            pooled = network.linear(&pooled, pooler, mode)?;
            pooled = match config.head_act {
                Some(kind) => ops::activation(&mode.tape, &pooled, kind)?,
                None => ops::tanh(&mode.tape, &pooled)?,
            };
        }
        if let Some(norm) = names.pooler_norm {
            pooled = self.norm(&pooled, norm)?;
        }
        let pooled = ops::dropout(&mode.tape, &pooled, mode.dropout(config.num_hidden_layers, 1))?;
        network.linear(&pooled, names.classifier, mode)
    }

    fn encode(self, batch: &Batch, reach: Reach) -> Result<Tensor> {
        match &self.names.function {
            Function::Bert(names) => Bert { encoder: self, names }.encode(batch, reach),
            Function::ModernBert(names) => ModernBert::new(self, names, batch)?.encode(batch, reach),
        }
    }

    fn norm(self, x: &Tensor, name: &str) -> Result<Tensor> {
        self.network.layer_norm(x, name, self.config.layer_norm_eps, self.mode)
    }

    /// Norm and dropout of the embeddings.
    fn embedded(self, embeddings: &Tensor) -> Result<Tensor> {
        let out = self.norm(embeddings, self.names.embeddings_norm)?;
        ops::dropout(&self.mode.tape, &out, self.mode.dropout(self.config.num_hidden_layers, 0))
    }

    /// How far a layer reaches: up to the last one, everything is wanted.
    fn reach_of(self, index: usize, reach: Reach) -> Reach {
        if index + 1 == self.config.num_hidden_layers { reach } else { Reach::AllTokens }
    }
}

/// For which tokens the last layer's output is wanted.
#[derive(Clone, Copy)]
enum Reach {
    AllTokens,
    FirstTokens,
}

impl Reach {
    /// The rows whose output is wanted, and how they lie.
    fn targets(self, hidden: &Tensor, layout: &Layout, mode: &Mode) -> Result<(Tensor, Layout)> {
        match self {
            Self::AllTokens => Ok((hidden.clone(), layout.clone())),
            Self::FirstTokens => {
                let starts = ops::pick_rows(&mode.tape, hidden, layout.starts())?;
                Ok((starts, Layout::packed(&vec![1; layout.sequences()])))
            }
        }
    }
}
