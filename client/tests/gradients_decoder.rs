//! Decoders against PyTorch: logits, loss and every gradient. The reference was computed in double precision by
//! `tests/fixtures/make_decoder_gradients.py`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod reference;
mod tiny_model;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use fedtune_client::finetune::Optimizer;
use fedtune_client::model::batch::{Batch, Tokens};
use fedtune_client::model::network::{Gradient, Parameter, Pass};
use fedtune_client::model::{Classifier, DropoutStream, Input, Loss, ModelSpec, Network, Objective, Reads, Targets};
use fedtune_config::job::{Lora, Precision, Trainable, Training};
use fedtune_proto::recipe::TensorSource;
use reference::{
    assert_gradients, dense, distance, fixture, norm, reference_of, rows, saved_adapters, saved_targets, values,
};
use serde_json::{Value, json};

/// The output layer of the first is its table of words; the others have one of its own.
const ARCHITECTURES: [&str; 3] = ["qwen2", "qwen3", "llama"];

fn spec(trainable: Trainable) -> ModelSpec {
    ModelSpec {
        objective: Objective::NextToken,
        labels: Vec::new(),
        trainable,
        lora: Lora::default(),
        precision: Precision::F32,
        dropout: 0.0,
        seed: 1,
        max_length: 24,
        template: String::new(),
        reads: Reads::Texts,
        freeze_batch_norm: false,
    }
}

fn load(architecture: &str, spec: &ModelSpec) -> Network {
    Network::load(&fixture(architecture), spec, &Device::Cpu).unwrap()
}

fn network(architecture: &str, trainable: Trainable) -> Network {
    load(architecture, &spec(trainable))
}

fn reference(architecture: &str) -> HashMap<String, Tensor> {
    reference_of(architecture, "gradients.safetensors")
}

/// The reference's batch, less its padding.
fn sequences(reference: &HashMap<String, Tensor>) -> Vec<Tokens> {
    let (ids, mask) = (rows(reference, "input_ids"), rows(reference, "attention_mask"));
    ids.iter()
        .zip(mask)
        .map(|(ids, mask)| {
            let length = mask.iter().sum::<u32>() as usize;
            Tokens { words: ids[..length].to_vec(), types: vec![0; length] }
        })
        .collect()
}

/// The tokens that count.
fn targets(reference: &HashMap<String, Tensor>) -> Targets {
    let labels: Vec<Vec<i64>> = reference["labels"].to_dtype(DType::I64).unwrap().to_vec2().unwrap();
    let counted = |labels: &[i64]| labels.iter().map(|label| u32::try_from(*label).ok()).collect();
    Targets::Tokens(
        labels.iter().zip(sequences(reference)).map(|(row, tokens)| counted(&row[..tokens.words.len()])).collect(),
    )
}

fn packed(reference: &HashMap<String, Tensor>) -> Input {
    Batch::packed(&sequences(reference).iter().collect::<Vec<_>>()).into()
}

fn padded(reference: &HashMap<String, Tensor>) -> Input {
    Batch::padded(&sequences(reference).iter().collect::<Vec<_>>()).into()
}

fn pass(network: &Network, reference: &HashMap<String, Tensor>) -> Pass {
    network.gradients(&packed(reference), &targets(reference), &Loss::default(), None).unwrap()
}

#[test]
fn texts_are_continued_by_the_likeliest_token_each_time() {
    for architecture in ARCHITECTURES {
        let network = network(architecture, Trainable::Full);
        let sequences = sequences(&reference(architecture));
        let texts: Vec<&[u32]> = sequences.iter().map(|tokens| tokens.words.as_slice()).collect();
        let (found, most) = (network.continuations(&texts, 6, &[]).unwrap(), 6);
        for (text, found) in texts.iter().zip(&found) {
            let (mut words, mut log_probability) = (text.to_vec(), 0.0);
            for _ in 0..most {
                let tokens = Tokens { words: words.clone(), types: vec![0; words.len()] };
                let logits = network.logits(&network.batch(&[&tokens])).unwrap().to_vec2::<f32>().unwrap();
                let last = logits.last().unwrap();
                let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
                let sum: f64 = last.iter().map(|x| f64::from(x - last[best]).exp()).sum();
                log_probability -= sum.ln();
                words.push(best as u32);
            }
            assert_eq!(found.words, words[text.len()..], "{architecture}");
            assert!((found.log_probability - log_probability).abs() < 1e-3 && !found.ended);
        }
        // The first word of the first text as an end.
        let end = found[0].words[0];
        let ended = &network.continuations(&texts[..1], most, &[end]).unwrap()[0];
        assert!(ended.words.is_empty() && ended.ended && ended.log_probability < 0.0);
        assert!(network.continuations(&[&[]], most, &[]).is_err());
        assert!(network.continuations(&[&[u32::MAX]], most, &[]).is_err());
    }
}

