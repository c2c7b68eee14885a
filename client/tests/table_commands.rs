//! The program on tables: from a file of columns to a model, what it learns, and what it says of damaged rows.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

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

/// The message of a command that fails with this code, with these words in it.
fn refused(code: i32, arguments: &[&str], folder: &Path, words: &[&str]) {
    let output = client(arguments, folder);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    for word in words {
        assert!(message.contains(word), "{arguments:?}: {message:?} lacks {word:?}");
    }
}

/// A row of a patient: id, age, ward, dose, smoker, label and score, the last two of which follow from the others.
fn row(number: usize) -> [String; 7] {
    let wave = |step: usize, most: usize| (number * step + number / 7 * 3) % most;
    let (age, ward, dose) = (20 + wave(37, 60), ["north", "river", "south"][wave(5, 3)], 1e4 + wave(11, 50) as f64);
    let smoker = wave(13, 4) == 0;
    let score = 100.0 + 2.0 * age as f64 + if ward == "river" { 60.0 } else { 0.0 } + (dose - 1e4) / 5.0;
    let label = if score > 225.0 { "high" } else { "low" };
    let cells = [
        number.to_string(),
        if number % 17 == 3 { "NA".into() } else { age.to_string() },
        if number % 19 == 5 { String::new() } else { ward.to_owned() },
        if number % 23 == 7 { "?".into() } else { dose.to_string() },
        smoker.to_string(),
    ];
    let [id, age, ward, dose, smoker] = cells;
    [id, age, ward, dose, smoker, label.into(), score.to_string()]
}

const NAMES: [&str; 7] = ["id", "age", "ward", "dose", "smoker", "label", "score"];

fn csv(numbers: std::ops::Range<usize>) -> String {
    let mut out = NAMES.join(",") + "\n";
    for number in numbers {
        writeln!(out, "{}", row(number).join(",")).unwrap();
    }
    out
}

fn jsonl(numbers: std::ops::Range<usize>) -> String {
    let value = |name: &str, cell: String| match cell.as_str() {
        "" | "NA" | "?" => Value::Null,
        "true" | "false" => json!(cell == "true"),
        _ if matches!(name, "id" | "age" | "dose" | "score") => json!(cell.parse::<f64>().unwrap()),
        _ => json!(cell),
    };
    let line = |number: usize| {
        let object: serde_json::Map<String, Value> =
            NAMES.iter().zip(row(number)).map(|(name, cell)| ((*name).to_owned(), value(name, cell))).collect();
        Value::Object(object).to_string() + "\n"
    };
    numbers.map(line).collect()
}

/// A folder with `train.csv`, the same as JSONL, and `test.csv`.
fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("train.csv"), csv(0..240)).unwrap();
    fs::write(folder.path().join("train.jsonl"), jsonl(0..240)).unwrap();
    fs::write(folder.path().join("test.csv"), csv(240..340)).unwrap();
    folder
}

const NEW: [&str; 9] =
    ["new-table-model", "--train", "train.csv", "--ignore", "id,score", "--out", "model", "--output", "json"];

