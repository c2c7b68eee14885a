//! The program on images: from pixels to a saved model, and what it says of damaged files.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::Device;
use serde_json::{Value, json};

fn client(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fedtune-client")).args(arguments).current_dir(folder).output().unwrap()
}

fn done(arguments: &[&str], folder: &Path) -> String {
    let output = client(arguments, folder);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn report(arguments: &[&str], folder: &Path) -> Value {
    serde_json::from_str(done(arguments, folder).lines().last().unwrap()).unwrap()
}

/// The message of a command that fails with this code.
fn refused(code: i32, arguments: &[&str], folder: &Path) -> String {
    let output = client(arguments, folder);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    message
}

fn dirty() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/dirty_images.parquet")
}

const LABELS: [&str; 3] = ["blue", "green", "red"];

/// A PNG of 12 x 10 in which one colour is stronger than the others.
fn png(label: usize, number: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, 12, 10);
    encoder.set_color(png::ColorType::Rgb);
    let value = |place: usize| {
        let strong = if place % 3 == 2 - label { 110 } else { 0 };
        60 + strong + (place * 31 + number * 47) % 60
    };
    let values: Vec<u8> = (0..12 * 10 * 3).map(|place| value(place) as u8).collect();
    encoder.write_header().unwrap().write_image_data(&values).unwrap();
    out
}

fn preparation(side: u32) -> Value {
    json!({ "image_processor_type": "ViTImageProcessor", "do_resize": true, "size": { "height": side, "width": side },
            "resample": 2, "do_rescale": true, "rescale_factor": 1.0 / 255.0, "do_normalize": true,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5] })
}

/// A folder with `model`, a ResNet of a few thousand weights, `train`, a folder of images, and `job.toml`.
fn place(training: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    fs::create_dir(at("model")).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/resnet-basic");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture.join(file), at("model").join(file)).unwrap();
    }
    fs::write(at("model/preprocessor_config.json"), preparation(16).to_string()).unwrap();
    for (label, name) in LABELS.iter().enumerate() {
        fs::create_dir_all(at("train").join(name)).unwrap();
        for number in 0..12 {
            fs::write(at("train").join(name).join(format!("{number:02}.png")), png(label, number)).unwrap();
        }
    }
    let job = format!(
        "name = \"tiny\"\n[model]\npath = \"elsewhere\"\n[task]\nkind = \"image-classification\"\n\
         labels = [\"blue\", \"green\", \"red\"]\n[training]\nlearning_rate = 1e-2\nbatch_size = 8\n{training}\n\
         [rounds]\ncount = 1\n"
    );
    fs::write(at("job.toml"), job).unwrap();
    folder
}

const FINETUNE: [&str; 13] = [
    "finetune", "--model", "model", "--train", "train", "--test", "train", "--job", "job.toml", "--out", "tuned",
    "--output", "json",
];

#[test]
fn a_model_of_images_learns_and_is_the_same_when_read_again() {
    let folder = place("epochs = 8\naugmentation = { flip = true, rotate = 5.0, noise = 0.01 }");
    let tuned = report(&FINETUNE, folder.path());
    assert_eq!((&tuned["steps"], &tuned["train_examples"]), (&40.into(), &36.into()));
    assert!(tuned["evaluation"]["accuracy"].as_f64().unwrap() > 0.9, "{tuned}");
    let file = |path: &str| fs::read(folder.path().join(path)).unwrap();
    assert_eq!(file("tuned/preprocessor_config.json"), file("model/preprocessor_config.json"));
    let config: Value = serde_json::from_slice(&file("tuned/config.json")).unwrap();
    assert_eq!(config["id2label"], json!({ "0": "blue", "1": "green", "2": "red" }));
    assert!(config.get("fedtune").is_none(), "{config}");

    let evaluate = ["evaluate", "--model", "tuned", "--data", "train", "--output", "json"];
    let again = report(&evaluate, folder.path());
    for measure in ["accuracy", "loss"] {
        // Batches of another size sum in another order.
        let value = |report: &Value| report["evaluation"][measure].as_f64().unwrap();
        assert!((value(&again) - value(&tuned)).abs() < 1e-6, "{measure}: {again} {tuned}");
    }

    // Images without labels, and one that is none.
    fs::create_dir(folder.path().join("new")).unwrap();
    for label in [2, 0] {
        fs::write(folder.path().join(format!("new/{}.png", LABELS[label])), png(label, 50)).unwrap();
    }
    fs::write(folder.path().join("new/notes.txt"), "no image").unwrap();
    let predict = ["predict", "--model", "tuned", "--data", "new", "--out", "out.csv", "--scores"];
    let output = client(&predict, folder.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("1 rows of new could not be read"), "{said}");
    let lines = String::from_utf8(file("out.csv")).unwrap();
    let cells: Vec<Vec<&str>> = lines.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(cells[0], ["file", "label", "score", "score_blue", "score_green", "score_red"]);
    assert_eq!((cells[1][0], cells[1][1]), ("blue.png", "blue"));
    assert_eq!(cells[2], ["notes.txt", "", "", "", "", ""]);
    assert_eq!((cells[3][0], cells[3][1]), ("red.png", "red"));
}

