//! `check` on small files with the faults of real ones, and on the collection of faulty files where it is present.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn check(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fedtune-client"))
        .arg("check")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// Every line that a report names, by what it says of it.
fn named(file: &Value) -> BTreeMap<String, BTreeSet<u64>> {
    let mut found: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for (kind, faults) in file["faults"].as_object().unwrap() {
        let lines = faults["first"].as_array().unwrap().iter().map(|entry| entry[0].as_u64().unwrap());
        found.entry(kind.clone()).or_default().extend(lines);
    }
    for (kind, rows) in file["suspicious"].as_object().unwrap() {
        let lines = rows["lines"].as_array().unwrap().iter().map(|line| line.as_u64().unwrap());
        found.entry(kind.clone()).or_default().extend(lines);
    }
    for kind in ["duplicates", "conflicts", "near_duplicates"] {
        for entry in file[kind]["listed"].as_array().unwrap() {
            // Which of two equal rows is the fault, no program knows.
            let lines = ["line", "earlier_line"].map(|key| entry[key].as_u64().unwrap());
            found.entry(kind.into()).or_default().extend(lines);
        }
    }
    found
}

#[test]
fn every_fault_of_a_small_file_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let train = b"text,label\n\
        my card was charged twice,fees\n\
        My  CARD was charged twice ,fees\n\
        my card was charged twice,cash\n\
        \"the machine kept\nmy money\",cash\n\
        ,cash\n\
        \" \",cash\n\
        no label here,\n\
        caf\xe9,fees\n\
        three,fields,here\n\
        alone\n\
        fees,a text that was swapped\n\
        a slip of the hand,feez\n\
        NULL,cash\n\
        ?,cash\n\
        =1+1,fees\n\
        ring \x07 the bell,fees\n\
        why was i charged a random fee for a transfer that i made on monday,fees\n\
        why was i charged a random fee for a transfer that i made on monday?!,fees\n";
    std::fs::write(folder.path().join("train.csv"), train).unwrap();
    let test = "{\"text\": \"MY CARD WAS CHARGED TWICE\", \"label\": \"fees\"}\n\
        {\"text\": \"why was i charged a random fee for a transfer that I made on mondays\", \"label\": \"fees\"}\n\
        {\"text\": null, \"label\": \"fees\"}\n\
        {\"text\": \"something else altogether\", \"label\": \"cash\"}\n";
    std::fs::write(folder.path().join("test.jsonl"), test).unwrap();
    let arguments = ["--train", "train.csv", "--test", "test.jsonl", "--labels", "fees,cash"];
    let report = json(&check(&[&arguments[..], &["--output", "json"]].concat(), folder.path()));

    let found = named(&report["train"]);
    let expected: [(&str, &[u64]); 13] = [
        ("duplicates", &[2, 3]),
        ("conflicts", &[2, 4]),
        ("empty text", &[7]),
        ("text of white space only", &[8]),
        ("empty label", &[9]),
        ("not UTF-8", &[10]),
        ("wrong number of fields", &[11, 12]),
        ("unknown label", &[13, 14]),
        ("a word for a missing value", &[15]),
        ("fewer than three characters", &[16]),
        ("may run as a formula in a spreadsheet", &[17]),
        ("control characters", &[18]),
        ("near_duplicates", &[19, 20]),
    ];
    let expected: BTreeMap<String, BTreeSet<u64>> =
        expected.into_iter().map(|(kind, lines)| (kind.to_owned(), lines.iter().copied().collect())).collect();
    assert_eq!(found, expected);
    let train = &report["train"];
    assert_eq!((&train["rows"], &train["used"]), (&18.into(), &10.into()));
    assert_eq!(train["unknown_labels"]["feez"]["nearest"], "fees");
    let conflict = &train["conflicts"]["listed"][0];
    assert_eq!((&conflict["label"], &conflict["earlier_label"]), (&"cash".into(), &"fees".into()));

    assert_eq!(report["test"]["faults"]["wrong type"]["first"][0][0], 3);
    let shared = &report["shared"];
    assert_eq!((&shared["texts"]["count"], &shared["other_label"]), (&1.into(), &0.into()));
    assert_eq!(shared["texts"]["listed"][0]["earlier_line"], 2);
    assert_eq!((&shared["near"]["count"], &shared["near"]["listed"][0]["line"]), (&1.into(), &2.into()));
    assert_eq!(report["findings"].as_array().unwrap().len(), 6, "{}", report["findings"]);

    let table = check(&arguments, folder.path());
    let text = String::from_utf8(table.stdout).unwrap();
    for words in ["18 rows, 10 usable", "did you mean \"fees\"?", "in both files", "to settle", "4 cash (2 fees)"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains('\u{7}') && !text.contains("charged twice"), "{text}");
    let strict = check(&[&arguments[..], &["--strict"]].concat(), folder.path());
    assert_eq!(strict.status.code(), Some(4), "{}", String::from_utf8_lossy(&strict.stderr));
}

