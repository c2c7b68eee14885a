//! Loading a folder in Hugging Face layout.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use fedtune_config::job::{Lora, Precision, Trainable};
use serde_json::{Map, Value};

use super::adapters::{self, Adapters};
use super::config::EncoderConfig;
use super::error::ModelError;
use super::names::{Names, is_norm, lora_a, lora_b};
use super::network::{Network, Parameter};
use super::tensor_file::TensorFile;
use super::tokens::TextTokenizer;
use super::{Classifier, ModelSpec, export, folder, initial};

/// What a network is made for.
struct Want<'a> {
    labels: usize,
    /// Whether the file's own classifier fits the labels.
    keep_classifier: bool,
    /// Whether pooler and classifier may be new.
    may_initialise: bool,
    trainable: Trainable,
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
        folder::check(model)?;
        let (config, base_config) = read_config(&model.join(folder::CONFIG))?;
        check_labels("the job", &spec.labels)?;
        let positions = config.positions();
        if spec.max_length > positions {
            let (path, requested) = (model.join(folder::CONFIG), spec.max_length);
            return Err(ModelError::MaxLength { path, requested, positions });
        }
        let tokenizer = TextTokenizer::load(model, config.vocab_size, positions, Some(spec.max_length))?;
        let keep_classifier = labels_in(&base_config).is_some_and(|labels| labels == spec.labels);
        let want = Want {
            labels: spec.labels.len(),
            keep_classifier,
            may_initialise: true,
            trainable: spec.trainable,
            lora: &spec.lora,
            precision: spec.precision,
            seed: spec.seed,
            device,
        };
        let (network, base_names) = read_network(&model.join(folder::TENSORS), config, &want)?;
        Ok(Self {
            network,
            tokenizer,
            labels: spec.labels.clone(),
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
        folder::check(source)?;
        let path = model.join(folder::CONFIG);
        let (config, base_config) = read_config(&path)?;
        let labels = labels_in(&base_config).ok_or_else(|| ModelError::Labels {
            place: path.display().to_string(),
            message: "has no id2label with the indices 0, 1, 2, ...; expected a fine-tuned classifier, as \
                      `fedtune-client finetune` or `fedtune-server model export` writes it"
                .into(),
        })?;
        check_labels(&path.display().to_string(), &labels)?;
        let positions = config.positions();
        let own = base_config.get(export::OWN_KEY).and_then(|own| own.get("max_length")).and_then(Value::as_u64);
        let max_length = match own.map(|own| usize::try_from(own).unwrap_or(usize::MAX)) {
            Some(requested) if requested > positions => {
                return Err(ModelError::MaxLength { path, requested, positions });
            }
            own => own,
        };
        let tokenizer = TextTokenizer::load(model, config.vocab_size, positions, max_length)?;
        let want = Want {
            labels: labels.len(),
            keep_classifier: lora.is_none(),
            may_initialise: lora.is_some(),
            trainable: if lora.is_some() { Trainable::Lora } else { Trainable::Full },
            lora: &lora.unwrap_or_default(),
            precision: Precision::F32,
            seed: 0,
            device,
        };
        let (mut network, base_names) = read_network(&source.join(folder::TENSORS), config, &want)?;
        if want.trainable == Trainable::Lora {
            network.load_adapters(&model.join(folder::ADAPTER_TENSORS), &base_names)?;
            network.merge_adapters()?;
        }
        Ok(Self { network, tokenizer, labels, dropout: 0.0, folder: model.to_path_buf(), base_config, base_names })
    }
}

impl Network {
    /// Loads config.json and model.safetensors of a folder that need not have a tokenizer.
    ///
    /// # Errors
    /// As [`Classifier::load`], less the tokenizer.
    pub fn load(model: &Path, spec: &ModelSpec, device: &Device) -> Result<Self, ModelError> {
        let (config, document) = read_config(&model.join(folder::CONFIG))?;
        let want = Want {
            labels: spec.labels.len(),
            keep_classifier: labels_in(&document).is_some_and(|labels| labels == spec.labels),
            may_initialise: true,
            trainable: spec.trainable,
            lora: &spec.lora,
            precision: spec.precision,
            seed: spec.seed,
            device,
        };
        Ok(read_network(&model.join(folder::TENSORS), config, &want)?.0)
    }
}

fn read_config(path: &Path) -> Result<(EncoderConfig, Map<String, Value>), ModelError> {
    EncoderConfig::parse(path, &folder::read(path.to_path_buf(), folder::MAX_CONFIG)?)
}

