//! The network against PyTorch: logits, loss, every gradient, and five optimiser steps. The reference was computed in
//! double precision by `tests/fixtures/make_encoder_gradients.py`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod reference;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use fedtune_client::finetune::{Optimizer, gradient_norm};
use fedtune_client::model::batch::{Batch, Tokens};
use fedtune_client::model::config::Config;
use fedtune_client::model::network::{Parameter, Pass};
use fedtune_client::model::{DropoutStream, Input, Loss, ModelSpec, Network, Objective, Reads, Targets};
use fedtune_config::job::{Lora, Precision, Trainable, Training};
use reference::{dense, distance, fixture, norm, reference_of, rows, saved_adapters, saved_targets, values};

const ARCHITECTURES: [&str; 6] = ["bert", "distilbert", "roberta", "xlm-roberta", "modernbert", "modernbert-mean"];
/// Classifiers of tokens.
const OF_TOKENS: [&str; 4] = ["bert-tokens", "distilbert-tokens", "roberta-tokens", "modernbert-tokens"];

fn network(trainable: Trainable) -> Network {
    network_of("bert", trainable)
}

fn network_of(architecture: &str, trainable: Trainable) -> Network {
    adapted(architecture, trainable, Lora::default())
}

fn adapted(architecture: &str, trainable: Trainable, lora: Lora) -> Network {
    loaded(architecture, trainable, lora, Precision::F32)
}

fn loaded(architecture: &str, trainable: Trainable, lora: Lora, precision: Precision) -> Network {
    let spec = ModelSpec {
        objective: if OF_TOKENS.contains(&architecture) { Objective::Tokens } else { Objective::Class },
        labels: ["alpha", "beta", "gamma"].map(String::from).to_vec(),
        trainable,
        lora,
        precision,
        dropout: 0.0,
        seed: 1,
        max_length: 24,
        template: String::new(),
        reads: Reads::Texts,
        freeze_batch_norm: false,
    };
    Network::load(&fixture(architecture), &spec, &Device::Cpu).unwrap()
}

fn optimizer() -> Optimizer {
    Optimizer::new(&Training { weight_decay: 0.01, ..Training::default() })
}

fn reference(file: &str) -> HashMap<String, Tensor> {
    reference_of("bert", file)
}

/// The reference's batch, less its padding.
fn sequences(reference: &HashMap<String, Tensor>) -> Vec<Tokens> {
    let (ids, types) = (rows(reference, "input_ids"), rows(reference, "token_type_ids"));
    let mask = rows(reference, "attention_mask");
    (0..ids.len())
        .map(|i| {
            let length = mask[i].iter().sum::<u32>() as usize;
            Tokens { words: ids[i][..length].to_vec(), types: types[i][..length].to_vec() }
        })
        .collect()
}

fn labels(reference: &HashMap<String, Tensor>) -> Targets {
    let labels = &reference["labels"];
    if labels.rank() == 1 {
        return Targets::Classes(labels.to_dtype(DType::U32).unwrap().to_vec1().unwrap());
    }
    let labels: Vec<Vec<i64>> = labels.to_vec2().unwrap();
    let of_row = |(labels, tokens): (&Vec<i64>, &Tokens)| {
        labels[..tokens.words.len()].iter().map(|label| u32::try_from(*label).ok()).collect()
    };
    Targets::Tokens(labels.iter().zip(&sequences(reference)).map(of_row).collect())
}

fn pass(network: &Network, reference: &HashMap<String, Tensor>) -> Pass {
    let sequences = sequences(reference);
    let batch = network.batch(&sequences.iter().collect::<Vec<_>>());
    network.gradients(&batch, &labels(reference), &Loss::default(), None).unwrap()
}

fn assert_gradients(network: &Network, pass: &Pass, reference: &HashMap<String, Tensor>) {
    // Softmax does not see a constant added to all scores, so the true gradient of key biases is zero.
    reference::assert_gradients(network, pass, reference, &["key.bias", "k_lin.bias"]);
}

