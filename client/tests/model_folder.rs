//! Model folders, states and exports: what loads, what is refused and with which words.
#![expect(clippy::unwrap_used, reason = "tests")]

mod tiny_model;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use fedtune_client::model::{Classifier, ModelSpec};
use fedtune_config::job::{Lora, Patterns, Trainable};
use fedtune_proto::recipe::TensorSource;
use serde_json::json;
use tiny_model::{edit_config, edit_tensors, folder, folder_of, spec};

fn load(folder: &Path) -> Result<Classifier, String> {
    Classifier::load(folder, &spec(), &Device::Cpu).map_err(|e| e.to_string())
}

fn assert_refused(folder: &Path, words: &[&str]) {
    let error = load(folder).unwrap_err();
    for word in words {
        assert!(error.contains(word), "{error:?} lacks {word:?}");
    }
}

fn logits(classifier: &Classifier) -> Vec<Vec<f32>> {
    let tokens = classifier.tokenize(&["w5 w6 w7", "w30 w31", "w40 w41 w42 w43 w44"]).unwrap();
    let batch = classifier.network().batch(&tokens.iter().collect::<Vec<_>>());
    classifier.network().logits(&batch).unwrap().to_vec2().unwrap()
}

#[test]
fn a_missing_folder_and_each_missing_file_are_named() {
    let model = folder();
    assert_refused(&model.path().join("nowhere"), &["nowhere", "Hugging Face layout"]);
    assert_refused(&model.path().join("config.json"), &["is a file"]);
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let model = folder();
        std::fs::remove_file(model.path().join(file)).unwrap();
        assert_refused(model.path(), &[file, "Hugging Face layout"]);
    }
    std::fs::rename(model.path().join("model.safetensors"), model.path().join("pytorch_model.bin")).unwrap();
    assert_refused(model.path(), &["safe_serialization=True"]);
}

#[test]
fn a_faulty_config_is_refused_with_its_field() {
    let text = |content: &str, words: &[&str]| {
        let model = folder();
        std::fs::write(model.path().join("config.json"), content).unwrap();
        assert_refused(model.path(), words);
    };
    text("{", &["config.json", "not valid JSON"]);
    text("[]", &["not an object"]);
    text("{}", &["model_type is absent", "supported: \"bert\""]);
    text("{\"model_type\": \"bert\"}", &["vocab_size"]);
    type Change = fn(&mut serde_json::Map<String, serde_json::Value>);
    let cases: [(Change, &[&str]); 8] = [
        (|c| drop(c.insert("model_type".into(), json!("gpt2"))), &["gpt2", "roberta-base"]),
        (|c| drop(c.insert("hidden_size".into(), json!("many"))), &["hidden_size"]),
        (|c| drop(c.insert("hidden_size".into(), json!(4_000_000_000_000u64))), &["hidden_size", "1 to 16384"]),
        (|c| drop(c.insert("vocab_size".into(), json!(0))), &["vocab_size is 0"]),
        (|c| drop(c.insert("num_attention_heads".into(), json!(5))), &["num_attention_heads is 5", "divisor"]),
        (|c| drop(c.insert("hidden_act".into(), json!("swish"))), &["hidden_act", "swish", "gelu_new"]),
        (|c| drop(c.insert("layer_norm_eps".into(), json!(-1.0))), &["layer_norm_eps is -1"]),
        (|c| drop(c.insert("position_embedding_type".into(), json!("relative_key"))), &["relative_key"]),
    ];
    for (change, words) in cases {
        let model = folder();
        edit_config(model.path(), change);
        assert_refused(model.path(), words);
    }
}

