//! Whole networks on an NVIDIA GPU against the same on the processor: loss, every gradient, a step. Where no GPU answers,
//! nothing is compared, and a line says so.
#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod reference;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use fedtune_client::finetune::{Optimizer, gradient_norm};
use fedtune_client::model::batch::{Batch, Tokens};
use fedtune_client::model::network::Pass;
use fedtune_client::model::{DropoutStream, Input, Loss, ModelSpec, Network, Objective, Reads, Targets};
use fedtune_config::job::{Lora, Precision, Trainable, Training};
use fedtune_config::site::{Device as DeviceConfig, DeviceKind};
use reference::{dense, distance, fixture, norm, reference_of};

/// One after the other, as each opens the GPU.
fn gpu() -> Option<Device> {
    let config = DeviceConfig { kind: DeviceKind::Cuda, ..DeviceConfig::default() };
    fedtune_client::device::open(&config).inspect_err(|e| eprintln!("the GPU is NOT tested: {e}")).ok()
}

fn spec(objective: Objective, reads: Reads) -> ModelSpec {
    let labels = if objective == Objective::NextToken { Vec::new() } else { vec!["a".into(), "b".into(), "c".into()] };
    ModelSpec {
        objective,
        labels,
        trainable: Trainable::Full,
        lora: Lora::default(),
        precision: Precision::F32,
        dropout: 0.1,
        seed: 1,
        max_length: 24,
        template: String::new(),
        reads,
        freeze_batch_norm: false,
    }
}

/// Sequences of several lengths, padded on both devices: masks go by rows.
fn texts(network: &Network) -> (Vec<Tokens>, Input) {
    let vocabulary = network.config().vocabulary().unwrap() as u64;
    let word = |row: u64, place: u64| ((row * 7919 + place * 104_729 + 17) * 31 % vocabulary) as u32;
    let tokens = |(row, length): (u64, u64)| Tokens {
        words: (0..length).map(|place| word(row, place)).collect(),
        types: vec![0; length as usize],
    };
    let sequences: Vec<Tokens> = [(0, 9), (1, 4), (2, 16), (3, 1), (4, 16)].map(tokens).into();
    let input = Batch::padded(&sequences.iter().collect::<Vec<_>>()).into();
    (sequences, input)
}

fn images(folder: &str, device: &Device) -> Input {
    let images = &reference_of(folder, "gradients.safetensors")["pixel_values"];
    Input::Images(images.to_dtype(DType::F32).unwrap().to_device(device).unwrap())
}

fn pass(network: &Network, folder: &str, dropout: f64) -> Pass {
    let (input, targets) = match network.objective() {
        Objective::NextToken => {
            let (sequences, input) = texts(network);
            let row = |tokens: &Tokens| tokens.words.iter().map(|word| Some(*word)).collect();
            (input, Targets::Tokens(sequences.iter().map(row).collect()))
        }
        _ if network.config().vocabulary().is_some() => (texts(network).1, Targets::Classes(vec![0, 1, 2, 0, 1])),
        _ => {
            let input = images(folder, network.device());
            let labels = (0..input.len() as u32).map(|row| row % 3).collect();
            (input, Targets::Classes(labels))
        }
    };
    let stream = DropoutStream { probability: dropout, seed: 1, round: 1, step: 3 };
    network.gradients(&input, &targets, &Loss::default(), Some(stream)).unwrap()
}

fn assert_near(what: &str, found: (&Network, &Pass), expected: &Pass, tolerance: f64) {
    let (network, pass) = found;
    assert!((pass.loss - expected.loss).abs() <= tolerance * expected.loss, "{what}: {} {}", pass.loss, expected.loss);
    assert_eq!(pass.gradients.len(), expected.gradients.len());
    for (name, gradient) in &pass.gradients {
        let shape = network.parameters()[name].var.dims();
        let (found, expected) = (dense(gradient, shape), dense(&expected.gradients[name], shape));
        // Keys' biases have a true gradient of zero.
        if norm(&expected) > 1e-5 {
            let distance = distance(&found, &expected);
            assert!(distance < tolerance, "{what}, {name}: relative distance {distance}");
        }
    }
}

fn load(folder: &Path, spec: &ModelSpec, device: &Device) -> Network {
    Network::load(folder, spec, device).unwrap()
}

