//! The program as a person runs it: results, files and exit codes.
#![expect(clippy::unwrap_used, reason = "tests")]

mod tiny_model;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn client(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fedtune-client")).args(arguments).current_dir(folder).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A folder with `model`, `train.csv` and `job.toml`.
fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("model")).unwrap();
    tiny_model::write(&folder.path().join("model"));
    std::fs::write(folder.path().join("train.csv"), tiny_model::csv(60)).unwrap();
    let job = "name = \"tiny\"\n[model]\npath = \"elsewhere\"\n[task]\nkind = \"text-classification\"\n\
               labels = [\"alpha\", \"beta\", \"gamma\"]\nmax_length = 16\n[training]\nlearning_rate = 3e-3\n\
               batch_size = 8\nepochs = 4\n[rounds]\ncount = 3\n";
    std::fs::write(folder.path().join("job.toml"), job).unwrap();
    folder
}

const FINETUNE: [&str; 13] = [
    "finetune",
    "--model",
    "model",
    "--train",
    "train.csv",
    "--test",
    "train.csv",
    "--job",
    "job.toml",
    "--out",
    "tuned",
    "--output",
    "json",
];

fn last_json(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn a_model_is_tuned_evaluated_and_predicts() {
    let folder = place();
    let tuned = client(&FINETUNE, folder.path());
    assert_eq!(code(&tuned), 0, "{}", errors(&tuned));
    let report = last_json(&tuned);
    assert_eq!(report["model"], "tuned");
    assert_eq!((&report["steps"], &report["train_examples"]), (&96.into(), &60.into()));
    assert_eq!(report["evaluation"]["examples"], 60);
    assert!(report["evaluation"]["accuracy"].as_f64().unwrap() > 0.9, "{report}");
    assert_eq!(report["per_label"].as_array().unwrap().len(), 3);
    assert_eq!(report["confusion"].as_array().unwrap().len(), 3);

    let evaluated = client(&["evaluate", "--model", "tuned", "--data", "train.csv", "--output", "json"], folder.path());
    let again = last_json(&evaluated);
    assert_eq!(again["evaluation"]["accuracy"], report["evaluation"]["accuracy"]);
    let table = client(&["evaluate", "--model", "tuned", "--data", "train.csv"], folder.path());
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("precision") && table.contains("confusion") && table.contains("alpha"), "{table}");

    std::fs::write(folder.path().join("new.csv"), "id,text\n1,w5 w20 w21\n2,\n3,w7 w30\n").unwrap();
    let arguments = ["predict", "--model", "tuned", "--data", "new.csv", "--out", "labels.csv", "--scores", "--logits"];
    let predicted = client(&arguments, folder.path());
    assert_eq!(code(&predicted), 0, "{}", errors(&predicted));
    assert!(errors(&predicted).contains("1 rows of new.csv could not be read"), "{}", errors(&predicted));
    let labels = std::fs::read_to_string(folder.path().join("labels.csv")).unwrap();
    let lines: Vec<&str> = labels.lines().collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0], "label,score,score_alpha,score_beta,score_gamma,logit_alpha,logit_beta,logit_gamma");
    assert!(lines[1].starts_with("alpha,0."), "{labels}");
    assert_eq!(lines[2], ",,,,,,,");
    assert!(lines[3].starts_with("gamma,0."), "{labels}");
}

#[test]
fn held_out_rows_end_training_and_choose_the_epoch() {
    let folder = place();
    let job = std::fs::read_to_string(folder.path().join("job.toml")).unwrap();
    // No epoch can be better by this.
    std::fs::write(folder.path().join("job.toml"), format!("{job}[evaluation]\nmin_delta = 2.0\n")).unwrap();
    let with = |more: &[&str]| client(&[&FINETUNE, more].concat(), folder.path());
    let report = last_json(&with(&["--validation", "0.2", "--patience", "2"]));
    let (validation, best) = (report["validation"].as_array().unwrap(), &report["best_epoch"]);
    assert_eq!((validation.len(), best), (3, &1.into()), "{report}");
    let held_out = validation[0]["examples"].as_u64().unwrap();
    let trained = report["train_examples"].as_u64().unwrap();
    assert!(held_out > 0 && held_out + trained == 60, "{report}");
    assert_eq!(report["steps"], 3 * trained.div_ceil(8));
    let text = client(&[&FINETUNE[..11], &["--validation", "0.2", "--patience", "2"]].concat(), folder.path());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("kept epoch 1 of 3") && text.contains(&format!("{held_out} held-out rows")), "{text}");

    for (more, code_expected, words) in [
        (&["--patience", "2"][..], 2, "--validation"),
        (&["--validation", "0.95"], 2, "less than 0.9"),
        (&["--validation", "0.000001"], 4, "no row to validate on"),
    ] {
        let output = with(more);
        assert_eq!(code(&output), code_expected, "{}", errors(&output));
        assert!(errors(&output).contains(words), "{}", errors(&output));
    }
}

#[test]
fn without_a_job_labels_come_from_the_file() {
    let folder = place();
    // The default of 128 tokens is more than this model has positions.
    let arguments = ["finetune", "--model", "model", "--train", "train.csv", "--out", "tuned"];
    let refused = client(&arguments, folder.path());
    assert_eq!(code(&refused), 5);
    assert!(errors(&refused).contains("max_position_embeddings"), "{}", errors(&refused));
}

#[test]
fn every_cause_has_its_exit_code() {
    let folder = place();
    let with = |place: usize, value: &'static str| {
        let mut arguments = FINETUNE;
        arguments[place] = value;
        client(&arguments, folder.path())
    };
    let cases = [
        (with(8, "absent.toml"), 3, "absent.toml"),
        (with(4, "absent.csv"), 4, "absent.csv"),
        (with(2, "absent"), 5, "absent"),
        (with(10, "model"), 2, "which is read"),
        (with(10, "train.csv/tuned"), 9, "cannot write"),
        (with(12, "yaml"), 2, "--output"),
        (
            client(&["predict", "--model", "model", "--data", "train.csv", "--out", "no/labels.csv"], folder.path()),
            9,
            "no",
        ),
    ];
    for (output, expected, words) in cases {
        assert_eq!(code(&output), expected, "{}", errors(&output));
        assert!(errors(&output).contains("error: ") && errors(&output).contains(words), "{}", errors(&output));
    }
    let help = String::from_utf8(client(&["--help"], folder.path()).stdout).unwrap();
    assert!(help.contains("Exit codes") && help.contains("130"), "{help}");
    let help = String::from_utf8(client(&["finetune", "--help"], folder.path()).stdout).unwrap();
    assert!(help.contains("Examples") && help.contains("--train"), "{help}");
}
