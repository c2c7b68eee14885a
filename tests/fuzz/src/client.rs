//! What a site reads: its data, and the models and states that come from the aggregator.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::Device;
use fedtune_client::data::image::{self, Pixels, Preparation};
use fedtune_client::data::{self, CellColumn, CellKind, Columns, Renamed, TargetReader, check, survey};
use fedtune_client::finetune::{self, Checkpoints, Plan, Silent};
use fedtune_client::model::{Classifier, ModelSpec, Network, Text, TokenCounter};
use fedtune_config::Job;
use fedtune_config::job::{Patterns, Task, TaskKind, Trainable};

use super::{choice, folder, write};

const KINDS: [TaskKind; 6] = [
    TaskKind::TextClassification,
    TaskKind::MultiLabelClassification,
    TaskKind::TextRegression,
    TaskKind::TableClassification,
    TaskKind::CausalLm,
    TaskKind::TokenClassification,
];

fn labels() -> Vec<String> {
    ["alpha", "beta", "gamma"].map(String::from).to_vec()
}

/// Rows in a file; read again they are the same.
fn rows(name: &str, kind: TaskKind, bytes: &[u8]) {
    let files = folder([(name, bytes)]);
    let path = files.path().join(name);
    let task = Task::new(kind, labels());
    let mut columns = Columns::of(&task, &Renamed::default());
    if columns.is_table() {
        let known = ["none", "some", "strong"].map(String::from).to_vec();
        let cells = [("age", CellKind::Number), ("pain", CellKind::Word { known })];
        columns = columns.taking(cells.map(|(name, kind)| CellColumn { name: name.into(), kind }).into());
        let wishes = survey::Wishes { label: "label", regression: false, ignore: &[], categories: &[] };
        let _ = survey::survey(&path, wishes);
    }
    let targets = TargetReader::new(&task, &BTreeMap::new()).expect("a sound task");
    if let Ok((held, report)) = data::read(&path, &columns, &targets) {
        assert!(!report.to_string().is_empty());
        let (again, _) = data::read_holding(&path, &columns, &targets, 0).expect("the same file");
        assert_eq!(held.len(), again.len());
        for row in 0..held.len().min(50) {
            assert_eq!(held.row(row).expect("in memory"), again.row(row).expect("in the file"));
        }
    }
    let settings = check::Settings { task: &task, columns: &columns, labels: None, listed: 3 };
    if let Ok(found) = check::check(&path, Some(&path), settings) {
        serde_json::to_string(&found).expect("plain text");
    }
}

/// A CSV file. The first byte chooses what its rows are for.
pub fn csv(data: &[u8]) {
    if let Some((kind, text)) = choice(data, KINDS.len()) {
        rows("rows.csv", KINDS[kind], text);
    }
}

/// A JSONL file, likewise.
pub fn jsonl(data: &[u8]) {
    if let Some((kind, text)) = choice(data, KINDS.len()) {
        rows("rows.jsonl", KINDS[kind], text);
    }
}

/// A Parquet file, likewise; or one of images.
pub fn parquet(data: &[u8]) {
    if let Some((kind, bytes)) = choice(data, KINDS.len() + 1) {
        let kind = KINDS.get(kind).copied().unwrap_or(TaskKind::ImageClassification);
        rows("rows.parquet", kind, bytes);
    }
}

/// An encoded image.
pub fn picture(data: &[u8]) {
    let Ok(pixels) = image::decode(data) else { return };
    prepared(&Preparation::to_size(5, 9).expect("sound"), &pixels);
}

fn prepared(preparation: &Preparation, pixels: &Pixels) {
    let mut values = vec![0.0; preparation.len()];
    assert!(preparation.values(&preparation.fit(pixels), &mut values));
}

/// preprocessor_config.json.
pub fn preprocessor(data: &[u8]) {
    let files = folder([("preprocessor_config.json", data)]);
    let Ok(preparation) = Preparation::of_folder(files.path()) else { return };
    for (width, height) in [(1, 1), (3, 40), (7, 2)] {
        let rgb = (0..3 * width * height).map(|i| i as u8).collect();
        prepared(&preparation, &Pixels::new(width, height, rgb).expect("sound"));
    }
}