#[test]
fn logits_and_loss_agree() {
    for architecture in ARCHITECTURES {
        let network = network_of(architecture, Trainable::Full);
        let reference = reference_of(architecture, "gradients.safetensors");
        let sequences = sequences(&reference);
        for batch in
            [Batch::packed(&sequences.iter().collect::<Vec<_>>()), Batch::padded(&sequences.iter().collect::<Vec<_>>())]
        {
            let logits = values(&network.logits(&batch.into()).unwrap());
            assert!(distance(&logits, &values(&reference["logits"])) < 1e-5, "{architecture}");
        }
        let loss = pass(&network, &reference).loss;
        assert!((loss - values(&reference["loss"])[0]).abs() < 1e-5, "{architecture}");
    }
}

#[test]
fn logits_of_tokens_and_their_loss_agree() {
    for architecture in OF_TOKENS {
        let network = network_of(architecture, Trainable::Full);
        let reference = reference_of(architecture, "gradients.safetensors");
        let sequences = sequences(&reference);
        let batch = Batch::padded(&sequences.iter().collect::<Vec<_>>());
        let logits = network.logits(&batch.into()).unwrap().reshape(reference["logits"].dims()).unwrap();
        for (row, tokens) in sequences.iter().enumerate() {
            // What stands where there is only padding is unspecified.
            let part = |logits: &Tensor| values(&logits.get(row).unwrap().narrow(0, 0, tokens.words.len()).unwrap());
            assert!(distance(&part(&logits), &part(&reference["logits"])) < 1e-5, "{architecture}");
        }
        let loss = pass(&network, &reference).loss;
        assert!((loss - values(&reference["loss"])[0]).abs() < 1e-5, "{architecture}");
    }
}

#[test]
fn every_gradient_of_a_model_of_tables_agrees() {
    for (folder, objective, labels) in [
        ("table-class", Objective::Class, 3),
        ("table-linear", Objective::Class, 3),
        ("table-sets", Objective::Sets, 3),
        ("table-value", Objective::Value, 0),
    ] {
        let spec = ModelSpec {
            objective,
            labels: ["alpha", "beta", "gamma"][..labels].iter().map(|label| (*label).to_owned()).collect(),
            trainable: Trainable::Full,
            lora: Lora::default(),
            precision: Precision::F32,
            dropout: 0.0,
            seed: 1,
            max_length: 24,
            template: String::new(),
            reads: Reads::Texts,
            freeze_batch_norm: false,
        };
        let network = Network::load(&fixture(folder), &spec, &Device::Cpu).unwrap();
        let reference = reference_of(folder, "gradients.safetensors");
        let rows = reference["inputs"].dim(0).unwrap();
        let targets: Vec<f32> = reference["targets"].flatten_all().unwrap().to_vec1().unwrap();
        let hot = |row: &[f32]| (0..).zip(row).filter(|(_, x)| **x == 1.0).map(|(label, _)| label).collect();
        let targets = match objective {
            Objective::Value => Targets::Values(targets),
            Objective::Sets => Targets::Sets(targets.chunks(3).map(hot).collect()),
            _ => Targets::Classes(targets.iter().map(|label| *label as u32).collect()),
        };
        let input = Input::Table(reference["inputs"].clone());
        assert_eq!(input.len(), rows);
        let outputs = values(&network.logits(&input).unwrap());
        assert!(distance(&outputs, &values(&reference["outputs"])) < 1e-5, "{folder}");
        let pass = network.gradients(&input, &targets, &Loss::default(), None).unwrap();
        assert!((pass.loss - values(&reference["loss"])[0]).abs() < 1e-5, "{folder}");
        assert_gradients(&network, &pass, &reference);
    }
}

#[test]
fn every_gradient_agrees() {
    for architecture in ARCHITECTURES.into_iter().chain(OF_TOKENS) {
        let network = network_of(architecture, Trainable::Full);
        let reference = reference_of(architecture, "gradients.safetensors");
        // Every parameter that transformers has is ours, under the same name.
        let theirs = reference.keys().filter(|name| name.starts_with("grad.")).count();
        assert_eq!(network.parameters().len(), theirs, "{architecture}");
        assert_gradients(&network, &pass(&network, &reference), &reference);
    }
}