#[test]
fn a_table_becomes_a_model_that_learns_and_predicts() {
    let folder = place();
    let at = |name: &str| folder.path().join(name);
    let made = report(&NEW, folder.path());
    assert_eq!((&made["rows"], &made["inputs"]), (&json!(240), &json!(2 + 3 + 2 + 2)));
    assert_eq!(made["labels"], json!(["high", "low"]));
    assert_eq!(made["columns"][1]["values"], json!(["north", "river", "south"]));
    assert_eq!(made["columns"][3]["values"], json!(["false", "true"]));
    assert_eq!(made["columns"][0]["missing"], json!((0..240).filter(|number| number % 17 == 3).count()));
    let config: Value = serde_json::from_slice(&fs::read(at("model/config.json")).unwrap()).unwrap();
    // numpy.mean and numpy.std of the ages that are there.
    let ages: Vec<f64> = (0..240).filter_map(|number| row(number)[1].parse().ok()).collect();
    let mean = ages.iter().sum::<f64>() / ages.len() as f64;
    let variance = ages.iter().map(|age| (age - mean).powi(2)).sum::<f64>() / ages.len() as f64;
    for (field, expected) in [("mean", mean), ("deviation", variance.sqrt())] {
        assert!((config["columns"][0][field].as_f64().unwrap() - expected).abs() < 1e-9, "{config}");
    }
    // The same rows as JSON give the same model.
    let arguments = NEW.map(|word| match word {
        "train.csv" => "train.jsonl",
        "model" => "again",
        word => word,
    });
    done(&arguments, folder.path());
    for file in ["config.json", "model.safetensors"] {
        assert_eq!(fs::read(at("model").join(file)).unwrap(), fs::read(at("again").join(file)).unwrap(), "{file}");
    }

    let tune = ["finetune", "--model", "model", "--train", "train.csv", "--test", "test.csv"];
    let more = ["--learning-rate", "3e-3", "--out", "tuned", "--output", "json"];
    let tuned = report(&[&tune[..], &more].concat(), folder.path());
    let accuracy = tuned["evaluation"]["accuracy"].as_f64().unwrap();
    let most = tuned["per_label"].as_array().unwrap().iter().map(|label| label["support"].as_u64().unwrap()).max();
    assert!(accuracy > most.unwrap() as f64 / 100.0 + 0.1, "{tuned}");
    let evaluated = report(&["evaluate", "--model", "tuned", "--data", "test.csv", "--output", "json"], folder.path());
    assert_eq!(evaluated["evaluation"]["accuracy"].as_f64().unwrap(), accuracy);
    let config: Value = serde_json::from_slice(&fs::read(at("tuned/config.json")).unwrap()).unwrap();
    assert_eq!(config["columns"].as_array().unwrap().len(), 4);
    assert_eq!(config["id2label"], json!({ "0": "high", "1": "low" }));

    // Rows without labels, columns in another order, a row that cannot be read, a ward that nobody knows.
    fs::write(
        at("new.csv"),
        "dose,smoker,ward,age\n10049,true,river,79\n10000,false,north,twenty\n10000,false,east,20\n",
    )
    .unwrap();
    let predict = ["predict", "--model", "tuned", "--data", "new.csv", "--out", "out.csv", "--scores"];
    let output = client(&predict, folder.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("line 3: column \"age\": found \"twenty\""), "{said}");
    let lines = fs::read_to_string(at("out.csv")).unwrap();
    let cells: Vec<Vec<&str>> = lines.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(cells[0], ["label", "score", "score_high", "score_low"]);
    assert_eq!([cells[1][0], cells[2][0], cells[3][0]], ["high", "", "low"]);

    // A file that is too large to be held gives the same model, and so does any number of threads.
    let bits = |out: &str, threads: &str| {
        let more = ["--learning-rate", "3e-3", "--threads", threads, "--out", out];
        done(&[&tune[..5], &more].concat(), folder.path());
        fs::read(at(out).join("model.safetensors")).unwrap()
    };
    assert!(bits("one", "1") == bits("two", "2"));
}

#[test]
fn numbers_are_learnt_whatever_their_size() {
    let folder = place();
    let new = [
        "new-table-model",
        "--train",
        "train.csv",
        "--label",
        "score",
        "--task",
        "regression",
        "--ignore",
        "id,label",
        "--hidden",
        "none",
        "--out",
        "model",
        "--output",
        "json",
    ];
    let made = report(&new, folder.path());
    let deviation = made["target"]["sd"].as_f64().unwrap();
    assert!(made["target"]["mean"].as_f64().unwrap() > 150.0 && deviation > 20.0, "{made}");
    let tune =
        ["finetune", "--model", "model", "--train", "train.csv", "--test", "test.csv", "--label-column", "score"];
    let tuned = report(&[&tune[..], &["--out", "tuned", "--output", "json"]].concat(), folder.path());
    let found = &tuned["evaluation"];
    assert!(found["pearson"].as_f64().unwrap() > 0.9, "{tuned}");
    assert!(found["mse"].as_f64().unwrap().sqrt() < deviation / 2.0, "{tuned}");
    done(&["predict", "--model", "tuned", "--data", "test.csv", "--out", "out.csv"], folder.path());
    let lines = fs::read_to_string(folder.path().join("out.csv")).unwrap();
    let values: Vec<f64> = lines.lines().skip(1).map(|line| line.parse().unwrap()).collect();
    let truth = (240..340).map(|number| row(number)[6].parse::<f64>().unwrap());
    let squares: f64 = values.iter().zip(truth).map(|(value, truth)| (value - truth).powi(2)).sum();
    // The values are the numbers themselves, as the evaluation has them.
    assert!((squares / 100.0 / found["mse"].as_f64().unwrap() - 1.0).abs() < 1e-4, "{squares} {tuned}");
}

