//! A tiny whole model folder: the fixture's BERT and a word-level tokenizer over its sixty entries.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use fedtune_client::model::{ModelSpec, Objective, Reads};
use fedtune_config::job::{Lora, Precision, Trainable};
use serde_json::{Value, json};

pub(crate) fn fixture(architecture: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(architecture)
}

pub(crate) fn labels() -> Vec<String> {
    ["alpha", "beta", "gamma"].map(String::from).to_vec()
}

pub(crate) fn spec() -> ModelSpec {
    ModelSpec {
        objective: Objective::Class,
        labels: labels(),
        trainable: Trainable::Full,
        lora: Lora::default(),
        precision: Precision::F32,
        dropout: 0.1,
        seed: 1,
        max_length: 16,
        template: String::new(),
        reads: Reads::Texts,
        freeze_batch_norm: false,
    }
}

/// Words `w5` .. `w59` and the special tokens.
pub(crate) fn tokenizer(vocabulary: u32) -> Value {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let mut entries: HashMap<String, u32> =
        special.iter().zip(0..).map(|(name, id)| ((*name).to_owned(), id)).collect();
    entries.extend((5..vocabulary).map(|id| (format!("w{id}"), id)));
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null,
        "padding": {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added, "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": entries, "unk_token": "[UNK]"}
    })
}

/// Writes the model into a folder.
pub(crate) fn write(folder: &Path) {
    write_of("bert", folder);
}

fn write_of(architecture: &str, folder: &Path) {
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(architecture).join(file), folder.join(file)).unwrap();
    }
    std::fs::write(folder.join("tokenizer.json"), tokenizer(60).to_string()).unwrap();
}

/// A fresh folder with the model.
pub(crate) fn folder() -> tempfile::TempDir {
    folder_of("bert")
}

/// A fresh folder with the fixture's model of an architecture.
pub(crate) fn folder_of(architecture: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_of(architecture, folder.path());
    folder
}

/// Changes config.json.
pub(crate) fn edit_config(folder: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    std::fs::write(path, config.to_string()).unwrap();
}

/// Changes the tensors of a safetensors file.
pub(crate) fn edit_tensors(path: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    change(&mut tensors);
    std::fs::remove_file(path).unwrap();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// Rows that a classifier can learn: the first word decides.
pub(crate) fn csv(rows: usize) -> String {
    let mut text = String::from("text,label\n");
    for row in 0..rows {
        let label = row % 3;
        let words: Vec<String> = (0..3 + row % 4).map(|i| format!("w{}", 20 + (row * 7 + i * 3) % 39)).collect();
        text.push_str(&format!("w{} {},{}\n", 5 + label, words.join(" "), labels()[label]));
    }
    text
}
