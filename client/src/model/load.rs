//! Loading a folder in Hugging Face layout.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use fedtune_config::job::{Lora, Precision, Trainable};
use serde_json::{Map, Value};

use super::adapters::{self, Adapters};
use super::anatomy::{Anatomy, Place, Role, lora_a, lora_b};
use super::config::Config;
use super::error::ModelError;
use super::network::{Network, Parameter};
use super::objective::Objective;
use super::ops;
use super::preparing::Preparing;
use super::tensor_file::TensorFile;
use super::{Classifier, ModelSpec, export, folder, initial};

/// What a network is made for.
struct Want<'a> {
    objective: Objective,
    outputs: usize,
    /// Whether the file's own classifier fits what is wanted.
    keep_classifier: bool,
    /// Whether the head may be new.
    may_initialise: bool,
    trainable: &'a Trainable,
    lora: &'a Lora,
    precision: Precision,
    seed: u64,
    device: &'a Device,
}

impl Classifier {
    /// Loads a base model: with or without a classifier, a pooler, and the architecture's prefix. A missing pooler and a
    /// classifier for other labels are new: weights drawn from N(0, initializer_range²) by seed and name.
    ///
    /// # Errors
    /// The folder lacks a file, holds another architecture or damaged or unfitting files, or the specification asks
    /// for more positions or layers than there are.
    pub fn load(model: &Path, spec: &ModelSpec, device: &Device) -> Result<Self, ModelError> {
        let (config, base_config) = folder::open(model)?;
        let path = model.join(folder::CONFIG);
        if config.reads() != spec.reads {
            return Err(ModelError::Reads { path, found: config.reads(), expected: spec.reads.to_string() });
        }
        check_labels("the job", spec.objective, &spec.labels)?;
        check_length(&path, &config, spec.max_length)?;
        let preparing = Preparing::of_folder(model, &config, Some(spec.max_length))?;
        let want = Want::of(spec, &config, &base_config, device);
        let (mut network, base_names) = read_network(&model.join(folder::TENSORS), config, &want)?;
        if spec.freeze_batch_norm {
            if !network.parameters().values().any(|parameter| parameter.role == Role::Statistic) {
                let message = "training.freeze_batch_norm is set, but the model has no batch norm; leave it out".into();
                return Err(ModelError::Config { path, message });
            }
            network.freeze_statistics();
        }
        Ok(Self {
            network,
            preparing,
            labels: spec.labels.clone(),
            template: spec.template.clone(),
            dropout: spec.dropout,
            folder: model.to_path_buf(),
            base_config,
            base_names,
        })
    }

    /// Loads a fine-tuned model to evaluate or predict with. Labels come from config.json's `id2label`, the longest
    /// sequence from what we wrote there, or else from the tokenizer, or else from the number of positions. A folder of
    /// adapters needs the folder of its `base` model, and becomes a whole model.
    ///
    /// # Errors
    /// As [`Self::load`]; also when the folder has no classifier or no labels, or `base` is missing or out of place.
    pub fn load_exported(model: &Path, base: Option<&Path>, device: &Device) -> Result<Self, ModelError> {
        let lora = adapters::settings_in(model)?;
        let source = match (&lora, base) {
            (None, None) => model,
            (Some(_), Some(base)) => base,
            (Some(_), None) => return Err(ModelError::BaseMissing { folder: model.to_path_buf() }),
            (None, Some(_)) => return Err(ModelError::BaseUnused { folder: model.to_path_buf() }),
        };
        let path = model.join(folder::CONFIG);
        let (config, base_config) = if source == model {
            folder::open(model)?
        } else {
            folder::open(source)?;
            read_config(&path)?
        };
        let objective = objective_in(&base_config);
        let labels = match objective.has_labels() {
            false => Vec::new(),
            true => labels_in(&base_config).ok_or_else(|| ModelError::Labels {
                place: path.display().to_string(),
                message: "has no id2label with the indices 0, 1, 2, ...; expected a fine-tuned model, as \
                          `fedtune-client finetune` or `fedtune-server model export` writes it"
                    .into(),
            })?,
        };
        check_labels(&path.display().to_string(), objective, &labels)?;
        let own = |field: &str| base_config.get(export::OWN_KEY).and_then(|own| own.get(field));
        let template = own("template").and_then(Value::as_str).unwrap_or_default().to_owned();
        let own = own("max_length").and_then(Value::as_u64);
        let max_length = own.map(|own| usize::try_from(own).unwrap_or(usize::MAX));
        max_length.map(|length| check_length(&path, &config, length)).transpose()?;
        let preparing = Preparing::of_folder(model, &config, max_length)?;
        let want = Want {
            objective,
            outputs: outputs(objective, labels.len(), &config),
            keep_classifier: lora.is_none(),
            may_initialise: lora.is_some(),
            trainable: if lora.is_some() { &Trainable::Lora } else { &Trainable::Full },
            lora: &lora.unwrap_or_default(),
            precision: Precision::F32,
            seed: 0,
            device,
        };
        let (mut network, base_names) = read_network(&source.join(folder::TENSORS), config, &want)?;
        if *want.trainable == Trainable::Lora {
            network.load_adapters(&model.join(folder::ADAPTER_TENSORS), &base_names)?;
            network.merge_adapters()?;
        }
        Ok(Self {
            network,
            preparing,
            labels,
            template,
            dropout: 0.0,
            folder: model.to_path_buf(),
            base_config,
            base_names,
        })
    }
}

