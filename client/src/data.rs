//! Rows to learn from: texts and tables in CSV, JSONL and Parquet files, images in Parquet files and folders.
//!
//! A faulty row is left out and reported in the [`DataReport`]; a faulty file is a [`DataError`]. Read in this order:
//! [`error`] (what can be wrong), [`columns`] (what is read), `sniff` (what kind of file it really is), `csv` and `jsonl`
//! (bounded readers of values), [`parquet`] and `folder` (the same for Parquet and image folders), [`raw`] (rows of values),
//! `decoding` and [`mod@image`] (which images can be used, and what a network takes of them), [`content`] and [`target`] (what a row gives a model and what is
//! learnt of it), [`labels`], [`report`], [`rows`] (where the contents are), [`mod@fold`] (when two texts are the same),
//! [`mod@split`], `sample`, [`near`] and [`check`] (a file's quality), [`mod@survey`] (what the columns of a table hold).

pub mod check;
pub mod columns;
pub mod content;
mod csv;
mod decoding;
pub mod error;
pub mod fold;
mod folder;
pub mod image;
mod jsonl;
pub mod labels;
pub mod near;
pub mod parquet;
pub mod raw;
pub mod report;
pub mod rows;
mod sample;
mod sniff;
pub mod split;
pub mod survey;
mod suspect;
pub mod target;

use std::collections::BTreeSet;
use std::path::Path;

use fedtune_config::job::{Task, TaskKind};

pub use columns::{CellColumn, CellKind, Columns, Renamed};
pub use content::{Cell, Content, Exchange, Picture};
pub use error::{DataError, Fault};
pub use labels::LabelMap;
pub use raw::RawRow;
pub use report::DataReport;
pub use rows::{HELD_IMAGES, HELD_TEXT, Row, Rows};
pub use sample::Sampling;
pub use split::split;
pub use target::{RawLabel, Target, TargetReader, TargetRef};

use decoding::Decoding;
use folder::Listing;
use rows::{Gathering, Repetition, Source, Stamp};

/// The longest text of a row, in bytes; longer ones are a [`Fault::TooLong`].
pub const MAX_TEXT: usize = 64 << 10;

/// The longest cell of a table, in bytes; longer ones are a [`Fault::CellTooLong`].
pub const MAX_CELL: usize = 1 << 10;

/// Most columns of a file that are looked at, and of a table that a model takes.
pub const MAX_COLUMNS: usize = 4096;

/// Calls `each` with the first line (or the number of the row, or of the image in its folder) and the content of every row in
/// file order; memory does not grow with the file.
///
/// # Errors
/// The file as a whole is unusable: see [`DataError`].
pub fn scan(path: &Path, columns: &Columns, each: &mut dyn FnMut(u64, Result<RawRow, Fault>)) -> Result<(), DataError> {
    scan_places(path, columns, &mut |place, row| each(place.line, row)).map(|_| ())
}

/// Where a row begins.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Its first line, counted from 1; the number of the row in a Parquet file, of the image in a folder.
    line: u64,
    /// Its first byte in a file of text.
    start: u64,
}

/// What must be known of a file to read one of its rows again.
#[derive(Debug)]
enum Layout {
    Csv(csv::Layout),
    Jsonl,
    Parquet,
    Folder(Listing),
}

/// As [`scan`]; gives what it takes to read rows again, and how the file was.
fn scan_places(
    path: &Path,
    columns: &Columns,
    each: &mut dyn FnMut(Place, Result<RawRow, Fault>),
) -> Result<(Layout, Stamp), DataError> {
    columns.check(path)?;
    if !columns.content.is_image() {
        return scan_undecoded(path, columns, each);
    }
    let mut decoding = Decoding::new(each);
    let found = scan_undecoded(path, columns, &mut |place, row| decoding.add(place, row))?;
    decoding.finish();
    Ok(found)
}