#[test]
fn a_modernbert_beyond_what_is_built_is_refused_with_its_field() {
    let cases = [
        ("norm_bias", json!(true), "norm_bias is true; supported: false"),
        ("mlp_bias", json!(true), "mlp_bias is true"),
        ("attention_bias", json!(true), "attention_bias is true"),
        ("classifier_bias", json!(true), "classifier_bias is true"),
        ("classifier_pooling", json!("max"), "classifier_pooling: unknown variant `max`"),
        ("classifier_activation", json!("silu"), "classifier_activation: found \"silu\""),
        ("layer_types", json!(["full_attention"]), "layer_types has 1 entries; expected num_hidden_layers, 3"),
        ("layer_types", json!(["full_attention", "linear", "full_attention"]), "layer_types[1]: unknown variant"),
        ("global_attn_every_n_layers", json!(0), "global_attn_every_n_layers is 0"),
        ("num_hidden_layers", json!(u64::MAX), "num_hidden_layers is 18446744073709551615"),
        ("local_attention", json!(-1), "local_attention: invalid value"),
        ("local_rope_theta", json!(0.0), "local_rope_theta (or rope_theta of rope_parameters) is 0"),
        ("rope_scaling", json!({"rope_type": "yarn"}), "rope_scaling is {\"rope_type\":\"yarn\"}; supported: null"),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_type": "yarn"}}),
            "rope_parameters.full_attention.rope_type",
        ),
        ("num_attention_heads", json!(32), "hidden_size / num_attention_heads is 1; expected an even number"),
        ("norm_eps", json!(0.0), "norm_eps is 0"),
    ];
    for (field, value, words) in cases {
        let model = folder_of("modernbert");
        edit_config(model.path(), |config| drop(config.insert(field.into(), value)));
        assert_refused(model.path(), &["config.json", words]);
    }
}

#[test]
fn older_and_newer_names_of_a_modernberts_settings_say_the_same() {
    let model = folder_of("modernbert");
    let expected = logits(&load(model.path()).unwrap());
    let older = ["global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"];
    edit_config(model.path(), |config| {
        older.iter().for_each(|field| drop(config.remove(*field)));
        config.insert("layer_types".into(), json!(["full_attention", "sliding_attention", "sliding_attention"]));
        config.insert(
            "rope_parameters".into(),
            json!({"full_attention": {"rope_type": "default", "rope_theta": 1000.0},
                   "sliding_attention": {"rope_type": "default", "rope_theta": 20.0}}),
        );
    });
    assert_eq!(logits(&load(model.path()).unwrap()), expected);
    // Each of them counts.
    for (field, value) in [
        ("layer_types", json!(["full_attention", "full_attention", "sliding_attention"])),
        ("rope_parameters", json!({})),
        ("local_attention", json!(2)),
        ("classifier_pooling", json!("mean")),
    ] {
        let copy = folder_of("modernbert");
        std::fs::copy(model.path().join("config.json"), copy.path().join("config.json")).unwrap();
        edit_config(copy.path(), |config| drop(config.insert(field.into(), value)));
        assert_ne!(logits(&load(copy.path()).unwrap()), expected, "{field}");
    }
}

#[test]
fn a_modernbert_loads_without_its_prefix_or_with_the_head_for_masked_words() {
    let spec = || ModelSpec { labels: ["yes", "no"].map(String::from).to_vec(), ..spec() };
    let parameters = |model: &Path| {
        let classifier = Classifier::load(model, &spec(), &Device::Cpu).unwrap();
        let values = |name: &str| classifier.network().parameters()[name].var.flatten_all().unwrap().to_vec1().unwrap();
        ["model.layers.1.attn.Wqkv.weight", "head.dense.weight", "head.norm.weight", "classifier.weight"]
            .map(|name| -> Vec<f32> { values(name) })
    };
    let model = folder_of("modernbert");
    let [layer, dense, norm, classifier] = parameters(model.path());
    let tensors = model.path().join("model.safetensors");
    edit_tensors(&tensors, |tensors| {
        tensors.retain(|name, _| !name.starts_with("classifier"));
        tensors.insert("decoder.bias".into(), Tensor::zeros(60, DType::F32, &Device::Cpu).unwrap());
    });
    assert_eq!(parameters(model.path()), [layer.clone(), dense.clone(), norm, classifier.clone()]);

    edit_tensors(&tensors, |tensors| {
        *tensors = tensors
            .drain()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("model.")?.to_owned(), tensor)))
            .collect();
    });
    let [bare, new, ones, again] = parameters(model.path());
    assert_eq!((bare, again), (layer, classifier));
    assert!(new != dense && new.iter().any(|x| *x != 0.0));
    assert_eq!(ones, vec![1.0; 32]);
    edit_tensors(&tensors, |tensors| drop(tensors.remove("final_norm.weight")));
    assert_refused(model.path(), &["model.final_norm.weight", "missing", "[32]"]);
}