#[test]
fn logits_and_loss_agree() {
    for architecture in ARCHITECTURES {
        let (network, reference) = (network(architecture, Trainable::Full), reference(architecture));
        let expected: Vec<Vec<Vec<f32>>> = reference["logits"].to_vec3().unwrap();
        let sequences = sequences(&reference);
        let longest = sequences.iter().map(|tokens| tokens.words.len()).max().unwrap();
        for (batch, is_padded) in [(packed(&reference), false), (padded(&reference), true)] {
            let found: Vec<Vec<f32>> = network.logits(&batch).unwrap().to_vec2().unwrap();
            let (mut row, mut compared) = (0, 0);
            for (tokens, expected) in sequences.iter().zip(&expected) {
                for (place, expected) in expected[..tokens.words.len()].iter().enumerate() {
                    let to_f64 = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                    assert!(distance(&to_f64(&found[row + place]), &to_f64(expected)) < 1e-5, "{architecture}");
                    compared += 1;
                }
                row += if is_padded { longest } else { tokens.words.len() };
            }
            assert_eq!((row, compared), (found.len(), 23));
        }
        let loss = pass(&network, &reference).loss;
        assert!((loss - values(&reference["loss"])[0]).abs() < 1e-5, "{architecture}: {loss}");
    }
}

#[test]
fn every_gradient_agrees() {
    for architecture in ARCHITECTURES {
        let (network, reference) = (network(architecture, Trainable::Full), reference(architecture));
        // Every parameter that transformers has is ours, under the same name.
        let theirs = reference.keys().filter(|name| name.starts_with("grad.")).count();
        assert_eq!(network.parameters().len(), theirs, "{architecture}");
        assert_gradients(&network, &pass(&network, &reference), &reference, &[]);
    }
}

#[test]
fn a_padded_batch_gives_the_same_gradients() {
    for architecture in ARCHITECTURES {
        let (network, reference) = (network(architecture, Trainable::Full), reference(architecture));
        let pass = network.gradients(&padded(&reference), &targets(&reference), &Loss::default(), None).unwrap();
        assert_gradients(&network, &pass, &reference, &[]);
    }
}

#[test]
fn gradients_agree_where_only_a_part_is_trained() {
    // Above the layers: the last norm, and the output layer where it is not the table of words.
    for (architecture, layer, top) in [("qwen2", 12, 1), ("qwen3", 11, 2), ("llama", 9, 2)] {
        let reference = reference(architecture);
        for (trainable, count) in
            [(Trainable::Head, top), (Trainable::Last(1), top + layer), (Trainable::Last(2), top + 2 * layer)]
        {
            let network = network(architecture, trainable.clone());
            let pass = pass(&network, &reference);
            assert_eq!(pass.gradients.len(), count, "{architecture} {trainable}");
            assert_gradients(&network, &pass, &reference, &[]);
        }
    }
}

#[test]
fn the_tables_gradient_is_sparse_unless_it_is_the_output_layer_too() {
    for (architecture, tied) in [("qwen2", true), ("qwen3", false)] {
        let (network, reference) = (network(architecture, Trainable::Full), reference(architecture));
        let found = &pass(&network, &reference).gradients["model.embed_tokens.weight"];
        assert_eq!(matches!(found, Gradient::Dense(_)), tied, "{architecture}");
    }
}