/// The same, with images that need not be any.
fn scan_undecoded(
    path: &Path,
    columns: &Columns,
    each: &mut dyn FnMut(Place, Result<RawRow, Fault>),
) -> Result<(Layout, Stamp), DataError> {
    let found = sniff::open(path)?;
    let stamp = Stamp::from(std::fs::metadata(path).map_err(|source| DataError::Read { path: path.into(), source })?);
    let layout = match found {
        sniff::Found::Text(_) if columns.content.is_image() => {
            return Err(DataError::NeedsImages { path: path.into() });
        }
        sniff::Found::Text(sniff::Opened { format: sniff::Format::Csv, mut file, start }) => {
            Layout::Csv(csv::scan(path, &mut file, start, columns, each)?)
        }
        sniff::Found::Text(sniff::Opened { format: sniff::Format::Jsonl, mut file, start }) => {
            jsonl::scan(path, &mut file, start, columns, each)?;
            Layout::Jsonl
        }
        sniff::Found::Parquet => {
            parquet::scan(path, columns, each)?;
            Layout::Parquet
        }
        sniff::Found::Folder => Layout::Folder(scan_folder(path, columns, each)?),
    };
    Ok((layout, stamp))
}

fn scan_folder(
    path: &Path,
    columns: &Columns,
    each: &mut dyn FnMut(Place, Result<RawRow, Fault>),
) -> Result<Listing, DataError> {
    if !columns.content.is_image() {
        return Err(DataError::Folder { path: path.into() });
    }
    if let Some(column) = &columns.group {
        return Err(DataError::FolderGroup { path: path.into(), column: column.clone() });
    }
    let listing = Listing::of(path, columns.label.is_some())?;
    for line in 1..=listing.len() as u64 {
        let label = listing.label(line).map(Into::into);
        let row = listing.picture(line).and_then(|content| raw::labelled(columns, content, label, None));
        each(Place { line, start: 0 }, row);
    }
    Ok(listing)
}

/// Checks every row of a file: gives the usable ones, and reports the others. Contents are held in memory up to
/// [`HELD_TEXT`], images up to [`HELD_IMAGES`].
///
/// # Errors
/// The file as a whole is unusable, or no row is.
pub fn read(path: &Path, columns: &Columns, targets: &TargetReader) -> Result<(Rows, DataReport), DataError> {
    let most = if columns.content.is_image() { HELD_IMAGES } else { HELD_TEXT };
    read_holding(path, columns, targets, most)
}

/// As [`read`], with another limit than [`HELD_TEXT`] or [`HELD_IMAGES`], in bytes. Where the contents are not held the file must not change as
/// long as the rows are used.
///
/// # Errors
/// As [`read`].
pub fn read_holding(
    path: &Path,
    columns: &Columns,
    targets: &TargetReader,
    most: usize,
) -> Result<(Rows, DataReport), DataError> {
    let mut gathering = Gathering::new(most);
    let mut report = DataReport::new(path);
    let (layout, stamp) = scan_places(path, columns, &mut |Place { line, start }, row| {
        let target = |row: RawRow| targets.read(row.label, &row.content).map(|target| (target, row.content, row.group));
        match row.and_then(target) {
            Ok((target, content, group)) => {
                report.use_row(target.borrowed());
                report.words(columns, &content);
                match gathering.add(Row { content, target, line, group }, start) {
                    Repetition::None => {}
                    Repetition::Whole => report.duplicates += 1,
                    Repetition::OtherTarget => report.conflicts += 1,
                }
            }
            Err(Fault::UnknownLabel { label }) => report.unknown_label(line, &label, targets.labels()),
            Err(fault) => report.fault(line, fault),
        }
    })?;
    if report.rows == 0 {
        return Err(DataError::NoRows { path: path.into() });
    }
    if report.used == 0 {
        let labels = targets.labels().known();
        return Err(DataError::NoUsableRow { path: path.into(), report: Box::new(report), labels });
    }
    let rows = gathering.of_file(Source { path: path.into(), layout, columns: columns.clone(), stamp })?;
    Ok((rows, report))
}

