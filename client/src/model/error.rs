//! What can be wrong with a model folder, a state file or a model specification.

use std::path::PathBuf;

use super::config::Reads;
use crate::data::image::PreparationError;

/// A model that cannot be loaded, changed or written.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No such folder.
    #[error(
        "the model folder {} {found}; expected a folder in Hugging Face layout, with config.json, tokenizer.json (or \
         preprocessor_config.json, for images) and model.safetensors. Download one, for example with `hf download`, and give its path",
        path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// A file of the layout is absent.
    #[error(
        "the model folder {} has no {file}; a folder in Hugging Face layout has config.json, tokenizer.json (or \
         preprocessor_config.json, for images) and model.safetensors. {remedy}",
        folder.display()
    )]
    FileMissing {
        /// The folder.
        folder: PathBuf,
        /// The file.
        file: &'static str,
        /// How to get it.
        remedy: &'static str,
    },
    /// A model of images without what says how they are prepared, or with a damaged one.
    #[error(transparent)]
    Preparation(#[from] PreparationError),
    /// A model for other rows.
    #[error("{}: the model reads {found}; expected one that reads {expected}, as the task does", path.display())]
    Reads {
        /// The config.json.
        path: PathBuf,
        /// What it reads.
        found: Reads,
        /// What rows are.
        expected: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}; check that it exists and may be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}; check the folder's permissions and the free space", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is larger than any of its kind.
    #[error("{} is {found} bytes; expected at most {most}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// What is allowed.
        most: u64,
    },
    /// config.json is not what it should be.
    #[error("{}: {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Field, found and expected.
        message: String,
    },
    /// Another architecture.
    #[error(
        "{}: model_type is {found}; supported: \"bert\", \"distilbert\", \"roberta\", \"xlm-roberta\" and \"modernbert\" for \
         texts, \"llama\", \"qwen2\" and \"qwen3\" as language models, \"resnet\" and \"vit\" for images, \"fedtune-table\" for tables \
         (fedtune-client new-table-model makes one). Choose a model of \
         these (for example all-MiniLM-L6-v2, roberta-base, ModernBERT-base, Qwen2.5-0.5B, resnet-18 or \
         vit-base-patch16-224)",
        path.display()
    )]
    Architecture {
        /// config.json
        path: PathBuf,
        /// The model type found.
        found: String,
    },
    /// A task that the architecture has no form of.
    #[error("task.kind is {task:?}, which takes {takes}; choose another model or another kind of task")]
    Objective {
        /// The kind of task.
        task: &'static str,
        /// What it takes.
        takes: &'static str,
    },
    /// A precision that the device has no form of.
    #[error(
        "training.precision is not \"f32\", and only the processor and NVIDIA GPUs have others; set it to that, or device.kind \
         to \"cpu\" or \"cuda\""
    )]
    Precision,
    /// Layers that cannot be computed again.
    #[error(
        "layers can be computed again in the backward pass only for transformers on the processor and NVIDIA \
         GPUs; leave that out, or choose another model or device"
    )]
    Recompute,
    /// Adapters for layers that are not there.
    #[error("training.lora.targets: {message}")]
    Targets {
        /// Found and expected.
        message: String,
    },
    /// Adapters alone are no model.
    #[error(
        "the folder {} holds adapters (adapter_config.json); give the base model they were trained on with --base DIR",
        folder.display()
    )]
    BaseMissing {
        /// The folder.
        folder: PathBuf,
    },
    /// A base model for what is no adapter.
    #[error("the folder {} holds a whole model and no adapters; leave --base out", folder.display())]
    BaseUnused {
        /// The folder.
        folder: PathBuf,
    },
    /// tokenizer.json is unusable.
    #[error("{}: not a usable tokenizer: {message}; expected the tokenizer.json that came with the model", path.display())]
    Tokenizer {
        /// tokenizer.json
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The tokenizer knows more tokens than the model.
    #[error(
        "{}: the tokenizer has the token index {largest}, and config.json says vocab_size {vocabulary}; the two files \
         do not belong together",
        path.display()
    )]
    Vocabulary {
        /// tokenizer.json
        path: PathBuf,
        /// Largest index.
        largest: u32,
        /// Size of the table.
        vocabulary: usize,
    },
    /// Longer sequences than the model has positions.
    #[error(
        "task.max_length is {requested}; the model {} has {positions} positions (max_position_embeddings). Set \
         max_length to at most {positions}",
        path.display()
    )]
    MaxLength {
        /// config.json
        path: PathBuf,
        /// What was asked for.
        requested: usize,
        /// What is there.
        positions: usize,
    },
    /// A tensor file is damaged.
    #[error("{}: not a whole safetensors file: {message}; fetch or write it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A tensor is absent.
    #[error("{}: the tensor {name} is missing; expected it with shape {expected:?}", path.display())]
    TensorMissing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// A tensor that does not belong here.
    #[error("{}: found the tensor {name}, which is not trained by this job; expected exactly the trainable tensors", path.display())]
    TensorUnexpected {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor of another shape.
    #[error("{}: the tensor {name} has shape {found:?}; expected {expected:?}", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape by config.json and the job.
        expected: Vec<usize>,
    },
    /// A tensor of a type we do not compute with.
    #[error("{}: the tensor {name} has type {found}; expected {expected}", path.display())]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// NaN or infinity.
    #[error(
        "{place}: the tensor {name} holds a value that is not a finite number; the training diverged or the file is \
         damaged. A smaller learning rate helps against the first"
    )]
    NotFinite {
        /// The file, or what was computed.
        place: String,
        /// The tensor.
        name: String,
    },
    /// More layers to train than there are.
    #[error(
        "training.trainable is \"last-{requested}\"; the model has {layers} encoder layers. Use last-{layers} or full"
    )]
    Layers {
        /// What was asked for.
        requested: usize,
        /// What is there.
        layers: usize,
    },
    /// A pattern that no tensor fits.
    #[error(
        "training.trainable holds the pattern {pattern:?}, which the name of no tensor of this model fits; the nearest are \
         {}. `*` stands for any characters", near.join(", ")
    )]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Names that there are.
        near: Vec<String>,
    },
    /// A pattern of what is not averaged that no tensor fits.
    #[error(
        "aggregation.exclude holds the pattern {pattern:?}, which the name of no trained tensor fits; they are {names}, …. `*` \
         stands for any characters"
    )]
    ExcludedNothing {
        /// The pattern.
        pattern: String,
        /// The first names that there are.
        names: String,
    },
    /// Nothing is averaged.
    #[error("aggregation.exclude fits every trained tensor, so nothing is left to average; leave some out")]
    ExcludedAll,
    /// A new tensor that is to stay as it is.
    #[error(
        "the tensor {name} is not in the base model, so it begins at random, but no pattern of training.trainable fits it; \
         add one that does"
    )]
    NewAndFrozen {
        /// The tensor.
        name: String,
    },
    /// Labels that cannot be used.
    #[error("{place}: {message}")]
    Labels {
        /// Where the labels come from.
        place: String,
        /// What was found and expected.
        message: String,
    },
    /// The tensors cannot be computed with.
    #[error("computing failed: {0}; this is a fault of the program or of the device, please report it")]
    Compute(#[from] candle_core::Error),
}

impl ModelError {
    /// Whether the cause is the disk and not the model.
    pub fn is_storage(&self) -> bool {
        matches!(self, Self::Write { .. })
    }
}