fn cases() -> Vec<(&'static str, ModelSpec)> {
    let of = |objective, reads, folders: &[&'static str]| {
        folders.iter().map(|folder| (*folder, spec(objective, reads))).collect::<Vec<_>>()
    };
    let texts = ["bert", "distilbert", "roberta", "modernbert", "modernbert-mean"];
    let mut cases = of(Objective::Class, Reads::Texts, &texts);
    cases.extend(of(Objective::NextToken, Reads::Texts, &["qwen2", "qwen3", "llama"]));
    cases.extend(of(Objective::Class, Reads::Images, &["vit", "resnet-basic", "resnet-bottleneck"]));
    cases
}

#[test]
fn networks_agree_with_the_processor() {
    let Some(gpu) = gpu() else { return };
    for (folder, spec) in cases() {
        let [cpu, gpu] = [&Device::Cpu, &gpu].map(|device| load(&fixture(folder), &spec, device));
        for dropout in [0.0, 0.1] {
            let expected = pass(&cpu, folder, dropout);
            let found = pass(&gpu, folder, dropout);
            assert_near(&format!("{folder}, dropout {dropout}"), (&gpu, &found), &expected, 1e-3);
        }
    }
}

#[test]
fn adapters_and_frozen_layers_agree_with_the_processor() {
    let Some(gpu) = gpu() else { return };
    for (folder, spec) in cases().into_iter().filter(|(folder, _)| ["bert", "qwen2", "vit"].contains(folder)) {
        for trainable in [Trainable::Lora, Trainable::Last(1)] {
            let spec = ModelSpec { trainable, ..spec.clone() };
            let [cpu, gpu] = [&Device::Cpu, &gpu].map(|device| load(&fixture(folder), &spec, device));
            let (expected, found) = (pass(&cpu, folder, 0.1), pass(&gpu, folder, 0.1));
            assert_near(&format!("{folder} {}", spec.trainable), (&gpu, &found), &expected, 1e-3);
        }
    }
}

#[test]
fn bf16_is_near_and_the_same_bits_come_twice() {
    let Some(gpu) = gpu() else { return };
    for (folder, spec) in cases() {
        let exact = pass(&load(&fixture(folder), &spec, &gpu), folder, 0.1);
        let again = pass(&load(&fixture(folder), &spec, &gpu), folder, 0.1);
        assert_eq!(exact.loss.to_bits(), again.loss.to_bits(), "{folder}");
        for (name, gradient) in &exact.gradients {
            let shape = [usize::MAX, 1];
            assert_eq!(dense(gradient, &shape), dense(&again.gradients[name], &shape), "{folder}, {name}");
        }
        for precision in [Precision::Bf16, Precision::F16] {
            let network = load(&fixture(folder), &ModelSpec { precision, ..spec.clone() }, &gpu);
            let rounded = pass(&network, folder, 0.1);
            assert!((rounded.loss / exact.loss - 1.0).abs() < 0.05, "{folder}: {} for {}", rounded.loss, exact.loss);
        }
    }
}

#[test]
fn layers_computed_again_give_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    for (folder, spec) in cases().into_iter().filter(|(folder, _)| ["bert", "qwen2", "vit"].contains(folder)) {
        let mut network = load(&fixture(folder), &spec, &gpu);
        let expected = pass(&network, folder, 0.1);
        network.set_recompute(true).unwrap();
        let found = pass(&network, folder, 0.1);
        for (name, gradient) in &found.gradients {
            let shape = [usize::MAX, 1];
            assert_eq!(dense(gradient, &shape), dense(&expected.gradients[name], &shape), "{folder}, {name}");
        }
    }
}

#[test]
fn five_steps_end_where_the_processors_do() {
    let Some(gpu) = gpu() else { return };
    let spec = spec(Objective::Class, Reads::Texts);
    let trained = [&Device::Cpu, &gpu].map(|device| {
        let network = load(&fixture("bert"), &spec, device);
        let mut optimizer = Optimizer::new(&Training { weight_decay: 0.01, ..Training::default() });
        for _ in 0..5 {
            let pass = pass(&network, "bert", 0.0);
            let norm = gradient_norm(&pass.gradients).unwrap();
            optimizer.step(network.parameters(), &pass.gradients, 1e-3, (1.0 / (norm + 1e-6)).min(1.0)).unwrap();
        }
        network
    });
    let values = |network: &Network, name: &str| {
        let tensor: Tensor = network.parameters()[name].var.as_detached_tensor();
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f64::from).collect::<Vec<_>>()
    };
    // The gradient of keys' biases is noise around zero, which Adam makes as large as any.
    for name in trained[0].parameters().keys().filter(|name| !name.ends_with("key.bias")) {
        let distance = distance(&values(&trained[1], name), &values(&trained[0], name));
        assert!(distance < 1e-2, "{name}: relative distance {distance}");
    }
}
