//! Images from Parquet files and folders, against what Pillow and transformers make of them, and against damage.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use fedtune_client::data::image::{Pixels, Preparation, PreparationError, decode};
use fedtune_client::data::parquet::ParquetError;
use fedtune_client::data::{
    self, Columns, Content, DataError, DataReport, Fault, RawLabel, Renamed, Rows, TargetReader,
};
use fedtune_config::job::{Task, TaskKind};
use proptest::prelude::*;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name)
}

fn pillow() -> Value {
    serde_json::from_slice(&fs::read(fixture("pillow.json")).unwrap()).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn image(case: &Value) -> Pixels {
    let side = |name: &str| u32::try_from(case[name].as_u64().unwrap()).unwrap();
    Pixels::new(side("width"), side("height"), bytes(&case["rgb"])).unwrap()
}

fn task(labels: &[&str]) -> Task {
    Task::new(TaskKind::ImageClassification, labels.iter().map(ToString::to_string).collect())
}

fn names(labels: &[&str]) -> TargetReader {
    TargetReader::new(&task(labels), &BTreeMap::new()).unwrap()
}

fn cells() -> TargetReader {
    names(&["Platelets", "RBC", "WBC"])
}

/// The columns `image` and `label`.
fn columns() -> Columns {
    Columns::of(&task(&[]), &Renamed::default())
}

fn labelled(image: &str, label: &str) -> Columns {
    let renamed = Renamed { image: Some(image.into()), label: Some(label.into()), ..Renamed::default() };
    Columns::of(&task(&[]), &renamed)
}

fn pixels(rows: &Rows, wanted: &[usize]) -> Result<Vec<Pixels>, DataError> {
    let contents = rows.contents(wanted.iter().copied())?;
    let decoded = contents.iter().map(|content| match content.as_ref() {
        Content::Image(picture) => decode(&picture.bytes).unwrap(),
        other => panic!("{other:?}"),
    });
    Ok(decoded.collect())
}

/// Rows by kind of fault, numbered from 1.
fn fault_rows(report: &DataReport) -> BTreeMap<u64, (&'static str, String)> {
    let faults = report.faults.iter().flat_map(|(kind, faults)| {
        assert!(faults.first.len() as u64 == faults.count, "more {kind} than are listed");
        faults.first.iter().map(|(row, message)| (*row, (*kind, message.clone())))
    });
    faults.collect()
}

#[test]
fn every_colour_mode_and_format_is_decoded_as_pillow_does() {
    let cases = pillow();
    let cases = cases["decode"].as_array().unwrap();
    assert_eq!(cases.len(), 18);
    for case in cases {
        let (name, expected) = (case["name"].as_str().unwrap(), image(case));
        let found = decode(&bytes(&case["encoded"])).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        assert_eq!((found.width(), found.height()), (expected.width(), expected.height()), "{name}");
        let differences = found.rgb().iter().zip(expected.rgb()).map(|(a, b)| a.abs_diff(*b));
        let (most, sum) = differences.fold((0, 0u64), |(most, sum), d| (most.max(d), sum + u64::from(d)));
        let mean = sum as f64 / found.rgb().len() as f64;
        // Decoders of lossy formats may round in their own way.
        let (allowed, allowed_mean) = match name {
            _ if name.contains("JPEG") || name == "lossy WebP" => (6, 1.0),
            _ => (0, 0.0),
        };
        assert!(most <= allowed && mean <= allowed_mean, "{name}: {most} at most, {mean} in the mean");
    }
}

#[test]
fn images_are_prepared_as_transformers_does() {
    let cases = pillow();
    let cases = cases["prepare"].as_array().unwrap();
    assert_eq!(cases.len(), 19);
    let folder = tempfile::tempdir().unwrap();
    for case in cases {
        let name = case["name"].as_str().unwrap();
        fs::write(folder.path().join("preprocessor_config.json"), case["config"].to_string()).unwrap();
        let preparation = Preparation::of_folder(folder.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let shape: Vec<u64> = case["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap()).collect();
        assert_eq!(shape[0], 3);
        assert_eq!(preparation.size().map(u64::from), [shape[1], shape[2]], "{name}");
        let mut found = vec![0.0; preparation.len()];
        assert!(preparation.values(&preparation.fit(&image(&case["image"])), &mut found), "{name}");
        let expected: Vec<f64> = case["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(found.len(), expected.len());
        // A level of 255, in the values of the most stretched channel.
        let config = &case["config"];
        let least = config["image_std"]
            .as_array()
            .map_or(0.229, |std| std.iter().filter_map(Value::as_f64).fold(1.0, f64::min));
        let level = config["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0)
            / if config["do_normalize"] == false { 1.0 } else { least };
        let most = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(most <= 1.01 * level + 1e-4, "{name}: {most}, where a level is {level}");
    }
}

/// Of an image of 7 x 2 the first pixel of the crop gives the columns at the edge of its filter no weight, the second does.
#[test]
fn images_of_every_small_shape_are_prepared_with_every_filter() {
    let folder = tempfile::tempdir().unwrap();
    for filter in 1..=5 {
        let config = format!(
            r#"{{"image_processor_type": "BitImageProcessor", "size": {{"shortest_edge": 14}}, "crop_size": 14,
                "resample": {filter}, "do_rescale": false, "do_normalize": false}}"#
        );
        fs::write(folder.path().join("preprocessor_config.json"), config).unwrap();
        let preparation = Preparation::of_folder(folder.path()).unwrap();
        for (width, height) in (1..40).flat_map(|width| (1..40).map(move |height| (width, height))) {
            let pixels = Pixels::new(width, height, vec![200; 3 * (width * height) as usize]).unwrap();
            let mut found = vec![0.0; preparation.len()];
            assert!(preparation.values(&preparation.fit(&pixels), &mut found));
            assert!(found.iter().all(|value| *value == 200.0), "{width} x {height} with filter {filter}");
        }
    }
}

#[test]
fn a_preparation_that_cannot_be_followed_names_its_field() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("preprocessor_config.json");
    assert!(matches!(Preparation::of_folder(folder.path()), Err(PreparationError::Read { .. })));
    fs::write(&path, "[1]").unwrap();
    assert!(matches!(Preparation::of_folder(folder.path()), Err(PreparationError::Json { .. })));
    fs::write(&path, vec![b' '; 2 << 20]).unwrap();
    assert!(matches!(Preparation::of_folder(folder.path()), Err(PreparationError::TooLarge { .. })));
    for (config, field) in [
        (r#"{}"#, "image_processor_type"),
        (r#"{"image_processor_type": "SamImageProcessor"}"#, "image_processor_type"),
        (r#"{"image_processor_type": "ViTImageProcessor", "size": {"height": 0, "width": 3}}"#, "size.height"),
        (r#"{"image_processor_type": "ViTImageProcessor", "size": {"height": 4}}"#, "size.width"),
        (r#"{"image_processor_type": "ViTImageProcessor", "size": 1e9}"#, "size"),
        (r#"{"image_processor_type": "ViTImageProcessor", "do_resize": false}"#, "do_resize"),
        (r#"{"image_processor_type": "ViTImageProcessor", "do_rescale": "no"}"#, "do_rescale"),
        (r#"{"image_processor_type": "ViTImageProcessor", "rescale_factor": -1}"#, "rescale_factor"),
        (r#"{"image_processor_type": "ViTImageProcessor", "resample": 9}"#, "resample"),
        (r#"{"image_processor_type": "ViTImageProcessor", "image_std": [1, 0, 1]}"#, "image_std"),
        (r#"{"image_processor_type": "ViTImageProcessor", "image_mean": [0.5]}"#, "image_mean"),
        (r#"{"image_processor_type": "ConvNextImageProcessor", "size": 20, "crop_pct": 0.001}"#, "crop_pct"),
        (r#"{"image_processor_type": "DeiTImageProcessor", "size": 20, "crop_size": 21}"#, "crop_size"),
        (r#"{"image_processor_type": "CLIPImageProcessor", "do_center_crop": false}"#, "do_center_crop"),
    ] {
        fs::write(&path, config).unwrap();
        match Preparation::of_folder(folder.path()) {
            Err(error @ PreparationError::Field { .. }) => {
                let message = error.to_string();
                assert!(message.contains(&format!("preprocessor_config.json: {field}: found ")), "{config}: {message}");
            }
            other => panic!("{config}: {other:?}"),
        }
    }
}

#[test]
fn an_image_far_longer_than_wide_takes_no_more_memory() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 64}, "crop_size": 64}"#;
    fs::write(folder.path().join("preprocessor_config.json"), config).unwrap();
    let preparation = Preparation::of_folder(folder.path()).unwrap();
    // Resized as a whole it would have 64 x 4 million pixels.
    let line = Pixels::new(65_535, 1, (0..65_535 * 3).map(|value| (value / 3 / 256) as u8).collect()).unwrap();
    let fitted = preparation.fit(&line);
    assert_eq!((fitted.width(), fitted.height()), (64, 64));
    assert!(fitted.rgb().iter().all(|value| value.abs_diff(127) <= 1), "the middle");
}

#[test]
fn all_faults_of_the_dirty_images_are_found_and_clean_rows_used() {
    let (images, report) = data::read(&fixture("dirty_images.parquet"), &columns(), &cells()).unwrap();
    let found = fault_rows(&report);
    // Rows of the manifest are counted from 0.
    let kinds: BTreeMap<&str, Option<&str>> = [
        ("jpeg_cmyk", None),
        ("decompression_bomb_12000x12000", Some("image of too many pixels")),
        ("label_out_of_range", Some("label number without a name")),
        ("mode_gray_alpha", None),
        ("bmp", None),
        ("not_an_image", Some("not an image")),
        ("header_only", Some("truncated image")),
        ("mode_RGBA", None),
        ("label_negative", Some("label number without a name")),
        ("jpeg_rgb", None),
        ("zero_bytes", Some("image of zero bytes")),
        ("one_pixel_high", None),
        ("one_pixel", None),
        ("mode_palette", None),
        ("truncated", Some("truncated image")),
        ("label_null", Some("wrong type")),
        ("null_bytes_field", Some("no image")),
        ("gray_16bit", None),
        ("idat_crc_wrong", Some("damaged image")),
        ("mode_gray", None),
    ]
    .into();
    let manifest = fs::read_to_string(fixture("manifest_images.jsonl")).unwrap();
    let mut expected = BTreeMap::new();
    for line in manifest.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let fault = line["fault"].as_str().unwrap();
        if let Some(kind) = kinds[fault] {
            assert!(line["expected"].as_str().unwrap().starts_with("reject"), "{fault}");
            expected.insert(line["row"].as_u64().unwrap() + 1, kind);
        } else {
            assert!(line["expected"].as_str().unwrap().starts_with("accept"), "{fault}");
        }
    }
    assert_eq!(manifest.lines().count(), 20);
    assert_eq!(found.iter().map(|(row, (kind, _))| (*row, *kind)).collect::<BTreeMap<_, _>>(), expected);
    assert_eq!((report.rows, report.used, images.len()), (60, 50, 50));
    let numbers: BTreeSet<u64> = (0..images.len()).map(|row| images.line(row)).collect();
    assert_eq!(numbers, (1..=60).filter(|row| !expected.contains_key(row)).collect());
    assert!(found[&8].1.contains("12000 x 12000"), "{:?}", found[&8]);
    assert!(found[&9].1.contains("found 99, expected 0 to 2"), "{:?}", found[&9]);
    let pixels = pixels(&images, &(0..images.len()).collect::<Vec<_>>()).unwrap();
    assert_eq!(pixels.iter().filter(|image| (image.width(), image.height()) == (64, 64)).count(), 48);
}

#[test]
fn images_are_the_same_held_or_read_again() {
    let path = fixture("dirty_images.parquet");
    let read = |most| data::read_holding(&path, &columns(), &cells(), most).unwrap().0;
    let (held, again) = (read(usize::MAX), read(0));
    assert!(held.held() && !again.held());
    let order = [49, 3, 3, 0, 20, 48];
    assert_eq!(pixels(&held, &order).unwrap(), pixels(&again, &order).unwrap());
    assert_eq!(held.labels().collect::<Vec<_>>(), again.labels().collect::<Vec<_>>());
    assert_eq!(pixels(&held, &[]).unwrap(), []);
}

#[test]
fn the_names_of_classes_come_from_the_metadata() {
    let labels = data::labels_in(&fixture("dirty_images.parquet"), &columns(), &task(&[])).unwrap();
    assert_eq!(labels, ["Platelets", "RBC", "WBC"]);
}

/// A Parquet file of text, label (strings) and group (numbers), with a null for `None`; two rows in each row group.
fn write_texts(
    path: &Path,
    rows: &[(Option<&str>, Option<&str>, Option<i64>)],
    compression: Compression,
    metadata: &str,
) {
    let schema =
        "message rows { optional binary text (STRING); optional binary label (STRING); optional int64 group; }";
    let properties = WriterProperties::builder().set_compression(compression).build();
    let file = fs::File::create(path).unwrap();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    if !metadata.is_empty() {
        let pair = ::parquet::file::metadata::KeyValue::new("huggingface".into(), metadata.to_string());
        writer.append_key_value_metadata(pair);
    }
    for rows in rows.chunks(2) {
        let mut part = writer.next_row_group().unwrap();
        for column in 0..2 {
            let cells: Vec<_> = rows.iter().map(|row| [row.0, row.1][column]).collect();
            let levels: Vec<i16> = cells.iter().map(|cell| i16::from(cell.is_some())).collect();
            let values: Vec<ByteArray> = cells.into_iter().flatten().map(ByteArray::from).collect();
            let mut column = part.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
        }
        let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.2.is_some())).collect();
        let values: Vec<i64> = rows.iter().filter_map(|row| row.2).collect();
        let mut column = part.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        part.close().unwrap();
    }
    writer.close().unwrap();
}

const TEXTS: [(Option<&str>, Option<&str>, Option<i64>); 7] = [
    (Some("one"), Some(" a "), Some(1)),
    (Some("two"), None, Some(1)),
    (None, Some("b"), Some(2)),
    (Some("  "), Some("b"), Some(3)),
    (Some("five"), Some("b"), None),
    (Some(""), Some("a"), Some(1)),
    (Some("se\0ven"), Some("a"), Some(1)),
];

/// The columns of such a file.
fn wanted() -> Columns {
    Columns { group: Some("group".into()), ..Columns::labelled("text", "label") }
}

#[test]
fn parquet_can_replace_csv() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())] {
        write_texts(&path, &TEXTS, compression, "");
        let mut rows = Vec::new();
        data::scan(&path, &wanted(), &mut |number, row| rows.push((number, row))).unwrap();
        assert_eq!(rows.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
        let first = rows[0].1.as_ref().unwrap();
        assert_eq!(
            (&first.content, &first.label, first.group.as_deref()),
            (&Content::from("one"), &Some(RawLabel::One("a".into())), Some("1"))
        );
        let null = |key: &str, expected| Fault::WrongType { key: key.into(), found: "null", expected };
        let faults: Vec<Fault> = rows[1..].iter().map(|(_, row)| row.clone().unwrap_err()).collect();
        assert_eq!(
            faults,
            [
                null("label", "a string, a number or a boolean"),
                null("text", "a string"),
                Fault::BlankText,
                null("group", "a string, a number or a boolean"),
                Fault::EmptyText,
                Fault::Nul
            ]
        );
        let mut texts = 0;
        data::scan(&path, &wanted().unlabelled(), &mut |_, row| texts += usize::from(row.is_ok())).unwrap();
        assert_eq!(texts, 3);
    }
}

#[test]
fn columns_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    write_texts(&path, &TEXTS, Compression::UNCOMPRESSED, "");
    let scan = |wanted: Columns| match data::scan(&path, &wanted, &mut |_, _| {}) {
        Err(DataError::Parquet(error)) => error,
        other => panic!("{other:?}"),
    };
    let missing = scan(Columns::labelled("text", "Labels"));
    assert!(matches!(&missing, ParquetError::ColumnMissing { role: "label", found, .. } if found.len() == 3));
    assert!(missing.to_string().ends_with("(did you mean \"label\"?)"), "{missing}");
    let number = scan(Columns::labelled("group", "label"));
    assert!(matches!(&number, ParquetError::WrongType { column, .. } if column == "group"), "{number}");
    let image = data::read(&path, &labelled("text", "label"), &cells()).unwrap_err();
    assert!(matches!(&image, DataError::Parquet(ParquetError::WrongType { role: "image", .. })), "{image}");
    let image = data::read(&path, &columns(), &cells()).unwrap_err();
    assert!(matches!(&image, DataError::Parquet(ParquetError::ColumnMissing { role: "image", .. })), "{image}");
    let classes = [
        (r#"{"info": {"features": {"group": {"names": ["a", 1]}}}}"#, "info.features.group.names[1]"),
        (r#"{"info": {"features": {"group": {"names": ["a", "a"]}}}}"#, "info.features.group.names[1]"),
        (r#"{"info": {"features": {"group": {"names": 5}}}}"#, "info.features.group.names"),
        ("{", "the whole"),
    ];
    for (metadata, place) in classes {
        write_texts(&path, &TEXTS, Compression::UNCOMPRESSED, metadata);
        let error = match data::scan(&path, &wanted(), &mut |_, _| {}) {
            Err(DataError::Parquet(error @ ParquetError::Classes { .. })) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(error.contains(&format!("\"huggingface\" of the file, {place}: found ")), "{error}");
    }
}

#[test]
fn what_is_not_parquet_is_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let whole = fs::read(fixture("dirty_images.parquet")).unwrap();
    let with_footer = |length: u32| [&whole[..whole.len() - 8], &length.to_le_bytes(), b"PAR1"].concat();
    let encrypted = [&whole[..whole.len() - 4], b"PARE".as_slice()].concat();
    for (content, found) in [
        (Vec::new(), "a file of 0 bytes"),
        (b"PAR1PAR1".to_vec(), "a file of 8 bytes"),
        (b"text,label\nsomething,else\n".to_vec(), "another kind of file"),
        (whole[..whole.len() / 2].to_vec(), "a Parquet file whose end is missing"),
        (whole[..whole.len() - 1].to_vec(), "a Parquet file whose end is missing"),
        (with_footer(u32::MAX), "a footer that declares 4294967295 bytes"),
        (encrypted, "an encrypted Parquet file"),
    ] {
        fs::write(&path, content).unwrap();
        let error = data::read(&path, &columns(), &cells()).unwrap_err();
        assert!(matches!(&error, DataError::Parquet(ParquetError::NotParquet { .. })), "{error}");
        assert!(error.to_string().contains(found), "{error}");
    }
    let error = data::scan(folder.path(), &wanted(), &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, DataError::Folder { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_damaged_parquet_file_is_an_error_or_rows(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..6), footer: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        write_texts(&path, &TEXTS, Compression::SNAPPY, r#"{"info": {"features": {}}}"#);
        let mut content = fs::read(&path).unwrap();
        // Most of the structure is in the last third.
        let first = if footer { content.len() * 2 / 3 } else { 4 };
        for (place, value) in flips {
            let place = first + place.index(content.len() - first - 8);
            content[place] ^= value;
        }
        fs::write(&path, &content).unwrap();
        let mut rows = 0u64;
        if data::scan(&path, &wanted(), &mut |_, _| rows += 1).is_ok() {
            prop_assert!(rows < 1 << 20);
        }
    }
}

/// A Parquet file of encoded images, three in each row group, with groups as strings.
fn write_images(path: &Path, rows: &[(Vec<u8>, i64, &str)]) {
    let schema = "message rows { optional group image { optional binary bytes; optional binary path (STRING); } \
                  required int32 kind; required binary patient (STRING); }";
    let metadata = r#"{"info": {"features": {"kind": {"names": ["Platelets", "RBC", "WBC"]}}}}"#;
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = fs::File::create(path).unwrap();
    // Pages of one image each.
    let properties = WriterProperties::builder().set_data_page_size_limit(1).set_write_batch_size(1);
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties.build())).unwrap();
    writer.append_key_value_metadata(::parquet::file::metadata::KeyValue::new(
        "huggingface".into(),
        metadata.to_string(),
    ));
    for rows in rows.chunks(3) {
        let mut part = writer.next_row_group().unwrap();
        let twos = vec![2; rows.len()];
        let images: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(row.0.clone())).collect();
        let mut column = part.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&images, Some(&twos), None).unwrap();
        column.close().unwrap();
        let mut column = part.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[], Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        let kinds: Vec<i32> = rows.iter().map(|row| row.1 as i32).collect();
        let mut column = part.next_column().unwrap().unwrap();
        column.typed::<Int32Type>().write_batch(&kinds, None, None).unwrap();
        column.close().unwrap();
        let patients: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(row.2)).collect();
        let mut column = part.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&patients, None, None).unwrap();
        column.close().unwrap();
        part.close().unwrap();
    }
    writer.close().unwrap();
}

/// A small PNG of one colour.
fn flat(level: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, 2, 2);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&[level; 12]).unwrap();
    out
}

#[test]
fn any_rows_are_read_again_out_of_many_parts_and_pages() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let rows: Vec<(Vec<u8>, i64, &str)> = (0..20u8)
        .map(|row| {
            let image = if row == 7 { b"none".to_vec() } else { flat(row) };
            (image, i64::from(row % 3), ["p1", "p2"][usize::from(row > 4)])
        })
        .collect();
    write_images(&path, &rows);
    let columns = Columns { group: Some("patient".into()), ..labelled("image", "kind") };
    let (images, report) = data::read_holding(&path, &columns, &cells(), 0).unwrap();
    assert!(!images.held());
    assert_eq!((images.len(), report.rows), (19, 20));
    assert_eq!(fault_rows(&report).keys().copied().collect::<Vec<_>>(), [8]);
    assert_eq!((images.group(4), images.group(5)), (Some("p1"), Some("p2")));
    let wanted = [18, 0, 7, 7, 3, 11, 12, 2];
    let found: Vec<u8> = pixels(&images, &wanted).unwrap().iter().map(|image| image.rgb()[0]).collect();
    // Row 7 of the file is left out, so those after it have moved up.
    assert_eq!(found, [19, 0, 8, 8, 3, 12, 13, 2]);
    assert_eq!(images.labels().nth(7), Some(8 % 3));
}

#[test]
fn a_page_that_declares_too_much_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    write_images(&path, &[(flat(1), 0, "p"), (flat(2), 1, "p")]);
    let content = fs::read(&path).unwrap();
    // The first page header: its type, and the size that follows, in three bytes or fewer; the longest that fits is put
    // there, with the rest of the header moved into the data.
    assert_eq!((content[4], content[6]), (0x15, 0x15));
    let size = content[7..].iter().position(|byte| *byte < 0x80).unwrap() + 1;
    let huge = [0xfe, 0xff, 0xff, 0xff, 0x0f];
    let mut hostile = [&content[..7], &huge[..], &content[7 + size..]].concat();
    hostile.drain(60..60 + huge.len() - size);
    assert_eq!(hostile.len(), content.len());
    fs::write(&path, &hostile).unwrap();
    let error = data::read(&path, &labelled("image", "kind"), &cells()).unwrap_err();
    assert!(matches!(&error, DataError::Parquet(ParquetError::Damaged { .. })), "{error}");
    let message = error.to_string();
    assert!(
        message.contains("row group 0, column \"image.bytes\"") && message.contains("2147483647 when decompressed"),
        "{message}"
    );
}

/// A folder of images of two labels, and one file that is none.
fn image_folder(root: &Path) {
    let (held, _) = data::read(&fixture("dirty_images.parquet"), &columns(), &cells()).unwrap();
    for (place, image) in pixels(&held, &[0, 1, 2, 3]).unwrap().into_iter().enumerate() {
        let folder = root.join(["red", "white"][place % 2]);
        fs::create_dir_all(&folder).unwrap();
        let file = fs::File::create(folder.join(format!("{place}.png"))).unwrap();
        let mut encoder = png::Encoder::new(file, image.width(), image.height());
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(image.rgb()).unwrap();
    }
}

fn read_folder(root: &Path, most: usize) -> (Rows, DataReport) {
    data::read_holding(root, &columns(), &names(&["white", "red"]), most).unwrap()
}

#[test]
fn folders_give_labels_in_a_fixed_order_and_name_what_is_no_image() {
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    image_folder(root.path());
    fs::write(root.path().join(".hidden"), "").unwrap();
    fs::write(root.path().join("red/.DS_Store"), "").unwrap();
    fs::write(root.path().join("red/notes.txt"), "no image").unwrap();
    fs::write(root.path().join("white/empty.png"), "").unwrap();
    fs::create_dir(root.path().join("white/more")).unwrap();
    fs::write(outside.path().join("secret.png"), "x").unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret.png"), root.path().join("white/link.png")).unwrap();
    std::os::unix::fs::symlink(root.path().join("red/0.png"), root.path().join("white/same.png")).unwrap();
    let (images, report) = read_folder(root.path(), usize::MAX);
    assert_eq!(data::labels_in(root.path(), &columns(), &task(&[])).unwrap(), ["red", "white"]);
    // red: 0, 2, notes; white: 1, 3, empty, link, more, same.
    assert_eq!(images.labels().collect::<Vec<_>>(), [1, 1, 0, 0, 0]);
    assert_eq!((0..5).map(|row| images.line(row)).collect::<Vec<_>>(), [1, 2, 4, 5, 9]);
    assert_eq!((report.rows, report.used, report.conflicts, report.duplicates), (9, 5, 1, 0));
    let faults = fault_rows(&report);
    for (number, kind, name) in [
        (3, "not an image", "red/notes.txt: it begins with the bytes 6e 6f"),
        (6, "image of zero bytes", "white/empty.png: found 0 bytes"),
        (7, "unreadable image file", "white/link.png: it is a link to a file outside of the folder"),
        (8, "unreadable image file", "white/more: it is a folder"),
    ] {
        let (found, message) = &faults[&number];
        assert!(*found == kind && message.starts_with(name), "{number}: {found}: {message}");
    }
    let (again, _) = read_folder(root.path(), 0);
    assert!(images.held() && !again.held());
    assert_eq!(pixels(&images, &[4, 0, 2]).unwrap(), pixels(&again, &[4, 0, 2]).unwrap());
    assert_eq!(images.row(0).unwrap().content.identity(), images.row(4).unwrap().content.identity());
    fs::copy(root.path().join("red/2.png"), root.path().join("red/0.png")).unwrap();
    let error = pixels(&again, &[1, 0]).unwrap_err();
    assert!(matches!(&error, DataError::Changed { line: 1, .. }), "{error}");
    assert!(error.to_string().contains("red/0.png: it is another image"), "{error}");
}

#[test]
fn a_folder_of_another_shape_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let found = || match data::labels_in(root.path(), &columns(), &task(&[])) {
        Err(DataError::ImageFolder { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(found(), "no folder");
    fs::create_dir(root.path().join("red")).unwrap();
    fs::write(root.path().join("stray.png"), "").unwrap();
    assert_eq!(found(), "\"stray.png\", which is not a folder");
    fs::remove_file(root.path().join("stray.png")).unwrap();
    std::os::unix::fs::symlink(outside.path(), root.path().join("white")).unwrap();
    assert_eq!(found(), "\"white\", a link to a folder outside");
}

#[test]
fn a_file_that_changes_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    fs::copy(fixture("dirty_images.parquet"), &path).unwrap();
    let (images, _) = data::read_holding(&path, &columns(), &cells(), 0).unwrap();
    pixels(&images, &[0]).unwrap();
    let mut content = fs::read(&path).unwrap();
    content.push(0);
    fs::write(&path, content).unwrap();
    assert!(matches!(pixels(&images, &[0]), Err(DataError::Changed { .. })));
}
