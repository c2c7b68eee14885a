//! Networks of images against PyTorch: outputs, loss, every gradient, running statistics and optimiser steps. The reference
//! was computed in double precision by `tests/fixtures/make_vision_gradients.py`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use fedtune_client::finetune::{Optimizer, gradient_norm};
use fedtune_client::model::network::{Gradient, Input, Pass};
use fedtune_client::model::{Loss, ModelSpec, Network, Objective, Reads, Targets};
use fedtune_config::job::{Lora, Precision, Trainable, Training};

const RESNETS: [&str; 3] = ["resnet-basic", "resnet-bottleneck", "resnet-switches"];
const VITS: [&str; 2] = ["vit", "vit-plain"];

type Reference = HashMap<String, Tensor>;

fn fixture(architecture: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(architecture)
}

fn spec(trainable: Trainable, lora: Lora, precision: Precision) -> ModelSpec {
    ModelSpec {
        objective: Objective::Class,
        labels: ["alpha", "beta", "gamma"].map(String::from).to_vec(),
        trainable,
        lora,
        precision,
        dropout: 0.0,
        seed: 1,
        max_length: 24,
        template: String::new(),
        reads: Reads::Images,
        freeze_batch_norm: false,
    }
}

fn network(architecture: &str, trainable: Trainable) -> Network {
    let spec = spec(trainable, Lora::default(), Precision::F32);
    Network::load(&fixture(architecture), &spec, &Device::Cpu).unwrap()
}

fn reference(architecture: &str, file: &str) -> Reference {
    candle_core::safetensors::load(fixture(architecture).join(file), &Device::Cpu).unwrap()
}

fn images(architecture: &str) -> Input {
    Input::Images(reference(architecture, "gradients.safetensors")["pixel_values"].clone())
}

fn pass(network: &Network, architecture: &str) -> Pass {
    let labels = &reference(architecture, "gradients.safetensors")["labels"];
    let targets = Targets::Classes(labels.to_dtype(DType::U32).unwrap().to_vec1().unwrap());
    network.gradients(&images(architecture), &targets, &Loss::default(), None).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// L2 distance over the reference's L2 norm.
fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(expected).max(f64::MIN_POSITIVE)
}

fn is_statistic(name: &str) -> bool {
    name.contains("running_")
}

/// Every parameter that learns has PyTorch's gradient, and there is no gradient besides.
fn assert_gradients(what: &str, network: &Network, pass: &Pass, reference: &Reference) {
    assert!((pass.loss - values(&reference["loss"])[0]).abs() < 1e-5, "{what}: loss {}", pass.loss);
    let learning: Vec<_> = network.parameters().iter().filter(|(_, p)| p.learns()).map(|(name, _)| name).collect();
    assert!(pass.gradients.keys().eq(learning.iter().copied()), "{what}");
    let theirs = reference.keys().filter(|name| name.starts_with("grad.")).count();
    assert!(learning.len() <= theirs && !learning.is_empty(), "{what}");
    for name in learning {
        let Gradient::Dense(found) = &pass.gradients[name] else { panic!("{name} is no table") };
        let (found, expected) = (values(found), values(&reference[&format!("grad.{name}")]));
        if norm(&expected) < 1e-6 {
            // Softmax does not see a constant added to all scores, so the true gradient of key biases is zero.
            assert!(name.ends_with("key.bias"), "{what}: {name}: the reference has no gradient");
            assert!(norm(&found) < 1e-6, "{what}: {name}: found {}", norm(&found));
        } else {
            let distance = distance(&found, &expected);
            assert!(distance < 1e-3, "{what}: {name}: relative distance {distance}");
        }
    }
}

/// The running statistics behind the pass are PyTorch's: those that were tracked, and all others as they were.
fn assert_statistics(what: &str, network: &Network, pass: &Pass, reference: &Reference) {
    network.track(pass).unwrap();
    let mut seen = 0;
    for (name, parameter) in network.parameters().iter().filter(|(name, _)| is_statistic(name)) {
        let distance = distance(&values(parameter.var.as_tensor()), &values(&reference[&format!("after.{name}")]));
        assert!(distance < 1e-5, "{what}: {name}: relative distance {distance}");
        seen += 1;
    }
    assert_eq!(seen, reference.keys().filter(|name| name.starts_with("after.")).count(), "{what}");
}

#[test]
fn outputs_agree_in_evaluation() {
    for architecture in RESNETS.into_iter().chain(VITS) {
        let logits = network(architecture, Trainable::Full).logits(&images(architecture)).unwrap();
        let expected = values(&reference(architecture, "gradients.safetensors")["evaluated"]);
        let distance = distance(&values(&logits), &expected);
        assert!(distance < 1e-5, "{architecture}: {distance}");
    }
}