#[test]
fn every_gradient_of_adapters_agrees() {
    for architecture in ARCHITECTURES {
        let lora = Lora { rank: 4, alpha: 6.0, dropout: 0.0, targets: saved_targets(architecture) };
        let mut network = load(architecture, &ModelSpec { lora, ..spec(Trainable::Lora) });
        let state = tempfile::NamedTempFile::new().unwrap();
        candle_core::safetensors::save(&saved_adapters(architecture), state.path()).unwrap();
        // Exactly the adapters are trained: norm and output layer stay.
        network.load_state(state.path()).unwrap();
        let adapted = reference_of(architecture, "lora/gradients.safetensors");
        let pass = pass(&network, &reference(architecture));
        assert!((pass.loss - values(&adapted["loss"])[0]).abs() < 1e-5, "{architecture}");
        assert_gradients(&network, &pass, &adapted, &[]);
    }
}

#[test]
fn one_step_moves_every_trained_tensor_and_no_other() {
    for architecture in ARCHITECTURES {
        for trainable in [Trainable::Full, Trainable::Head, Trainable::Last(1), Trainable::Lora] {
            let network = network(architecture, trainable.clone());
            let copies: HashMap<String, Vec<f64>> =
                network.parameters().iter().map(|(name, p)| (name.clone(), values(p.var.as_tensor()))).collect();
            let pass = pass(&network, &reference(architecture));
            // Without decay, which moves weights that have no gradient too.
            let training = Training { weight_decay: 0.0, ..Training::default() };
            Optimizer::new(&training).step(network.parameters(), &pass.gradients, 1e-3, 1.0).unwrap();
            for (name, parameter) in network.parameters() {
                let moved = values(parameter.var.as_tensor()) != copies[name];
                // The other matrix of a fresh adapter is zero, and so is this one's first gradient.
                let waits = name.ends_with("lora_A.weight");
                assert_eq!(moved, parameter.trained && !waits, "{architecture} {trainable}: {name}");
            }
        }
    }
}

#[test]
fn gradients_in_bf16_are_near_and_repeat_bit_for_bit() {
    for architecture in ARCHITECTURES {
        let network = load(architecture, &ModelSpec { precision: Precision::Bf16, ..spec(Trainable::Full) });
        let reference = reference(architecture);
        let (pass, again) = (pass(&network, &reference), pass(&network, &reference));
        assert_eq!(pass.loss, again.loss);
        for (name, parameter) in network.parameters() {
            let shape = parameter.var.dims();
            let (expected, found) = (values(&reference[&format!("grad.{name}")]), dense(&pass.gradients[name], shape));
            assert_eq!(found, dense(&again.gradients[name], shape));
            let distance = distance(&found, &expected);
            assert!(distance < 1e-1, "{architecture} {name}: relative distance {distance}");
        }
    }
}

