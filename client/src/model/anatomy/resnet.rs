//! ResNet: its convolutions, and the tensors of each.

use super::{Anatomy, Place, Role, TensorSpec};
use crate::model::config::{ResNetConfig, ResidualKind};
use crate::model::error::ModelError;
use crate::model::objective::Objective;

const PREFIX: &str = "resnet.";
const CLASSIFIER: &str = "classifier.1";
const STATISTICS: [&str; 2] = ["running_mean", "running_var"];

/// A convolution without a bias, with padding that keeps the size, and the batch norm behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::model) struct ConvNorm {
    /// What stands before `.convolution` and `.normalization`.
    pub(in crate::model) stem: String,
    pub(in crate::model) inputs: usize,
    pub(in crate::model) outputs: usize,
    pub(in crate::model) side: usize,
    pub(in crate::model) stride: usize,
}

impl ConvNorm {
    /// The name of a part.
    fn part(&self, part: &str) -> String {
        format!("{}.{part}", self.stem)
    }
}

/// A residual layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::model) struct Residual {
    /// One after the other; ReLU behind each, behind the last when the shortcut has been added.
    pub(in crate::model) convolutions: Vec<ConvNorm>,
    /// What the shortcut goes through, where it changes the shape.
    pub(in crate::model) shortcut: Option<ConvNorm>,
}

/// The names of a ResNet.
#[derive(Debug)]
pub(in crate::model) struct ResNetNames;

impl ResNetNames {
    /// The dense layer that classifies.
    pub(in crate::model) const CLASSIFIER: &str = CLASSIFIER;

    /// The first convolution.
    pub(in crate::model) fn first(config: &ResNetConfig) -> ConvNorm {
        ConvNorm {
            stem: format!("{PREFIX}embedder.embedder"),
            inputs: config.num_channels,
            outputs: config.embedding_size,
            side: 7,
            stride: 2,
        }
    }

    /// The residual layers of all stages.
    pub(in crate::model) fn layers(config: &ResNetConfig) -> Vec<Residual> {
        let mut layers = Vec::with_capacity(config.layers());
        let mut inputs = config.embedding_size;
        for (stage, (outputs, depth)) in config.hidden_sizes.iter().zip(&config.depths).enumerate() {
            for index in 0..*depth {
                let halves = index == 0 && (stage > 0 || config.downsample_in_first_stage);
                let stride = if halves { 2 } else { 1 };
                layers.push(residual(
                    config,
                    format!("{PREFIX}encoder.stages.{stage}.layers.{index}"),
                    inputs,
                    *outputs,
                    stride,
                ));
                inputs = *outputs;
            }
        }
        layers
    }
}

fn residual(config: &ResNetConfig, stem: String, inputs: usize, outputs: usize, stride: usize) -> Residual {
    let narrow = outputs / ResNetConfig::REDUCTION;
    // Inputs, outputs, side and stride of each.
    let parts = match config.layer_type {
        ResidualKind::Basic => vec![(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)],
        ResidualKind::Bottleneck => {
            let (first, second) = if config.downsample_in_bottleneck { (stride, 1) } else { (1, stride) };
            vec![(inputs, narrow, 1, first), (narrow, narrow, 3, second), (narrow, outputs, 1, 1)]
        }
    };
    let convolutions = parts
        .into_iter()
        .enumerate()
        .map(|(index, (inputs, outputs, side, stride))| ConvNorm {
            stem: format!("{stem}.layer.{index}"),
            inputs,
            outputs,
            side,
            stride,
        })
        .collect();
    let shortcut = (inputs != outputs || stride != 1).then(|| ConvNorm {
        stem: format!("{stem}.shortcut"),
        inputs,
        outputs,
        side: 1,
        stride,
    });
    Residual { convolutions, shortcut }
}

/// What a ResNet states of itself. A layer is a residual layer, counted over all stages.
pub(super) fn anatomy(config: &ResNetConfig, objective: Objective, outputs: usize) -> Result<Anatomy, ModelError> {
    super::check_images(objective)?;
    let (mut tensors, mut carried) = (Vec::new(), Vec::new());
    let in_base = |name: &str| {
        let bare = name.strip_prefix(PREFIX).map(str::to_owned);
        [name.to_owned()].into_iter().chain(bare).collect::<Vec<String>>()
    };
    let mut add = |name: String, shape: Vec<usize>, place: Place, role: Role| {
        tensors.push(TensorSpec { in_base: in_base(&name), name, shape, place, role });
    };
    let mut conv_norm = |conv: &ConvNorm, place: Place| {
        let ConvNorm { inputs, outputs, side, .. } = *conv;
        add(conv.part("convolution.weight"), vec![outputs, inputs, side, side], place, Role::Weight);
        add(conv.part("normalization.weight"), vec![outputs], place, Role::Norm);
        add(conv.part("normalization.bias"), vec![outputs], place, Role::Bias);
        for statistic in STATISTICS {
            add(conv.part(&format!("normalization.{statistic}")), vec![outputs], place, Role::Statistic);
        }
        let counter = conv.part("normalization.num_batches_tracked");
        carried.push((counter.clone(), in_base(&counter)));
    };
    conv_norm(&ResNetNames::first(config), Place::Embeddings);
    for (index, layer) in ResNetNames::layers(config).iter().enumerate() {
        for conv in layer.convolutions.iter().chain(&layer.shortcut) {
            conv_norm(conv, Place::Layer(index));
        }
    }
    let width = config.hidden_sizes.last().copied().unwrap_or(config.embedding_size);
    add(format!("{CLASSIFIER}.weight"), vec![outputs, width], Place::Classifier, Role::Weight);
    add(format!("{CLASSIFIER}.bias"), vec![outputs], Place::Classifier, Role::Bias);
    Ok(Anatomy {
        tensors,
        carried,
        layers: config.layers(),
        dense: Vec::new(),
        default_targets: Vec::new(),
        beside_adapters: vec!["classifier".into()],
        words: None,
        class: "ResNetForImageClassification".into(),
        // That of the uniform distribution that transformers draws from.
        deviation: (3.0 * width as f64).powf(-0.5),
    })
}
