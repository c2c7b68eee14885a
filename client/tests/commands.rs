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
    let arguments = ["evaluate", "--model", "tuned", "--data", "train.csv", "--confusion-png", "matrix.png"];
    let table = client(&arguments, folder.path());
    assert!(std::fs::read(folder.path().join("matrix.png")).unwrap().starts_with(b"\x89PNG"));
    let table = String::from_utf8(table.stdout).unwrap();
    for words in ["precision", "AUROC", "confusion", "alpha", "expected calibration error"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    assert!(again["evaluation"]["macro_auroc"].as_f64().unwrap() > 0.9, "{again}");
    let error = again["evaluation"]["calibration_error"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&error) && again["per_label"][0]["auroc"].is_f64(), "{again}");

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
fn a_killed_run_goes_on_when_the_same_command_is_given_again() {
    let folder = place();
    let run = |out: &'static str, saved: &'static str| {
        let mut arguments = FINETUNE.to_vec();
        arguments[10] = out;
        let mut command = Command::new(env!("CARGO_BIN_EXE_fedtune-client"));
        command.args(arguments).args(["--epochs", "40", "--checkpoint", saved, "--checkpoint-steps", "3"]);
        command.current_dir(folder.path()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command
    };
    let whole = run("whole", "unused").output().unwrap();
    assert_eq!(last_json(&whole)["resumed_steps"], 0, "{}", errors(&whole));
    let checkpoint = |saved: &str| folder.path().join(saved).join("checkpoint.safetensors");
    assert!(!checkpoint("unused").exists());

    let mut killed = run("killed", "saved").spawn().unwrap();
    while !checkpoint("saved").exists() {
        assert!(killed.try_wait().unwrap().is_none(), "it ended before its first checkpoint");
        std::thread::yield_now();
    }
    killed.kill().unwrap();
    assert!(!killed.wait().unwrap().success(), "it ended before it was killed");
    let resumed = run("killed", "saved").output().unwrap();
    let report = last_json(&resumed);
    assert!(report["resumed_steps"].as_u64() >= Some(3) && report["steps"] == 320, "{report}");
    let bytes = |out: &str| std::fs::read(folder.path().join(out).join("model.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("killed"));
    assert!(!checkpoint("saved").exists());
}

#[test]
fn tuning_finds_settings_that_learn_and_writes_their_job() {
    let folder = place();
    let tune = ["tune", "--model", "model", "--train", "train.csv", "--job", "job.toml", "--out", "best.toml"];
    let run = |more: &[&str]| client(&[&tune[..], more].concat(), folder.path());
    // Rates of which most are far too small to learn anything.
    let ranges = ["--learning-rates", "1e-7..1e-2", "--batch-sizes", "8,16", "--ranks", "2,4"];
    let ranges =
        [&ranges[..], &["--trainables", "full", "bert.pooler.*,classifier.*", "lora", "--output", "json"]].concat();
    let found = run(&ranges);
    assert_eq!(code(&found), 0, "{}", errors(&found));
    let report = last_json(&found);
    let trials = report["trials"].as_array().unwrap();
    let rungs = |count: usize| trials.iter().filter(|trial| trial["rungs"].as_array().unwrap().len() >= count).count();
    assert_eq!((trials.len(), rungs(1), rungs(2), rungs(3)), (9, 9, 3, 1), "{report}");
    let best = &trials[report["best_trial"].as_u64().unwrap() as usize - 1];
    let accuracy = |trial: &Value, rung: usize| trial["rungs"][rung]["evaluation"]["accuracy"].as_f64().unwrap();
    // Those that went on were no worse than those that did not.
    let least = trials.iter().filter(|trial| !trial["rungs"][1].is_null()).map(|trial| accuracy(trial, 0));
    let least = least.fold(f64::INFINITY, f64::min);
    let others = trials.iter().filter(|trial| trial["rungs"][1].is_null()).map(|trial| accuracy(trial, 0));
    assert!(others.fold(0.0, f64::max) <= least, "{report}");
    assert!(best["rungs"][2]["steps"].as_u64() > best["rungs"][0]["steps"].as_u64(), "{report}");
    for trial in trials {
        assert_eq!(trial["trainable"] == "lora", !trial["rank"].is_null(), "{report}");
    }
    assert_eq!(last_json(&run(&ranges))["trials"], report["trials"], "the same seed, the same trials");
    let text = String::from_utf8(run(&ranges[..ranges.len() - 2]).stdout).unwrap();
    assert!(text.contains("(best)") && text.contains("after") && text.lines().count() == 12, "{text}");

    // The job that was written trains to what the last rung said.
    let job = std::fs::read_to_string(folder.path().join("best.toml")).unwrap();
    assert!(job.starts_with("# Trial "), "{job}");
    let arguments = ["finetune", "--model", "model", "--train", "train.csv", "--job", "best.toml", "--out", "tuned"];
    let tuned = client(&[&arguments[..], &["--validation", "0.2", "--output", "json"]].concat(), folder.path());
    assert_eq!(code(&tuned), 0, "{}", errors(&tuned));
    let last = last_json(&tuned);
    let epochs = last["validation"].as_array().unwrap();
    assert_eq!(epochs[epochs.len() - 1]["accuracy"].as_f64(), Some(accuracy(best, 2)), "{last} {report}");

    for (more, expected, words) in [
        (&["--trials", "8"][..], 2, "at least 9"),
        (&["--learning-rates", "1e-2..1e-3"], 2, "the smaller first"),
        (&["--learning-rates", "0..1"], 2, "above 0"),
        (&["--batch-sizes", "64"], 2, "rows to train on"),
        (&["--ranks", "4"], 2, "--trainables lora"),
        (&["--learning-rates", "1e-3", "--batch-sizes", "8"], 2, "1 different settings"),
        (&["--trainables", "bert.encodr.*"], 5, "bert.encoder."),
        (&["--out", "job.toml"], 2, "which is read"),
        (&["--out", "no/best.toml"], 9, "cannot write"),
    ] {
        let arguments = match more[0] {
            "--out" => [&tune[..7], more].concat(),
            _ => [&tune[..], more].concat(),
        };
        let output = client(&arguments, folder.path());
        assert_eq!(code(&output), expected, "{more:?} {}", errors(&output));
        assert!(errors(&output).contains(words), "{more:?} {}", errors(&output));
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

#[test]
fn cross_validation_scores_every_row_once_and_shows_the_spread() {
    let folder = place();
    let arguments = ["cross-validate", "--model", "model", "--train", "train.csv", "--job", "job.toml", "--folds", "3"];
    let found = client(&[&arguments[..], &["--output", "json"]].concat(), folder.path());
    assert_eq!(code(&found), 0, "{}", errors(&found));
    let report = last_json(&found);
    let folds = report["folds"].as_array().unwrap();
    let sum = |key: &str| folds.iter().map(|fold| fold["evaluation"][key].as_f64().unwrap()).sum::<f64>();
    assert_eq!((folds.len(), sum("examples")), (3, 60.0));
    let accuracy = &report["spread"]["accuracy"];
    assert!((accuracy["mean"].as_f64().unwrap() - sum("accuracy") / 3.0).abs() < 1e-9, "{report}");
    assert!(accuracy["mean"].as_f64().unwrap() > 0.8 && accuracy["sd"].as_f64().unwrap() >= 0.0, "{report}");
    // Twenty rows of each label: every fold has six or seven.
    for support in folds.iter().flat_map(|fold| fold["per_label"].as_array().unwrap()).map(|label| &label["support"]) {
        assert!((6..=7).contains(&support.as_u64().unwrap()), "{report}");
    }
    let table = client(&[&arguments[..], &["--epochs", "1", "--trainable", "head"]].concat(), folder.path());
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("mean") && table.contains("± sd") && table.lines().count() == 6, "{table}");

    let few = "text,label,who\nw5 w6,alpha,1\nw7,beta,1\nw8,gamma,2\nw9,alpha,2\n";
    std::fs::write(folder.path().join("few.csv"), few).unwrap();
    let arguments = ["cross-validate", "--model", "model", "--train", "few.csv", "--job", "job.toml", "--folds", "3"];
    let refused = client(&[&arguments[..], &["--group-column", "who"]].concat(), folder.path());
    assert_eq!(code(&refused), 4);
    assert!(errors(&refused).contains("Ask for fewer folds"), "{}", errors(&refused));
}

#[test]
fn swapped_labels_are_among_the_most_suspicious_rows() {
    let folder = place();
    let text = tiny_model::csv(90);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    // Lines are counted from 1, and the first is the header.
    let swapped = [12, 31, 47, 70];
    for line in swapped {
        let (text, label) = lines[line - 1].rsplit_once(',').unwrap();
        let other = match label {
            "alpha" => "beta",
            "beta" => "gamma",
            _ => "alpha",
        };
        lines[line - 1] = format!("{text},{other}");
    }
    std::fs::write(folder.path().join("swapped.csv"), lines.join("\n")).unwrap();
    let arguments = ["check", "--train", "swapped.csv", "--model", "model", "--job", "job.toml", "--find-label-errors"];
    let found = client(&[&arguments[..], &["--list", "6", "--output", "json"]].concat(), folder.path());
    assert_eq!(code(&found), 0, "{}", errors(&found));
    let errors = &last_json(&found)["label_errors"];
    let listed = errors["listed"].as_array().unwrap();
    for line in swapped {
        let row = listed.iter().find(|row| row["line"] == line).unwrap();
        let original = text.lines().nth(line - 1).unwrap().rsplit_once(',').unwrap().1;
        assert_eq!(row["suggested"], original, "{errors}");
        assert!(row["probability"].as_f64() < row["suggested_probability"].as_f64(), "{errors}");
    }
    assert!(errors["estimated"].as_f64().unwrap() < 15.0, "{errors}");
}

#[test]
fn rare_labels_are_repeated_and_few_rows_chosen() {
    let folder = place();
    // Twenty rows of each label, and forty more of one.
    let more: String = (0..40).map(|i| format!("w5 w{} w{},alpha\n", 20 + i % 30, 21 + i / 2)).collect();
    std::fs::write(folder.path().join("train.csv"), tiny_model::csv(60) + &more).unwrap();
    let train = |options: &[&str]| {
        let tuned = client(&[&FINETUNE[..], &["--epochs", "1"], options].concat(), folder.path());
        assert_eq!(code(&tuned), 0, "{}", errors(&tuned));
        let report = last_json(&tuned);
        (report["steps"].as_u64().unwrap(), report["train_examples"].as_u64().unwrap())
    };
    assert_eq!(train(&[]), (13, 100));
    // Two labels of twenty rows become forty each: 140 rows in batches of eight.
    assert_eq!(train(&["--oversample", "2"]), (18, 100));
    assert_eq!(train(&["--per-label", "4"]), (2, 12));
    for (option, value) in [("--oversample", "0.5"), ("--oversample", "many"), ("--per-label", "0")] {
        assert_eq!(code(&client(&[&FINETUNE[..], &[option, value]].concat(), folder.path())), 2);
    }
}

#[test]
fn duplicates_are_trained_on_unless_they_are_to_be_removed() {
    let folder = place();
    let twice = format!("{}W5  w30,alpha\nw5 w30,alpha\n", tiny_model::csv(30));
    std::fs::write(folder.path().join("train.csv"), twice).unwrap();
    for (option, examples) in [("keep", 32), ("remove", 31)] {
        let arguments = [&FINETUNE[..], &["--epochs", "1", "--duplicates", option]].concat();
        let tuned = client(&arguments, folder.path());
        assert_eq!(code(&tuned), 0, "{}", errors(&tuned));
        assert_eq!(last_json(&tuned)["train_examples"], examples, "{option}");
        assert!(errors(&tuned).contains("1 rows repeat an earlier row"), "{}", errors(&tuned));
        assert_eq!(errors(&tuned).contains("(1 removed)"), option == "remove");
    }
}