#[test]
fn without_known_labels_those_of_the_file_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = String::from("text,label,patient\n");
    for i in 0..40 {
        rows.push_str(&format!("note number {i} of {} words,{},{}\n", i * 37, ["cardiology", "surgery"][i % 2], i / 2));
    }
    rows.push_str("one note more,Cardiolgy,\nand another,surgery,99\n");
    std::fs::write(folder.path().join("train.csv"), &rows).unwrap();
    std::fs::write(
        folder.path().join("test.csv"),
        "text,label,patient\na new one,surgery,99\nnever seen,surgery,100\n",
    )
    .unwrap();
    let arguments = ["--train", "train.csv", "--test", "test.csv", "--group-column", "patient", "--output", "json"];
    let report = json(&check(&arguments, folder.path()));
    // The misspelt label stands in the row that has no patient.
    assert_eq!(report["train"]["faults"]["empty group"]["first"][0][0], 42);
    assert_eq!((&report["train"]["groups"], &report["shared"]["grouped_rows"]), (&21.into(), &1.into()));
    let report = json(&check(&["--train", "train.csv", "--output", "json"], folder.path()));
    let labels = report["train"]["labels"].as_array().unwrap();
    assert_eq!((&labels[2]["label"], &labels[2]["resembles"]), (&"Cardiolgy".into(), &"cardiology".into()));
    assert_eq!(labels[0]["rows"], 21);
    assert!((labels[1]["share"].as_f64().unwrap() - 20.0 / 42.0).abs() < 1e-9);
}

#[test]
fn clean_files_have_nothing_to_settle() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("train.csv"), "text,label\nthe first note,a\nanother text here,b\n").unwrap();
    let output = check(&["--train", "train.csv", "--strict"], folder.path());
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().contains("nothing to settle"));
    for (arguments, code) in [
        (&["--train", "absent.csv"][..], 4),
        (&["--train", "train.csv", "--epochs", "2"], 2),
        (&["--train", "train.csv", "--max-length", "16"], 2),
        (&["--train", "train.csv", "--find-label-errors"], 2),
        (&["--train", "train.csv", "--model", "absent"], 5),
    ] {
        assert_eq!(check(arguments, folder.path()).status.code(), Some(code), "{arguments:?}");
    }
}

/// The folder of deliberately faulty files beside the repository; `None`, said aloud, where it is absent.
fn dirty() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/dirty");
    if !folder.is_dir() {
        eprintln!("skipped: {} is absent", folder.display());
        return None;
    }
    Some(folder)
}

fn manifest(path: &Path) -> Vec<(String, u64)> {
    let entry = |line: &str| {
        let entry: Value = serde_json::from_str(line).unwrap();
        (entry["fault"].as_str().unwrap().to_owned(), entry["line"].as_u64().unwrap())
    };
    std::fs::read_to_string(path).unwrap().lines().map(entry).collect()
}

