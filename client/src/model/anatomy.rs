//! The tensors of a model: canonical names (those of transformers' class for it), shapes, and what they are for. Every
//! architecture states its own; loading, freezing, adapters, weight decay and export read nothing else.

pub(super) mod decoder;
mod encoder;
mod resnet;
pub(super) mod table;
mod vit;

use std::borrow::Cow;

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

    /// The name by which it is chosen to be trained: a running statistic goes with the weight of its norm, since one
    /// without the other would be of two models.
    fn chosen_as(&self) -> Cow<'_, str> {
        match (self.role, self.name.rsplit_once('.')) {
            (Role::Statistic, Some((norm, _))) => format!("{norm}.weight").into(),
            _ => self.name.as_str().into(),
        }
    }
}

/// A dense layer that an adapter can stand beside.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    /// The stem of its names.
    pub(super) stem: String,
    /// The stem within its layer, the same in every layer.
    pub(super) part: &'static str,
    /// What transformers calls the layer where that is not its stem in checkpoints; peft goes by it.
    pub(super) module: Option<Module>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) place: Place,
}

/// The name of a layer in transformers.
#[derive(Debug, Clone)]
pub(super) struct Module {
    pub(super) name: String,
    /// Its last parts, the same in every layer.
    pub(super) part: &'static str,
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

/// How many names are told where a pattern fits none.
const NEAR: usize = 3;

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

/// How far a name is from what a pattern means to fit: by the part of the name that is nearest.
fn distance(pattern: &str, name: &str) -> usize {
    let wanted = pattern.replace('*', "");
    let length = wanted.len().min(name.len());
    let parts = (0..=name.len() - length).filter_map(|start| name.get(start..start + length));
    parts.map(|part| strsim::damerau_levenshtein(&wanted, part)).min().unwrap_or(usize::MAX)
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
        let ends = |name: &str, target: &str| {
            name.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let fits = |dense: &Dense, target: &str| {
            ends(&dense.stem, target) || dense.module.as_ref().is_some_and(|module| ends(&module.name, target))
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

    /// `targets` as peft has to find them in transformers: by the last parts of their names where all layers are meant.
    pub(super) fn peft_targets(&self, targets: &[String]) -> Vec<String> {
        let chosen = self.lora_layers(targets).unwrap_or_default();
        if chosen.iter().any(|dense| dense.module.is_none()) {
            return targets.to_vec();
        }
        let mut named: Vec<String> = Vec::new();
        for (dense, module) in chosen.iter().filter_map(|dense| Some((dense, dense.module.as_ref()?))) {
            let alike = |all: &mut dyn Iterator<Item = &Dense>| all.filter(|other| other.part == dense.part).count();
            let all = alike(&mut chosen.iter().copied()) == alike(&mut self.dense.iter());
            let name = if all { module.part } else { module.name.as_str() };
            if !named.iter().any(|named| named == name) {
                named.push(name.to_owned());
            }
        }
        named
    }

    /// The name of an adapter's tensor as peft writes it, less its prefix; any other name as it is.
    pub(super) fn peft_name(&self, name: &str) -> String {
        let renamed = |dense: &Dense| {
            let rest = name.strip_prefix(&dense.stem).filter(|rest| rest.starts_with(".lora_"))?;
            Some(format!("{}{rest}", dense.module.as_ref()?.name))
        };
        self.dense.iter().find_map(renamed).unwrap_or_else(|| name.to_owned())
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

    /// Whether a tensor is trained; adapters apart.
    pub(super) fn is_trained(&self, tensor: &TensorSpec, trainable: &Trainable) -> bool {
        match (trainable, tensor.place) {
            (Trainable::Named(patterns), _) => {
                let name = tensor.chosen_as();
                patterns.iter().any(|pattern| pattern.matches(&name))
            }
            (Trainable::Full, _) | (_, Place::Head | Place::Classifier) => true,
            (Trainable::Head | Trainable::Last(_), Place::Output) => true,
            (Trainable::Last(last), Place::Layer(index)) => index + last >= self.layers,
            _ => false,
        }
    }

    /// Tells of a pattern that fits no tensor, with the names that are nearest.
    pub(super) fn check_patterns(&self, trainable: &Trainable) -> Result<(), ModelError> {
        let Trainable::Named(patterns) = trainable else { return Ok(()) };
        let names: Vec<&str> = self
            .tensors
            .iter()
            .filter(|tensor| tensor.role != Role::Statistic)
            .map(|tensor| tensor.name.as_str())
            .collect();
        let Some(pattern) = patterns.iter().find(|pattern| !names.iter().any(|name| pattern.matches(name))) else {
            return Ok(());
        };
        let mut near: Vec<(usize, &str)> = names.iter().map(|name| (distance(pattern.as_str(), name), *name)).collect();
        near.sort_unstable();
        let near = near.iter().take(NEAR).map(|(_, name)| (*name).to_owned()).collect();
        Err(ModelError::Pattern { pattern: pattern.to_string(), near })
    }
}
