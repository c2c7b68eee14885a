//! Every kind of task from a file to a fine-tuned model and back, as a person runs it.
#![expect(clippy::unwrap_used, reason = "tests")]

mod tiny_model;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A folder with the tiny `model` and a file.
fn place(file: &str, text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("model")).unwrap();
    tiny_model::write(&folder.path().join("model"));
    std::fs::write(folder.path().join(file), text).unwrap();
    folder
}

fn client(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fedtune-client")).args(arguments).current_dir(folder).output().unwrap()
}

fn ok(folder: &Path, arguments: &[&str]) -> Value {
    let output = client(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null)
}

fn refused(folder: &Path, arguments: &[&str], code: i32, parts: &[&str]) {
    let output = client(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    for part in parts {
        assert!(errors.contains(part), "{arguments:?}: {errors:?} lacks {part:?}");
    }
}

/// Fine-tunes the tiny model, with more options.
fn finetune<'a>(folder: &Path, kind: &'a str, file: &'a str, more: &[&'a str]) -> Value {
    let fixed = [
        "finetune",
        "--model",
        "model",
        "--task",
        kind,
        "--train",
        file,
        "--test",
        file,
        "--out",
        "tuned",
        "--epochs",
        "25",
        "--learning-rate",
        "3e-3",
        "--max-length",
        "16",
        "--output",
        "json",
    ];
    ok(folder, &[&fixed[..], more].concat())
}

