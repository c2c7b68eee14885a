//! Models of tables: dense layers and a last one, named as ours alone.

use super::{Anatomy, Place, Role, TensorSpec};
use crate::model::config::TableConfig;
use crate::model::error::ModelError;
use crate::model::objective::Objective;

/// The stem of the last layer.
pub(in crate::model) const CLASSIFIER: &str = "classifier";

/// The stem of a dense layer.
pub(in crate::model) fn layer(index: usize) -> String {
    format!("layers.{index}")
}

/// What a model of tables states of itself.
pub(super) fn anatomy(config: &TableConfig, objective: Objective, outputs: usize) -> Result<Anatomy, ModelError> {
    if matches!(objective, Objective::Tokens | Objective::NextToken) {
        return Err(ModelError::Objective { task: "of texts", takes: "a model of texts" });
    }
    let mut tensors = Vec::new();
    let mut dense = |stem: &str, [inputs, outputs]: [usize; 2], place: Place| {
        for (part, shape, role) in
            [("weight", vec![outputs, inputs], Role::Weight), ("bias", vec![outputs], Role::Bias)]
        {
            let name = format!("{stem}.{part}");
            tensors.push(TensorSpec { in_base: vec![name.clone()], name, shape, place, role });
        }
    };
    let mut width = config.inputs();
    for (index, size) in config.hidden_sizes.iter().enumerate() {
        dense(&layer(index), [width, *size], Place::Layer(index));
        width = *size;
    }
    dense(CLASSIFIER, [width, outputs], Place::Classifier);
    Ok(Anatomy {
        tensors,
        carried: Vec::new(),
        layers: config.hidden_sizes.len(),
        dense: Vec::new(),
        default_targets: Vec::new(),
        beside_adapters: vec![CLASSIFIER.into()],
        words: None,
        class: "FedtuneTable".into(),
        deviation: config.initializer_range,
    })
}
