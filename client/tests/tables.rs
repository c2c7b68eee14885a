//! Rows of tables as files have them.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;
use fedtune_client::data::{self, Cell, CellColumn, CellKind, Columns, Content, Fault, RawRow, Renamed, TargetReader};
use fedtune_config::job::{Task, TaskKind};
use proptest::prelude::*;

fn columns(named: &[(&str, bool)]) -> Columns {
    let column = |(name, number): &(&str, bool)| CellColumn {
        name: (*name).into(),
        kind: if *number { CellKind::Number } else { CellKind::Word { known: vec!["a".into(), "b".into()] } },
    };
    let task = Task::new(TaskKind::TableClassification, vec!["x".into(), "y".into()]);
    Columns::of(&task, &Renamed::default()).taking(named.iter().map(column).collect())
}

fn rows(path: &Path, columns: &Columns) -> Vec<(u64, Result<RawRow, Fault>)> {
    let mut rows = Vec::new();
    data::scan(path, columns, &mut |line, row| rows.push((line, row))).unwrap();
    rows
}

fn word(word: &str) -> Cell {
    Cell::Word(word.into())
}

fn write<T: DataType>(part: &mut SerializedRowGroupWriter<'_, fs::File>, values: &[Option<T::T>]) {
    let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    let values: Vec<T::T> = values.iter().flatten().cloned().collect();
    let mut column = part.next_column().unwrap().unwrap();
    column.typed::<T>().write_batch(&values, Some(&levels), None).unwrap();
    column.close().unwrap();
}

#[test]
fn parquet_has_cells_of_every_plain_type() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let schema = "message rows { optional double size; optional int32 count; optional boolean yes; \
                  optional binary kind (STRING); optional int64 label; optional int32 day (DATE); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = fs::File::create(&path).unwrap();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let text = |text: &str| Some(ByteArray::from(text));
    for start in [0.0, 2.0] {
        let mut part = writer.next_row_group().unwrap();
        write::<DoubleType>(&mut part, &[Some(start), Some(f64::NAN), Some(f64::INFINITY)]);
        write::<Int32Type>(&mut part, &[Some(3), None, Some(5)]);
        write::<BoolType>(&mut part, &[Some(true), None, Some(false)]);
        write::<ByteArrayType>(&mut part, &[text("a"), text(" "), text("c")]);
        write::<Int64Type>(&mut part, &[Some(7), Some(7), Some(7)]);
        write::<Int32Type>(&mut part, &[Some(1), Some(1), Some(1)]);
        part.close().unwrap();
    }
    writer.close().unwrap();
    assert_eq!(data::column_names(&path).unwrap(), ["size", "count", "yes", "kind", "label", "day"]);
    let all = columns(&[("yes", true), ("size", true), ("count", false), ("kind", false), ("yes", false)]);
    let found = rows(&path, &all);
    let cells = |place: usize| match &found[place].1 {
        Ok(RawRow { content: Content::Cells(cells), .. }) => cells.to_vec(),
        other => panic!("{other:?}"),
    };
    assert_eq!(cells(0), [Cell::Number(1.0), Cell::Number(0.0), word("3"), word("a"), word("true")]);
    assert_eq!(cells(1), vec![Cell::Missing; 5]);
    let infinite = found[2].1.as_ref().unwrap_err();
    assert_eq!(infinite.to_string(), "column \"size\": found \"inf\", expected a finite number or nothing");
    assert_eq!(cells(3)[1], Cell::Number(2.0));
    let wrong = data::scan(&path, &columns(&[("day", true)]), &mut |_, _| {}).unwrap_err().to_string();
    assert!(wrong.contains("\"day\" holds INT32 as Date") && wrong.contains("model"), "{wrong}");
    let missing = data::scan(&path, &columns(&[("sizes", true)]), &mut |_, _| {}).unwrap_err().to_string();
    assert!(missing.contains("no column \"sizes\" for the model") && missing.contains("mean \"size\"?"), "{missing}");

    // Held or read again, the rows are the same.
    let task = Task::new(TaskKind::TableClassification, vec!["7".into(), "8".into()]);
    let targets = TargetReader::new(&task, &Default::default()).unwrap();
    let read = |most| data::read_holding(&path, &all, &targets, most).unwrap();
    let ((held, report), (again, _)) = (read(usize::MAX), read(0));
    assert!(held.held() && !again.held());
    assert_eq!((report.used, report.duplicates, report.faults["cell that is not a finite number"].count), (4, 1, 2));
    assert_eq!(report.unknown_words["count"], 2);
    for order in [vec![0, 1, 2, 3], vec![3, 0, 0]] {
        assert_eq!(held.contents(order.clone()).unwrap(), again.contents(order).unwrap());
    }
    // A file that is cut is refused, wherever it is cut.
    let bytes = fs::read(&path).unwrap();
    for length in (0..bytes.len()).step_by(17) {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(data::scan(&path, &all, &mut |_, _| {}).is_err(), "{length}");
    }
}

#[test]
fn csv_and_json_rows_are_the_same_held_or_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let (csv, json) = (folder.path().join("rows.csv"), folder.path().join("rows.jsonl"));
    fs::write(&csv, "\u{feff}k,label,n,more\n\"a\",x, 1.50 ,\"u\nv\"\n2.0,y,NaN,\n,x,1e3,w\n").unwrap();
    let lines = "{\"label\": \"x\", \"n\": 1.5, \"k\": \"a\"}\n{\"k\": 2.0, \"n\": null, \"label\": \"y\"}\n\
                 {\"k\": null, \"n\": \"1000\", \"label\": \"x\"}\n";
    fs::write(&json, lines).unwrap();
    let columns = columns(&[("n", true), ("k", false)]);
    let expected = [[Cell::Number(1.5), word("a")], [Cell::Missing, word("2")], [Cell::Number(1000.0), Cell::Missing]];
    let task = Task::new(TaskKind::TableClassification, vec!["x".into(), "y".into()]);
    let targets = TargetReader::new(&task, &Default::default()).unwrap();
    for path in [&csv, &json] {
        for most in [usize::MAX, 0] {
            let (rows, _) = data::read_holding(path, &columns, &targets, most).unwrap();
            let found: Vec<Content> = rows.contents(0..3).unwrap().into_iter().map(|row| row.into_owned()).collect();
            let expected: Vec<Content> = expected.iter().map(|cells| Content::Cells(cells.clone().into())).collect();
            assert_eq!(found, expected, "{} {most}", path.display());
        }
    }
    assert_eq!(data::column_names(&csv).unwrap(), ["k", "label", "n", "more"]);
    assert_eq!(data::column_names(&json).unwrap(), ["label", "n", "k"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever stands in a file, rows are cells or faults.
    #[test]
    fn any_csv_gives_cells_or_faults(text in "[a-z0-9,.;\"\n ?\\-]{0,120}", bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.csv");
        let mut file = b"n,k,label\n".to_vec();
        file.extend_from_slice(text.as_bytes());
        file.extend_from_slice(&bytes);
        fs::write(&path, file).unwrap();
        let columns = columns(&[("n", true), ("k", false)]);
        let _ = data::scan(&path, &columns, &mut |_, row| {
            if let Ok(RawRow { content, .. }) = row {
                let Content::Cells(cells) = content else { panic!("{content:?}") };
                assert!(matches!(cells[0], Cell::Missing | Cell::Number(_)) && !matches!(cells[1], Cell::Number(_)));
            }
        });
        let _ = data::column_names(&path);
    }
}