/// config.json of a model, whose tensors then lack; only a head may.
pub fn model_config(data: &[u8]) {
    let files = folder([("config.json", data), ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}".as_slice())]);
    for kind in [TaskKind::TextClassification, TaskKind::CausalLm] {
        let spec = ModelSpec::from(&Job::new("x", files.path(), Task::new(kind, labels())));
        let _ = Network::load(files.path(), &spec, &Device::Cpu);
    }
}

const BERT_CONFIG: &[u8] = include_bytes!("../../fixtures/bert/config.json");
const BERT: &[u8] = include_bytes!("../../fixtures/bert/model.safetensors");
const TABLE_CONFIG: &[u8] = include_bytes!("../../fixtures/table-class/config.json");
const TABLE: &[u8] = include_bytes!("../../fixtures/table-class/model.safetensors");

/// tokenizer.json with two words.
const WORDS: &[u8] =
    br#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "w5": 1}, "unk_token": "[UNK]"}}"#;

const TEXTS: [&str; 4] = ["", "w5 w6, W7!", "été 2.5 mg\u{200d}", "   "];

/// tokenizer.json.
pub fn tokenizer(data: &[u8]) {
    let files = folder([("config.json", BERT_CONFIG), ("tokenizer.json", data), ("model.safetensors", BERT)]);
    let words = ["w5", "", "é"].map(String::from);
    let all = TEXTS.iter().map(|text| Text::Single(text)).chain([
        Text::Pair(TEXTS[1], TEXTS[2]),
        Text::Words(&words),
        Text::Exchange { prompt: TEXTS[1], response: TEXTS[2] },
    ]);
    let all: Vec<Text<'_>> = all.collect();
    let Ok(counter) = TokenCounter::load(files.path()) else { return };
    let _ = counter.count(&all);
    let spec = ModelSpec { max_length: 16, ..ModelSpec::from(&Job::classify("x", files.path(), labels())) };
    let Ok(classifier) = Classifier::load(files.path(), &spec, &Device::Cpu) else { return };
    for text in &all {
        let Ok(encoded) = classifier.encode(&[*text]) else { continue };
        assert!(encoded.iter().all(|encoded| encoded.tokens.words.len() <= 16));
    }
}

fn table_job(path: &Path) -> Job {
    Job::new("x", path, Task::new(TaskKind::TableClassification, labels()))
}

/// A safetensors file: the first byte chooses whether of a base model, of a state, of one that an update is taken from, or of
/// what a site keeps for itself.
pub fn tensors(data: &[u8]) {
    let Some((kind, bytes)) = choice(data, 4) else { return };
    let base = if kind == 0 { bytes } else { TABLE };
    let files = folder([("config.json", TABLE_CONFIG), ("model.safetensors", base), ("state", bytes)]);
    let spec = ModelSpec::from(&table_job(files.path()));
    let loaded = Classifier::load(files.path(), &spec, &Device::Cpu);
    let (state, delta) = (files.path().join("state"), files.path().join("delta"));
    match (kind, loaded) {
        (0, Ok(classifier)) => drop(classifier.write_state(&delta)),
        (0, Err(_)) => {}
        (1, loaded) => drop(loaded.expect("a sound model").load_state(&state)),
        (3, loaded) => {
            let mut classifier = loaded.expect("a sound model");
            if classifier.load_own(&state).is_ok() {
                let _ = classifier.write_own(&Patterns::new(["*"]).expect("a pattern"), &delta);
            }
        }
        (_, loaded) => drop(loaded.expect("a sound model").write_delta(&state, &Patterns::default(), &delta)),
    }
}

/// Adapters: two bytes with the length of adapter_config.json, this, and their safetensors file.
pub fn adapters(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk() else { return };
    let Some((config, tensors)) = rest.split_at_checked(u16::from_le_bytes(*length).into()) else { return };
    let base = folder([("config.json", BERT_CONFIG), ("tokenizer.json", WORDS), ("model.safetensors", BERT)]);
    let files = folder([
        ("config.json", BERT_CONFIG),
        ("tokenizer.json", WORDS),
        ("adapter_config.json", config),
        ("adapter_model.safetensors", tensors),
    ]);
    let _ = Classifier::load_exported(files.path(), Some(base.path()), &Device::Cpu);
}

/// A checkpoint of a run of training.
pub fn checkpoint(data: &[u8]) {
    trained(Some(data));
}

/// Trains two steps, from a checkpoint if there is one; gives the checkpoint of the first.
pub fn trained(checkpoint: Option<&[u8]>) -> Vec<u8> {
    let text = "age,pain,label\n50,some,alpha\n61,none,beta\n40,strong,gamma\n";
    let files = folder([("config.json", TABLE_CONFIG), ("model.safetensors", TABLE), ("rows.csv", text.as_bytes())]);
    let mut job = table_job(Path::new("model"));
    job.training.trainable = Trainable::Head;
    job.training.batch_size = 2;
    let columns = fedtune_client::model::taken_by(files.path(), Columns::of(&job.task, &Renamed::default()));
    let targets = TargetReader::new(&job.task, &BTreeMap::new()).expect("a sound task");
    let (rows, _) =
        data::read(&files.path().join("rows.csv"), &columns.expect("a sound model"), &targets).expect("sound");
    let work = files.path().join("work");
    let checkpoints = Checkpoints::new(&work, 1, &job, files.path(), &rows, None).expect("a folder of our own");
    if let Some(checkpoint) = checkpoint {
        write(&work, "checkpoint.safetensors", checkpoint);
    }
    let mut classifier = Classifier::load(files.path(), &ModelSpec::from(&job), &Device::Cpu).expect("a sound model");
    let plan = Plan { first_step: 0, steps: 2, total_steps: 2, round: 1 };
    let (training, observer) = (&job.training, &mut Silent);
    let _ = finetune::fit_saved(&mut classifier, &rows, training, plan, None, &checkpoints, observer);
    fs::read(work.join("checkpoint.safetensors")).unwrap_or_default()
}
