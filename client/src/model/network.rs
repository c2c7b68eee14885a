//! A model as a function of its parameters. Here is what all architectures share; each has a module that computes its
//! outputs.

mod continuation;
mod decoder;
mod encoder;
mod resnet;
mod table;
mod vit;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var, bail};
use fedtune_config::job::Precision;

use super::adapters::Adapters;
use super::anatomy::{Anatomy, Role, lora_a, lora_b};
use super::batch::{Batch, Tokens};
use super::config::Config;
use super::error::ModelError;
use super::objective::{Objective, Targets};
use super::ops::dropout::DropoutStream;
use super::ops::{self, Grid, Loss, Normalise, Tape};
pub use continuation::Continuation;
use decoder::Decoder;
use encoder::Encoder;
use resnet::ResNet;
use vit::Vit;

/// One parameter.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// The values; the optimiser writes into them.
    pub var: Var,
    /// Whether it is trained; if not, no gradient is computed for it or only because of it.
    pub trained: bool,
    /// Layers between it and the top: 0 for the head, 1 for the last layer.
    pub depth: usize,
    /// What it does.
    pub role: Role,
}

/// What a network computes its outputs of.
#[derive(Debug, Clone)]
pub enum Input {
    /// Token sequences.
    Text(Batch),
    /// Images, f32 `[images, channels, height, width]`, on the network's device.
    Images(Tensor),
    /// What the columns of a table became, `[rows, inputs]`.
    Table(Tensor),
}

impl Input {
    /// Number of rows: texts, images, or rows of a table.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(batch) => batch.len(),
            Self::Images(inputs) | Self::Table(inputs) => inputs.dims().first().copied().unwrap_or(0),
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Batch> for Input {
    fn from(batch: Batch) -> Self {
        Self::Text(batch)
    }
}

impl Parameter {
    /// Whether it gets a gradient. A statistic of a batch norm gets none, but is part of the state of what is trained.
    pub fn learns(&self) -> bool {
        self.trained && self.role != Role::Statistic
    }

    /// Whether it may change in a step; while `probing` only the head does.
    pub fn moves(&self, probing: bool) -> bool {
        self.trained && (!probing || self.depth == 0)
    }
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

/// What a decoder expected where a token came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Foreseen {
    /// Minus the logarithm of the token's probability.
    pub loss: f64,
    /// Whether no other token had a higher score.
    pub first: bool,
}

/// Loss and gradients of a batch.
#[derive(Debug)]
pub struct Pass {
    /// The loss.
    pub loss: f64,
    /// One for each parameter that learns.
    pub gradients: BTreeMap<String, Gradient>,
    /// The running statistics as the batch changes them; see [`Network::track`].
    pub statistics: BTreeMap<String, Tensor>,
}

/// A model without what prepares its input.
#[derive(Debug)]
pub struct Network {
    config: Config,
    anatomy: Anatomy,
    objective: Objective,
    outputs: usize,
    adapters: Option<Adapters>,
    parameters: BTreeMap<String, Parameter>,
    device: Device,
    precision: Precision,
    recompute: bool,
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
    /// Whether the head alone is trained.
    probing: bool,
    /// Whether layers are computed again in the backward pass, and nothing but their inputs is kept until then.
    recompute: bool,
    tape: Tape,
    /// The running statistics of batch norms that went by their batch, as it changes them.
    statistics: RefCell<BTreeMap<String, Tensor>>,
}

impl Mode {
    fn evaluation() -> Self {
        Self {
            dropout: None,
            words: None,
            training: false,
            probing: false,
            recompute: false,
            tape: Tape::default(),
            statistics: RefCell::default(),
        }
    }

    /// For a layer by itself: the same dropout and precision, on a tape of its own.
    fn of_layer(&self, training: bool) -> Self {
        let (Self { dropout, probing, .. }, tape) = (self, Tape::new(self.tape.precision()));
        Self { dropout: *dropout, training, probing: *probing, tape, ..Self::evaluation() }
    }