#[test]
fn augmented_training_gives_the_same_bits_on_any_number_of_threads() {
    let folder =
        place("epochs = 2\naugmentation = { flip = true, rotate = 10.0, crop = 0.8, colour = 0.2, noise = 0.02 }");
    let tuned = |threads: &str, out: &str| {
        let arguments = ["finetune", "--model", "model", "--train", "train", "--job", "job.toml", "--threads", threads];
        done(&[&arguments[..], &["--out", out]].concat(), folder.path());
        fs::read(folder.path().join(out).join("model.safetensors")).unwrap()
    };
    let one = tuned("1", "one");
    assert!(one == tuned("3", "three"));
    let job = fs::read_to_string(folder.path().join("job.toml")).unwrap();
    fs::write(folder.path().join("job.toml"), job.replace("noise = 0.02", "noise = 0.03")).unwrap();
    assert!(one != tuned("1", "other"));
}

#[test]
fn frozen_batch_norms_keep_their_statistics() {
    let folder = place("epochs = 1\nfreeze_batch_norm = true");
    report(&FINETUNE, folder.path());
    let read = |path: &str| {
        candle_core::safetensors::load(folder.path().join(path).join("model.safetensors"), &Device::Cpu).unwrap()
    };
    let (before, after) = (read("model"), read("tuned"));
    let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let same = |name: &str| values(&before[name]) == values(&after[name]);
    let statistics: Vec<_> = before.keys().filter(|name| name.ends_with("running_mean")).collect();
    assert!(!statistics.is_empty() && statistics.iter().all(|name| same(name)));
    assert!(before.keys().filter(|name| name.contains("convolution.weight")).any(|name| !same(name)));
}

#[test]
fn a_parquet_file_gives_labels_by_their_names_and_rows_by_number() {
    let folder = place("");
    let dirty = dirty();
    let dirty = dirty.to_str().unwrap();
    let arguments =
        ["finetune", "--model", "model", "--task", "image-classification", "--train", dirty, "--test", dirty];
    let options = ["--epochs", "1", "--out", "tuned", "--output", "json"];
    let tuned = report(&[&arguments[..], &options].concat(), folder.path());
    assert_eq!((&tuned["train_examples"], &tuned["evaluation"]["examples"]), (&50.into(), &50.into()));
    let labels: BTreeSet<&str> =
        tuned["per_label"].as_array().unwrap().iter().map(|label| label["label"].as_str().unwrap()).collect();
    assert_eq!(labels, BTreeSet::from(["Platelets", "RBC", "WBC"]));
    done(&["predict", "--model", "tuned", "--data", dirty, "--out", "out.csv"], folder.path());
    let lines = fs::read_to_string(folder.path().join("out.csv")).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    // Predicting reads no labels, so those that are wrong are no fault.
    let empty = lines.iter().filter(|line| line.ends_with(",,")).count();
    assert_eq!((lines.len(), lines[0], empty), (61, "row,label,score", 7), "{lines:?}");
    assert!(lines[60].starts_with("60,"), "{}", lines[60]);

    let arguments = ["cross-validate", "--model", "model", "--job", "job.toml", "--train", "train", "--folds", "2"];
    let found = report(&[&arguments[..], &["--epochs", "1", "--output", "json"]].concat(), folder.path());
    assert_eq!(found["folds"].as_array().unwrap().len(), 2);
    let tested = found["folds"].as_array().unwrap().iter().map(|fold| fold["evaluation"]["examples"].as_u64().unwrap());
    assert_eq!(tested.sum::<u64>(), 36);
}

