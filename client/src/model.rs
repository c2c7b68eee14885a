//! A pre-trained model as a trainable classifier.
//!
//! Read in this order: [`batch`] (how token rows lie), [`config`] and `anatomy` (what tensors there are), `objective` (what
//! a network says), [`network`] (the function), `ops` (the operations under it), `preparing` (rows to what a network takes), `state` and `export` (files). This module loads a folder into a
//! [`Classifier`].

mod adapters;
mod anatomy;
pub mod batch;
pub mod config;
mod error;
mod export;
mod folder;
mod initial;
mod load;
pub mod network;
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
use fedtune_config::job::{Lora, Precision, TaskKind, Trainable};
use serde_json::{Map, Value};

use crate::data::image::Preparation;

pub use anatomy::{Place, Role};
pub use config::Reads;
pub use error::ModelError;
pub use network::{Input, Network};
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
                TaskKind::TextClassification | TaskKind::ImageClassification => Objective::Class,
                TaskKind::MultiLabelClassification => Objective::Sets,
                TaskKind::TextRegression => Objective::Value,
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
            reads: if job.task.kind.reads_images() { Reads::Images } else { Reads::Texts },
            freeze_batch_norm: job.training.freeze_batch_norm,
        }
    }
}

/// A classifier of texts or images: network, preparation of its input, and labels, on one device.
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

    /// Longest sequence in tokens; longer texts are cut. `None` of images.
    pub fn max_length(&self) -> Option<usize> {
        self.tokenizer().map(TextTokenizer::max_length)
    }

    /// How images become its input, where it reads images.
    pub fn preparation(&self) -> Option<&Preparation> {
        match &self.preparing {
            Preparing::Images(preparation) => Some(preparation),
            Preparing::Texts(_) => None,
        }
    }

    /// What it reads.
    pub fn reads(&self) -> Reads {
        self.network.config().reads()
    }

    fn tokenizer(&self) -> Option<&TextTokenizer> {
        match &self.preparing {
            Preparing::Texts(tokenizer) => Some(tokenizer),
            Preparing::Images(_) => None,
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
    /// The tokenizer fails, or the model reads images.
    pub fn encode(&self, texts: &[Text<'_>]) -> Result<Vec<Encoded>, candle_core::Error> {
        let end = match self.base_config.get("eos_token_id") {
            Some(Value::Array(several)) => several.first(),
            one => one,
        };
        let end = end.and_then(Value::as_u64).and_then(|end| u32::try_from(end).ok());
        let Some(tokenizer) = self.tokenizer() else { candle_core::bail!("texts for a model of images") };
        tokenizer.encode(texts, &self.template, end)
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
    pub fn write_delta(&self, state_before: &Path, out: &Path) -> Result<(), ModelError> {
        self.network.write_delta(state_before, out)
    }
}