    fn dropout(&self, layer: usize, place: u64) -> Option<ops::Dropout> {
        self.dropout.and_then(|stream| stream.at(layer as u64 * 8 + place))
    }
}

impl Network {
    /// Puts parameters together; names and shapes are those of the anatomy, and of the adapters. `precision` is that of
    /// training.
    pub(super) fn new(
        config: Config,
        (anatomy, objective, outputs): (Anatomy, Objective, usize),
        adapters: Option<Adapters>,
        parameters: BTreeMap<String, Parameter>,
        device: Device,
        precision: Precision,
    ) -> Self {
        Self { config, anatomy, objective, outputs, adapters, parameters, device, precision, recompute: false }
    }

    /// Whether training keeps of each layer of a transformer nothing but its input, and computes the layer again in the
    /// backward pass: the same gradients, bit for bit, for less memory and one more forward pass.
    ///
    /// # Errors
    /// Asked for on a device whose operations are not recorded, or of a model without such layers.
    pub fn set_recompute(&mut self, recompute: bool) -> std::result::Result<(), ModelError> {
        if recompute
            && !(ops::recorded(&self.device)
                && matches!(self.config, Config::Encoder(_) | Config::Decoder(_) | Config::Vit(_)))
        {
            return Err(ModelError::Recompute);
        }
        self.recompute = recompute;
        Ok(())
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What it is trained to say.
    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// How many values it gives for each row, or each token.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// What the architecture states of itself.
    pub(super) fn anatomy(&self) -> &Anatomy {
        &self.anatomy
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
    pub fn batch(&self, sequences: &[&Tokens]) -> Input {
        // The processor's attention takes sequences of unequal length, so nothing is spent on padding there.
        Input::Text(if self.device.is_cpu() { Batch::packed(sequences) } else { Batch::padded(sequences) })
    }

    /// The outputs in evaluation mode: `[rows, outputs]`, for [`Objective::Tokens`] and [`Objective::NextToken`] one row for
    /// each token of the batch's layout.
    ///
    /// # Errors
    /// An index outside its table, or a failure of the device.
    pub fn logits(&self, input: &Input) -> Result<Tensor> {
        self.forward(input, None, &Mode::evaluation())
    }

    /// How well a decoder foresees each token that counts, in their order. `targets` has one for each token of each text, as
    /// in [`Targets::Tokens`]. Never has the scores of more than some tokens in memory.
    ///
    /// # Errors
    /// As [`Self::gradients`]; also when the network is no decoder.
    pub fn foreseen(&self, batch: &Batch, targets: &[Vec<Option<u32>>]) -> Result<Vec<Foreseen>> {
        let Config::Decoder(config) = &self.config else { bail!("only a decoder says the next token") };
        Decoder::new(self, config, batch.layout.width(), &Mode::evaluation()).foreseen(batch, targets)
    }

    /// The outputs for some tokens, by their rows in the batch's layout: `[tokens, outputs]`, in evaluation mode.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn logits_of(&self, input: &Input, tokens: Vec<u32>) -> Result<Tensor> {
        self.forward(input, Some(tokens), &Mode::evaluation())
    }

    /// Hidden states of every token after the last layer, `[rows, hidden]`, in evaluation mode.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn hidden_states(&self, batch: &Batch) -> Result<Tensor> {
        let mode = Mode::evaluation();
        match &self.config {
            Config::Encoder(config) => Encoder::new(self, config, &mode).hidden_states(batch),
            Config::Decoder(config) => Decoder::new(self, config, batch.layout.width(), &mode).hidden_states(batch),
            _ => bail!("a network without tokens has no hidden states of them"),
        }
    }

    /// Loss and the gradient of every trained parameter.
    ///
    /// # Errors
    /// As [`Self::logits`]; also when the targets do not fit, or a trained parameter gets no gradient, which would mean that
    /// it silently stays.
    pub fn gradients(
        &self,
        input: &Input,
        targets: &Targets,
        loss: &Loss,
        dropout: Option<DropoutStream>,
    ) -> Result<Pass> {
        self.gradients_while(false, input, targets, loss, dropout)
    }