#[test]
fn gradients_agree_where_only_a_part_is_trained() {
    for architecture in ARCHITECTURES {
        let reference = reference_of(architecture, "gradients.safetensors");
        // ModernBERT has no biases, and a norm behind its last layer.
        let (layer, last) = if architecture.starts_with("modernbert") { (6, 1) } else { (16, 0) };
        let counts =
            [(Trainable::Head, 4), (Trainable::Last(1), 4 + layer + last), (Trainable::Last(2), 4 + 2 * layer + last)];
        for (trainable, count) in counts {
            let network = network_of(architecture, trainable.clone());
            let pass = pass(&network, &reference);
            assert_eq!(pass.gradients.len(), count, "{architecture} {trainable}");
            assert_gradients(&network, &pass, &reference);
        }
    }
}

#[test]
fn every_tensor_trained_alone_has_the_gradient_it_has_with_all_others() {
    for architecture in ARCHITECTURES.into_iter().chain(OF_TOKENS) {
        let reference = reference_of(architecture, "gradients.safetensors");
        for name in network_of(architecture, Trainable::Full).parameters().keys() {
            let network = network_of(architecture, name.parse().unwrap());
            let pass = pass(&network, &reference);
            assert_eq!(pass.gradients.keys().collect::<Vec<_>>(), [name], "{architecture}");
            assert_gradients(&network, &pass, &reference);
        }
    }
}

#[test]
fn while_probing_the_head_has_the_gradient_it_has_when_it_is_trained_alone() {
    for architecture in ARCHITECTURES.into_iter().chain(OF_TOKENS) {
        let reference = reference_of(architecture, "gradients.safetensors");
        let head = pass(&network_of(architecture, Trainable::Head), &reference);
        for trainable in [Trainable::Full, Trainable::Last(1), Trainable::Lora] {
            let mut network = network_of(architecture, trainable.clone());
            let sequences = sequences(&reference);
            let batch = network.batch(&sequences.iter().collect::<Vec<_>>());
            for recompute in [false, true] {
                network.set_recompute(recompute).unwrap();
                let probed =
                    network.gradients_while(true, &batch, &labels(&reference), &Loss::default(), None).unwrap();
                let names: Vec<_> = probed.gradients.keys().collect();
                assert_eq!(names, head.gradients.keys().collect::<Vec<_>>(), "{architecture} {trainable}");
                for (name, gradient) in &head.gradients {
                    let dims = network.parameters()[name].var.dims();
                    assert_eq!(dense(&probed.gradients[name], dims), dense(gradient, dims), "{architecture} {name}");
                }
            }
        }
    }
}

/// Adapters as peft saved them, in the network they belong to.
fn with_adapters(architecture: &str) -> Network {
    let targets = saved_targets(architecture);
    let lora = Lora { rank: 4, alpha: 6.0, dropout: 0.0, targets };
    let mut network = adapted(architecture, Trainable::Lora, lora);
    let state = tempfile::NamedTempFile::new().unwrap();
    candle_core::safetensors::save(&saved_adapters(architecture), state.path()).unwrap();
    network.load_state(state.path()).unwrap();
    network
}

#[test]
fn every_gradient_of_adapters_agrees() {
    for architecture in ARCHITECTURES.into_iter().chain(OF_TOKENS) {
        let network = with_adapters(architecture);
        let mut reference = reference_of(architecture, "lora/gradients.safetensors");
        let theirs = reference.keys().filter(|name| name.starts_with("grad.")).count();
        let ours = network.parameters().values().filter(|parameter| parameter.trained).count();
        assert_eq!(ours, theirs, "{architecture}");
        let batch = reference_of(architecture, "gradients.safetensors");
        for name in ["input_ids", "token_type_ids", "attention_mask", "labels"] {
            reference.insert(name.into(), batch[name].clone());
        }
        let pass = pass(&network, &reference);
        assert!((pass.loss - values(&reference["loss"])[0]).abs() < 1e-5, "{architecture}");
        assert_gradients(&network, &pass, &reference);
    }
}

#[test]
fn adapters_begin_as_the_base_model_and_their_dropout_is_drawn_by_the_seed() {
    let reference = reference("gradients.safetensors");
    let base = pass(&network(Trainable::Head), &reference).loss;
    let lora = Lora { dropout: 0.5, targets: vec!["all-linear".into()], ..Lora::default() };
    let network = adapted("bert", Trainable::Lora, lora);
    assert!((pass(&network, &reference).loss - base).abs() < 1e-6);
    // B is zero, so A gets no gradient yet; B's depends on what dropout leaves of the inputs.
    let sequences = sequences(&reference);
    let batch = network.batch(&sequences.iter().collect::<Vec<_>>());
    let gradient = |step| {
        let stream = DropoutStream { probability: 0.0, seed: 7, round: 1, step };
        let pass = network.gradients(&batch, &labels(&reference), &Loss::default(), Some(stream)).unwrap();
        let name = |part| format!("bert.encoder.layer.0.attention.self.query.lora_{part}.weight");
        assert!(dense(&pass.gradients[&name("A")], &[8, 32]).iter().all(|x| *x == 0.0));
        dense(&pass.gradients[&name("B")], &[32, 8])
    };
    assert_eq!(gradient(1), gradient(1));
    assert_ne!(gradient(1), gradient(2));
}