#[test]
fn check_names_every_damaged_image_and_what_stands_twice() {
    let folder = place("");
    let dirty = dirty();
    let check = ["check", "--task", "image-classification", "--output", "json", "--list", "50", "--train"];
    let found = report(&[&check[..], &[dirty.to_str().unwrap()]].concat(), folder.path());
    let mut faults: BTreeMap<u64, String> = BTreeMap::new();
    for (kind, rows) in found["train"]["faults"].as_object().unwrap() {
        for row in rows["first"].as_array().unwrap() {
            faults.insert(row[0].as_u64().unwrap(), kind.clone());
        }
    }
    let manifest = fs::read_to_string(dirty.with_file_name("manifest_images.jsonl")).unwrap();
    let rejected: BTreeSet<u64> = manifest
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["expected"].as_str().unwrap().starts_with("reject"))
        .map(|line| line["row"].as_u64().unwrap() + 1)
        .collect();
    assert_eq!((faults.keys().copied().collect::<BTreeSet<_>>(), rejected.len()), (rejected, 10));
    let kinds: BTreeSet<&str> = faults.values().map(String::as_str).collect();
    for kind in ["truncated image", "image of too many pixels", "not an image", "label number without a name"] {
        assert!(kinds.contains(kind), "{kind}: {kinds:?}");
    }
    assert_eq!(found["train"]["characters"], Value::Null);

    fs::copy(folder.path().join("train/red/00.png"), folder.path().join("train/blue/again.png")).unwrap();
    fs::copy(folder.path().join("train/red/00.png"), folder.path().join("train/red/again.png")).unwrap();
    let found = report(&[&check[..], &["train"]].concat(), folder.path());
    let counts = |what: &str| found["train"][what]["count"].as_u64().unwrap();
    assert_eq!((counts("conflicts"), counts("duplicates"), &found["train"]["used"]), (1, 1, &38.into()));
    let text = done(&["check", "--task", "image-classification", "--train", "train"], folder.path());
    assert!(text.contains("38 usable") && !text.contains("characters"), "{text}");
}

#[test]
fn what_does_not_go_together_is_refused_before_training() {
    let folder = place("");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("texts.csv"), "text,label\none,red\ntwo,blue\n").unwrap();
    let image = ["finetune", "--model", "model", "--job", "job.toml", "--out", "tuned", "--train"];
    let message = refused(4, &[&image[..], &["texts.csv"]].concat(), folder.path());
    assert!(message.contains("images are read from Parquet files"), "{message}");
    let text = ["finetune", "--model", "model", "--task", "text-classification", "--out", "tuned", "--train"];
    let message = refused(4, &[&text[..], &["train"]].concat(), folder.path());
    assert!(message.contains("train: found a folder"), "{message}");
    let message = refused(5, &[&text[..], &["texts.csv"]].concat(), folder.path());
    assert!(message.contains("the model reads images; expected one that reads texts"), "{message}");

    fs::write(path("model/preprocessor_config.json"), preparation(0).to_string()).unwrap();
    let message = refused(5, &[&image[..], &["train"]].concat(), folder.path());
    assert!(message.contains("preprocessor_config.json") && message.contains("size"), "{message}");
    fs::remove_file(path("model/preprocessor_config.json")).unwrap();
    let message = refused(5, &[&image[..], &["train"]].concat(), folder.path());
    assert!(message.contains("no preprocessor_config.json") && message.contains("AutoImageProcessor"), "{message}");
    assert!(!path("tuned").exists());
}

#[test]
fn adapters_of_a_vit_have_the_names_that_transformers_gives_its_layers() {
    let folder = place("trainable = \"lora\"\nlora = { targets = [\"query\", \"output.dense\"] }\n");
    let path = |path: &str| folder.path().join(path);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/vit");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture.join(file), path("model").join(file)).unwrap();
    }
    fs::write(path("model/preprocessor_config.json"), preparation(24).to_string()).unwrap();
    let tune = ["finetune", "--model", "model", "--train", "train", "--job", "job.toml", "--out", "adapters"];
    done(&tune, folder.path());
    let config: Value = serde_json::from_slice(&fs::read(path("adapters/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["target_modules"], json!(["attention.q_proj", "attention.o_proj", "mlp.fc2"]));
    let file = path("adapters/adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    assert!(
        tensors.contains_key("base_model.model.vit.layers.0.attention.q_proj.lora_A.weight"),
        "{:?}",
        tensors.keys()
    );
    assert!(tensors.contains_key("base_model.model.classifier.weight"));
    // Those of older versions, which name layers as checkpoints do, are read too.
    let predict = |out: &str| {
        done(
            &["predict", "--model", "adapters", "--base", "model", "--data", "train", "--out", out, "--logits"],
            folder.path(),
        );
        fs::read_to_string(path(out)).unwrap()
    };
    let found = predict("now.csv");
    let old = |name: String| match name.strip_prefix("base_model.model.vit.layers.") {
        Some(rest) => {
            let rest = rest.replace("attention.q_proj", "attention.attention.query");
            let rest = rest.replace("attention.o_proj", "attention.output.dense").replace("mlp.fc2", "output.dense");
            format!("base_model.model.vit.encoder.layer.{rest}")
        }
        None => name,
    };
    tensors = tensors.into_iter().map(|(name, tensor)| (old(name), tensor)).collect();
    fs::remove_file(&file).unwrap();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let targets = json!(["query", "output.dense"]);
    fs::write(path("adapters/adapter_config.json"), {
        let mut config = config;
        config["target_modules"] = targets;
        config.to_string()
    })
    .unwrap();
    assert_eq!(predict("old.csv"), found);
}