fn number(value: &Value, name: &str) -> f64 {
    value["evaluation"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

fn words(row: usize) -> String {
    (0..3 + row % 4).map(|i| format!(" w{}", 20 + (row * 7 + i * 3) % 39)).collect()
}

/// The first word says the number.
fn numbers(rows: usize) -> String {
    let row = |row: usize| format!("w{}{},{}\n", 5 + row % 4, words(row), row % 4);
    format!("text,label\n{}", (0..rows).map(row).collect::<String>())
}

/// The first two words each say whether a label applies.
fn sets(rows: usize) -> String {
    let row = |row: usize| {
        let (one, other) = (row % 2, row / 2 % 2);
        let labels = ["a", "b"].iter().zip([one, other]).filter(|(_, has)| *has == 1).map(|(label, _)| *label);
        let labels = labels.collect::<Vec<_>>().join("|");
        format!("w{} w{}{},{labels}\n", 5 + one, 7 + other, words(row))
    };
    format!("text,labels\n{}", (0..rows).map(row).collect::<String>())
}

/// Names are w5 and w6; w6 goes on.
fn tagged(rows: usize) -> String {
    let row = |row: usize| {
        let mut words: Vec<String> = words(row).split_whitespace().map(str::to_owned).collect();
        let mut labels = vec!["O"; words.len()];
        let place = row % words.len();
        words.insert(place, "w6".into());
        words.insert(place, "w5".into());
        labels.insert(place, "I-NAME");
        labels.insert(place, "B-NAME");
        json!({"tokens": words, "labels": labels}).to_string() + "\n"
    };
    (0..rows).map(row).collect()
}

#[test]
fn numbers_are_learnt_and_predicted() {
    let folder = place("train.csv", &numbers(80));
    let folder = folder.path();
    let report = finetune(folder, "text-regression", "train.csv", &["--validation", "0.2"]);
    assert!(number(&report, "pearson") > 0.8 && number(&report, "spearman") > 0.7, "{report}");
    assert!((number(&report, "mse") - number(&report, "loss")).abs() < 1e-12);
    assert!(number(&report, "r2") > 0.5 && number(&report, "mae") < 0.8, "{report}");
    assert_eq!((&report["confusion"], report["validation"].as_array().unwrap().len()), (&Value::Null, 25));
    let again = ok(folder, &["evaluate", "--model", "tuned", "--data", "train.csv", "--output", "json"]);
    assert!((number(&again, "mse") - number(&report, "mse")).abs() < 1e-9);
    ok(folder, &["predict", "--model", "tuned", "--data", "train.csv", "--out", "out.csv"]);
    let written = std::fs::read_to_string(folder.join("out.csv")).unwrap();
    let values: Vec<f64> = written.lines().skip(1).map(|line| line.parse().unwrap()).collect();
    assert!(written.starts_with("value\n") && values.len() == 80);
    let squares = values.iter().enumerate().map(|(row, value)| (value - (row % 4) as f64).powi(2));
    assert!((squares.sum::<f64>() / 80.0 - number(&report, "mse")).abs() < 1e-4);
    refused(
        folder,
        &["predict", "--model", "tuned", "--data", "train.csv", "--out", "o.csv", "--scores"],
        2,
        &["--scores"],
    );
    let checked = ok(folder, &["check", "--task", "text-regression", "--train", "train.csv", "--output", "json"]);
    assert_eq!((&checked["train"]["numbers"]["most"], &checked["train"]["labels"]), (&json!(3.0), &json!([])));
}

#[test]
fn sets_of_labels_are_learnt_and_predicted() {
    let folder = place("train.csv", &sets(80));
    let folder = folder.path();
    let report = finetune(folder, "multi-label-classification", "train.csv", &[]);
    assert!(number(&report, "micro_f1") > 0.9 && number(&report, "exact_match") > 0.8, "{report}");
    assert!(number(&report, "macro_auroc") > 0.9 && number(&report, "macro_f1") > 0.9, "{report}");
    assert_eq!(report["per_label"][0]["support"], 40);
    ok(folder, &["predict", "--model", "tuned", "--data", "train.csv", "--out", "out.csv", "--scores"]);
    let written = std::fs::read_to_string(folder.join("out.csv")).unwrap();
    assert!(written.starts_with("labels,score_a,score_b\n"), "{written}");
    assert!(written.lines().any(|line| line.starts_with("a|b,0.")), "{written}");
    // Lists, and another separator.
    let lines = sets(80);
    let listed = lines.lines().skip(1).map(|line| {
        let (text, labels) = line.split_once(',').unwrap();
        json!({"text": text, "labels": labels.split_terminator('|').collect::<Vec<_>>()}).to_string() + "\n"
    });
    std::fs::write(folder.join("rows.jsonl"), listed.collect::<String>()).unwrap();
    std::fs::write(folder.join("semicolons.csv"), sets(80).replace('|', ";")).unwrap();
    for file in [&["rows.jsonl"][..], &["semicolons.csv", "--label-separator", ";"]] {
        let arguments = [&["evaluate", "--model", "tuned", "--output", "json", "--data"][..], file].concat();
        assert_eq!(number(&ok(folder, &arguments), "micro_f1"), number(&report, "micro_f1"), "{file:?}");
    }
    let folds = ["cross-validate", "--model", "model", "--task", "multi-label-classification", "--train", "train.csv"];
    let folds = ok(
        folder,
        &[&folds[..], &["--folds", "2", "--epochs", "1", "--max-length", "16", "--output", "json"]].concat(),
    );
    assert!(folds["spread"]["micro_f1"]["mean"].is_number() && folds["spread"]["macro_auroc"]["sd"].is_number());
    refused(
        folder,
        &[
            "check",
            "--task",
            "multi-label-classification",
            "--train",
            "train.csv",
            "--model",
            "model",
            "--find-label-errors",
        ],
        2,
        &["--find-label-errors", "multi-label-classification"],
    );
    let sampled = ["finetune", "--model", "model", "--task", "multi-label-classification", "--train", "train.csv"];
    refused(folder, &[&sampled[..], &["--out", "o", "--per-label", "3"]].concat(), 4, &["per_label", "one label each"]);
}

#[test]
fn words_get_their_labels() {
    let folder = place("train.jsonl", &tagged(60));
    let folder = folder.path();
    let report = finetune(folder, "token-classification", "train.jsonl", &[]);
    assert!(number(&report, "entity_f1") > 0.9 && number(&report, "accuracy") > 0.95, "{report}");
    let words: usize = tagged(60).lines().map(|line| line.matches('w').count()).sum();
    assert_eq!((&report["evaluation"]["examples"], &report["evaluation"]["counted"]), (&json!(60), &json!(words)));
    ok(folder, &["predict", "--model", "tuned", "--data", "train.jsonl", "--out", "out.csv"]);
    let written = std::fs::read_to_string(folder.join("out.csv")).unwrap();
    assert!(written.lines().nth(1).unwrap().contains("\"\"B-NAME\"\",\"\"I-NAME\"\""), "{written}");
    // Words behind the longest sequence do not count, and have no label.
    let long = json!({"tokens": vec!["w5"; 20], "labels": vec!["O"; 20]}).to_string();
    std::fs::write(folder.join("long.jsonl"), long).unwrap();
    let cut = ok(folder, &["evaluate", "--model", "tuned", "--data", "long.jsonl", "--output", "json"]);
    assert_eq!(cut["evaluation"]["counted"], 14);
    ok(folder, &["predict", "--model", "tuned", "--data", "long.jsonl", "--out", "out.csv"]);
    assert_eq!(std::fs::read_to_string(folder.join("out.csv")).unwrap().matches("null").count(), 6);
    std::fs::write(folder.join("train.csv"), "tokens,labels\nw5,O\n").unwrap();
    refused(
        folder,
        &["evaluate", "--model", "tuned", "--data", "train.csv"],
        4,
        &["lists are read from JSONL files only", "JSONL"],
    );
}

#[test]
fn pairs_of_texts_are_told_apart() {
    // The label is whether the second text begins as the first does; alone neither says it.
    let row = |row: usize| {
        let (one, other) = (row % 2, row / 2 % 2);
        format!("w{}{},w{} w9,{}\n", 5 + one, words(row / 4), 5 + other, ["other", "same"][usize::from(one == other)])
    };
    let folder = place("pairs.csv", &format!("text,second,label\n{}", (0..80).map(row).collect::<String>()));
    let folder = folder.path();
    let pair = ["--pair-column", "second"];
    let report = finetune(folder, "text-classification", "pairs.csv", &pair);
    assert_eq!(report["evaluation"]["examples"], 80);
    let evaluate = ["evaluate", "--model", "tuned", "--data", "pairs.csv", "--output", "json"];
    let with = ok(folder, &[&evaluate[..], &pair].concat());
    assert_eq!(number(&with, "loss"), number(&report, "loss"));
    assert_ne!(number(&ok(folder, &evaluate), "loss"), number(&report, "loss"));
    refused(
        folder,
        &[&evaluate[..], &["--pair-column", "third"]].concat(),
        4,
        &["no column \"third\"", "--pair-column"],
    );
    refused(folder, &[&evaluate[..], &["--prompt-column", "text"]].concat(), 3, &["task.prompt_column", "no use"]);
}

#[test]
fn what_is_no_target_is_left_out_with_its_line() {
    let text = "text,label\nw5,1\nw6,high\nw7,NaN\nw8,inf\nw9,\nw10,2.5\n";
    let folder = place("numbers.csv", text);
    let folder = folder.path();
    std::fs::write(folder.join("sets.csv"), "text,labels\nw5,a|b\nw6,a|z\nw7,\n").unwrap();
    std::fs::write(
        folder.join("words.jsonl"),
        "{\"tokens\": [\"w5\", \"w6\"], \"labels\": [\"O\", \"B-X\"]}\n{\"tokens\": [\"w5\"], \"labels\": [\"O\", \"O\"]}\n\
         {\"tokens\": [\"w5\", \" \"], \"labels\": [\"O\", \"O\"]}\n{\"tokens\": \"w5\", \"labels\": [\"O\"]}\n\
         {\"tokens\": [\"w5\"], \"labels\": \"O\"}\n{\"tokens\": [], \"labels\": []}\n",
    )
    .unwrap();
    std::fs::write(folder.join("answers.csv"), "prompt,response\nw5,w6\nw5,\nw6, \n,w6\nw5,w7\n").unwrap();
    let check = |kind: &str, file: &str, more: &[&str]| {
        let fixed = ["check", "--task", kind, "--train", file, "--output", "json"];
        ok(folder, &[&fixed[..], more].concat())["train"].clone()
    };
    let found = check("text-regression", "numbers.csv", &[]);
    assert_eq!((&found["used"], &found["faults"]["not a finite number"]["count"]), (&json!(2), &json!(3)));
    assert_eq!(
        found["faults"]["not a finite number"]["first"][0],
        json!([3, "found \"high\", expected a finite number"])
    );
    assert_eq!(found["faults"]["empty label"]["count"], 1);
    let found = check("multi-label-classification", "sets.csv", &["--labels", "a,b"]);
    assert_eq!((&found["used"], &found["unknown_labels"]["z"]["count"]), (&json!(2), &json!(1)));
    let found = check("token-classification", "words.jsonl", &[]);
    assert_eq!((&found["used"], &found["faults"]["wrong type"]["count"]), (&json!(1), &json!(2)));
    assert_eq!(
        found["faults"]["labels and words differ in number"]["first"][0],
        json!([2, "found 2 labels for 1 words"])
    );
    assert_eq!(found["faults"]["blank word"]["first"][0], json!([3, "word 2 is only white space"]));
    let found = check("causal-lm", "answers.csv", &[]);
    assert_eq!((&found["used"], &found["faults"]["empty response"]["count"]), (&json!(2), &json!(2)));
    // The same prompt has two responses, and no text of them is shown.
    assert_eq!((&found["conflicts"]["count"], &found["conflicts"]["listed"][0]["label"]), (&json!(1), &json!("")));
}

#[test]
fn responses_are_learnt_and_prompts_are_not() {
    let folder = tiny_model::folder_of("qwen2");
    let folder = folder.path();
    // The first word says the response; those after it cannot be guessed.
    let row = |row: usize| {
        json!({"prompt": format!("w{}{}", 5 + row % 2, words(row)), "response": format!("w{} w9", 7 + row % 2)})
            .to_string()
            + "\n"
    };
    std::fs::write(folder.join("train.jsonl"), (0..60).map(row).collect::<String>()).unwrap();
    let tune = |out: &str, more: &[&str]| {
        let fixed = [
            "finetune",
            "--model",
            ".",
            "--task",
            "causal-lm",
            "--train",
            "train.jsonl",
            "--test",
            "train.jsonl",
            "--out",
            out,
            "--epochs",
            "15",
            "--learning-rate",
            "1e-2",
            "--max-length",
            "16",
            "--output",
            "json",
        ];
        ok(folder, &[&fixed[..], more].concat())
    };
    let report = tune("tuned", &["--validation", "0.2"]);
    // Two words, and what the tokenizer and the model put behind them.
    let counted = report["evaluation"]["counted"].as_u64().unwrap();
    assert!((120..=240).contains(&counted), "{report}");
    assert!(number(&report, "accuracy") > 0.9 && number(&report, "loss") < 0.3, "{report}");
    assert!((number(&report, "perplexity") - number(&report, "loss").exp()).abs() < 1e-9);
    assert_eq!(report["confusion"], Value::Null);
    let again = ok(folder, &["evaluate", "--model", "tuned", "--data", "train.jsonl", "--output", "json"]);
    assert!((number(&again, "loss") - number(&report, "loss")).abs() < 1e-6);
    let written: Value = serde_json::from_slice(&std::fs::read(folder.join("tuned/config.json")).unwrap()).unwrap();
    assert_eq!(written["fedtune"]["template"], "{prompt}\n{response}");
    // What is to be responded to needs no response.
    let prompts = format!("prompt\nw5{}\nw6{}\n\"\"\n", words(2), words(3));
    std::fs::write(folder.join("prompts.csv"), prompts).unwrap();
    let predict = ["predict", "--model", "tuned", "--data", "prompts.csv", "--out", "o.csv", "--max-new-tokens"];
    let predicted = |most: &str| {
        let done = client(folder, &[&predict[..], &[most]].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        std::fs::read_to_string(folder.join("o.csv")).unwrap()
    };
    let found = predicted("2");
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[3]), (4, "response,score,complete", ",,"), "{found}");
    assert!(lines[1].starts_with("w7 w9,0.") && lines[2].starts_with("w8 w9,0."), "{found}");
    assert!(predicted("1").contains("w8,0."));
    refused(folder, &[&predict[..], &["0"]].concat(), 2, &["expected a whole number"]);
    refused(folder, &[&predict[..], &["2", "--scores"]].concat(), 2, &["--scores and --logits"]);
    // A prompt that leaves no room for its response counts for nothing, and stops nothing.
    let long = json!({"prompt": vec!["w5"; 40].join(" "), "response": "w7"}).to_string();
    std::fs::write(folder.join("long.jsonl"), long).unwrap();
    let cut = ok(folder, &["evaluate", "--model", "tuned", "--data", "long.jsonl", "--output", "json"]);
    assert_eq!((&cut["evaluation"]["counted"], &cut["evaluation"]["loss"]), (&json!(0), &json!(0.0)));
    std::fs::copy(folder.join("long.jsonl"), folder.join("train.jsonl")).unwrap();
    assert_eq!(tune("other", &[])["train_loss"], 0.0);
}