    /// As [`Self::gradients`], but while `probing` the gradients of the trained part of the head alone: nothing goes back
    /// through what is below it.
    ///
    /// # Errors
    /// As [`Self::gradients`].
    pub fn gradients_while(
        &self,
        probing: bool,
        input: &Input,
        targets: &Targets,
        loss: &Loss,
        dropout: Option<DropoutStream>,
    ) -> Result<Pass> {
        let words = match (input, self.anatomy.words.and_then(|name| self.parameters.get(name))) {
            (Input::Text(batch), Some(table)) if table.moves(probing) && self.device.is_cpu() => {
                Some(self.used_words(batch, &table.var)?)
            }
            _ => None,
        };
        let (tape, recompute) = (Tape::new(self.precision), self.recompute);
        let mode = Mode { dropout, words, training: true, probing, recompute, tape, statistics: RefCell::default() };
        let loss = self.loss(input, targets, loss, &mode)?;
        let layers = mode.of_layer(true);
        let Mode { words, tape, statistics, .. } = mode;
        let mut store = if ops::recorded(&self.device) {
            let again = |number: usize, x: &Tensor| {
                let mode = layers.of_layer(true);
                Ok((self.layer_again(input, number, x, &mode)?, mode.tape))
            };
            Store::Fused(tape.backward_through(&loss, &again)?)
        } else {
            Store::Composed(loss.backward()?)
        };
        let mut gradients = BTreeMap::new();
        let learning = |parameter: &Parameter| parameter.learns() && parameter.moves(probing);
        for (name, parameter) in self.parameters.iter().filter(|(_, parameter)| learning(parameter)) {
            let whole = store.remove(&parameter.var);
            let part = match &words {
                Some((compact, rows)) if Some(name.as_str()) == self.anatomy.words => {
                    store.remove(compact).map(|values| (rows, values))
                }
                _ => None,
            };
            let gradient = match (whole, part) {
                (whole, None) => whole.map(Gradient::Dense),
                (None, Some((rows, values))) => Some(Gradient::Rows { rows: rows.clone(), values }),
                // The table is the output layer too.
                (Some(whole), Some((rows, values))) => {
                    ops::add_rows(&whole, rows, &values)?;
                    Some(Gradient::Dense(whole))
                }
            };
            match gradient {
                Some(gradient) => gradients.insert(name.clone(), gradient),
                None => bail!("the trained tensor {name} got no gradient"),
            };
        }
        Ok(Pass { loss: f64::from(loss.to_scalar::<f32>()?), gradients, statistics: statistics.into_inner() })
    }

    /// Takes over the running statistics that a pass over a training batch found, as a step of training does. A pass
    /// changes nothing itself.
    ///
    /// # Errors
    /// The pass is of another network, or a failure of the device.
    pub fn track(&self, pass: &Pass) -> Result<()> {
        for (name, values) in &pass.statistics {
            match self.parameters.get(name) {
                Some(parameter) => parameter.var.set(values)?,
                None => bail!("statistics of {name}, which the network does not have"),
            }
        }
        Ok(())
    }

    /// Takes the running statistics out of what is trained: batch norms go by them as they are, and no batch changes them.
    pub fn freeze_statistics(&mut self) {
        let statistics = self.parameters.values_mut().filter(|parameter| parameter.role == Role::Statistic);
        statistics.for_each(|parameter| parameter.trained = false);
    }

