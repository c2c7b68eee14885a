//! ViT: names and tensors, as its checkpoints have them.

use super::{Anatomy, Dense, Module, Place, Role, TensorSpec};
use crate::model::config::VitConfig;
use crate::model::error::ModelError;
use crate::model::objective::Objective;

const PREFIX: &str = "vit.";

/// The names of a ViT. Those of dense layers and norms are stems of `.weight` and `.bias`.
#[derive(Debug)]
pub(in crate::model) struct VitNames;

impl VitNames {
    /// What stands before the patches of an image.
    pub(in crate::model) const FIRST: &str = "vit.embeddings.cls_token";
    pub(in crate::model) const POSITIONS: &str = "vit.embeddings.position_embeddings";
    /// The convolution that makes patches.
    pub(in crate::model) const PATCHES: &str = "vit.embeddings.patch_embeddings.projection";
    pub(in crate::model) const QUERY: &str = "attention.attention.query";
    pub(in crate::model) const KEY: &str = "attention.attention.key";
    pub(in crate::model) const VALUE: &str = "attention.attention.value";
    pub(in crate::model) const ATTENTION_OUTPUT: &str = "attention.output.dense";
    pub(in crate::model) const INTERMEDIATE: &str = "intermediate.dense";
    pub(in crate::model) const OUTPUT: &str = "output.dense";
    /// Before attention.
    pub(in crate::model) const NORM_BEFORE: &str = "layernorm_before";
    /// Before the feed-forward part.
    pub(in crate::model) const NORM_AFTER: &str = "layernorm_after";
    pub(in crate::model) const FINAL_NORM: &str = "vit.layernorm";
    pub(in crate::model) const CLASSIFIER: &str = "classifier";

    /// The name of a part of a layer.
    pub(in crate::model) fn layer(index: usize, part: &str) -> String {
        format!("{PREFIX}encoder.layer.{index}.{part}")
    }
}

/// What a ViT states of itself.
pub(super) fn anatomy(config: &VitConfig, objective: Objective, outputs: usize) -> Result<Anatomy, ModelError> {
    super::check_images(objective)?;
    let (hidden, wide, layers) = (config.hidden_size, config.intermediate_size, config.num_hidden_layers);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: Vec<usize>, place: Place, role: Role| {
        let bare = name.strip_prefix(PREFIX).map(str::to_owned);
        let in_base = [name.clone()].into_iter().chain(bare).collect();
        tensors.push(TensorSpec { name, shape, in_base, place, role });
    };
    add(VitNames::FIRST.into(), vec![1, 1, hidden], Place::Embeddings, Role::Weight);
    add(VitNames::POSITIONS.into(), vec![1, config.patches() + 1, hidden], Place::Embeddings, Role::Weight);
    let patch = vec![hidden, config.num_channels, config.patch_size, config.patch_size];
    add(format!("{}.weight", VitNames::PATCHES), patch, Place::Embeddings, Role::Weight);
    add(format!("{}.bias", VitNames::PATCHES), vec![hidden], Place::Embeddings, Role::Bias);
    let mut dense = Vec::new();
    for index in 0..layers {
        let place = Place::Layer(index);
        for (part, module, inputs, outputs, biased) in [
            (VitNames::QUERY, "attention.q_proj", hidden, hidden, config.qkv_bias),
            (VitNames::KEY, "attention.k_proj", hidden, hidden, config.qkv_bias),
            (VitNames::VALUE, "attention.v_proj", hidden, hidden, config.qkv_bias),
            (VitNames::ATTENTION_OUTPUT, "attention.o_proj", hidden, hidden, true),
            (VitNames::INTERMEDIATE, "mlp.fc1", hidden, wide, true),
            (VitNames::OUTPUT, "mlp.fc2", wide, hidden, true),
        ] {
            let stem = VitNames::layer(index, part);
            add(format!("{stem}.weight"), vec![outputs, inputs], place, Role::Weight);
            if biased {
                add(format!("{stem}.bias"), vec![outputs], place, Role::Bias);
            }
            let module = Some(Module { name: format!("{PREFIX}layers.{index}.{module}"), part: module });
            dense.push(Dense { stem, part, module, inputs, outputs, place });
        }
        for part in [VitNames::NORM_BEFORE, VitNames::NORM_AFTER] {
            add(VitNames::layer(index, &format!("{part}.weight")), vec![hidden], place, Role::Norm);
            add(VitNames::layer(index, &format!("{part}.bias")), vec![hidden], place, Role::Bias);
        }
    }
    // A norm behind the last layer counts to that one.
    let last = Place::Layer(layers.saturating_sub(1));
    add(format!("{}.weight", VitNames::FINAL_NORM), vec![hidden], last, Role::Norm);
    add(format!("{}.bias", VitNames::FINAL_NORM), vec![hidden], last, Role::Bias);
    add(format!("{}.weight", VitNames::CLASSIFIER), vec![outputs, hidden], Place::Classifier, Role::Weight);
    add(format!("{}.bias", VitNames::CLASSIFIER), vec![outputs], Place::Classifier, Role::Bias);
    Ok(Anatomy {
        tensors,
        carried: Vec::new(),
        layers,
        dense,
        default_targets: vec!["query".into(), "value".into()],
        beside_adapters: vec![VitNames::CLASSIFIER.into()],
        words: None,
        class: "ViTForImageClassification".into(),
        deviation: config.initializer_range,
    })
}
