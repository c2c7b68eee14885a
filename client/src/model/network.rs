//! A transformer encoder with pooler and classifier, as a function of its parameters. Here is what all architectures
//! share; their encoders are in `bert` and `modernbert`.

mod bert;
mod modernbert;

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var, bail};
use fedtune_config::job::Precision;

use super::adapters::Adapters;
use super::batch::{Batch, Layout};
use super::config::{EncoderConfig, Pooling};
use super::names::{EncoderNames, Names, lora_a, lora_b};
use super::ops::dropout::DropoutStream;
use super::ops::{self, Indices, Loss, Tape};
use bert::Bert;
use modernbert::ModernBert;

/// One parameter.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// The values; the optimiser writes into them.
    pub var: Var,
    /// Whether it is trained; if not, no gradient is computed for it or only because of it.
    pub trained: bool,
    /// Layers between it and the top: 0 for pooler and classifier, 1 for the last encoder layer.
    pub depth: usize,
}

/// The gradient of one parameter.
#[derive(Debug, Clone)]
pub enum Gradient {
    /// Of the parameter's shape.
    Dense(Tensor),
    /// Of some rows of a table, each named once; all other rows have gradient zero.
    Rows {
        /// The rows.
        rows: Vec<u32>,
        /// Their gradients, `[rows, width]`.
        values: Tensor,
    },
}

/// Loss and gradients of a batch.
#[derive(Debug)]
pub struct Pass {
    /// The loss.
    pub loss: f64,
    /// One for each trained parameter.
    pub gradients: BTreeMap<String, Gradient>,
}

/// A sequence classifier without its tokenizer.
#[derive(Debug)]
pub struct Network {
    config: EncoderConfig,
    names: &'static Names,
    adapters: Option<Adapters>,
    parameters: BTreeMap<String, Parameter>,
    device: Device,
    precision: Precision,
}

/// Gradients as the device's backward pass gives them.
enum Store {
    Fused(ops::Gradients),
    Composed(GradStore),
}

impl Store {
    fn remove(&mut self, variable: &Tensor) -> Option<Tensor> {
        match self {
            Self::Fused(gradients) => gradients.remove(variable),
            Self::Composed(gradients) => gradients.remove(variable),
        }
    }
}

/// How a pass runs.
struct Mode {
    dropout: Option<DropoutStream>,
    /// The word rows of a training batch in place of the whole table, so that their gradient is small.
    words: Option<(Var, Vec<u32>)>,
    training: bool,
    tape: Tape,
}

impl Mode {
    fn evaluation() -> Self {
        Self { dropout: None, words: None, training: false, tape: Tape::default() }
    }

    fn dropout(&self, layer: usize, place: u64) -> Option<ops::Dropout> {
        self.dropout.and_then(|stream| stream.at(layer as u64 * 8 + place))
    }
}

impl Network {
    /// Puts parameters together; names and shapes are those of [`Names::tensors`], and of the adapters. `precision` is that
    /// of training.
    pub(super) fn new(
        config: EncoderConfig,
        adapters: Option<Adapters>,
        parameters: BTreeMap<String, Parameter>,
        device: Device,
        precision: Precision,
    ) -> Self {
        Self { names: Names::of(config.architecture), config, adapters, parameters, device, precision }
    }