    /// The loss of a batch, a scalar.
    fn loss(&self, input: &Input, targets: &Targets, loss: &Loss, mode: &Mode) -> Result<Tensor> {
        let Self { objective, outputs, .. } = *self;
        let divisor = loss.divisor.unwrap_or_else(|| targets.weight(objective, loss, outputs));
        match (objective, targets) {
            (Objective::Class, Targets::Classes(labels)) => {
                ops::cross_entropy(&mode.tape, &self.forward(input, None, mode)?, labels, loss)
            }
            (Objective::Sets, Targets::Sets(sets)) => {
                ops::binary_cross_entropy(&mode.tape, &self.forward(input, None, mode)?, sets, divisor)
            }
            (Objective::Value, Targets::Values(values)) => {
                ops::squared_error(&mode.tape, &self.forward(input, None, mode)?, values, divisor)
            }
            (Objective::NextToken, Targets::Tokens(tokens)) => {
                let (Config::Decoder(config), Input::Text(batch)) = (&self.config, input) else {
                    bail!("only a decoder says the next token");
                };
                let (rows, labels) = batch.counted(tokens, true)?;
                let decoder = Decoder::new(self, config, batch.layout.width(), mode);
                ops::words_loss(&mode.tape, &decoder.seen(batch, Some(rows))?, &decoder.output()?, &labels, loss)
            }
            (Objective::Tokens, Targets::Tokens(tokens)) => {
                let Input::Text(batch) = input else { bail!("targets for tokens, and an input that has none") };
                let (rows, labels) = batch.counted(tokens, false)?;
                ops::cross_entropy(&mode.tape, &self.forward(input, Some(rows), mode)?, &labels, loss)
            }
            _ => bail!("targets of another kind than the network was made for"),
        }
    }

