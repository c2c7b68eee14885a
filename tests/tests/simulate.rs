//! `simulate`, as a researcher runs it: the run folder it leaves, and what it refuses.

#![expect(clippy::unwrap_used, reason = "tests")]

use fedtune_config::demo;
use fedtune_proto::layout::Layout;
use fedtune_tests::{run, text};

#[test]
fn a_short_demo_leaves_a_whole_run_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let ran = run("fedtune-server", ["simulate", "--rounds", "2", "--out", text(&out), "--output", "json"]).ok();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        report,
        serde_json::from_slice::<serde_json::Value>(&std::fs::read(out.join("report.json")).unwrap()).unwrap()
    );
    let rounds = report["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 2);
    let names: Vec<_> =
        rounds[0]["sites"].as_array().unwrap().iter().map(|site| site["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["north-hospital", "river-clinic", "south-hospital"]);
    assert_eq!(report["baselines"]["local"].as_array().unwrap().len(), 3);
    assert!(report["baselines"]["pooled"]["accuracy"].as_f64().is_some());
    assert_eq!(report["state_digest"].as_str().unwrap().len(), 64);
    assert!(report["aggregator_peak_rss_bytes"].as_u64().unwrap() < 200_000_000);
    assert!(report["job"].as_str().unwrap().contains("triage-demo"));
    for file in ["model/config.json", "model/model.safetensors", "model/tokenizer.json", "logs/aggregator.log"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert!(!out.join("federation").exists(), "keys and shards are removed");
    // The same folder again is refused, not overwritten.
    run("fedtune-server", ["simulate", "--out", text(&out)]).failed(2, &["holds a run already"]);
    // The model is used on new text.
    let notes = folder.path().join("notes.csv");
    std::fs::write(&notes, "text\n\"itchy red rash on both arms\"\n").unwrap();
    let predictions = folder.path().join("predictions.csv");
    let model = out.join("model");
    run("fedtune-client", ["predict", "--model", text(&model), "--data", text(&notes), "--out", text(&predictions)])
        .ok();
    assert!(std::fs::read_to_string(&predictions).unwrap().contains("label"));
}

#[test]
fn only_adapters_travel_and_they_come_out_as_peft_has_them() {
    let folder = tempfile::tempdir().unwrap();
    demo::write(folder.path()).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text = std::fs::read_to_string(path("job.toml")).unwrap();
    let lora = "[training]\ntrainable = \"lora\"\nlora = { rank = 2 }\nsteps = 3\n";
    let text = text.replace("epochs", "# epochs").replace("[training]\n", lora);
    std::fs::write(path("job.toml"), text).unwrap();
    let (model, train, test, out) = (path("model"), path("data/train.csv"), path("data/test.csv"), path("out"));
    let shared = ["--job", &path("job.toml"), "--model", &model, "--train", &train, "--test", &test];
    let wishes = ["--sites", "3", "--rounds", "1", "--partition", "iid", "--out", &out];
    let ran = run("fedtune-server", ["simulate"].iter().chain(&shared).chain(&wishes)).ok();
    assert!(ran.stdout.contains("--base BASE_MODEL"), "{}", ran.stdout);

    let adapters = path("out/model");
    let tensors = Layout::read(&folder.path().join("out/model/adapter_model.safetensors")).unwrap();
    assert!(tensors.tensors.iter().all(|tensor| tensor.name.starts_with("base_model.model.")));
    assert!(!folder.path().join("out/model/model.safetensors").exists());
    let evaluate = |model: &str, base: &[&str]| {
        let arguments = ["evaluate", "--model", model, "--data", &test, "--output", "json"];
        let shown = run("fedtune-client", arguments.iter().chain(base)).ok().stdout;
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()["evaluation"]["accuracy"].clone()
    };
    let whole = path("whole");
    run("fedtune-client", ["merge", "--adapters", &adapters, "--base", &model, "--out", &whole]).ok();
    assert_eq!(evaluate(&whole, &[]), evaluate(&adapters, &["--base", &model]));
    run("fedtune-client", ["merge", "--adapters", &adapters, "--base", &model, "--out", &model])
        .failed(2, &["another one"]);
    run("fedtune-client", ["evaluate", "--model", &adapters, "--data", &test]).failed(5, &["--base"]);
}

#[test]
fn unusable_wishes_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    demo::write(folder.path()).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let out = path("out");
    let (model, train, test, job) = (path("model"), path("data/train.csv"), path("data/test.csv"), path("job.toml"));
    let with = |words: &[&str]| {
        let fixed = ["simulate", "--model", &model, "--test", &test, "--out", &out];
        run("fedtune-server", fixed.iter().chain(words))
    };
    with(&["--train", &train, "--partition", "dirichlet:0"]).failed(2, &["dirichlet:ALPHA"]);
    with(&["--train", &train, "--partition", "column:ward"])
        .failed(4, &["lacks the column \"ward\"", "text, label, site"]);
    with(&["--train", &train, "--sites", "200"]).failed(2, &["900 rows among 200 sites"]);
    with(&["--train", &train, "--rounds", "0"]).failed(3, &["rounds.count", "found 0"]);
    with(&["--train", &path("absent.csv")]).failed(4, &["absent.csv", "cannot be read"]);
    with(&["--train", &train, "--job", &job, "--sites", "2", "--partition", "iid"]).failed(2, &["rounds.quorum is 3"]);
    let header = path("header.csv");
    std::fs::write(&header, "text,label\n").unwrap();
    with(&["--train", &header]).failed(4, &["has no rows"]);
    std::fs::remove_file(folder.path().join("model/tokenizer.json")).unwrap();
    with(&["--train", &train]).failed(5, &["lacks tokenizer.json", "Hugging Face layout"]);
}

/// Rows whose first word says the number, or which labels apply.
fn rows(kind: &str, count: usize) -> String {
    let words = |row: usize| -> String { (0..4).map(|i| format!(" note {}", (row * 7 + i * 3) % 40)).collect() };
    let row = |row: usize| match kind {
        "text-regression" => format!("{}{},{}\n", ["rash", "cough", "fever"][row % 3], words(row), row % 3),
        _ => format!("{}{},{}\n", ["rash", "cough", "rash cough"][row % 3], words(row), ["a", "b", "a|b"][row % 3]),
    };
    let label = if kind == "text-regression" { "label" } else { "labels" };
    format!("text,{label}\n{}", (0..count).map(row).collect::<String>())
}

#[test]
fn numbers_and_sets_of_labels_are_learnt_together() {
    for (kind, labels, measure, others) in [
        ("text-regression", "", "mse", vec!["mae", "pearson", "r2", "loss"]),
        (
            "multi-label-classification",
            "labels = [\"a\", \"b\"]\n",
            "micro_f1",
            vec!["macro_f1", "exact_match", "loss"],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        demo::write(folder.path()).unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let job = format!(
            "name = \"{kind}\"\n[model]\npath = \"model\"\n[task]\nkind = \"{kind}\"\n{labels}max_length = 16\n\
             [training]\nlearning_rate = 1e-3\nsteps = 15\n[rounds]\ncount = 2\n"
        );
        for (name, text) in [("kind.toml", job), ("rows.csv", rows(kind, 120)), ("held.csv", rows(kind, 36))] {
            std::fs::write(path(name), text).unwrap();
        }
        let (job, train, test, out) = (path("kind.toml"), path("rows.csv"), path("held.csv"), path("out"));
        let words = ["simulate", "--job", &job, "--train", &train, "--test", &test, "--sites", "2", "--out", &out];
        let more = ["--partition", "iid", "--output", "json"];
        let ran = run("fedtune-server", words.iter().chain(&more)).ok();
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        let evaluation = &report["rounds"][1]["evaluation"];
        assert_eq!(evaluation["examples"], 36);
        for name in others.iter().chain([&measure]) {
            assert!(evaluation[*name].is_number(), "{name}: {evaluation}");
        }
        let best = report["best"]["round"].as_u64().unwrap() as usize;
        assert_eq!(report["best"][measure], report["rounds"][best - 1]["evaluation"][measure]);
        // The evaluator's sums say what the exported model scores.
        let model = path("out/model");
        let arguments = ["evaluate", "--model", &model, "--data", &test, "--output", "json"];
        let scored: serde_json::Value = serde_json::from_str(&run("fedtune-client", arguments).ok().stdout).unwrap();
        let (one, other) = (scored["evaluation"][measure].as_f64(), report["best"][measure].as_f64());
        assert!((one.unwrap() - other.unwrap()).abs() < 1e-6, "{scored} {report}");
    }
}

/// Patients of three wards, whose age and ward say how they do.
fn patients(count: usize, shift: usize) -> String {
    let row = |row: usize| {
        let (age, ward) = (20 + (row * 37 + shift) % 60, ["north", "river", "south"][row % 3]);
        let known = if row % 11 == 4 { String::new() } else { age.to_string() };
        let label = if age + if ward == "river" { 25 } else { 0 } > 55 { "ill" } else { "well" };
        format!("{known},{ward},{label},{}\n", age * 3)
    };
    format!("age,ward,label,score\n{}", (0..count).map(row).collect::<String>())
}

#[test]
fn tables_are_learnt_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (train, test) = (path("train.csv"), path("test.csv"));
    std::fs::write(&train, patients(180, 0)).unwrap();
    std::fs::write(&test, patients(60, 7)).unwrap();
    let new = |label: &str, other: &str, out: &str, more: &[&str]| {
        let fixed = ["new-table-model", "--train", &train, "--label", label, "--ignore", other, "--out", out];
        run("fedtune-client", fixed.iter().chain(more)).ok();
    };
    let (model, numbers) = (path("model"), path("numbers"));
    new("label", "score", &model, &["--hidden", "none"]);
    new("score", "label", &numbers, &["--task", "regression", "--hidden", "none"]);
    let job = "name = \"scores\"\n[model]\npath = \"numbers\"\n[task]\nkind = \"table-regression\"\n\
               label_column = \"score\"\n[training]\nlearning_rate = 1e-2\nepochs = 10\n[rounds]\ncount = 2\n";
    std::fs::write(path("job.toml"), job).unwrap();
    let job = path("job.toml");
    let by_ward = vec!["--model", model.as_str(), "--partition", "column:ward", "--rounds", "4"];
    let by_chance = vec!["--job", job.as_str(), "--partition", "iid", "--sites", "2"];
    for (wishes, measure, out, base) in
        [(by_ward, "accuracy", path("one"), &model), (by_chance, "mse", path("two"), &numbers)]
    {
        let fixed = ["simulate", "--train", &train, "--test", &test, "--out", &out, "--output", "json"];
        let ran = run("fedtune-server", fixed.iter().chain(&wishes)).ok();
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(report["rounds"][1]["evaluation"]["examples"], 60);
        let model = format!("{out}/model");
        let column = if measure == "mse" { "score" } else { "label" };
        let arguments = ["evaluate", "--model", &model, "--data", &test, "--label-column", column, "--output", "json"];
        let scored: serde_json::Value = serde_json::from_str(&run("fedtune-client", arguments).ok().stdout).unwrap();
        let found = scored["evaluation"][measure].as_f64().unwrap();
        let told = report["best"][measure].as_f64().unwrap();
        // The sites make the same inputs of the same cells, and numbers come out as they went in.
        assert!((found / told - 1.0).abs() < 1e-5, "{scored} {report}");
        match measure {
            "mse" => assert!(scored["evaluation"]["pearson"].as_f64().unwrap() > 0.8, "{scored}"),
            _ => assert!(found > 0.7, "{scored}"),
        }
        let config = |model: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(format!("{model}/config.json")).unwrap()).unwrap()
        };
        assert_eq!(config(&model)["columns"], config(base)["columns"]);
    }
}