#[test]
fn every_command_that_trains_takes_tables() {
    let folder = place();
    done(&NEW, folder.path());
    let cross = ["cross-validate", "--model", "model", "--train", "train.csv", "--folds", "3", "--output", "json"];
    let crossed = report(&cross, folder.path());
    assert!(crossed["spread"]["accuracy"]["mean"].as_f64().unwrap() > 0.6, "{crossed}");
    let tune =
        ["tune", "--model", "model", "--train", "train.csv", "--trials", "3", "--halvings", "1", "--out", "best.toml"];
    done(&tune, folder.path());
    let job = fs::read_to_string(folder.path().join("best.toml")).unwrap();
    assert!(job.contains("kind = \"table-classification\""), "{job}");
    let again = ["finetune", "--model", "model", "--train", "train.csv", "--job", "best.toml", "--out", "tuned"];
    done(&again, folder.path());

    let mut dirty = csv(0..40);
    dirty += "40,old,north,10000,true,low,1\n41,inf,north,10000,true,low,1\n42,50,east,10000,true,low,1\n";
    dirty += &csv(0..1)[csv(0..0).len()..];
    fs::write(folder.path().join("dirty.csv"), dirty).unwrap();
    let check = ["check", "--model", "model", "--train", "dirty.csv", "--output", "json"];
    let checked = report(&check, folder.path());
    let faults = &checked["train"]["faults"]["cell that is not a finite number"];
    assert_eq!(faults["count"], 2);
    assert_eq!(faults["first"][1], json!([43, "column \"age\": found \"inf\", expected a finite number or nothing"]));
    assert_eq!(checked["train"]["unknown_words"], json!({ "ward": 1 }));
    // The last row is the first one again.
    assert_eq!(checked["train"]["duplicates"]["count"], 1, "{checked}");
    let suspects = ["check", "--model", "model", "--train", "train.csv", "--find-label-errors", "--folds", "2"];
    done(&suspects, folder.path());
    done(&["check", "--model", "model", "--train", "dirty.csv"], folder.path());
}

#[test]
fn what_no_model_can_be_made_of_is_refused() {
    let folder = place();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let new = |file: &str, more: &[&str], words: &[&str]| {
        let fixed = ["new-table-model", "--train", file, "--out", "made"];
        refused(4, &[&fixed[..], more].concat(), folder.path(), words);
    };
    new("train.csv", &["--label", "outcome"], &["no column \"outcome\"", "\"age\"", "--label-column"]);
    new("train.csv", &["--ignore", "wards"], &["no column \"wards\"", "did you mean \"ward\"?"]);
    new("train.csv", &["--ignore", "id,age,ward,dose,smoker,score"], &["\"label\" is the only one"]);
    write("empty.csv", "a,b,label\n1,,x\n2,NA,y\n");
    new("empty.csv", &[], &["\"b\" holds no value", "--ignore"]);
    let rows = |cell: &dyn Fn(usize) -> String| -> String {
        (0..300).map(|number| format!("{},{}\n", cell(number), ["x", "y"][number % 2])).collect()
    };
    write("mixed.csv", &format!("a,label\n{}twelve,x\n", rows(&|number| number.to_string())));
    new("mixed.csv", &[], &["300 numbers and 1 values that are none", "\"twelve\" on line 302"]);
    write("infinite.csv", &format!("a,label\n{}-inf,x\n", rows(&|number| number.to_string())));
    new("infinite.csv", &[], &["\"-inf\" on line 302", "no finite number"]);
    write("names.csv", &format!("a,label\n{}", rows(&|number| format!("patient {number}"))));
    new("names.csv", &[], &["more than 256 different values", "--ignore"]);
    write("one.csv", "a,label\n1,x\n2,x\n");
    new("one.csv", &[], &["every row has the label \"x\""]);
    new("one.csv", &["--task", "regression"], &["none of its 2 rows", "not a finite number", "\"x\""]);
    write("same.csv", "a,label\n1,7\n2,7\n");
    new("same.csv", &["--task", "regression"], &["is 7 in every row"]);
    write("twice.csv", "a,a,label\n1,2,x\n2,3,y\n");
    new("twice.csv", &[], &["\"a\" stands 2 times"]);
    let wide: Vec<String> = (0..5000).map(|number| format!("c{number}")).collect();
    write("wide.csv", &format!("{},label\n", wide.join(",")));
    new("wide.csv", &[], &["found 5001 columns", "at most 4096"]);
    write("semicolons.csv", "a;label\n1;x\n");
    new("semicolons.csv", &[], &["semicolons"]);
    write("quote.csv", "a,label\n1,\"x\n2,y\n");
    new("quote.csv", &[], &["never closed"]);
    write("header.csv", "a,label\n");
    new("header.csv", &[], &["found no row"]);
    new("absent.csv", &[], &["cannot be read"]);
    refused(
        2,
        &["new-table-model", "--train", "train.csv", "--out", "made", "--hidden", "8,0"],
        folder.path(),
        &["none"],
    );
}