#[test]
fn dropout_changes_the_loss_and_repeats_bit_for_bit() {
    for architecture in ARCHITECTURES {
        let (network, reference) = (network(architecture, Trainable::Full), reference(architecture));
        let run = |step| {
            let stream = DropoutStream { probability: 0.2, seed: 7, round: 2, step };
            network.gradients(&packed(&reference), &targets(&reference), &Loss::default(), Some(stream)).unwrap().loss
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert_ne!(run(1), pass(&network, &reference).loss);
    }
}

#[test]
fn parts_of_a_batch_add_up_to_the_whole() {
    let (network, reference) = (network("qwen2", Trainable::Full), reference("qwen2"));
    let (all, sequences) = (targets(&reference), sequences(&reference));
    let weight = all.weight(Objective::NextToken, &Loss::default(), network.outputs());
    // Seven, six and one token have one before them and are no prompt.
    assert_eq!(weight, 14.0);
    let loss = Loss { divisor: Some(weight), ..Loss::default() };
    let name = "model.embed_tokens.weight";
    let (mut sum, mut gradient) = (0.0, vec![0.0; 60 * 32]);
    for (place, tokens) in sequences.iter().enumerate() {
        let pass = network.gradients(&network.batch(&[tokens]), &all.part(place..place + 1), &loss, None).unwrap();
        sum += pass.loss;
        gradient.iter_mut().zip(dense(&pass.gradients[name], &[60, 32])).for_each(|(sum, part)| *sum += part);
    }
    assert!((sum - values(&reference["loss"])[0]).abs() < 1e-5);
    assert!(distance(&gradient, &values(&reference[&format!("grad.{name}")])) < 1e-5);
}

#[test]
fn layers_computed_again_give_the_same_bits() {
    for architecture in ARCHITECTURES {
        for trainable in [Trainable::Full, Trainable::Head, Trainable::Last(1), Trainable::Lora] {
            let mut network = network(architecture, trainable.clone());
            let reference = reference(architecture);
            let run = |network: &Network| {
                let stream = DropoutStream { probability: 0.2, seed: 7, round: 2, step: 1 };
                let pass = network
                    .gradients(&packed(&reference), &targets(&reference), &Loss::default(), Some(stream))
                    .unwrap();
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
fn each_token_that_counts_is_scored() {
    for architecture in ARCHITECTURES {
        let (network, reference) = (network(architecture, Trainable::Full), reference(architecture));
        let (Input::Text(batch), Targets::Tokens(targets)) = (packed(&reference), targets(&reference)) else {
            panic!("texts and tokens")
        };
        let scores = network.foreseen(&batch, &targets).unwrap();
        assert_eq!(scores.len(), 14);
        let mean = scores.iter().map(|score| score.loss).sum::<f64>() / 14.0;
        assert!((mean - values(&reference["loss"])[0]).abs() < 1e-5, "{architecture}: {mean}");
        // By the reference's scores.
        let logits: Vec<Vec<Vec<f32>>> = reference["logits"].to_vec3().unwrap();
        let mut expected = Vec::new();
        for (logits, targets) in logits.iter().zip(&targets) {
            for (row, label) in logits.iter().zip(&targets[1..]) {
                if let Some(label) = label {
                    expected.push(row.iter().all(|score| *score <= row[*label as usize]));
                }
            }
        }
        assert_eq!(scores.iter().map(|score| score.first).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn targets_that_do_not_fit_are_refused() {
    let (network, reference) = (network("llama", Trainable::Full), reference("llama"));
    let refused = |targets: Targets| {
        network.gradients(&packed(&reference), &targets, &Loss::default(), None).unwrap_err().to_string()
    };
    let Targets::Tokens(rows) = targets(&reference) else { panic!("one for each token") };
    let changed = |change: fn(&mut Vec<Vec<Option<u32>>>)| {
        let mut rows = rows.clone();
        change(&mut rows);
        refused(Targets::Tokens(rows))
    };
    assert!(changed(|rows| drop(rows.pop())).contains("do not fit"));
    assert!(changed(|rows| rows[1].push(None)).contains("do not fit"));
    assert!(changed(|rows| rows.iter_mut().for_each(|row| row.fill(None))).contains("no token of the batch counts"));
    // The first token has none before it that could lead to it.
    let first_only = |rows: &mut Vec<Vec<Option<u32>>>| rows.iter_mut().for_each(|row| row[1..].fill(None));
    assert!(changed(first_only).contains("no token of the batch counts"));
    assert!(changed(|rows| rows[0][5] = Some(60)).contains("cross-entropy"));
    assert!(refused(Targets::Classes(vec![0, 1, 2])).contains("another kind"));
}

#[test]
fn a_decoder_is_a_language_model_and_an_encoder_is_none() {
    let refused = |architecture: &str, objective: Objective| {
        let labels = ["a", "b"].map(String::from).to_vec();
        let spec = ModelSpec { objective, labels, ..spec(Trainable::Full) };
        Network::load(&fixture(architecture), &spec, &Device::Cpu).unwrap_err().to_string()
    };
    for (objective, task) in [
        (Objective::Class, "\"text-classification\""),
        (Objective::Sets, "\"multi-label-classification\""),
        (Objective::Value, "\"text-regression\""),
        (Objective::Tokens, "\"token-classification\""),
    ] {
        let message = refused("qwen3", objective);
        assert!(message.contains(task) && message.contains("an encoder"), "{message}");
    }
    assert!(refused("bert", Objective::NextToken).contains("a decoder"));
}

#[test]
fn an_output_layer_that_is_absent_is_refused() {
    let model = tiny_model::folder_of("llama");
    tiny_model::edit_tensors(&model.path().join("model.safetensors"), |tensors| drop(tensors.remove("lm_head.weight")));
    let error = Network::load(model.path(), &spec(Trainable::Full), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight"), "{error}");
    // A file without the prefix, as transformers saves the part below the output layer, is enough where that is tied.
    let model = tiny_model::folder_of("qwen2");
    tiny_model::edit_tensors(&model.path().join("model.safetensors"), |tensors| {
        let bare = |name: String| name.strip_prefix("model.").unwrap().to_owned();
        *tensors = std::mem::take(tensors).into_iter().map(|(name, tensor)| (bare(name), tensor)).collect();
    });
    let bare = Network::load(model.path(), &spec(Trainable::Full), &Device::Cpu).unwrap();
    let reference = reference("qwen2");
    assert!((pass(&bare, &reference).loss - values(&reference["loss"])[0]).abs() < 1e-5);
}

fn json_of(path: &std::path::Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_saved_model_has_the_layout_of_transformers_and_loads_again() {
    for (architecture, class) in [("qwen2", "Qwen2"), ("qwen3", "Qwen3"), ("llama", "Llama")] {
        let (model, out) = (tiny_model::folder_of(architecture), tempfile::tempdir().unwrap());
        let spec = ModelSpec { max_length: 16, ..spec(Trainable::Full) };
        let before = Classifier::load(model.path(), &spec, &Device::Cpu).unwrap();
        before.save(out.path()).unwrap();
        let config = json_of(&out.path().join("config.json"));
        assert_eq!(config["architectures"], json!([format!("{class}ForCausalLM")]));
        assert!(config.get("id2label").is_none() && config.get("problem_type").is_none());
        let names = |folder: &std::path::Path| {
            let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
            tensors.into_keys().collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(out.path()), names(model.path()));
        let recipe = before.export_recipe();
        assert_eq!(recipe.tensors.len(), names(model.path()).len());
        let after = Classifier::load_exported(out.path(), None, &Device::Cpu).unwrap();
        assert_eq!(after.network().objective(), Objective::NextToken);
        let logits =
            |classifier: &Classifier| values(&classifier.network().logits(&packed(&reference(architecture))).unwrap());
        assert_eq!(logits(&after), logits(&before));
    }
}

#[test]
fn saved_adapters_have_the_layout_of_peft_and_merge_into_the_base() {
    for architecture in ARCHITECTURES {
        let (model, out) = (tiny_model::folder_of(architecture), tempfile::tempdir().unwrap());
        let lora = Lora { rank: 4, alpha: 6.0, ..Lora::default() };
        let spec = ModelSpec { lora, max_length: 16, ..spec(Trainable::Lora) };
        let before = Classifier::load(model.path(), &spec, &Device::Cpu).unwrap();
        let pass = pass(before.network(), &reference(architecture));
        let training = Training { weight_decay: 0.0, ..Training::default() };
        Optimizer::new(&training).step(before.network().parameters(), &pass.gradients, 1e-2, 1.0).unwrap();
        before.save(out.path()).unwrap();
        let config = json_of(&out.path().join("adapter_config.json"));
        assert_eq!(config["task_type"], "CAUSAL_LM");
        assert_eq!(config["target_modules"], json!(["q_proj", "v_proj"]));
        assert!(config["modules_to_save"].is_null());
        let tensors =
            candle_core::safetensors::load(out.path().join("adapter_model.safetensors"), &Device::Cpu).unwrap();
        let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
        assert!(norm(&values(&tensors[name])) > 0.0);
        assert!(tensors.keys().all(|name| name.contains(".lora_")));
        let recipe = before.export_recipe();
        assert!(recipe.tensors.iter().all(|tensor| matches!(tensor.source, TensorSource::State(_))));
        let after = Classifier::load_exported(out.path(), Some(model.path()), &Device::Cpu).unwrap();
        let logits =
            |classifier: &Classifier| values(&classifier.network().logits(&packed(&reference(architecture))).unwrap());
        assert!(distance(&logits(&after), &logits(&before)) < 1e-5, "{architecture}");
    }
}