#[test]
fn gradients_of_rounded_numbers_are_near_and_repeat_bit_for_bit() {
    // Eight and eleven bits of precision in each product.
    let precisions = [(Precision::Bf16, 5e-2), (Precision::F16, 5e-3)];
    for (architecture, (precision, allowed)) in
        ARCHITECTURES.into_iter().flat_map(|architecture| precisions.map(|precision| (architecture, precision)))
    {
        let network = loaded(architecture, Trainable::Full, Lora::default(), precision);
        let reference = reference_of(architecture, "gradients.safetensors");
        let (pass, again) = (pass(&network, &reference), pass(&network, &reference));
        assert_eq!(pass.loss, again.loss);
        for (name, parameter) in network.parameters() {
            let shape = parameter.var.dims();
            let (expected, found) = (values(&reference[&format!("grad.{name}")]), dense(&pass.gradients[name], shape));
            assert_eq!(found, dense(&again.gradients[name], shape));
            // Key biases have no true gradient.
            if norm(&expected) > 1e-6 {
                let distance = distance(&found, &expected);
                assert!(distance < allowed, "{architecture} {name} {precision:?}: relative distance {distance}");
            }
        }
        // It is another precision, not another name for f32.
        let exact = loaded(architecture, Trainable::Full, Lora::default(), Precision::F32);
        let reference = reference_of(architecture, "gradients.safetensors");
        let sequences = sequences(&reference);
        let batch = exact.batch(&sequences.iter().collect::<Vec<_>>());
        assert_ne!(exact.gradients(&batch, &labels(&reference), &Loss::default(), None).unwrap().loss, pass.loss);
    }
}

#[test]
fn a_padded_batch_gives_the_same_gradients() {
    for architecture in ["bert", "modernbert", "modernbert-mean"] {
        let network = network_of(architecture, Trainable::Full);
        let reference = reference_of(architecture, "gradients.safetensors");
        let sequences = sequences(&reference);
        let batch = Batch::padded(&sequences.iter().collect::<Vec<_>>()).into();
        let pass = network.gradients(&batch, &labels(&reference), &Loss::default(), None).unwrap();
        assert_gradients(&network, &pass, &reference);
    }
}

#[test]
fn five_steps_agree() {
    let (network, reference, trained) =
        (network(Trainable::Full), reference("gradients.safetensors"), reference("trained.safetensors"));
    let before: HashMap<String, Vec<f64>> =
        network.parameters().iter().map(|(name, p)| (name.clone(), values(p.var.as_tensor()))).collect();
    let mut optimizer = optimizer();
    for expected in values(&trained["losses"]) {
        let pass = pass(&network, &reference);
        assert!((pass.loss - expected).abs() < 1e-4 * expected.abs().max(1.0), "{} for {expected}", pass.loss);
        let clip = (1.0 / (gradient_norm(&pass.gradients).unwrap() + 1e-6)).min(1.0);
        optimizer.step(network.parameters(), &pass.gradients, 1e-3, clip).unwrap();
    }
    for (name, parameter) in network.parameters() {
        let (found, expected) = (values(parameter.var.as_tensor()), values(&trained[name]));
        if name.ends_with("key.bias") {
            // Adam turns a gradient of rounding errors into steps of the learning rate, in both programs.
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1.1e-2), "{name}");
            continue;
        }
        let moved = |now: &[f64]| now.iter().zip(&before[name]).map(|(a, b)| a - b).collect::<Vec<_>>();
        let distance = distance(&moved(&found), &moved(&expected));
        assert!(distance < 2e-2, "{name}: the change differs by {distance}");
    }
}