#[test]
fn adapters_of_a_modernbert_stand_where_peft_puts_them_and_can_be_merged() {
    let (model, out) = (folder_of("modernbert"), tempfile::tempdir().unwrap());
    let stems = |targets: &[&str]| -> Vec<String> {
        let targets = targets.iter().map(|target| (*target).to_owned()).collect();
        let classifier = adapted(model.path(), Lora { targets, ..Lora::default() });
        let names = classifier.state_tensors().into_iter().map(|(name, _)| name);
        names.filter_map(|name| Some(name.strip_suffix(".lora_A.weight")?.to_owned())).collect()
    };
    assert_eq!(stems(&[]), [0, 1, 2].map(|i| format!("model.layers.{i}.attn.Wqkv")));
    assert_eq!(stems(&["Wo"]).len(), 6);
    assert_eq!(stems(&["all-linear"]).len(), 12);

    let classifier = adapted(model.path(), Lora { targets: vec!["all-linear".into()], ..Lora::default() });
    classifier.save(out.path()).unwrap();
    let text = std::fs::read(out.path().join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(config["modules_to_save"], json!(["head", "classifier"]));
    let whole = Classifier::load_exported(out.path(), Some(model.path()), &Device::Cpu).unwrap();
    for (found, expected) in logits(&whole).iter().flatten().zip(logits(&classifier).iter().flatten()) {
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    }
}

#[test]
fn faulty_tensors_are_refused_by_name_and_shape() {
    let model = folder();
    edit_config(model.path(), |config| drop(config.insert("intermediate_size".into(), json!(100_000))));
    assert_refused(model.path(), &["bert.encoder.layer.0.intermediate.dense", "[64", "[100000"]);

    let model = folder();
    edit_tensors(&model.path().join("model.safetensors"), |tensors| {
        drop(tensors.remove("bert.encoder.layer.1.output.dense.bias"));
    });
    assert_refused(model.path(), &["bert.encoder.layer.1.output.dense.bias", "missing", "[32]"]);

    let model = folder();
    edit_tensors(&model.path().join("model.safetensors"), |tensors| {
        let bias = Tensor::new(&[f32::NAN; 32], &Device::Cpu).unwrap();
        drop(tensors.insert("bert.pooler.dense.bias".into(), bias));
    });
    assert_refused(model.path(), &["bert.pooler.dense.bias", "not a finite number"]);

    let model = folder();
    edit_tensors(&model.path().join("model.safetensors"), |tensors| {
        let bias = Tensor::zeros(32, DType::U8, &Device::Cpu).unwrap();
        drop(tensors.insert("bert.pooler.dense.bias".into(), bias));
    });
    assert_refused(model.path(), &["bert.pooler.dense.bias", "U8", "F32"]);
}

#[test]
fn damaged_tensor_files_are_refused_at_every_length() {
    let model = folder();
    let path = model.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 3, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert_refused(model.path(), &["model.safetensors", "not a whole safetensors file"]);
    }
    for header in [u64::MAX, 1 << 40, 5] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&header.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert_refused(model.path(), &["not a whole safetensors file"]);
    }
    let mut longer = whole;
    longer.push(0);
    std::fs::write(&path, &longer).unwrap();
    assert_refused(model.path(), &["announces"]);
}

#[test]
fn an_unfitting_tokenizer_or_specification_is_refused() {
    let model = folder();
    std::fs::write(model.path().join("tokenizer.json"), "{}").unwrap();
    assert_refused(model.path(), &["tokenizer.json", "not a usable tokenizer"]);
    std::fs::write(model.path().join("tokenizer.json"), tiny_model::tokenizer(61).to_string()).unwrap();
    assert_refused(model.path(), &["token index 60", "vocab_size 60"]);

    let model = folder();
    let refused = |spec: ModelSpec| Classifier::load(model.path(), &spec, &Device::Cpu).unwrap_err().to_string();
    assert!(refused(ModelSpec { max_length: 25, ..spec() }).contains("at most 24"));
    assert!(refused(ModelSpec { trainable: Trainable::Last(3), ..spec() }).contains("2 encoder layers"));
    assert!(refused(ModelSpec { labels: vec!["a".into(), "a".into()], ..spec() }).contains("twice"));
    assert!(refused(ModelSpec { max_length: 2, ..spec() }).contains("special tokens"));
}

#[test]
fn texts_are_cut_and_never_padded() {
    let model = folder();
    let classifier = load(model.path()).unwrap();
    let tokens = classifier.tokenize(&["w5", &"w6 ".repeat(50), "unheard of"]).unwrap();
    assert_eq!(tokens[0].words, [2, 5, 3]);
    assert_eq!(tokens[1].words.len(), 16);
    assert_eq!(tokens[2].words, [2, 1, 1, 3]);
}