    /// The settings.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The low-rank adapters, where there are any.
    pub(super) fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_ref()
    }

    /// Adds each adapter's product to its layer, and forgets the adapters.
    ///
    /// # Errors
    /// A failure of the device.
    pub(super) fn merge_adapters(&mut self) -> Result<()> {
        let Some(adapters) = self.adapters.take() else { return Ok(()) };
        for stem in adapters.layers() {
            let parts = (
                self.parameters.remove(&lora_a(stem)),
                self.parameters.remove(&lora_b(stem)),
                self.parameters.get(&format!("{stem}.weight")),
            );
            let (Some(a), Some(b), Some(weight)) = parts else { bail!("the network has no adapter at {stem}") };
            let product = b.var.as_detached_tensor().matmul(&a.var.as_detached_tensor())?;
            weight.var.set(&(weight.var.as_detached_tensor() + (product * adapters.scale())?)?)?;
        }
        Ok(())
    }

    /// Where the tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Every parameter by its canonical name.
    pub fn parameters(&self) -> &BTreeMap<String, Parameter> {
        &self.parameters
    }

    /// A batch in the form that suits the device.
    pub fn batch(&self, sequences: &[&super::batch::Tokens]) -> Batch {
        // The processor's attention takes sequences of unequal length, so nothing is spent on padding there.
        if self.device.is_cpu() { Batch::packed(sequences) } else { Batch::padded(sequences) }
    }

    /// Logits `[sequences, labels]` in evaluation mode.
    ///
    /// # Errors
    /// An index outside its table, or a failure of the device.
    pub fn logits(&self, batch: &Batch) -> Result<Tensor> {
        self.classify(batch, &Mode::evaluation())
    }

    /// Hidden states of every token after the last layer, `[rows, hidden]`, in evaluation mode.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn hidden_states(&self, batch: &Batch) -> Result<Tensor> {
        self.encode(batch, &Mode::evaluation(), Reach::AllTokens)
    }

    /// Loss and the gradient of every trained parameter.
    ///
    /// # Errors
    /// As [`Self::logits`]; also when a trained parameter gets no gradient, which would mean that it silently stays.
    pub fn gradients(
        &self,
        batch: &Batch,
        labels: &[u32],
        loss: &Loss,
        dropout: Option<DropoutStream>,
    ) -> Result<Pass> {
        let words = match self.parameters.get(self.names.words) {
            Some(table) if table.trained && self.device.is_cpu() => Some(self.used_words(batch, &table.var)?),
            _ => None,
        };
        let mode = Mode { dropout, words, training: true, tape: Tape::new(self.precision) };
        let logits = self.classify(batch, &mode)?;
        let loss = ops::cross_entropy(&mode.tape, &logits, labels, loss)?;
        let Mode { words, tape, .. } = mode;
        let mut store =
            if self.device.is_cpu() { Store::Fused(tape.backward(&loss)?) } else { Store::Composed(loss.backward()?) };
        let mut gradients = BTreeMap::new();
        for (name, parameter) in self.parameters.iter().filter(|(_, parameter)| parameter.trained) {
            let gradient = match &words {
                Some((compact, rows)) if name == self.names.words => {
                    store.remove(compact).map(|values| Gradient::Rows { rows: rows.clone(), values })
                }
                _ => store.remove(&parameter.var).map(Gradient::Dense),
            };
            match gradient {
                Some(gradient) => gradients.insert(name.clone(), gradient),
                None => bail!("the trained tensor {name} got no gradient"),
            };
        }
        Ok(Pass { loss: f64::from(loss.to_scalar::<f32>()?), gradients })
    }

    /// The table's rows that the batch uses, as a variable of its own, and their numbers in order.
    fn used_words(&self, batch: &Batch, table: &Var) -> Result<(Var, Vec<u32>)> {
        let mut rows = batch.indices.words.clone();
        rows.sort_unstable();
        rows.dedup();
        let used = table.as_detached_tensor().index_select(&Tensor::new(rows.as_slice(), &self.device)?, 0)?;
        Ok((Var::from_tensor(&used)?, rows))
    }

    fn tensor(&self, name: &str, mode: &Mode) -> Result<Tensor> {
        match self.parameters.get(name) {
            Some(Parameter { var, trained: true, .. }) if mode.training => Ok(var.as_tensor().clone()),
            Some(Parameter { var, .. }) => Ok(var.as_detached_tensor()),
            None => bail!("the network has no tensor {name}"),
        }
    }

    /// The bias of a dense layer or norm, where it has one.
    fn bias(&self, name: &str, mode: &Mode) -> Result<Option<Tensor>> {
        let name = format!("{name}.bias");
        self.parameters.contains_key(&name).then(|| self.tensor(&name, mode)).transpose()
    }

    /// A dense layer, and its adapter where it has one.
    fn linear(&self, x: &Tensor, name: &str, mode: &Mode) -> Result<Tensor> {
        let (weight, bias) = (self.tensor(&format!("{name}.weight"), mode)?, self.bias(name, mode)?);
        let out = ops::linear(&mode.tape, x, &weight, bias.as_ref())?;
        self.adapted(out, x, name, Ok, mode)
    }

    /// Some outputs of a dense layer without a bias, and of its adapter where it has one.
    fn linear_part(&self, x: &Tensor, name: &str, outputs: Range<usize>, mode: &Mode) -> Result<Tensor> {
        let part =
            |weight: Tensor| ops::pick_rows(&mode.tape, &weight, outputs.clone().map(|output| output as u32).collect());
        let weight = part(self.tensor(&format!("{name}.weight"), mode)?)?;
        let out = ops::linear(&mode.tape, x, &weight, None)?;
        self.adapted(out, x, name, part, mode)
    }

    /// `out` of a dense layer with what its adapter adds, where it has one; `part` picks the outputs that `out` has.
    fn adapted(
        &self,
        out: Tensor,
        x: &Tensor,
        name: &str,
        part: impl Fn(Tensor) -> Result<Tensor>,
        mode: &Mode,
    ) -> Result<Tensor> {
        let Some((adapters, place)) =
            self.adapters.as_ref().and_then(|adapters| Some((adapters, adapters.place(name)?)))
        else {
            return Ok(out);
        };
        // Places behind those of all layers and the head.
        let place = (self.config.num_hidden_layers as u64 + 1) * 8 + place;
        let dropout = mode.dropout.and_then(|stream| adapters.dropout_of(stream).at(place));
        let x = ops::dropout(&mode.tape, x, dropout)?;
        let (down, up) = (self.tensor(&lora_a(name), mode)?, part(self.tensor(&lora_b(name), mode)?)?);
        ops::low_rank(&mode.tape, &out, &x, (&down, &up), adapters.scale())
    }

    fn norm(&self, x: &Tensor, name: &str, mode: &Mode) -> Result<Tensor> {
        let (weight, bias) = (self.tensor(&format!("{name}.weight"), mode)?, self.bias(name, mode)?);
        ops::layer_norm(&mode.tape, x, &weight, bias.as_ref(), self.config.layer_norm_eps)
    }

    fn classify(&self, batch: &Batch, mode: &Mode) -> Result<Tensor> {
        let layers = self.config.num_hidden_layers;
        let mut seen = match self.config.pooling {
            Pooling::Cls => self.encode(batch, mode, Reach::FirstTokens)?,
            Pooling::Mean => ops::mean_rows(&mode.tape, &self.encode(batch, mode, Reach::AllTokens)?, &batch.layout)?,
        };
        if self.config.architecture.drops_before_pooler() {
            seen = ops::dropout(&mode.tape, &seen, mode.dropout(layers, 2))?;
        }
        let mut pooled = self.linear(&seen, self.names.pooler, mode)?;
        pooled = match self.config.head_act {
            Some(kind) => ops::activation(&mode.tape, &pooled, kind)?,
            None => ops::tanh(&mode.tape, &pooled)?,
        };
        if let Some(norm) = self.names.pooler_norm {
            pooled = self.norm(&pooled, norm, mode)?;
        }
        let pooled = ops::dropout(&mode.tape, &pooled, mode.dropout(layers, 1))?;
        self.linear(&pooled, self.names.classifier, mode)
    }

    fn encode(&self, batch: &Batch, mode: &Mode, reach: Reach) -> Result<Tensor> {
        match &self.names.encoder {
            EncoderNames::Bert(names) => Bert { network: self, names, mode }.encode(batch, reach),
            EncoderNames::ModernBert(names) => ModernBert::new(self, names, batch, mode)?.encode(batch, reach),
        }
    }

    /// The table of words, or of those that the batch uses, and the batch's indices into it.
    fn words(&self, batch: &Batch, mode: &Mode) -> Result<(Tensor, Indices)> {
        let mut indices = batch.indices.clone();
        let table = match &mode.words {
            Some((used, rows)) => {
                let place = |word: &u32| rows.binary_search(word).map_or(u32::MAX, |place| place as u32);
                indices.words = indices.words.iter().map(place).collect();
                used.as_tensor().clone()
            }
            None => self.tensor(self.names.words, mode)?,
        };
        Ok((table, indices))
    }

    /// Norm and dropout of the embeddings.
    fn embedded(&self, embeddings: &Tensor, mode: &Mode) -> Result<Tensor> {
        let out = self.norm(embeddings, self.names.embeddings_norm, mode)?;
        ops::dropout(&mode.tape, &out, mode.dropout(self.config.num_hidden_layers, 0))
    }

    /// How far a layer reaches: up to the last one, everything is wanted.
    fn reach_of(&self, index: usize, reach: Reach) -> Reach {
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
