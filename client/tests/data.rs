//! Faulty files and rows, each made here, and the collection of faulty files where it is present.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use fedtune_client::data::{
    self, Columns, DataError, DataReport, Fault, MAX_TEXT, RawRow, Row, Rows, Target, TargetReader,
};
use fedtune_config::job::{Task, TaskKind};
use tempfile::TempDir;

fn columns() -> Columns {
    Columns::labelled("text", "label")
}

fn task(labels: &[String]) -> Task {
    Task::new(TaskKind::TextClassification, labels.to_vec())
}

fn reader(labels: &[String], local: &BTreeMap<String, String>) -> Result<TargetReader, DataError> {
    TargetReader::new(&task(labels), local)
}

fn labels(names: &[&str]) -> TargetReader {
    reader(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), &BTreeMap::new()).unwrap()
}

fn file(name: &str, content: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

fn read(name: &str, content: &[u8]) -> Result<(Vec<Row>, DataReport), DataError> {
    let (_folder, path) = file(name, content);
    data::read(&path, &columns(), &labels(&["good", "bad"])).map(|(rows, report)| (whole(&rows), report))
}

fn whole(rows: &Rows) -> Vec<Row> {
    (0..rows.len()).map(|row| rows.row(row).unwrap()).collect()
}

fn refused(name: &str, content: &[u8], words: &[&str]) {
    let error = read(name, content).unwrap_err().to_string();
    for word in [&[name], words].concat() {
        assert!(error.contains(word), "{error:?} lacks {word:?}");
    }
}

fn texts(content: &[u8]) -> Vec<String> {
    read("a.csv", content).unwrap().0.into_iter().map(|row| row.content.texts().concat()).collect()
}

/// One faulty row between two good ones: it is left out, counted, and its line is named.
fn left_out(row: &[u8], kind: &str) {
    let content = [b"text,label\nfirst,good\n", row, b"\nlast,bad\n"].concat();
    let (rows, report) = read("a.csv", &content).unwrap();
    assert_eq!(rows.iter().map(|row| row.content.texts().concat()).collect::<Vec<_>>(), ["first", "last"], "{kind}");
    assert_eq!((report.rows, report.used, report.skipped()), (3, 2, 1));
    assert_eq!(report.faults[kind].count, 1, "{report}");
    assert_eq!(report.faults[kind].first[0].0, 3);
    assert!(report.to_string().contains(kind));
}

#[test]
fn valid_csv_is_read_in_every_dress() {
    assert_eq!(texts(b"text,label\na,good\nb,bad\n"), ["a", "b"]);
    assert_eq!(texts(b"\xef\xbb\xbftext,label\r\na,good\r\nb,bad\r\n"), ["a", "b"]);
    assert_eq!(texts(b"label,extra,text\ngood,,a\nbad,x,b"), ["a", "b"]);
    assert_eq!(texts(b"\n\ntext,label\n\n\na,good\n\nb,bad\n\n"), ["a", "b"]);
    assert_eq!(texts(b"text,label\n\"a, \"\"b\"\"\nc\",good\n\" b \", bad \n"), ["a, \"b\"\nc", " b "]);
    assert_eq!(texts("text,label\nüñ 漢字,good\n=1+1,bad\n".as_bytes()), ["üñ 漢字", "=1+1"]);
}

#[test]
fn lines_are_counted_through_quoted_line_breaks_and_blank_lines() {
    let (_, report) = read("a.csv", b"text,label\n\n\"a\nb\r\nc\",good\n\n,bad\nx,bad\n").unwrap();
    assert_eq!(report.faults["empty text"].first[0].0, 7);
}

#[test]
fn faulty_csv_rows_are_left_out_and_named() {
    left_out(b"alone", "wrong number of fields");
    left_out(b"\"a\nb\",good,more", "wrong number of fields");
    left_out(b"a,good,more", "wrong number of fields");
    left_out(b"caf\xe9,good", "not UTF-8");
    left_out(b"a\0b,good", "NUL byte");
    left_out(b",good", "empty text");
    left_out(b"\"\",good", "empty text");
    left_out(b" \t ,good", "text of white space only");
    left_out(b"a,", "empty label");
    left_out(b"a,  ", "empty label");
    left_out(b"a,Good", "unknown label");
    left_out(b"good,a text", "unknown label");
    left_out(&[&vec![b'x'; MAX_TEXT + 1][..], b",good"].concat(), "text too long");
}

#[test]
fn unknown_labels_are_listed_with_the_nearest_known_one() {
    let (_, report) = read("a.csv", b"text,label\na,good\nb,goood\nc,goood\nd,zebra\n").unwrap();
    let found = &report.unknown_labels["goood"];
    assert_eq!((found.count, found.nearest.as_deref()), (2, Some("good")));
    assert_eq!(report.unknown_labels["zebra"].nearest, None);
    assert!(report.to_string().contains("did you mean \"good\"?"), "{report}");
}

#[test]
fn a_text_of_the_allowed_length_is_used() {
    let content = [b"text,label\n", &vec![b'x'; MAX_TEXT][..], b",good\n"].concat();
    assert_eq!(texts(&content)[0].len(), MAX_TEXT);
}

#[test]
fn duplicates_and_conflicts_are_counted_and_used() {
    let (rows, report) = read("a.csv", b"text,label\na,good\na,good\na,bad\n").unwrap();
    assert_eq!((rows.len(), report.duplicates, report.conflicts), (3, 1, 1));
}

#[test]
fn duplicates_are_removed_with_their_counts() {
    let (_folder, path) = file("a.csv", b"text,label\nA  b,good\na B ,good\nx,bad\na b,bad\n,bad\nx,bad\n");
    let (rows, mut report) = data::read(&path, &columns(), &labels(&["good", "bad"])).unwrap();
    assert_eq!((report.duplicates, report.conflicts), (2, 1));
    let rows = whole(&report.remove_duplicates(&rows));
    assert_eq!(
        rows.iter().map(|row| (row.line, row.target.clone())).collect::<Vec<_>>(),
        [(2, 0), (4, 1), (5, 1)].map(|(line, label)| (line, Target::Class(label)))
    );
    assert_eq!((report.rows, report.used, report.removed, report.skipped()), (6, 3, 2, 1));
    assert_eq!((report.per_label[&0], report.per_label[&1]), (1, 2));
    assert!(report.to_string().contains("2 removed"), "{report}");
}

#[test]
fn groups_are_read_and_a_row_without_one_is_left_out() {
    let columns = Columns { group: Some("who".into()), ..columns() };
    for (name, content) in [
        ("a.csv", "who,text,label\n 7 ,a,good\n,b,bad\nx,c,bad\n"),
        (
            "a.jsonl",
            "{\"text\": \"a\", \"label\": \"good\", \"who\": 7}\n{\"text\": \"b\", \"label\": \"bad\", \"who\": \"\"}\n\
             {\"text\": \"c\", \"label\": \"bad\", \"who\": \"x\"}\n",
        ),
    ] {
        let (_folder, path) = file(name, content.as_bytes());
        let (rows, report) = data::read(&path, &columns, &labels(&["good", "bad"])).unwrap();
        assert_eq!((0..rows.len()).map(|row| rows.group(row).unwrap()).collect::<Vec<_>>(), ["7", "x"], "{name}");
        assert_eq!(report.faults["empty group"].count, 1, "{report}");
    }
    let (_folder, path) = file("a.csv", b"text,label\na,good\n");
    let error = data::read(&path, &columns, &labels(&["good", "bad"])).unwrap_err().to_string();
    assert!(error.contains("no column \"who\"") && error.contains("data.group_column in site.toml or"), "{error}");
}

#[test]
fn local_label_names_are_mapped() {
    let local = BTreeMap::from([("1".to_owned(), "good".to_owned()), ("0".to_owned(), "bad".to_owned())]);
    let map = reader(&["good".into(), "bad".into()], &local).unwrap();
    let (_folder, path) = file("a.csv", b"text,label\na,1\nb,0\nc,good\n");
    let (rows, _) = data::read(&path, &columns(), &map).unwrap();
    assert_eq!(rows.labels().collect::<Vec<_>>(), [0, 1, 0]);
    let wrong = BTreeMap::from([("1".to_owned(), "great".to_owned())]);
    let error = reader(&["good".into()], &wrong).unwrap_err().to_string();
    assert!(error.contains("\"great\"") && error.contains("\"good\""), "{error}");
}

#[test]
fn faulty_files_are_refused_with_what_was_found() {
    refused("a.csv", b"", &["the file is empty"]);
    refused("a.csv", b"\xef\xbb\xbf \n", &["the file is empty"]);
    refused("a.csv", b"text,label\n", &["no row"]);
    refused("a.jsonl", b"\n", &["the file is empty"]);
    refused("a.csv", b"sentence,label\na,good\n", &[":1", "no column \"text\"", "\"sentence\"", "data.text_column"]);
    refused("a.csv", b"text,category\na,good\n", &["no column \"label\"", "data.label_column"]);
    refused("a.csv", b"TEXT,LABEL\na,good\n", &["differs only in case"]);
    refused("a.csv", b"texts,label\na,good\n", &["did you mean \"texts\"?"]);
    refused(
        "a.csv",
        b"\n\"A long sentence that is no name of a column, surely.\",good\nb,bad\n",
        &[":2", "is the first line a row?"],
    );
    refused("a.csv", b"text,label,label\na,good,bad\n", &["\"label\" stands 2 times"]);
    refused("a.csv", b"text;label\na;good\n", &["semicolons"]);
    refused("a.csv", b"text\tlabel\na\tgood\n", &["tabs"]);
    refused("a.csv", b"\xff\xfet\0e\0x\0t\0", &["UTF-16"]);
    refused("a.csv", b"t\0e\0x\0t\0,\0l\0a\0b\0e\0l\0\n\0", &["UTF-16"]);
    refused("a.csv", b"\x1f\x8b\x08\0\0\0", &["gzip", "gunzip"]);
    refused("a.csv", b"PK\x03\x04\0\0", &["spreadsheet", "CSV UTF-8"]);
    refused("a.csv", b"PAR1\0\0", &["Parquet"]);
    refused("a.csv", &(0..=255).cycle().take(4096).collect::<Vec<u8>>(), &["binary"]);
    refused("a.csv", b"text,label\na,good\n\"b,bad\nc,good\n", &[":3", "never closed"]);
    let swallowed =
        [b"text,label\na,good\n\"b,bad\n".as_slice(), &b"c,good\n".repeat(9), b"\"d, e\",bad\nf,good\n"].concat();
    refused("a.csv", &swallowed, &[":3", "never closed", "11 lines"]);
    refused("a.csv", b"text,label\na,x\nb,y\n", &["none of its 2 rows", "\"x\"", "expected labels: \"good\", \"bad\""]);
    refused("a.csv", b"text,label\ncaf\xe9,good\n", &["none of its 1 rows", "not UTF-8"]);
    refused("a.txt", b"text,label\na,good\n", &["\"txt\"", ".csv, .jsonl"]);
    let error = data::read(Path::new("nowhere.csv"), &columns(), &labels(&["a"])).unwrap_err().to_string();
    assert!(error.contains("nowhere.csv") && error.contains("cannot be read"), "{error}");
}

#[test]
fn faulty_json_lines_are_left_out_and_named() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let long = format!("{{\"text\": \"{}\", \"label\": \"good\"}}", "x".repeat(MAX_TEXT + 1));
    for (line, kind) in [
        ("nonsense", "not valid JSON"),
        ("{\"text\": \"a\", \"label\": \"good\"", "not valid JSON"),
        ("{\"text\": \"a\", \"label\": \"good\"} {}", "not valid JSON"),
        ("{\"text\": \"\\ud800\", \"label\": \"good\"}", "not valid JSON"),
        (&deep, "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("3", "not a JSON object"),
        ("null", "not a JSON object"),
        ("\"text\"", "not a JSON object"),
        ("{\"label\": \"good\"}", "missing key"),
        ("{\"text\": \"a\"}", "missing key"),
        ("{\"text\": \"a\", \"text\": \"b\", \"label\": \"good\"}", "key given twice"),
        ("{\"text\": 3, \"label\": \"good\"}", "wrong type"),
        ("{\"text\": null, \"label\": \"good\"}", "wrong type"),
        ("{\"text\": \"a\", \"label\": [\"good\"]}", "wrong type"),
        ("{\"text\": \"\", \"label\": \"good\"}", "empty text"),
        ("{\"text\": \" \", \"label\": \"good\"}", "text of white space only"),
        ("{\"text\": \"a\\u0000\", \"label\": \"good\"}", "NUL byte"),
        ("{\"text\": \"a\", \"label\": \"\"}", "empty label"),
        ("{\"text\": \"a\", \"label\": 7}", "unknown label"),
        (&long, "text too long"),
    ] {
        let good = "{\"text\": \"x\", \"label\": \"good\", \"more\": {}}\r\n";
        let (rows, report) = read("a.jsonl", format!("{good}\n{line}\n{good}").as_bytes()).unwrap();
        assert_eq!(rows.len(), 2, "{kind}");
        assert_eq!(report.faults[kind].first[0].0, 3, "{report}");
    }
    let (_folder, path) = file("a.ndjson", b"{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\", \"label\": true}");
    let rows = data::read(&path, &columns(), &labels(&["1", "true"])).unwrap().0;
    assert_eq!(rows.labels().collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_huge_cell_does_not_fill_the_memory() {
    for (name, start, end) in [
        ("a.csv", "text,label\n\"", "\",good\nb,bad\n"),
        ("a.jsonl", "{\"text\": \"", "\"}\n{\"text\": \"b\", \"label\": \"bad\"}"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let mut out = std::fs::File::create(&path).unwrap();
        out.write_all(start.as_bytes()).unwrap();
        for _ in 0..64 {
            out.write_all(&vec![b'x'; 1 << 20]).unwrap();
        }
        out.write_all(end.as_bytes()).unwrap();
        drop(out);
        let (rows, report) = data::read(&path, &columns(), &labels(&["good", "bad"])).unwrap();
        assert_eq!((rows.len(), report.faults["text too long"].count), (1, 1));
        assert!(report.to_string().contains("67108"), "{report}");
    }
}

/// Rows of every shape, those that are left out among them.
const SHAPES: [(&str, &str); 3] = [
    (
        "a.csv",
        "\u{feff}more,text,who,label\r\n1,plain,x,good\r\n\r\n2,\"a \"\"quoted\"\"\nsecond line, and more\",y,bad\r\n\
         3,too few\r\n\u{feff}4,Plain,x,bad\r\n5,plain,x,good\r\n6,,x,good\r\n7,unknown,x,ugly\r\n8,\u{65e5}\u{672c},z,bad",
    ),
    ("b.csv", "text,label,who\n\u{feff}first,good,1\n\"\u{feff}\",bad,2\n\"last\",\"bad\",3\n\n"),
    (
        "c.jsonl",
        "\u{feff}{\"text\": \"plain\", \"label\": \"good\", \"who\": 1}\r\n\n{\"text\": 3}\n\
         {\"who\": \"1\", \"text\": \"a\\nb\", \"label\": \"bad\"}\n{\"text\": \"end\", \"label\": \"good\", \"who\": 2}",
    ),
];

fn grouped() -> Columns {
    Columns { group: Some("who".into()), ..columns() }
}

#[test]
fn rows_are_the_same_in_memory_and_in_the_file() {
    for (name, content) in SHAPES {
        let (_folder, path) = file(name, content.as_bytes());
        let read = |most| data::read_holding(&path, &grouped(), &labels(&["good", "bad"]), most).unwrap();
        let ((held, report), (in_file, same)) = (read(1 << 20), read(0));
        assert!(held.held() && !in_file.held());
        assert!(held.len() >= 3, "{name}: {report}");
        assert_eq!(whole(&held), whole(&in_file), "{name}");
        assert_eq!(report.to_string(), same.to_string());
        let backwards = (0..held.len()).rev();
        assert_eq!(held.contents(backwards.clone()).unwrap(), in_file.contents(backwards).unwrap(), "{name}");
        let (one, other) = (data::split(held.clone(), 0.4), data::split(in_file.clone(), 0.4));
        assert_eq!((whole(&one.0), whole(&one.1)), (whole(&other.0), whole(&other.1)), "{name}");
        let sampling = data::Sampling { per_label: Some(2), oversample: 3.0 };
        let sampled = sampling.apply(held.clone(), 1).unwrap();
        assert_eq!(whole(&sampled), whole(&sampling.apply(in_file.clone(), 1).unwrap()), "{name}");
        let (mut report, mut same) = (report, same);
        assert_eq!(whole(&report.remove_duplicates(&held)), whole(&same.remove_duplicates(&in_file)), "{name}");
        assert_eq!(report.to_string(), same.to_string());
    }
}

#[test]
fn texts_are_held_up_to_a_limit() {
    let (_folder, path) = file("a.csv", b"text,label\nabc,good\ndefg,bad\n");
    let held = |most| data::read_holding(&path, &columns(), &labels(&["good", "bad"]), most).unwrap().0.held();
    let bytes = 7 + 2 * size_of::<String>();
    assert!(held(bytes) && !held(bytes - 1));
}

#[test]
fn a_file_that_changes_while_it_is_used_is_an_error_with_its_line() {
    let content = "text,label\none,good\ntwo,bad\nsix,good\n";
    type Change = (&'static str, bool, &'static [&'static str]);
    let changes: [Change; 5] = [
        ("text,label\none,good\ntwo,bad\nsix,good\nten,bad\n", true, &["it had 37 bytes and has 45"]),
        ("text,label\none,good\ntwo,bad\nsix,good\n", false, &["it was written to"]),
        ("text,label\none,good\ntwx,bad\nsix,good\n", true, &["another text"]),
        ("text,label\none,good\ntwo;bad\nsix,good\n", true, &["no usable row"]),
        ("text,label\none,good\n\"wo,bad\nsix,good\n", true, &["no usable row"]),
    ];
    for (changed, same_time, words) in changes {
        let (_folder, path) = file("a.csv", content.as_bytes());
        let rows = data::read_holding(&path, &columns(), &labels(&["good", "bad"]), 0).unwrap().0;
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, changed).unwrap();
        let time = if same_time { time } else { time + std::time::Duration::from_secs(7) };
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let error = rows.contents([1, 2]).unwrap_err();
        assert!(matches!(error, DataError::Changed { line: 3, .. }), "{error}");
        for word in [&["a.csv:3:", "Start again"], words].concat() {
            assert!(error.to_string().contains(word), "{error} lacks {word:?}");
        }
    }
    let (_folder, path) = file("a.csv", content.as_bytes());
    let rows = data::read_holding(&path, &columns(), &labels(&["good", "bad"]), 0).unwrap().0;
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(rows.contents([0]).unwrap_err(), DataError::Read { .. }));
}

#[test]
fn labels_are_found_sorted() {
    let (_folder, path) = file("a.csv", b"text,label\na,z\nb,y\nc, z \n,x\n");
    assert_eq!(data::labels_in(&path, &columns(), &task(&[])).unwrap(), ["y", "z"]);
    let (_folder, path) = file("a.csv", b"text,label\na,z\nb,z\n");
    assert!(data::labels_in(&path, &columns(), &task(&[])).unwrap_err().to_string().contains("at least two labels"));
    let (_folder, path) = file("a.csv", b"text,label\n,z\n");
    assert!(matches!(data::labels_in(&path, &columns(), &task(&[])), Err(DataError::NoUsableRow { .. })));
}

#[test]
fn texts_are_read_without_labels() {
    let (_folder, path) = file("a.csv", b"id,text\n1,a\n2,\n3,c\n");
    let mut found = Vec::new();
    data::scan(&path, &columns().unlabelled(), &mut |line, row| found.push((line, row))).unwrap();
    let row = |text: &str| Ok(RawRow { content: text.into(), label: None, group: None });
    assert_eq!(found, [(2, row("a")), (3, Err(Fault::EmptyText)), (4, row("c"))]);
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

fn manifest(path: &Path) -> Vec<serde_json::Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every faulty line of a file, and how many rows were used.
fn faulty_lines(path: &Path, known: &TargetReader) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let (mut used, mut faulty) = (BTreeSet::new(), BTreeSet::new());
    data::scan(path, &columns(), &mut |line, row| {
        let usable = row.is_ok_and(|row| known.read(row.label, &row.content).is_ok());
        if usable {
            used.insert(line)
        } else {
            faulty.insert(line)
        };
    })
    .unwrap();
    (used, faulty)
}

#[test]
fn the_dirty_csv_is_read_as_its_manifest_says() {
    let Some(folder) = dirty() else { return };
    let intents = data::labels_in(&folder.join("clean.csv"), &columns(), &task(&[])).unwrap();
    assert_eq!(intents.len(), 10);
    let known = reader(&intents, &BTreeMap::new()).unwrap();
    let unusable = [
        "label_empty",
        "columns_swapped",
        "bad_utf8",
        "nul_byte",
        "text_blank",
        "missing_field",
        "extra_field",
        "text_empty",
        "label_unknown",
        "label_typo",
        "huge_cell",
        "label_case",
    ];
    let path = folder.join("dirty.csv");
    let expected: BTreeSet<u64> = manifest(&folder.join("manifest.jsonl"))
        .iter()
        .filter(|entry| unusable.contains(&entry["fault"].as_str().unwrap()))
        .map(|entry| entry["line"].as_u64().unwrap())
        .collect();
    let (used, faulty) = faulty_lines(&path, &known);
    assert_eq!(faulty, expected);
    let (rows, report) = data::read(&path, &columns(), &known).unwrap();
    assert_eq!(rows.len(), used.len());
    assert_eq!(report.skipped() as usize, expected.len());
    assert!(report.duplicates >= 20 && report.conflicts >= 10, "{report}");
}

#[test]
fn the_dirty_jsonl_is_read_as_its_manifest_says() {
    let Some(folder) = dirty() else { return };
    let intents = data::labels_in(&folder.join("clean.csv"), &columns(), &task(&[])).unwrap();
    let known = reader(&intents, &BTreeMap::new()).unwrap();
    let harmless = ["crlf", "extra_key", "blank_line"];
    let expected: BTreeSet<u64> = manifest(&folder.join("manifest_jsonl.jsonl"))
        .iter()
        .filter(|entry| !harmless.contains(&entry["fault"].as_str().unwrap()))
        .map(|entry| entry["line"].as_u64().unwrap())
        .collect();
    assert_eq!(faulty_lines(&folder.join("dirty.jsonl"), &known).1, expected);
}

#[test]
fn each_dirty_file_is_used_or_refused_as_expected() {
    let Some(folder) = dirty() else { return };
    let intents = data::labels_in(&folder.join("clean.csv"), &columns(), &task(&[])).unwrap();
    let known = reader(&intents, &BTreeMap::new()).unwrap();
    let outcome = |name: &str| data::read(&folder.join("files").join(name), &columns(), &known);
    for name in ["bom_crlf", "columns_reversed", "no_final_newline", "one_class", "one_row"] {
        let (rows, report) = outcome(&format!("{name}.csv")).unwrap();
        assert!(!rows.is_empty() && report.skipped() == 0, "{name}: {report}");
    }
    for (name, words) in [
        ("header_upper", "differs only in case"),
        ("header_other_names", "no column \"text\""),
        ("no_header", "no column \"text\""),
        ("duplicate_header", "stands 2 times"),
        ("unterminated_quote", "never closed"),
        ("empty", "is empty"),
        ("header_only", "no row"),
        ("semicolon", "semicolons"),
        ("utf16", "UTF-16"),
        ("binary", "expected UTF-8 text"),
        ("gzip_named_csv", "gzip"),
        ("int_labels", "unknown label"),
    ] {
        let error = outcome(&format!("{name}.csv")).unwrap_err().to_string();
        assert!(error.contains(words), "{name}: {error}");
    }
    let (rows, report) = outcome("latin1.csv").unwrap();
    assert_eq!((report.faults["not UTF-8"].first[0].0, report.skipped()), (2, 1), "{report}");
    assert!(!rows.is_empty());
    let mapped = Columns::labelled("sentence", "category");
    assert!(data::read(&folder.join("files/header_other_names.csv"), &mapped, &known).is_ok());
    let digits = data::labels_in(&folder.join("files/int_labels.csv"), &columns(), &task(&[])).unwrap();
    let digits = reader(&digits, &BTreeMap::new()).unwrap();
    assert_eq!(data::read(&folder.join("files/int_labels.csv"), &columns(), &digits).unwrap().1.skipped(), 0);
}