#[test]
fn every_gradient_and_statistic_agrees() {
    for architecture in RESNETS.into_iter().chain(VITS) {
        let network = network(architecture, Trainable::Full);
        let reference = reference(architecture, "gradients.safetensors");
        let pass = pass(&network, architecture);
        assert_gradients(architecture, &network, &pass, &reference);
        // Every parameter that transformers has is ours, under the same name.
        let theirs = reference.keys().filter(|name| name.starts_with("grad.")).count();
        assert_eq!(pass.gradients.len(), theirs, "{architecture}");
        assert_statistics(architecture, &network, &pass, &reference);
    }
}

#[test]
fn every_gradient_agrees_where_batch_norms_go_by_running_statistics() {
    for architecture in RESNETS {
        let mut network = network(architecture, Trainable::Full);
        network.freeze_statistics();
        assert!(network.state_tensors().iter().all(|(name, _)| !is_statistic(name)));
        let reference = reference(architecture, "frozen.safetensors");
        let pass = pass(&network, architecture);
        assert_gradients(architecture, &network, &pass, &reference);
        assert!(pass.statistics.is_empty());
        assert_statistics(architecture, &network, &pass, &reference);
    }
}

#[test]
fn batch_norms_outside_what_is_trained_are_frozen() {
    for architecture in RESNETS {
        let network = network(architecture, Trainable::Last(1));
        let reference = reference(architecture, "last.safetensors");
        let pass = pass(&network, architecture);
        assert_gradients(architecture, &network, &pass, &reference);
        let theirs = reference.keys().filter(|name| name.starts_with("grad.")).count();
        assert_eq!(pass.gradients.len(), theirs, "{architecture}");
        assert_statistics(architecture, &network, &pass, &reference);
    }
}

#[test]
fn gradients_agree_where_only_a_part_is_trained() {
    for architecture in RESNETS {
        let network = network(architecture, Trainable::Head);
        let pass = pass(&network, architecture);
        assert_eq!(pass.gradients.keys().collect::<Vec<_>>(), ["classifier.1.bias", "classifier.1.weight"]);
        assert_gradients(architecture, &network, &pass, &reference(architecture, "frozen.safetensors"));
    }
    // Embeddings have four tensors; two belong to the last norm, which counts to the last layer.
    for (architecture, layer) in [("vit", 16), ("vit-plain", 13)] {
        let reference = reference(architecture, "gradients.safetensors");
        for (trainable, count) in [(Trainable::Head, 2), (Trainable::Last(1), 2 + layer + 2)] {
            let network = network(architecture, trainable.clone());
            let pass = pass(&network, architecture);
            assert_eq!(pass.gradients.len(), count, "{architecture} {trainable}");
            assert_gradients(architecture, &network, &pass, &reference);
        }
    }
}

#[test]
fn every_gradient_of_adapters_agrees() {
    for architecture in VITS {
        let targets = ["query", "value", "intermediate.dense"].map(String::from).to_vec();
        let lora = Lora { rank: 4, alpha: 6.0, dropout: 0.0, targets };
        let spec = spec(Trainable::Lora, lora, Precision::F32);
        let mut network = Network::load(&fixture(architecture), &spec, &Device::Cpu).unwrap();
        let bare: Reference = reference(architecture, "lora/adapter_model.safetensors")
            .into_iter()
            .map(|(name, tensor)| (name.strip_prefix("base_model.model.").unwrap().to_owned(), tensor))
            .collect();
        let state = tempfile::NamedTempFile::new().unwrap();
        candle_core::safetensors::save(&bare, state.path()).unwrap();
        network.load_state(state.path()).unwrap();
        let reference = reference(architecture, "lora/gradients.safetensors");
        let pass = pass(&network, architecture);
        assert_gradients(architecture, &network, &pass, &reference);
        let theirs = reference.keys().filter(|name| name.starts_with("grad.")).count();
        assert_eq!(pass.gradients.len(), theirs, "{architecture}");
    }
}

#[test]
fn gradients_in_bf16_are_near_and_repeat_bit_for_bit() {
    for architecture in ["resnet-basic", "vit"] {
        let load = |precision| {
            let spec = spec(Trainable::Full, Lora::default(), precision);
            Network::load(&fixture(architecture), &spec, &Device::Cpu).unwrap()
        };
        let (rounded, exact) = (load(Precision::Bf16), load(Precision::F32));
        let (found, again, expected) =
            (pass(&rounded, architecture), pass(&rounded, architecture), pass(&exact, architecture));
        assert!(found.loss == again.loss && found.loss != expected.loss);
        assert!((found.loss - expected.loss).abs() < 0.05, "{architecture}: {} {}", found.loss, expected.loss);
    }
}

