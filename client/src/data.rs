//! Labelled text from CSV and JSONL files, and labelled images from Parquet files and folders.
//!
//! A faulty row is left out and reported in the [`DataReport`]; a faulty file is a [`DataError`]. Read in this order:
//! [`error`] (what can be wrong), `sniff` (what kind of file it really is), `csv` and `jsonl` (bounded readers that give
//! raw rows), [`labels`], [`report`], [`rows`] (where the texts are), [`mod@fold`] (when two texts are the same), [`mod@split`], `sample`, [`near`] and [`check`] (a
//! file's quality). For images: [`mod@image`] (bytes to what a network takes), [`parquet`] and `folder` (readers), and
//! [`images`] (the usable ones, in memory or where they are).

pub mod check;
mod columns;
mod csv;
pub mod error;
pub mod fold;
mod folder;
pub mod image;
pub mod images;
mod jsonl;
pub mod labels;
pub mod near;
pub mod parquet;
pub mod report;
pub mod rows;
mod sample;
mod sniff;
pub mod split;
mod suspect;

use std::collections::BTreeMap;
use std::path::Path;

pub use columns::{Columns, Wanted};
pub use error::{DataError, Fault};
pub use images::{ImageColumns, Images};
pub use labels::LabelMap;
pub use report::DataReport;
pub use rows::{HELD_TEXT, Row, Rows};
pub use sample::Sampling;
pub use split::split;

use rows::{Gathering, Repetition, Source, Stamp};

/// The longest text of a row, in bytes; longer ones are a [`Fault::TooLong`].
pub const MAX_TEXT: usize = 64 << 10;

/// A row before its label is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRow {
    /// The text; never empty.
    pub text: String,
    /// The label as it stands in the file, without surrounding white space; `None` where none was asked for.
    pub label: Option<String>,
    /// The group, likewise.
    pub group: Option<String>,
}

/// Calls `each` with the first line and the content of every row in file order; memory does not grow with the file.
///
/// # Errors
/// The file as a whole is unusable: see [`DataError`].
pub fn scan(
    path: &Path,
    wanted: Wanted<'_>,
    each: &mut dyn FnMut(u64, Result<RawRow, Fault>),
) -> Result<(), DataError> {
    scan_places(path, wanted, &mut |place, row| each(place.line, row)).map(|_| ())
}

/// Where a row begins.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Its first line, counted from 1.
    line: u64,
    /// Its first byte in the file.
    start: u64,
}

/// What must be known of a file to read one of its rows again.
#[derive(Debug)]
enum Layout {
    Csv(csv::Layout),
    Jsonl,
}

/// As [`scan`]; gives what it takes to read rows again, and how the file was.
fn scan_places(
    path: &Path,
    wanted: Wanted<'_>,
    each: &mut dyn FnMut(Place, Result<RawRow, Fault>),
) -> Result<(Layout, Stamp), DataError> {
    let sniff::Opened { format, mut file, start } = sniff::open(path)?;
    let metadata = file.get_ref().metadata().map_err(|source| DataError::Read { path: path.into(), source })?;
    let layout = match format {
        sniff::Format::Csv => Layout::Csv(csv::scan(path, &mut file, start, wanted, each)?),
        sniff::Format::Jsonl => {
            jsonl::scan(path, &mut file, start, wanted, each)?;
            Layout::Jsonl
        }
    };
    Ok((layout, metadata.into()))
}

/// Checks every row of a file: gives the usable ones, and reports the others. Texts are held in memory up to
/// [`HELD_TEXT`].
///
/// # Errors
/// The file as a whole is unusable, or no row is.
pub fn read(path: &Path, columns: &Columns, labels: &LabelMap) -> Result<(Rows, DataReport), DataError> {
    read_holding(path, columns, labels, HELD_TEXT)
}

/// As [`read`], with another limit than [`HELD_TEXT`], in bytes. Where the texts are not held the file must not change as
/// long as the rows are used.
///
/// # Errors
/// As [`read`].
pub fn read_holding(
    path: &Path,
    columns: &Columns,
    labels: &LabelMap,
    most: usize,
) -> Result<(Rows, DataReport), DataError> {
    let mut gathering = Gathering::new(most);
    let mut report = DataReport::new(path);
    let (layout, stamp) = scan_places(path, columns.wanted(), &mut |Place { line, start }, row| match row {
        Ok(RawRow { text, label, group }) => {
            let label = label.unwrap_or_default();
            match labels.index(&label) {
                Some(label) => {
                    report.use_row(label);
                    match gathering.add(Row { text, label, line, group }, start) {
                        Repetition::None => {}
                        Repetition::Whole => report.duplicates += 1,
                        Repetition::OtherLabel => report.conflicts += 1,
                    }
                }
                None => report.unknown_label(line, &label, labels),
            }
        }
        Err(fault) => report.fault(line, fault),
    })?;
    if report.rows == 0 {
        return Err(DataError::NoRows { path: path.into() });
    }
    if report.used == 0 {
        return Err(DataError::NoUsableRow { path: path.into(), report: Box::new(report), labels: labels.known() });
    }
    let rows = gathering.of_file(Source { path: path.into(), layout, columns: columns.clone(), stamp })?;
    Ok((rows, report))
}

/// The distinct labels of a file, sorted; rows with a fault are passed over.
///
/// # Errors
/// The file as a whole is unusable, or no row is.
pub fn labels_in(path: &Path, columns: &Columns) -> Result<Vec<String>, DataError> {
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut report = DataReport::new(path);
    scan(path, columns.wanted(), &mut |line, row| match row {
        Ok(row) => {
            // A file whose label column holds free text must not fill the memory.
            if seen.len() < labels::MAX_LABELS || row.label.as_ref().is_some_and(|label| seen.contains_key(label)) {
                *seen.entry(row.label.unwrap_or_default()).or_default() += 1;
            }
            report.rows += 1;
        }
        Err(fault) => report.fault(line, fault),
    })?;
    match (report.rows, seen.len()) {
        (0, _) => Err(DataError::NoRows { path: path.into() }),
        (_, 0) => Err(DataError::NoUsableRow { path: path.into(), report: Box::new(report), labels: Vec::new() }),
        (_, 1) => Err(DataError::OneLabel {
            path: path.into(),
            label: seen.into_keys().next().unwrap_or_default(),
            column: columns.label.clone(),
        }),
        (_, found) if found >= labels::MAX_LABELS => {
            Err(DataError::TooManyLabels { path: path.into(), column: columns.label.clone(), most: labels::MAX_LABELS })
        }
        _ => Ok(seen.into_keys().collect()),
    }
}