#[test]
fn every_form_of_base_model_gives_the_same_network() {
    let model = folder();
    let expected = logits(&load(model.path()).unwrap());
    edit_tensors(&model.path().join("model.safetensors"), |tensors| {
        *tensors = tensors
            .drain()
            .map(|(name, tensor)| {
                let name = name.strip_prefix("bert.").unwrap_or(&name).to_owned();
                let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
                (name.replace("LayerNorm.bias", "LayerNorm.beta"), tensor)
            })
            .collect();
    });
    let classifier = load(model.path()).unwrap();
    assert_eq!(logits(&classifier), expected);

    let frozen = ModelSpec { trainable: Trainable::Head, ..spec() };
    let recipe = Classifier::load(model.path(), &frozen, &Device::Cpu).unwrap().export_recipe();
    let norm = recipe.tensors.iter().find(|tensor| tensor.name == "bert.embeddings.LayerNorm.weight").unwrap();
    assert_eq!(norm.source, TensorSource::Base("embeddings.LayerNorm.gamma".into()));
}

#[test]
fn a_missing_head_is_new_and_the_same_at_every_site() {
    let model = folder();
    edit_tensors(&model.path().join("model.safetensors"), |tensors| {
        tensors.retain(|name, _| !name.starts_with("classifier") && !name.contains("pooler"));
    });
    let first = logits(&load(model.path()).unwrap());
    assert_eq!(first, logits(&load(model.path()).unwrap()));
    let other = ModelSpec { seed: 2, ..spec() };
    assert_ne!(first, logits(&Classifier::load(model.path(), &other, &Device::Cpu).unwrap()));

    // Other labels need another classifier; the base model's own does not stand in the way.
    let model = folder();
    let four = ModelSpec { labels: ["a", "b", "c", "d"].map(String::from).to_vec(), ..spec() };
    assert_eq!(logits(&Classifier::load(model.path(), &four, &Device::Cpu).unwrap())[0].len(), 4);
}

#[test]
fn a_state_round_trips_and_holds_exactly_what_is_trained() {
    let (model, out) = (folder(), tempfile::tempdir().unwrap());
    for (trainable, count) in [(Trainable::Full, 41), (Trainable::Head, 4), (Trainable::Last(1), 20)] {
        let spec = ModelSpec { trainable, ..spec() };
        let mut classifier = Classifier::load(model.path(), &spec, &Device::Cpu).unwrap();
        let (before, after, delta) = (out.path().join("b"), out.path().join("a"), out.path().join("d"));
        classifier.write_state(&before).unwrap();
        let tensors = classifier.state_tensors();
        assert_eq!(tensors.len(), count);
        assert!(tensors.is_sorted());
        let expected = logits(&classifier);

        edit_tensors(&before, |tensors| {
            for tensor in tensors.values_mut() {
                *tensor = (&*tensor + 0.25).unwrap();
            }
        });
        std::fs::copy(&before, &after).unwrap();
        classifier.write_state(&before).unwrap();
        classifier.load_state(&after).unwrap();
        assert_ne!(logits(&classifier), expected);
        classifier.write_delta(&before, &Patterns::default(), &delta).unwrap();
        let delta = candle_core::safetensors::load(&delta, &Device::Cpu).unwrap();
        assert_eq!(delta.len(), count);
        for tensor in delta.values() {
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            assert!(values.iter().all(|x| (x - 0.25).abs() < 1e-6));
        }
        classifier.load_state(&before).unwrap();
        assert_eq!(logits(&classifier), expected);
    }
}

fn excluding(pattern: &str) -> Patterns {
    Patterns::new([pattern]).unwrap()
}