/// The distinct labels of a file, sorted, as a task of this kind would read them; rows with a fault are passed over. Those of
/// a Parquet file with names of classes are these, in their order. None for kinds without labels.
///
/// # Errors
/// The file as a whole is unusable, or no row is.
pub fn labels_in(path: &Path, columns: &Columns, task: &Task) -> Result<Vec<String>, DataError> {
    if !task.kind.has_labels() {
        return Ok(Vec::new());
    }
    if let Some(names) = named_labels(path, columns)? {
        return Ok(names);
    }
    let separator = target::separator(task);
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut report = DataReport::new(path);
    scan_undecoded(path, columns, &mut |Place { line, .. }, row| match row {
        Ok(RawRow { label, .. }) => {
            let names = match (task.kind, label) {
                (_, None) => Vec::new(),
                (kind, Some(RawLabel::One(name))) if kind.has_one_label() => vec![name],
                (_, Some(label)) => target::names(label, separator),
            };
            for name in names {
                // A file whose label column holds free text must not fill the memory.
                if seen.len() < labels::MAX_LABELS {
                    seen.insert(name);
                }
            }
            report.rows += 1;
        }
        Err(fault) => report.fault(line, fault),
    })?;
    let column = columns.label_name();
    match (report.rows, seen.len()) {
        (0, _) => Err(DataError::NoRows { path: path.into() }),
        (_, 0) => Err(DataError::NoUsableRow { path: path.into(), report: Box::new(report), labels: Vec::new() }),
        (_, 1) if task.kind != TaskKind::MultiLabelClassification => {
            Err(DataError::OneLabel { path: path.into(), label: seen.into_iter().next().unwrap_or_default(), column })
        }
        (_, found) if found >= labels::MAX_LABELS => {
            Err(DataError::TooManyLabels { path: path.into(), column, most: labels::MAX_LABELS })
        }
        _ => Ok(seen.into_iter().collect()),
    }
}

/// The names that a Parquet file's metadata has for the numbers in the label column, or those of the folders of images, where
/// there are two or more.
fn named_labels(path: &Path, columns: &Columns) -> Result<Option<Vec<String>>, DataError> {
    let names = match (sniff::open(path)?, &columns.label) {
        (sniff::Found::Parquet, Some(label)) => parquet::class_names(path, &label.name)?,
        (sniff::Found::Folder, Some(_)) if columns.content.is_image() => Some(Listing::of(path, true)?.into_labels()),
        _ => None,
    };
    Ok(names.filter(|names| (2..labels::MAX_LABELS).contains(&names.len())))
}

/// The names of all columns of a file, in their order; of a JSONL file the keys of its first object.
///
/// # Errors
/// The file as a whole is unusable, is a folder, or has more than [`MAX_COLUMNS`].
pub fn column_names(path: &Path) -> Result<Vec<String>, DataError> {
    let names = match sniff::open(path)? {
        sniff::Found::Text(sniff::Opened { format: sniff::Format::Csv, file, start }) => csv::names(path, file, start)?,
        sniff::Found::Text(sniff::Opened { file, .. }) => jsonl::names(path, file)?,
        sniff::Found::Parquet => parquet::names(path)?,
        sniff::Found::Folder => return Err(DataError::Folder { path: path.into() }),
    };
    match names.len() {
        found if found > MAX_COLUMNS => Err(DataError::TooManyColumns { path: path.into(), found, most: MAX_COLUMNS }),
        _ => Ok(names),
    }
}

/// Whether it is a folder, or a Parquet file with images in a column of this name.
///
/// # Errors
/// The file as a whole is unusable.
pub fn holds_images(path: &Path, column: &str) -> Result<bool, DataError> {
    match sniff::open(path)? {
        sniff::Found::Folder => Ok(true),
        sniff::Found::Parquet => parquet::holds_images(path, column),
        sniff::Found::Text(_) => Ok(false),
    }
}