impl Network {
    /// Loads config.json and model.safetensors of a folder that need not have a tokenizer.
    ///
    /// # Errors
    /// As [`Classifier::load`], less the tokenizer.
    pub fn load(model: &Path, spec: &ModelSpec, device: &Device) -> Result<Self, ModelError> {
        let (config, document) = read_config(&model.join(folder::CONFIG))?;
        let want = Want::of(spec, &config, &document, device);
        Ok(read_network(&model.join(folder::TENSORS), config, &want)?.0)
    }
}

impl<'a> Want<'a> {
    /// A network to train, from a base model whose config.json is `document`.
    fn of(spec: &'a ModelSpec, config: &Config, document: &Map<String, Value>, device: &'a Device) -> Self {
        let fits = match spec.objective.has_labels() {
            true => labels_in(document).is_some_and(|labels| labels == spec.labels),
            false => true,
        };
        Self {
            objective: spec.objective,
            outputs: outputs(spec.objective, spec.labels.len(), config),
            keep_classifier: fits && objective_in(document) == spec.objective,
            may_initialise: true,
            trainable: &spec.trainable,
            lora: &spec.lora,
            precision: spec.precision,
            seed: spec.seed,
            device,
        }
    }
}

/// How many values a network gives for a row or token.
fn outputs(objective: Objective, labels: usize, config: &Config) -> usize {
    match objective {
        Objective::Class | Objective::Sets | Objective::Tokens => labels,
        Objective::Value => 1,
        Objective::NextToken => config.vocabulary().unwrap_or(0),
    }
}

fn check_length(path: &Path, config: &Config, requested: usize) -> Result<(), ModelError> {
    match config.positions() {
        Some(positions) if requested > positions => {
            Err(ModelError::MaxLength { path: path.to_path_buf(), requested, positions })
        }
        _ => Ok(()),
    }
}

fn read_config(path: &Path) -> Result<(Config, Map<String, Value>), ModelError> {
    Config::parse(path, &folder::read(path.to_path_buf(), folder::MAX_CONFIG)?)
}

/// What the model of a config.json says, by the class that transformers would load it with.
fn objective_in(config: &Map<String, Value>) -> Objective {
    let class = config.get("architectures").and_then(|classes| classes.get(0)).and_then(Value::as_str).unwrap_or("");
    let problem = config.get("problem_type").and_then(Value::as_str);
    if class.ends_with("ForTokenClassification") {
        return Objective::Tokens;
    }
    if class.ends_with("ForCausalLM") {
        return Objective::NextToken;
    }
    [Objective::Sets, Objective::Value].into_iter().find(|found| found.problem_type() == problem).unwrap_or_default()
}

fn check_labels(place: &str, objective: Objective, labels: &[String]) -> Result<(), ModelError> {
    let least = match objective {
        Objective::Class | Objective::Tokens => 2,
        Objective::Sets => 1,
        Objective::Value | Objective::NextToken => return Ok(()),
    };
    let mut seen = HashSet::new();
    let wrong = |message: String| Err(ModelError::Labels { place: place.into(), message });
    match labels.iter().find(|label| !seen.insert(label.as_str())) {
        Some(twice) => wrong(format!("the label {twice:?} stands twice")),
        None if labels.len() < least => wrong(format!("found {} labels; expected at least {least}", labels.len())),
        None => Ok(()),
    }
}

/// The labels of `id2label`, when it is there and its keys are 0 .. n−1.
fn labels_in(config: &Map<String, Value>) -> Option<Vec<String>> {
    let ids = config.get("id2label")?.as_object()?;
    (0..ids.len()).map(|i| Some(ids.get(&i.to_string())?.as_str()?.to_owned())).collect()
}