    /// The output of a layer, which `run` computes of its input `hidden`.
    fn layer(
        &self,
        number: usize,
        hidden: &Tensor,
        mode: &Mode,
        run: impl Fn(&Mode, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let depth = self.anatomy.layers.saturating_sub(number);
        let trains = |parameter: &Parameter| parameter.moves(mode.probing) && parameter.depth == depth;
        if !mode.recompute || !(hidden.track_op() || self.parameters.values().any(trains)) {
            return run(mode, hidden);
        }
        let out = run(&mode.of_layer(false), &hidden.detach())?;
        mode.tape.layer(number, hidden, &out)
    }

    /// A layer of a transformer, computed again of its input.
    fn layer_again(&self, input: &Input, number: usize, hidden: &Tensor, mode: &Mode) -> Result<Tensor> {
        match (&self.config, input) {
            (Config::Encoder(config), Input::Text(batch)) => {
                Encoder::new(self, config, mode).layer(batch, number, hidden)
            }
            (Config::Decoder(config), Input::Text(batch)) => {
                Decoder::new(self, config, batch.layout.width(), mode).layer(number, hidden, &batch.layout)
            }
            (Config::Vit(config), Input::Images(images)) => {
                let vit = Vit { network: self, config, mode };
                vit.layer(number, hidden, &vit.layout(images)?)
            }
            _ => bail!("layer {number} cannot be computed again"),
        }
    }

    /// The outputs for the rows of the input, or for some of its tokens where `tokens` names their rows in the layout.
    fn forward(&self, input: &Input, tokens: Option<Vec<u32>>, mode: &Mode) -> Result<Tensor> {
        match (&self.config, input) {
            (Config::Encoder(config), Input::Text(batch)) => Encoder::new(self, config, mode).forward(batch, tokens),
            (Config::Decoder(config), Input::Text(batch)) => {
                Decoder::new(self, config, batch.layout.width(), mode).forward(batch, tokens)
            }
            (Config::ResNet(config), Input::Images(images)) => ResNet { network: self, config, mode }.forward(images),
            (Config::Vit(config), Input::Images(images)) => Vit { network: self, config, mode }.forward(images),
            (Config::Table(config), Input::Table(inputs)) => table::forward(self, config, inputs, mode),
            _ => bail!("an input of another kind than the network was made for"),
        }
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
            Some(parameter) if mode.training && parameter.moves(mode.probing) => Ok(parameter.var.as_tensor().clone()),
            Some(parameter) => Ok(parameter.var.as_detached_tensor()),
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
        let place = (self.anatomy.layers as u64 + 1) * 8 + place;
        let dropout = mode.dropout.and_then(|stream| adapters.dropout_of(stream).at(place));
        let x = ops::dropout(&mode.tape, x, dropout)?;
        let (down, up) = (self.tensor(&lora_a(name), mode)?, part(self.tensor(&lora_b(name), mode)?)?);
        ops::low_rank(&mode.tape, &out, &x, (&down, &up), adapters.scale())
    }

    fn layer_norm(&self, x: &Tensor, name: &str, epsilon: f64, mode: &Mode) -> Result<Tensor> {
        let (weight, bias) = (self.tensor(&format!("{name}.weight"), mode)?, self.bias(name, mode)?);
        ops::layer_norm(&mode.tape, x, &weight, bias.as_ref(), epsilon)
    }

    /// Batch normalisation of x `[pixels, channels]`, and ReLU where `relu` says so. It goes by the batch in training where
    /// its statistics are part of what is trained, and by these anywhere else.
    fn batch_norm(&self, x: &Tensor, name: &str, epsilon: f64, relu: bool, mode: &Mode) -> Result<Tensor> {
        let names = ["weight", "bias", "running_mean", "running_var"].map(|part| format!("{name}.{part}"));
        let (Some(mean), Some(variance)) = (self.parameters.get(&names[2]), self.parameters.get(&names[3])) else {
            bail!("the network has no batch norm {name}");
        };
        let by_batch = mode.training && mean.moves(mode.probing);
        let (mean, variance) = (&mean.var, &variance.var);
        let by = match by_batch {
            true => Normalise::Batch,
            false => Normalise::Running(mean, variance),
        };
        let affine = (self.tensor(&names[0], mode)?, self.tensor(&names[1], mode)?);
        let (out, moments) = ops::batch_norm(&mode.tape, x, (&affine.0, &affine.1), by, epsilon, relu)?;
        if let Some(moments) = moments {
            let [_, _, mean_name, variance_name] = names;
            let mut statistics = mode.statistics.borrow_mut();
            statistics.insert(mean_name, running(mean, moments.mean.clone())?);
            if let Some(variance_now) = moments.unbiased_variance() {
                statistics.insert(variance_name, running(variance, variance_now)?);
            }
        }
        Ok(out)
    }

    /// The rows of the table of words for tokens: the table, or those of its rows that the batch uses, and the
    /// indices into it.
    fn words(&self, words: &[u32], mode: &Mode) -> Result<(Tensor, Vec<u32>)> {
        match (&mode.words, self.anatomy.words) {
            (Some((used, rows)), _) => {
                let place = |word: &u32| rows.binary_search(word).map_or(u32::MAX, |place| place as u32);
                Ok((used.as_tensor().clone(), words.iter().map(place).collect()))
            }
            (None, Some(name)) => Ok((self.tensor(name, mode)?, words.to_vec())),
            (None, None) => bail!("the network has no table of words"),
        }
    }
}

/// What a batch weighs in running statistics; transformers leaves PyTorch's default.
const MOMENTUM: f64 = 0.1;

/// A running statistic behind a batch.
fn running(before: &Tensor, batch: Vec<f32>) -> Result<Tensor> {
    let batch = Tensor::from_vec(batch, before.shape(), before.device())?;
    (before.affine(1.0 - MOMENTUM, 0.0)? + batch.affine(MOMENTUM, 0.0)?)?.detach().copy()
}

/// Images `[images, channels, height, width]` as the rows of a matrix.
fn pixels(images: &Tensor, channels: usize) -> Result<(Tensor, Grid)> {
    let (count, found, height, width) = images.dims4()?;
    if found != channels {
        bail!("images of {found} channels for a network of {channels}");
    }
    let grid = Grid { images: count, height, width };
    Ok((images.permute((0, 2, 3, 1))?.contiguous()?.reshape((grid.pixels(), channels))?, grid))
}