#[test]
fn what_is_not_averaged_stays_here_and_is_zero_in_the_update() {
    let (model, out) = (folder(), tempfile::tempdir().unwrap());
    let mut classifier = Classifier::load(model.path(), &spec(), &Device::Cpu).unwrap();
    let (before, after) = (out.path().join("before"), out.path().join("after"));
    let (own, delta) = (out.path().join("own"), out.path().join("delta"));
    let excluded = excluding("classifier.*");
    classifier.check_excluded(&excluded).unwrap();
    classifier.write_state(&before).unwrap();
    std::fs::copy(&before, &after).unwrap();
    edit_tensors(&after, |tensors| tensors.values_mut().for_each(|tensor| *tensor = (&*tensor + 0.25).unwrap()));
    classifier.load_state(&after).unwrap();
    let personal = logits(&classifier);
    classifier.write_own(&excluded, &own).unwrap();
    classifier.write_delta(&before, &excluded, &delta).unwrap();
    let names = |path| {
        let mut names: Vec<_> = candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_keys().collect();
        names.sort();
        names
    };
    assert_eq!(names(&own), ["classifier.bias", "classifier.weight"]);
    assert_eq!(names(&delta).len(), 41);
    for (name, tensor) in candle_core::safetensors::load(&delta, &Device::Cpu).unwrap() {
        let expected = if name.starts_with("classifier.") { 0.0 } else { 0.25 };
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        assert!(values.iter().all(|x| (x - expected).abs() < 1e-6), "{name}");
    }
    // The others as they were averaged, and its own.
    edit_tensors(&after, |tensors| {
        for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.starts_with("classifier.")) {
            *tensor = (&*tensor - 7.0).unwrap();
        }
    });
    classifier.load_state(&after).unwrap();
    assert_ne!(logits(&classifier), personal);
    classifier.load_own(&own).unwrap();
    assert_eq!(logits(&classifier), personal);
    let idle = classifier.check_excluded(&excluding("classifer.*")).unwrap_err().to_string();
    assert!(idle.contains("classifer.*") && idle.contains("bert."), "{idle}");
    assert!(classifier.check_excluded(&excluding("*")).unwrap_err().to_string().contains("nothing is left"));
    edit_tensors(&own, |tensors| drop(tensors.insert("x".into(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap())));
    assert!(classifier.load_own(&own).unwrap_err().to_string().contains("the tensor x,"), "of another model");
}

#[test]
fn an_unfitting_state_changes_nothing() {
    let (model, out) = (folder(), tempfile::tempdir().unwrap());
    let spec = ModelSpec { trainable: Trainable::Head, ..spec() };
    let mut classifier = Classifier::load(model.path(), &spec, &Device::Cpu).unwrap();
    let expected = logits(&classifier);
    type Change = fn(&mut std::collections::HashMap<String, Tensor>);
    let bias = "classifier.bias";
    let cases: [(Change, &str); 5] = [
        (|t| drop(t.remove("classifier.bias")), "is missing"),
        (|t| drop(t.insert("bert.other".into(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap())), "bert.other"),
        (|t| drop(t.insert("classifier.bias".into(), Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap())), "[4]"),
        (|t| drop(t.insert("classifier.bias".into(), Tensor::zeros(3, DType::F16, &Device::Cpu).unwrap())), "F32"),
        (
            |t| {
                drop(
                    t.insert("classifier.bias".into(), Tensor::new(&[0f32, f32::INFINITY, 0.0], &Device::Cpu).unwrap()),
                )
            },
            "not a finite number",
        ),
    ];
    for (change, words) in cases {
        let path = out.path().join("state");
        classifier.write_state(&path).unwrap();
        edit_tensors(&path, change);
        for error in [
            classifier.load_state(&path).unwrap_err().to_string(),
            classifier.write_delta(&path, &Patterns::default(), &out.path().join("delta")).unwrap_err().to_string(),
        ] {
            assert!(error.contains(words) || error.contains(bias), "{error}");
        }
        assert_eq!(logits(&classifier), expected);
    }
}

#[test]
fn an_export_loads_again_with_labels_and_length() {
    let (model, out) = (folder(), tempfile::tempdir().unwrap());
    let labels = ["yes", "no"].map(String::from).to_vec();
    let classifier =
        Classifier::load(model.path(), &ModelSpec { labels: labels.clone(), ..spec() }, &Device::Cpu).unwrap();
    classifier.save(out.path()).unwrap();
    let again = Classifier::load_exported(out.path(), None, &Device::Cpu).unwrap();
    assert_eq!(again.labels(), labels);
    assert_eq!(again.max_length(), Some(16));
    assert_eq!(logits(&again), logits(&classifier));
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["BertForSequenceClassification"]));
    assert_eq!(config["id2label"], json!({"0": "yes", "1": "no"}));
    assert_eq!(config["label2id"], json!({"yes": 0, "no": 1}));
    assert_eq!(config["problem_type"], json!("single_label_classification"));
    let recipe = classifier.export_recipe();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&recipe.config_json).unwrap(), config);
    assert!(recipe.tensors.iter().all(|tensor| tensor.source == TensorSource::State(tensor.name.clone())));
    let names: Vec<_> = std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().ends_with(".part")), "{names:?}");

    // A base model without a classifier is no exported model.
    edit_tensors(&out.path().join("model.safetensors"), |tensors| drop(tensors.remove("classifier.weight")));
    let error = Classifier::load_exported(out.path(), None, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("classifier.weight"), "{error}");
    edit_config(out.path(), |config| drop(config.remove("id2label")));
    let error = Classifier::load_exported(out.path(), None, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("id2label"), "{error}");
}

