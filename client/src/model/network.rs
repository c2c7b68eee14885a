//! The transformer encoder of BERT and its kin, with pooler and classifier, as a function of its parameters.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use candle_transformers::models::bert::HiddenAct;
use fedtune_config::job::Precision;

use super::adapters::Adapters;
use super::batch::{Batch, Layout};
use super::config::{Architecture, EncoderConfig};
use super::names::{Names, lora_a, lora_b};
use super::ops::dropout::DropoutStream;
use super::ops::{self, Loss, Tape};

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

    /// A dense layer, and its adapter where it has one.
    fn linear(&self, x: &Tensor, name: &str, mode: &Mode) -> Result<Tensor> {
        let (weight, bias) =
            (self.tensor(&format!("{name}.weight"), mode)?, self.tensor(&format!("{name}.bias"), mode)?);
        let out = ops::linear(&mode.tape, x, &weight, &bias)?;
        let Some((adapters, place)) =
            self.adapters.as_ref().and_then(|adapters| Some((adapters, adapters.place(name)?)))
        else {
            return Ok(out);
        };
        // Places behind those of all layers and the head.
        let place = (self.config.num_hidden_layers as u64 + 1) * 8 + place;
        let dropout = mode.dropout.and_then(|stream| adapters.dropout_of(stream).at(place));
        let x = ops::dropout(&mode.tape, x, dropout)?;
        let (down, up) = (self.tensor(&lora_a(name), mode)?, self.tensor(&lora_b(name), mode)?);
        ops::low_rank(&mode.tape, &out, &x, (&down, &up), adapters.scale())
    }

    fn norm(&self, x: &Tensor, name: &str, mode: &Mode) -> Result<Tensor> {
        let (weight, bias) =
            (self.tensor(&format!("{name}.weight"), mode)?, self.tensor(&format!("{name}.bias"), mode)?);
        ops::layer_norm(&mode.tape, x, &weight, &bias, self.config.layer_norm_eps)
    }

    fn classify(&self, batch: &Batch, mode: &Mode) -> Result<Tensor> {
        let layers = self.config.num_hidden_layers;
        let mut first = self.encode(batch, mode, Reach::FirstTokens)?;
        if self.config.architecture.drops_before_pooler() {
            first = ops::dropout(&mode.tape, &first, mode.dropout(layers, 2))?;
        }
        let pooled = self.linear(&first, self.names.pooler, mode)?;
        let pooled = match self.config.architecture {
            Architecture::DistilBert => ops::activation(&mode.tape, &pooled, HiddenAct::Relu)?,
            _ => ops::tanh(&mode.tape, &pooled)?,
        };
        let pooled = ops::dropout(&mode.tape, &pooled, mode.dropout(layers, 1))?;
        self.linear(&pooled, self.names.classifier, mode)
    }

    fn encode(&self, batch: &Batch, mode: &Mode, reach: Reach) -> Result<Tensor> {
        let layers = self.config.num_hidden_layers;
        let mut hidden = self.embed(batch, mode)?;
        for index in 0..layers {
            let reach = if index + 1 == layers { reach } else { Reach::AllTokens };
            hidden = self.layer(index, &hidden, &batch.layout, mode, reach)?;
        }
        Ok(hidden)
    }

    fn embed(&self, batch: &Batch, mode: &Mode) -> Result<Tensor> {
        let mut indices = batch.indices.clone();
        indices.positions.iter_mut().for_each(|position| *position += self.config.first_position as u32);
        let words = match &mode.words {
            Some((used, rows)) => {
                let place = |word: &u32| rows.binary_search(word).map_or(u32::MAX, |place| place as u32);
                indices.words = indices.words.iter().map(place).collect();
                used.as_tensor().clone()
            }
            None => self.tensor(self.names.words, mode)?,
        };
        let types = match self.names.types() {
            Some(types) => self.tensor(types, mode)?,
            None => {
                // One row of zeros for all, whatever types the tokenizer gave.
                indices.types.fill(0);
                Tensor::zeros((1, self.config.hidden_size), DType::F32, &self.device)?
            }
        };
        let sum = ops::embed(&mode.tape, &words, &self.tensor(self.names.positions, mode)?, &types, indices)?;
        let sum = self.norm(&sum, self.names.embeddings_norm, mode)?;
        ops::dropout(&mode.tape, &sum, mode.dropout(self.config.num_hidden_layers, 0))
    }

    /// One encoder layer. The classifier sees the first token of each sequence only, so the last layer computes
    /// nothing but keys and values for the others; the result and every gradient stay the same.
    fn layer(&self, index: usize, hidden: &Tensor, layout: &Layout, mode: &Mode, reach: Reach) -> Result<Tensor> {
        let names = self.names;
        let name = |part: &str| names.layer(index, part);
        let (targets, target_layout) = match reach {
            Reach::AllTokens => (hidden.clone(), layout.clone()),
            Reach::FirstTokens => {
                let starts = ops::pick_rows(&mode.tape, hidden, layout.starts())?;
                (starts, Layout::packed(&vec![1; layout.sequences()]))
            }
        };
        let q = self.linear(&targets, &name(names.query), mode)?;
        let k = self.linear(hidden, &name(names.key), mode)?;
        let v = self.linear(hidden, &name(names.value), mode)?;
        let heads = self.config.num_attention_heads;
        let context = ops::attention(&mode.tape, &q, &k, &v, heads, (&target_layout, layout), mode.dropout(index, 0))?;
        let context = self.linear(&context, &name(names.attention_output), mode)?;
        let attended = ops::residual(&mode.tape, &context, &targets, mode.dropout(index, 1))?;
        let attended = self.norm(&attended, &name(names.attention_norm), mode)?;
        let wide = self.linear(&attended, &name(names.intermediate), mode)?;
        let wide = ops::activation(&mode.tape, &wide, self.config.hidden_act)?;
        let narrow = self.linear(&wide, &name(names.output), mode)?;
        let out = ops::residual(&mode.tape, &narrow, &attended, mode.dropout(index, 2))?;
        self.norm(&out, &name(names.output_norm), mode)
    }
}

/// For which tokens the last layer's output is wanted.
#[derive(Clone, Copy)]
enum Reach {
    AllTokens,
    FirstTokens,
}