fn check_labels(place: &str, labels: &[String]) -> Result<(), ModelError> {
    let mut seen = HashSet::new();
    let wrong = |message: String| Err(ModelError::Labels { place: place.into(), message });
    match labels.iter().find(|label| !seen.insert(label.as_str())) {
        Some(twice) => wrong(format!("the label {twice:?} stands twice")),
        None if labels.len() < 2 => wrong(format!("found {} labels; expected at least 2", labels.len())),
        None => Ok(()),
    }
}

/// The labels of `id2label`, when it is there and its keys are 0 .. n−1.
fn labels_in(config: &Map<String, Value>) -> Option<Vec<String>> {
    let ids = config.get("id2label")?.as_object()?;
    (0..ids.len()).map(|i| Some(ids.get(&i.to_string())?.as_str()?.to_owned())).collect()
}

type Loaded = (Network, BTreeMap<String, String>);

fn read_network(path: &Path, config: EncoderConfig, want: &Want<'_>) -> Result<Loaded, ModelError> {
    if want.precision == Precision::Bf16 && !want.device.is_cpu() {
        return Err(ModelError::Precision);
    }
    let names = Names::of(config.architecture);
    let settings = Lora { targets: names.lora_targets(&config, &want.lora.targets), ..want.lora.clone() };
    let layers = match want.trainable {
        Trainable::Lora => {
            names.lora_layers(&config, &settings.targets).map_err(|message| ModelError::Targets { message })?
        }
        _ => Vec::new(),
    };
    if let Trainable::Last(requested) = want.trainable
        && requested > config.num_hidden_layers
    {
        return Err(ModelError::Layers { requested, layers: config.num_hidden_layers });
    }
    let mut file = TensorFile::open(path)?;
    let tensors = names.tensors(&config, want.labels);
    // All shapes before any allocation, so that absurd sizes in config.json cost nothing.
    let mut sources = Vec::with_capacity(tensors.len());
    for (name, shape) in tensors {
        let usable = want.keep_classifier || !names.is_classifier(&name);
        let source = names.in_base(&name).into_iter().find(|base| usable && file.shape(base).is_some());
        match &source {
            Some(base) => {
                let found = file.shape(base).unwrap_or_default();
                if found != shape {
                    let (path, found) = (path.to_path_buf(), found.to_vec());
                    return Err(ModelError::TensorShape { path, name: base.clone(), found, expected: shape });
                }
            }
            None if want.may_initialise && names.is_head(&name) => {}
            None => return Err(ModelError::TensorMissing { path: path.to_path_buf(), name, expected: shape }),
        }
        sources.push((name, shape, source));
    }
    let (mut parameters, mut base_names) = (BTreeMap::new(), BTreeMap::new());
    for (name, shape, source) in sources {
        let values = match source {
            Some(base) => {
                let values = file.read(&base, &shape)?;
                base_names.insert(name.clone(), base);
                values
            }
            None if name.ends_with("bias") => vec![0.0; shape.iter().product()],
            None if is_norm(&name) => vec![1.0; shape.iter().product()],
            None => initial::normal(want.seed, &name, shape.iter().product(), config.initializer_range),
        };
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, want.device)?)?;
        let trained = names.is_trained(&name, want.trainable, config.num_hidden_layers);
        let depth = names.depth(&name, config.num_hidden_layers);
        parameters.insert(name, Parameter { var, trained, depth });
    }
    for (stem, [inputs, outputs]) in &layers {
        let rank = settings.rank;
        // B starts at zero, so that the first state is the base model; A with the deviation that peft gives it.
        let (a, b) = (lora_a(stem), lora_b(stem));
        let down = initial::normal(want.seed, &a, rank * inputs, (3.0 * *inputs as f64).powf(-0.5));
        for (name, values, shape) in [(a, down, (rank, *inputs)), (b, vec![0.0; outputs * rank], (*outputs, rank))] {
            let var = Var::from_tensor(&Tensor::from_vec(values, shape, want.device)?)?;
            let depth = names.depth(&name, config.num_hidden_layers);
            parameters.insert(name, Parameter { var, trained: true, depth });
        }
    }
    let stems = layers.into_iter().map(|(stem, _)| stem).collect();
    let adapters = (want.trainable == Trainable::Lora).then(|| Adapters::new(settings, stems));
    Ok((Network::new(config, adapters, parameters, want.device.clone(), want.precision), base_names))
}
