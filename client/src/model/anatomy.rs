//! The tensors of a model: canonical names (those of transformers' class for it), shapes, and what they are for. Every
//! architecture states its own; loading, freezing, adapters, weight decay and export read nothing else.

pub(super) mod decoder;
mod encoder;
mod resnet;
pub(super) mod table;
mod vit;

use fedtune_config::job::Trainable;

use super::config::Config;
use super::error::ModelError;
use super::objective::Objective;
pub(super) use encoder::{BertNames, Function, ModernBertNames, Names};
pub(super) use resnet::{ConvNorm, ResNetNames, Residual};
pub(super) use vit::VitNames;

/// Where in the model a tensor stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Below the first layer.
    Embeddings,
    /// In a layer, counted from 0 at the bottom.
    Layer(usize),
    /// Above the last layer; may be new.
    Head,
    /// Above the last layer of a model that says words, which it knows already: never new, and frozen beside adapters.
    Output,
    /// The last tensors, whose shape depends on the labels; new unless the file's labels are those asked for.
    Classifier,
}

/// What a tensor does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Multiplies, or is looked up.
    Weight,
    /// Is added.
    Bias,
    /// The scale of a norm.
    Norm,
    /// A running mean or variance: part of the state like what is trained, but changed by a step and not by a gradient.
    Statistic,
}

impl Role {
    /// Whether weight decay touches it: neither biases nor norms, as transformers' trainer has it.
    pub fn decays(self) -> bool {
        self == Self::Weight
    }
}

/// A tensor of a model.
#[derive(Debug, Clone)]
pub(super) struct TensorSpec {
    /// Its canonical name.
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// The names it may have in a base model's file, in order of preference.
    pub(super) in_base: Vec<String>,
    pub(super) place: Place,
    pub(super) role: Role,
}

impl TensorSpec {
    /// Whether a base model need not have it.
    pub(super) fn is_head(&self) -> bool {
        matches!(self.place, Place::Head | Place::Classifier)
    }
}

/// A dense layer that an adapter can stand beside.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    /// The stem of its names.
    pub(super) stem: String,
    /// The stem within its layer, the same in every layer.
    pub(super) part: &'static str,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) place: Place,
}

/// What an architecture states of itself.
#[derive(Debug)]
pub(super) struct Anatomy {
    pub(super) tensors: Vec<TensorSpec>,
    /// What nothing is computed with, and an export copies as it is where the base model has it: canonical names, each with
    /// those that it may have in a base model's file.
    pub(super) carried: Vec<(String, Vec<String>)>,
    /// Layers between embeddings and head.
    pub(super) layers: usize,
    pub(super) dense: Vec<Dense>,
    /// What adapters stand beside unless asked otherwise, in peft's terms.
    pub(super) default_targets: Vec<String>,
    /// The parts that are trained and saved beside adapters, peft's `modules_to_save`.
    pub(super) beside_adapters: Vec<String>,
    /// The table of words, of whose gradient only the used rows are kept.
    pub(super) words: Option<&'static str>,
    /// The class that transformers loads it with.
    pub(super) class: String,
    /// Standard deviation of new weights.
    pub(super) deviation: f64,
}

/// Fails for what cannot be said of an image as a whole.
fn check_images(objective: Objective) -> Result<(), ModelError> {
    match objective {
        Objective::Class | Objective::Sets | Objective::Value => Ok(()),
        Objective::Tokens => Err(ModelError::Objective {
            task: "token-classification",
            takes: "an encoder of text (\"bert\", \"distilbert\", \"roberta\", \"xlm-roberta\", \"modernbert\")",
        }),
        Objective::NextToken => {
            Err(ModelError::Objective { task: "causal-lm", takes: "a decoder (\"qwen2\", \"qwen3\", \"llama\")" })
        }
    }
}

/// Stands for every dense layer below the head.
const ALL_LINEAR: &str = "all-linear";

/// The name of an adapter's matrix `A` `[rank, in]`.
pub(super) fn lora_a(stem: &str) -> String {
    format!("{stem}.lora_A.weight")
}

/// The name of an adapter's matrix `B` `[out, rank]`.
pub(super) fn lora_b(stem: &str) -> String {
    format!("{stem}.lora_B.weight")
}

impl Anatomy {
    /// Of a model with so many outputs.
    ///
    /// # Errors
    /// The architecture has no form for the objective.
    pub(super) fn of(config: &Config, objective: Objective, outputs: usize) -> Result<Self, ModelError> {
        match config {
            Config::Encoder(encoder) => encoder::anatomy(encoder, objective, outputs),
            Config::ResNet(resnet) => resnet::anatomy(resnet, objective, outputs),
            Config::Vit(vit) => vit::anatomy(vit, objective, outputs),
            Config::Table(table) => table::anatomy(table, objective, outputs),
            Config::Decoder(decoder) => decoder::anatomy(decoder, objective),
        }
    }

    /// What adapters are put beside, in peft's terms: `targets` with [`ALL_LINEAR`] written out, or else the default.
    pub(super) fn lora_targets(&self, targets: &[String]) -> Vec<String> {
        if targets.is_empty() {
            self.default_targets.clone()
        } else if targets.iter().any(|target| target == ALL_LINEAR) {
            self.parts().into_iter().map(str::to_owned).collect()
        } else {
            targets.to_vec()
        }
    }

    /// The dense layers that `targets` name. As in peft, a target fits every layer whose name ends with it.
    ///
    /// # Errors
    /// A target that fits no layer, with what would.
    pub(super) fn lora_layers(&self, targets: &[String]) -> Result<Vec<&Dense>, String> {
        let fits = |dense: &Dense, target: &str| {
            dense.stem.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if self.dense.is_empty() {
            return Err("this architecture has no layers for adapters; set training.trainable to another".into());
        }
        if let Some(target) = targets.iter().find(|target| !self.dense.iter().any(|dense| fits(dense, target))) {
            let parts: Vec<String> = self.parts().into_iter().map(|part| format!("\"{part}\"")).collect();
            let parts = parts.join(", ");
            return Err(format!(
                "found {target:?}, which no dense layer ends with; expected some of {parts}, \"{ALL_LINEAR}\""
            ));
        }
        Ok(self.dense.iter().filter(|dense| targets.iter().any(|target| fits(dense, target))).collect())
    }

    /// The stems of dense layers within a layer, each once.
    fn parts(&self) -> Vec<&'static str> {
        let mut parts = Vec::new();
        for dense in &self.dense {
            if !parts.contains(&dense.part) {
                parts.push(dense.part);
            }
        }
        parts
    }

    /// How many layers from the top a place is, the head being the top: 0 there, 1 for the last layer, one more than there
    /// are layers for the embeddings.
    pub(super) fn depth(&self, place: Place) -> usize {
        match place {
            Place::Head | Place::Output | Place::Classifier => 0,
            Place::Layer(index) => self.layers.saturating_sub(index),
            Place::Embeddings => self.layers + 1,
        }
    }

    /// Whether the tensors of a place are trained; adapters apart.
    pub(super) fn is_trained(&self, place: Place, trainable: Trainable) -> bool {
        match (trainable, place) {
            (Trainable::Full, _) | (_, Place::Head | Place::Classifier) => true,
            (Trainable::Head | Trainable::Last(_), Place::Output) => true,
            (Trainable::Last(last), Place::Layer(index)) => index + last >= self.layers,
            _ => false,
        }
    }
}