#[test]
fn layers_computed_again_give_the_same_bits() {
    for architecture in VITS {
        for trainable in [Trainable::Full, Trainable::Head, Trainable::Last(1), Trainable::Lora] {
            let mut network = network(architecture, trainable.clone());
            let run = |network: &Network| {
                let Pass { loss, gradients, .. } = pass(network, architecture);
                let gradient = |(name, gradient)| match gradient {
                    Gradient::Dense(tensor) => (name, values(&tensor)),
                    Gradient::Rows { .. } => panic!("{name} is no table"),
                };
                (loss, gradients.into_iter().map(gradient).collect::<Vec<(String, Vec<f64>)>>())
            };
            let kept = run(&network);
            network.set_recompute(true).unwrap();
            assert_eq!(run(&network), kept, "{architecture} {trainable}");
        }
    }
    let mut network = network(RESNETS[0], Trainable::Full);
    assert!(network.set_recompute(true).unwrap_err().to_string().contains("only for transformers"));
    network.set_recompute(false).unwrap();
}

#[test]
fn five_steps_agree() {
    let (network, trained) =
        (network("resnet-basic", Trainable::Full), reference("resnet-basic", "trained.safetensors"));
    let before: HashMap<String, Vec<f64>> =
        network.parameters().iter().map(|(name, p)| (name.clone(), values(p.var.as_tensor()))).collect();
    let mut optimizer = Optimizer::new(&Training { weight_decay: 0.01, ..Training::default() });
    for expected in values(&trained["losses"]) {
        let pass = pass(&network, "resnet-basic");
        assert!((pass.loss - expected).abs() < 1e-4, "{} for {expected}", pass.loss);
        let clip = (1.0 / (gradient_norm(&pass.gradients).unwrap() + 1e-6)).min(1.0);
        optimizer.step(network.parameters(), &pass.gradients, 1e-3, clip).unwrap();
        network.track(&pass).unwrap();
    }
    for (name, parameter) in network.parameters() {
        let moved = |now: &[f64]| now.iter().zip(&before[name]).map(|(a, b)| a - b).collect::<Vec<_>>();
        let distance = distance(&moved(&values(parameter.var.as_tensor())), &moved(&values(&trained[name])));
        assert!(distance < 2e-2, "{name}: the change differs by {distance}");
    }
}

#[test]
fn a_state_has_the_statistics_of_what_is_trained() {
    for (trainable, expected) in [(Trainable::Full, 26), (Trainable::Last(1), 4), (Trainable::Head, 0)] {
        let network = network("resnet-basic", trainable.clone());
        let found = network.state_tensors().iter().filter(|(name, _)| is_statistic(name)).count();
        assert_eq!(found, expected, "{trainable}");
    }
    // A state goes from one network to the other whole.
    let (trained, mut fresh) = (network("resnet-basic", Trainable::Full), network("resnet-basic", Trainable::Full));
    trained.track(&pass(&trained, "resnet-basic")).unwrap();
    let state = tempfile::NamedTempFile::new().unwrap();
    trained.write_state(state.path()).unwrap();
    let name = "resnet.embedder.embedder.normalization.running_mean";
    let mean = |network: &Network| values(network.parameters()[name].var.as_tensor());
    assert_ne!(mean(&trained), mean(&fresh));
    fresh.load_state(state.path()).unwrap();
    assert_eq!(mean(&trained), mean(&fresh));
}

#[test]
fn what_does_not_fit_is_refused() {
    let targets = Targets::Classes(vec![0]);
    let images =
        |shape: (usize, usize, usize, usize)| Input::Images(Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
    for (architecture, good, bad) in [
        ("resnet-basic", (1, 3, 40, 40), vec![(1, 1, 40, 40), (1, 3, 0, 40)]),
        ("vit", (1, 3, 24, 24), vec![(1, 1, 24, 24), (1, 3, 32, 32), (1, 3, 24, 32)]),
    ] {
        let network = network(architecture, Trainable::Full);
        let run = |shape| network.gradients(&images(shape), &targets, &Loss::default(), None);
        assert!(run(good).is_ok(), "{architecture}");
        for shape in bad {
            assert!(run(shape).is_err(), "{architecture} {shape:?}");
        }
    }
    // Adapters need dense layers, and images have no tokens.
    let lora = spec(Trainable::Lora, Lora::default(), Precision::F32);
    assert!(Network::load(&fixture("resnet-basic"), &lora, &Device::Cpu).is_err());
    for architecture in ["resnet-basic", "vit"] {
        for objective in [Objective::Tokens, Objective::NextToken] {
            let spec = ModelSpec { objective, ..spec(Trainable::Full, Lora::default(), Precision::F32) };
            assert!(Network::load(&fixture(architecture), &spec, &Device::Cpu).is_err(), "{architecture}");
        }
    }
}
