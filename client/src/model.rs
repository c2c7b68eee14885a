//! A pre-trained model as a trainable classifier.
//!
//! Read in this order: [`batch`] (how token rows lie), [`config`] and `anatomy` (what tensors there are), `objective` (what
//! a network says), [`network`] (the function), `ops` (the operations under it), `preparing` and `cells` (rows to what a network takes), `new_table` (a model that is not pre-trained), `state` and `export` (files). This module loads a folder into a
//! [`Classifier`].

mod adapters;
mod anatomy;
pub mod batch;
mod cells;
pub mod config;
mod error;
mod export;
mod folder;
mod initial;
mod load;
pub mod network;
mod new_table;
mod objective;
pub(crate) mod ops;
mod preparing;
mod pretrained;
mod state;
pub(crate) mod tensor_file;
mod tokens;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fedtune_config::Job;
use fedtune_config::job::{Lora, Patterns, Precision, TaskKind, Trainable};
use serde_json::{Map, Value};

use crate::data::image::Preparation;

pub use anatomy::{Place, Role};
pub use cells::{CellPreparation, taken_by};
pub use config::Reads;
pub use error::ModelError;
pub use network::{Continuation, Input, Network};
pub use new_table::{NewTable, write_new_table};
pub use objective::{Objective, Targets};
pub use ops::Loss;
pub use ops::dropout::DropoutStream;
pub use tokens::{Encoded, Text, TokenCounter};

use batch::Tokens;
use preparing::Preparing;
use tokens::TextTokenizer;

/// What a job asks of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// What it says of its input.
    pub objective: Objective,
    /// Every label, in the order of the outputs; empty where the objective has none.
    pub labels: Vec<String>,
    /// Which tensors are trained.
    pub trainable: Trainable,
    /// The adapters, for [`Trainable::Lora`].
    pub lora: Lora,
    /// Precision of products in training; evaluation is in f32.
    pub precision: Precision,
    /// Dropout probability in training.
    pub dropout: f64,
    /// Seed of new weights.
    pub seed: u64,
    /// Longest sequence in tokens, special tokens counted.
    pub max_length: usize,
    /// How prompt and response make one text, where there are such.
    pub template: String,
    /// What rows are.
    pub reads: Reads,
    /// Whether batch norms keep the base model's running statistics and go by them.
    pub freeze_batch_norm: bool,
}

impl From<&Job> for ModelSpec {
    fn from(job: &Job) -> Self {
        Self {
            objective: match job.task.kind {
                TaskKind::TextClassification | TaskKind::ImageClassification | TaskKind::TableClassification => {
                    Objective::Class
                }
                TaskKind::MultiLabelClassification => Objective::Sets,
                TaskKind::TextRegression | TaskKind::TableRegression => Objective::Value,
                TaskKind::TokenClassification => Objective::Tokens,
                TaskKind::CausalLm => Objective::NextToken,
            },
            labels: job.task.labels.clone(),
            trainable: job.training.trainable.clone(),
            lora: job.training.lora.clone().unwrap_or_default(),
            precision: job.training.precision,
            dropout: job.training.dropout,
            seed: job.training.seed,
            max_length: job.task.max_length,
            template: job.task.template.clone().unwrap_or_default(),
            reads: job.task.kind.reads(),
            freeze_batch_norm: job.training.freeze_batch_norm,
        }
    }
}

/// A classifier of texts, images or rows of tables: network, preparation of its input, and labels, on one device.
#[derive(Debug)]
pub struct Classifier {
    network: Network,
    preparing: Preparing,
    labels: Vec<String>,
    template: String,
    dropout: f64,
    folder: PathBuf,
    base_config: Map<String, Value>,
    /// The name in the base model's file of every tensor that came from there.
    base_names: BTreeMap<String, String>,
}

/// Tokens of texts that are continued together, those to come counted.
const CONTINUED: usize = 1 << 14;

/// What a model answers to a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The text.
    pub text: String,
    /// The geometric mean of its tokens' probabilities.
    pub score: f64,
    /// Whether it came to its end; else it was cut.
    pub ended: bool,
}

impl Classifier {
    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// See [`Network::set_recompute`].
    ///
    /// # Errors
    /// As there.
    pub fn set_recompute(&mut self, recompute: bool) -> Result<(), ModelError> {
        self.network.set_recompute(recompute)
    }

    /// The labels, in the order of the outputs.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Dropout probability in training.
    pub fn dropout(&self) -> f64 {
        self.dropout
    }

    /// Longest sequence in tokens; longer texts are cut. `None` of images and tables.
    pub fn max_length(&self) -> Option<usize> {
        self.tokenizer().map(TextTokenizer::max_length)
    }

    /// How images become its input, where it reads images.
    pub fn preparation(&self) -> Option<&Preparation> {
        match &self.preparing {
            Preparing::Images(preparation) => Some(preparation),
            Preparing::Texts(_) | Preparing::Cells(_) => None,
        }
    }

    /// How cells of a table become its input, where it reads tables.
    pub fn cells(&self) -> Option<&CellPreparation> {
        match &self.preparing {
            Preparing::Cells(cells) => Some(cells),
            Preparing::Texts(_) | Preparing::Images(_) => None,
        }
    }