#[test]
fn one_step_moves_every_trained_tensor_and_no_other() {
    let reference = reference("gradients.safetensors");
    for trainable in [Trainable::Full, Trainable::Head, Trainable::Last(1), Trainable::Lora] {
        let network = network(trainable.clone());
        let copies: HashMap<String, Vec<f64>> =
            network.parameters().iter().map(|(name, p)| (name.clone(), values(p.var.as_tensor()))).collect();
        let pass = pass(&network, &reference);
        // Without decay, which moves weights that have no gradient too.
        let training = Training { weight_decay: 0.0, ..Training::default() };
        Optimizer::new(&training).step(network.parameters(), &pass.gradients, 1e-3, 1.0).unwrap();
        for (name, parameter) in network.parameters() {
            let moved = values(parameter.var.as_tensor()) != copies[name];
            // The other matrix of a fresh adapter is zero, and so is this one's first gradient.
            let waits = name.ends_with("lora_A.weight");
            assert_eq!(moved, parameter.trained && !waits, "{trainable}: {name}");
        }
    }
}

#[test]
fn layers_computed_again_give_the_same_bits() {
    for architecture in ARCHITECTURES.into_iter().chain(OF_TOKENS) {
        for trainable in [Trainable::Full, Trainable::Head, Trainable::Last(1), Trainable::Lora] {
            let mut network = network_of(architecture, trainable.clone());
            let reference = reference_of(architecture, "gradients.safetensors");
            let sequences = sequences(&reference);
            let batch = network.batch(&sequences.iter().collect::<Vec<_>>());
            let run = |network: &Network| {
                let stream = DropoutStream { probability: 0.2, seed: 7, round: 2, step: 1 };
                let pass = network.gradients(&batch, &labels(&reference), &Loss::default(), Some(stream)).unwrap();
                let gradient = |(name, parameter): (&String, &Parameter)| {
                    parameter.trained.then(|| dense(&pass.gradients[name], parameter.var.dims()))
                };
                (pass.loss, network.parameters().iter().filter_map(gradient).collect::<Vec<_>>())
            };
            let kept = run(&network);
            network.set_recompute(true).unwrap();
            assert_eq!(run(&network), kept, "{architecture} {trainable}");
        }
    }
}

#[test]
fn dropout_changes_the_loss_and_repeats_bit_for_bit() {
    for architecture in ["bert", "modernbert"] {
        let network = network_of(architecture, Trainable::Full);
        let reference = reference_of(architecture, "gradients.safetensors");
        let sequences = sequences(&reference);
        let batch = network.batch(&sequences.iter().collect::<Vec<_>>());
        let run = |step| {
            let stream = DropoutStream { probability: 0.2, seed: 7, round: 2, step };
            let pass = network.gradients(&batch, &labels(&reference), &Loss::default(), Some(stream)).unwrap();
            let gradients: Vec<Vec<f64>> = network
                .parameters()
                .iter()
                .map(|(name, parameter)| dense(&pass.gradients[name], parameter.var.dims()))
                .collect();
            (pass.loss, gradients)
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1).0, run(2).0);
        assert_ne!(run(1).0, pass(&network, &reference).loss);
    }
}

#[test]
fn hidden_states_agree_with_candles_own_bert() {
    use candle_transformers::models::bert::BertModel;
    let (network, reference) = (network(Trainable::Full), reference("gradients.safetensors"));
    let Config::Encoder(encoder) = network.config() else { panic!("not an encoder") };
    let tensors = reference_model();
    let builder = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let theirs = BertModel::load(builder, &encoder.into()).unwrap();
    let (ids, types) = (&reference["input_ids"], &reference["token_type_ids"]);
    let expected = theirs.forward(ids, types, Some(&reference["attention_mask"])).unwrap();
    let sequences = sequences(&reference);
    let found = network.hidden_states(&Batch::padded(&sequences.iter().collect::<Vec<_>>())).unwrap();
    let found = found.reshape(expected.dims()).unwrap();
    for (i, sequence) in sequences.iter().enumerate() {
        let part = |states: &Tensor| values(&states.get(i).unwrap().narrow(0, 0, sequence.words.len()).unwrap());
        assert!(distance(&part(&found), &part(&expected)) < 1e-4, "sequence {i}");
    }
}

fn reference_model() -> HashMap<String, Tensor> {
    reference("model.safetensors")
}
