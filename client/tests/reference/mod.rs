//! What PyTorch computed, and how far from it something is.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use fedtune_client::model::Network;
use fedtune_client::model::network::{Gradient, Pass};

/// The folder of an architecture's fixture.
pub(crate) fn fixture(architecture: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(architecture)
}

/// The tensors of a file of a fixture.
pub(crate) fn reference_of(architecture: &str, file: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(architecture).join(file), &Device::Cpu).unwrap()
}

/// A matrix of whole numbers.
pub(crate) fn rows(reference: &HashMap<String, Tensor>, name: &str) -> Vec<Vec<u32>> {
    reference[name].to_dtype(DType::U32).unwrap().to_vec2().unwrap()
}

/// The numbers of a tensor.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A gradient of the parameter's shape.
pub(crate) fn dense(gradient: &Gradient, shape: &[usize]) -> Vec<f64> {
    match gradient {
        Gradient::Dense(tensor) => values(tensor),
        Gradient::Rows { rows, values: tensor } => {
            let mut all = vec![0.0; shape.iter().product()];
            for (row, part) in rows.iter().zip(values(tensor).chunks(shape[1])) {
                all[*row as usize * shape[1]..][..shape[1]].copy_from_slice(part);
            }
            all
        }
    }
}

/// L2 norm.
pub(crate) fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// L2 distance over the reference's L2 norm.
pub(crate) fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(expected).max(f64::MIN_POSITIVE)
}

/// Compares the gradient of every trained tensor. Those whose names end with one of `flat` have a true gradient of zero.
pub(crate) fn assert_gradients(network: &Network, pass: &Pass, reference: &HashMap<String, Tensor>, flat: &[&str]) {
    let trained: Vec<_> = network.parameters().iter().filter(|(_, p)| p.trained).collect();
    assert_eq!(pass.gradients.len(), trained.len());
    for (name, parameter) in trained {
        let expected = values(&reference[&format!("grad.{name}")]);
        let found = dense(&pass.gradients[name], parameter.var.dims());
        if norm(&expected) < 1e-6 {
            assert!(flat.iter().any(|end| name.ends_with(end)), "{name}: the reference has no gradient");
            assert!(norm(&found) < 1e-6, "{name}: found {}", norm(&found));
        } else {
            let distance = distance(&found, &expected);
            assert!(distance < 1e-3, "{name}: relative distance {distance}");
        }
    }
}

/// Adapters' tensors as peft saved them, under our names.
pub(crate) fn saved_adapters(architecture: &str) -> HashMap<String, Tensor> {
    reference_of(architecture, "lora/adapter_model.safetensors")
        .into_iter()
        .map(|(name, tensor)| (name.strip_prefix("base_model.model.").unwrap().to_owned(), tensor))
        .collect()
}

/// What peft put the adapters beside.
pub(crate) fn saved_targets(architecture: &str) -> Vec<String> {
    let text = std::fs::read_to_string(fixture(architecture).join("lora/adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(config["target_modules"].clone()).unwrap()
}