/// A classifier with adapters whose weights are no longer the first ones.
fn adapted(model: &Path, lora: Lora) -> Classifier {
    let spec = ModelSpec { trainable: Trainable::Lora, lora, ..spec() };
    let mut classifier = Classifier::load(model, &spec, &Device::Cpu).unwrap();
    let state = tempfile::NamedTempFile::new().unwrap();
    classifier.write_state(state.path()).unwrap();
    edit_tensors(state.path(), |tensors| {
        for tensor in tensors.values_mut() {
            let noise = Tensor::rand(-0.3f32, 0.3, tensor.shape(), &Device::Cpu).unwrap();
            *tensor = (&*tensor + noise).unwrap();
        }
    });
    classifier.load_state(state.path()).unwrap();
    classifier
}

#[test]
fn adapters_are_saved_as_peft_has_them_and_become_a_whole_model() {
    let (model, out) = (folder(), tempfile::tempdir().unwrap());
    let lora = Lora { rank: 3, alpha: 5.0, dropout: 0.0, targets: vec!["all-linear".into()] };
    let classifier = adapted(model.path(), lora);
    classifier.save(out.path()).unwrap();
    assert!(!out.path().join("model.safetensors").exists());
    let text = std::fs::read(out.path().join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 6);
    assert_eq!(config["modules_to_save"], json!(["pooler", "classifier"]));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(3), &json!(5.0)));

    let whole = Classifier::load_exported(out.path(), Some(model.path()), &Device::Cpu).unwrap();
    assert_eq!(whole.labels(), classifier.labels());
    for (found, expected) in logits(&whole).iter().flatten().zip(logits(&classifier).iter().flatten()) {
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    }
    assert!(whole.export_recipe().tensors.iter().all(|tensor| !tensor.name.contains("lora")));

    // The aggregator writes the same file out of the state.
    let recipe = classifier.export_recipe();
    assert_eq!(recipe.adapter_config_json.as_deref(), Some(std::str::from_utf8(&text).unwrap()));
    let mut names: Vec<String> = recipe.tensors.iter().map(|tensor| tensor.name.clone()).collect();
    names.sort();
    let saved = candle_core::safetensors::load(out.path().join("adapter_model.safetensors"), &Device::Cpu).unwrap();
    let mut expected: Vec<String> = saved.into_keys().collect();
    expected.sort();
    assert_eq!(names, expected);
}

#[test]
fn unusable_adapters_are_refused() {
    let (model, out) = (folder(), tempfile::tempdir().unwrap());
    let spec = |targets: &[&str]| ModelSpec {
        trainable: Trainable::Lora,
        lora: Lora { targets: targets.iter().map(|target| (*target).to_owned()).collect(), ..Lora::default() },
        ..spec()
    };
    let error = Classifier::load(model.path(), &spec(&["query", "q_proj"]), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("q_proj") && error.contains("attention.self.query"), "{error}");

    adapted(model.path(), Lora::default()).save(out.path()).unwrap();
    let refused = |adapters: &Path, base: Option<&Path>| {
        Classifier::load_exported(adapters, base, &Device::Cpu).unwrap_err().to_string()
    };
    assert!(refused(out.path(), None).contains("--base"));
    assert!(refused(model.path(), Some(model.path())).contains("leave --base out"));
    let tensors = out.path().join("adapter_model.safetensors");
    edit_tensors(&tensors, |tensors| {
        let tensor = tensors.remove("base_model.model.classifier.bias").unwrap();
        tensors.insert("base_model.model.score.bias".into(), tensor);
    });
    assert!(refused(out.path(), Some(model.path())).contains("classifier.bias"));
    let config = out.path().join("adapter_config.json");
    for (from, to, words) in
        [("LORA", "IA3", "IA3"), ("\"r\": 8", "\"r\": 0", "r is 0"), ("{", "[", "adapter_config.json")]
    {
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replacen(from, to, 1)).unwrap();
        assert!(refused(out.path(), Some(model.path())).contains(words));
        std::fs::write(&config, text).unwrap();
    }
    std::fs::remove_file(&tensors).unwrap();
    assert!(refused(out.path(), Some(model.path())).contains("adapter_model.safetensors"));
}