/// Checks that each line of a manifest is named by one of the findings that its fault may have; a fault with none is
/// harmless and must not be among those that make a row unusable.
fn agrees(folder: &Path, data: &str, manifest_file: &str, allowed: &[(&str, &[&str])]) {
    let mut intents: Vec<String> = std::fs::read_to_string(folder.join("clean.csv"))
        .unwrap()
        .lines()
        .skip(1)
        .filter_map(|line| Some(line.rsplit_once(',')?.1.to_owned()))
        .filter(|label| label.contains('_') && !label.contains(' '))
        .collect();
    intents.sort();
    intents.dedup();
    assert_eq!(intents.len(), 10);
    let arguments = ["--train", data, "--labels", &intents.join(","), "--list", "5000", "--output", "json"];
    let report = json(&check(&arguments, folder));
    let found = named(&report["train"]);
    let unusable: BTreeSet<u64> =
        report["train"]["faults"].as_object().unwrap().keys().flat_map(|kind| found[kind].iter().copied()).collect();
    let entries = manifest(&folder.join(manifest_file));
    assert!(entries.len() > 30);
    for (fault, line) in &entries {
        let (_, kinds) = allowed.iter().find(|(name, _)| name == fault).unwrap();
        match kinds {
            [] => assert!(!unusable.contains(line), "{fault} on line {line}"),
            kinds => assert!(
                kinds.iter().any(|kind| found.get(*kind).is_some_and(|lines| lines.contains(line))),
                "{fault} on line {line} is not among {kinds:?}"
            ),
        }
    }
    let faulty: BTreeSet<u64> = entries.into_iter().map(|(_, line)| line).collect();
    assert!(unusable.is_subset(&faulty), "rows that are not faulty are left out: {unusable:?}");
}

#[test]
fn the_faults_of_the_dirty_csv_are_found_and_named() {
    let Some(folder) = dirty() else { return };
    agrees(
        &folder,
        "dirty.csv",
        "manifest.jsonl",
        &[
            ("dup_exact", &["duplicates"]),
            ("dup_near", &["duplicates", "near_duplicates"]),
            ("dup_conflict", &["conflicts"]),
            ("text_empty", &["empty text"]),
            ("text_blank", &["text of white space only"]),
            ("label_empty", &["empty label"]),
            ("label_unknown", &["unknown label"]),
            ("label_typo", &["unknown label"]),
            ("label_case", &["unknown label"]),
            ("columns_swapped", &["unknown label"]),
            ("bad_utf8", &["not UTF-8"]),
            ("nul_byte", &["NUL byte"]),
            ("missing_field", &["wrong number of fields"]),
            ("extra_field", &["wrong number of fields"]),
            ("huge_cell", &["text too long"]),
            ("control_chars", &["control characters"]),
            ("text_null_word", &["a word for a missing value"]),
            ("tiny_text", &["fewer than three characters"]),
            ("formula", &["may run as a formula in a spreadsheet"]),
            ("label_flip", &[]),
            ("label_space", &[]),
            ("unusual_unicode", &[]),
            ("quoted_quote", &[]),
            ("quoted_newline", &[]),
            ("blank_line", &[]),
        ],
    );
}

#[test]
fn the_faults_of_the_dirty_jsonl_are_found_and_named() {
    let Some(folder) = dirty() else { return };
    agrees(
        &folder,
        "dirty.jsonl",
        "manifest_jsonl.jsonl",
        &[
            ("array_line", &["not a JSON object"]),
            ("text_null", &["wrong type"]),
            ("label_null", &["wrong type"]),
            ("text_number", &["wrong type"]),
            ("text_list", &["wrong type"]),
            ("missing_label_key", &["missing key"]),
            ("missing_text_key", &["missing key"]),
            ("two_objects_one_line", &["not valid JSON"]),
            ("not_json", &["not valid JSON"]),
            ("truncated_json", &["not valid JSON"]),
            ("lone_surrogate", &["not valid JSON"]),
            ("deep_nesting", &["not valid JSON", "wrong type", "not a JSON object"]),
            ("bad_utf8", &["not UTF-8"]),
            ("duplicate_key", &["key given twice"]),
            ("label_int", &["unknown label"]),
            ("crlf", &[]),
            ("extra_key", &[]),
            ("blank_line", &[]),
        ],
    );
}

#[test]
fn each_dirty_file_is_checked_or_refused_with_its_code() {
    let Some(folder) = dirty() else { return };
    let used = ["bom_crlf", "columns_reversed", "latin1", "no_final_newline", "one_class", "one_row", "int_labels"];
    let mut files = 0;
    for entry in std::fs::read_dir(folder.join("files")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let output = check(&["--train", path.to_str().unwrap()], &folder);
        let expected = if used.contains(&name) { 0 } else { 4 };
        assert_eq!(output.status.code(), Some(expected), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        files += 1;
    }
    assert_eq!(files, 18);
}