#[test]
fn what_does_not_go_with_a_model_is_refused() {
    let folder = place();
    done(&NEW, folder.path());
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let finetune = |code, model: &str, more: &[&str], words: &[&str]| {
        let fixed = ["finetune", "--model", model, "--out", "tuned"];
        refused(code, &[&fixed[..], more].concat(), folder.path(), words);
    };
    write("fewer.csv", "age,Ward,dose,label\n1,north,2,low\n2,south,3,high\n");
    let words = ["fewer.csv:1: no column \"ward\", which the model takes", "differs only in case", "config.json"];
    finetune(4, "model", &["--train", "fewer.csv"], &words);
    write("bad.csv", "age,ward,dose,smoker,label\nold,north,1,true,low\n1e300,north,1,true,high\n");
    finetune(4, "model", &["--train", "bad.csv"], &["none of its 2 rows", "line 2, 3", "\"age\": found \"old\""]);
    write("short.csv", "age,ward,dose,smoker,label\n1,north,1,true\n");
    finetune(4, "model", &["--train", "short.csv"], &["found 4 fields, expected 5"]);
    let long = format!("age,ward,dose,smoker,label\n1,{},1,true,low\n", "x".repeat(2000));
    write("long.csv", &long);
    finetune(4, "model", &["--train", "long.csv"], &["\"ward\": found 2000 bytes, expected at most 1024"]);
    write("list.jsonl", "{\"age\": [1], \"ward\": \"north\", \"dose\": 1, \"smoker\": true, \"label\": \"low\"}\n");
    finetune(4, "model", &["--train", "list.jsonl"], &["\"age\" is an array, expected a number"]);
    write("key.jsonl", "{\"age\": 1, \"dose\": 1, \"smoker\": true, \"label\": \"low\"}\n");
    // What is missing may be left out, but not of every row.
    finetune(
        4,
        "model",
        &["--train", "key.jsonl"],
        &["no column \"ward\", which the model takes", "found \"age\", \"dose\""],
    );
    finetune(
        4,
        "model",
        &["--train", "train.csv", "--label-column", "ward"],
        &["\"ward\" is one that the model takes"],
    );
    finetune(
        5,
        "model",
        &["--train", "train.csv", "--task", "text-classification", "--text-column", "ward"],
        &["the model reads tables; expected one that reads texts"],
    );
    finetune(2, "model", &["--train", "train.csv", "--max-length", "16"], &["reads tables"]);
    refused(2, &["check", "--task", "table-classification", "--train", "train.csv"], folder.path(), &["--model"]);

    let config: Value = serde_json::from_slice(&fs::read(folder.path().join("model/config.json")).unwrap()).unwrap();
    fs::create_dir(folder.path().join("damaged")).unwrap();
    fs::copy(folder.path().join("model/model.safetensors"), folder.path().join("damaged/model.safetensors")).unwrap();
    for (field, value, words) in [
        ("/columns/0/deviation", json!(0.0), vec!["\"age\"", "the deviation above 0"]),
        ("/columns/0/mean", json!("a"), vec!["columns[0]", "expected f64"]),
        ("/columns/0/kind", json!("date"), vec!["columns", "date"]),
        ("/columns/1/values", json!([]), vec!["\"ward\" are none"]),
        ("/columns/1/name", json!("age"), vec!["\"age\" empty or twice"]),
        ("/columns", json!([]), vec!["the number of columns is 0"]),
        ("/hidden_sizes", json!([9]), vec!["layers.0", "shape"]),
    ] {
        let mut config = config.clone();
        *config.pointer_mut(field).unwrap() = value;
        write("damaged/config.json", &config.to_string());
        finetune(5, "damaged", &["--train", "train.csv"], &words);
    }
}