    /// What it says of each row in evaluation mode: logits, or the number itself.
    ///
    /// # Errors
    /// As [`Network::logits`].
    pub fn outputs(&self, input: &Input) -> Result<Vec<Vec<f32>>, candle_core::Error> {
        let mut outputs = self.network.logits(input)?.to_vec2::<f32>()?;
        if let (Some(cells), Objective::Value) = (self.cells(), self.network.objective()) {
            outputs.iter_mut().flatten().for_each(|output| *output = cells.of_output(*output));
        }
        Ok(outputs)
    }

    /// What it reads.
    pub fn reads(&self) -> Reads {
        self.network.config().reads()
    }

    fn tokenizer(&self) -> Option<&TextTokenizer> {
        match &self.preparing {
            Preparing::Texts(tokenizer) => Some(tokenizer),
            Preparing::Images(_) | Preparing::Cells(_) => None,
        }
    }

    /// Tokens of each text, cut at [`Self::max_length`].
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn tokenize(&self, texts: &[&str]) -> Result<Vec<Tokens>, candle_core::Error> {
        let texts: Vec<Text<'_>> = texts.iter().map(|text| Text::Single(text)).collect();
        Ok(self.encode(&texts)?.into_iter().map(|encoded| encoded.tokens).collect())
    }

    /// Tokens of what rows hold, cut at [`Self::max_length`], the longer one of a pair first. An exchange that is not cut
    /// ends with the model's token for the end of a text, `eos_token_id` of config.json, where it names one.
    ///
    /// # Errors
    /// The tokenizer fails, or the model reads no texts.
    pub fn encode(&self, texts: &[Text<'_>]) -> Result<Vec<Encoded>, candle_core::Error> {
        let Some(tokenizer) = self.tokenizer() else { candle_core::bail!("texts for a model of images or tables") };
        tokenizer.encode(texts, &self.template, self.ends().first().copied())
    }

    /// The tokens that end a text, `eos_token_id` of config.json.
    fn ends(&self) -> Vec<u32> {
        let ends = match self.base_config.get("eos_token_id") {
            Some(Value::Array(several)) => several.as_slice(),
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        ends.iter().filter_map(|end| u32::try_from(end.as_u64()?).ok()).collect()
    }

    /// The responses to prompts, by the likeliest token at a time, of at most `most` tokens each. A prompt that leaves these no
    /// room in the model's positions, or takes more than half of them, loses its end.
    ///
    /// # Errors
    /// The model does not continue texts, the tokenizer fails, or a failure of the device.
    pub fn respond(&self, prompts: &[&str], most: usize) -> Result<Vec<Response>, candle_core::Error> {
        let (Some(tokenizer), Some(positions)) = (self.tokenizer(), self.network.config().positions()) else {
            candle_core::bail!("prompts for a model that reads none");
        };
        let ends = self.ends();
        let room = (positions - most.min(positions / 2)).max(1);
        let texts = tokenizer.prompts(prompts, &self.template, room)?;
        let mut written = Vec::with_capacity(texts.len());
        // A few at a time, as each token keeps memory until its text has ended.
        let mut left = texts.as_slice();
        while !left.is_empty() {
            let mut tokens = 0;
            let fits = |text: &&Vec<u32>| {
                tokens += text.len() + most;
                tokens <= CONTINUED
            };
            let count = left.iter().take_while(fits).count().max(1);
            let (part, rest) = left.split_at(count);
            let part: Vec<&[u32]> = part.iter().map(Vec::as_slice).collect();
            written.extend(self.network.continuations(&part, most, &ends)?);
            left = rest;
        }
        let response = |written: Continuation| {
            let tokens = (written.words.len() + usize::from(written.ended)).max(1);
            let text = tokenizer.text(&written.words)?;
            Ok(Response { text, score: (written.log_probability / tokens as f64).exp(), ended: written.ended })
        };
        written.into_iter().map(response).collect()
    }

    /// Names and shapes of the trained tensors, sorted by name.
    pub fn state_tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.network.state_tensors()
    }

    /// Writes the trained tensors; see [`Network::write_state`].
    ///
    /// # Errors
    /// A value is not finite, or the file cannot be written.
    pub fn write_state(&self, path: &Path) -> Result<(), ModelError> {
        self.network.write_state(path)
    }

    /// Replaces the trained tensors; see [`Network::load_state`].
    ///
    /// # Errors
    /// The file does not hold exactly the trained tensors, f32 and finite.
    pub fn load_state(&mut self, path: &Path) -> Result<(), ModelError> {
        self.network.load_state(path)
    }

    /// Writes what training changed; see [`Network::write_delta`].
    ///
    /// # Errors
    /// `state_before` does not fit, a difference is not finite, or the file cannot be written.
    pub fn write_delta(&self, state_before: &Path, excluded: &Patterns, out: &Path) -> Result<(), ModelError> {
        self.network.write_delta(state_before, excluded, out)
    }

    /// Checks what is not averaged; see [`Network::check_excluded`].
    ///
    /// # Errors
    /// As there.
    pub fn check_excluded(&self, excluded: &Patterns) -> Result<(), ModelError> {
        self.network.check_excluded(excluded)
    }

    /// Writes what is not averaged; see [`Network::write_own`].
    ///
    /// # Errors
    /// As there.
    pub fn write_own(&self, excluded: &Patterns, path: &Path) -> Result<(), ModelError> {
        self.network.write_own(excluded, path)
    }

    /// Replaces what is not averaged; see [`Network::load_own`].
    ///
    /// # Errors
    /// As there.
    pub fn load_own(&mut self, path: &Path) -> Result<(), ModelError> {
        self.network.load_own(path)
    }
}