type Loaded = (Network, BTreeMap<String, String>);

fn read_network(path: &Path, config: Config, want: &Want<'_>) -> Result<Loaded, ModelError> {
    if want.precision != Precision::F32 && !ops::rounds(want.device) {
        return Err(ModelError::Precision);
    }
    let anatomy = Anatomy::of(&config, want.objective, want.outputs)?;
    let settings = Lora { targets: anatomy.lora_targets(&want.lora.targets), ..want.lora.clone() };
    let adapted = match want.trainable {
        Trainable::Lora => anatomy.lora_layers(&settings.targets).map_err(|message| ModelError::Targets { message })?,
        _ => Vec::new(),
    };
    anatomy.check_patterns(want.trainable)?;
    if let Trainable::Last(requested) = *want.trainable
        && requested > anatomy.layers
    {
        return Err(ModelError::Layers { requested, layers: anatomy.layers });
    }
    let mut file = TensorFile::open(path)?;
    // All shapes before any allocation, so that absurd sizes in config.json cost nothing.
    let mut sources = Vec::with_capacity(anatomy.tensors.len());
    for tensor in &anatomy.tensors {
        let usable = want.keep_classifier || tensor.place != Place::Classifier;
        let source = tensor.in_base.iter().find(|base| usable && file.shape(base).is_some());
        match source {
            Some(base) => {
                let found = file.shape(base).unwrap_or_default();
                if found != tensor.shape {
                    let (path, found) = (path.to_path_buf(), found.to_vec());
                    let (name, expected) = (base.clone(), tensor.shape.clone());
                    return Err(ModelError::TensorShape { path, name, found, expected });
                }
            }
            // What is new is in no base model, so that it must be in the state.
            None if want.may_initialise && tensor.is_head() && !anatomy.is_trained(tensor, want.trainable) => {
                return Err(ModelError::NewAndFrozen { name: tensor.name.clone() });
            }
            None if want.may_initialise && tensor.is_head() => {}
            None => {
                let (name, expected) = (tensor.name.clone(), tensor.shape.clone());
                return Err(ModelError::TensorMissing { path: path.to_path_buf(), name, expected });
            }
        }
        sources.push(source);
    }
    let (mut parameters, mut base_names) = (BTreeMap::new(), BTreeMap::new());
    for (tensor, source) in anatomy.tensors.iter().zip(sources) {
        let (name, shape, count) = (&tensor.name, &tensor.shape, tensor.shape.iter().product());
        let values = match (source, tensor.role) {
            (Some(base), _) => {
                base_names.insert(name.clone(), base.clone());
                file.read(base, shape)?
            }
            (None, Role::Bias) => vec![0.0; count],
            (None, Role::Norm | Role::Statistic) => vec![1.0; count],
            (None, Role::Weight) => initial::normal(want.seed, name, count, anatomy.deviation),
        };
        let var = Var::from_tensor(&Tensor::from_vec(values, shape.as_slice(), want.device)?)?;
        let (trained, depth) = (anatomy.is_trained(tensor, want.trainable), anatomy.depth(tensor.place));
        parameters.insert(name.clone(), Parameter { var, trained, depth, role: tensor.role });
    }
    for (name, in_base) in &anatomy.carried {
        if let Some(base) = in_base.iter().find(|base| file.shape(base).is_some()) {
            base_names.insert(name.clone(), base.clone());
        }
    }
    for dense in &adapted {
        let (rank, inputs, outputs) = (settings.rank, dense.inputs, dense.outputs);
        // B starts at zero, so that the first state is the base model; A with the deviation that peft gives it.
        let (a, b) = (lora_a(&dense.stem), lora_b(&dense.stem));
        let down = initial::normal(want.seed, &a, rank * inputs, (3.0 * inputs as f64).powf(-0.5));
        for (name, values, shape) in [(a, down, (rank, inputs)), (b, vec![0.0; outputs * rank], (outputs, rank))] {
            let var = Var::from_tensor(&Tensor::from_vec(values, shape, want.device)?)?;
            let depth = anatomy.depth(dense.place);
            parameters.insert(name, Parameter { var, trained: true, depth, role: Role::Weight });
        }
    }
    let stems = adapted.into_iter().map(|dense| dense.stem.clone()).collect();
    let adapters = (*want.trainable == Trainable::Lora).then(|| Adapters::new(settings, stems));
    let kind = (anatomy, want.objective, want.outputs);
    Ok((Network::new(config, kind, adapters, parameters, want.device.clone(), want.precision), base_names))
}
